"""The device of a measurement, by stand-ins on the host: its absence, its clock, replayed steps."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ..protocol import Missing
from . import conftest, test_g2_greedy
from .device import Cuda, Rehearsal, array_library, driver_version


def test_where_a_device_is_required_its_absence_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise it skips, and both say why."""
    item: Any = SimpleNamespace(get_closest_marker=lambda name: name == "gpu" or None)
    monkeypatch.setattr(conftest, "no_device", lambda: "no CUDA device is seen: none")
    monkeypatch.delenv("SIMKIT_REQUIRE_GPU", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no CUDA device is seen: none"):
        conftest.pytest_runtest_setup(item)
    monkeypatch.setenv("SIMKIT_REQUIRE_GPU", "1")
    with pytest.raises(pytest.fail.Exception, match="SIMKIT_REQUIRE_GPU=1, but no CUDA device is seen: none"):
        conftest.pytest_runtest_setup(item)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_what_is_asked_of_a_machine_without_a_device() -> None:
    """Reasons, not errors: of the device, of CuPy, of the driver's version."""
    assert conftest.no_device()
    assert isinstance(driver_version(), str)
    library = array_library(Rehearsal())
    assert not isinstance(library, Missing)
    assert library.half_gram(np.ones((2, 3))).tolist() == [[3, 0], [3, 3]]
    assert library.array(torch.ones(2)).tolist() == [1, 1]


def test_the_device_is_timed_by_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for torch's: what is recorded when, what is waited for, and which clock says what."""
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("record")

        def elapsed_time(self, _other: Any) -> float:
            return 1500.0

    about = SimpleNamespace(
        name="a device", major=9, minor=0, multi_processor_count=4, total_memory=2**33, L2_cache_size=2**27
    )
    made: list[int] = []
    empty = torch.empty
    stands = SimpleNamespace(
        Event=Event,
        synchronize=lambda: log.append("wait"),
        current_device=lambda: 0,
        get_device_properties=lambda _: about,
        empty_cache=lambda: log.append("forget"),
    )
    monkeypatch.setattr(torch, "cuda", stands)
    monkeypatch.setattr(torch, "empty", lambda size, **_: made.append(size) or empty(size // 2**16, dtype=torch.uint8))
    device = Cuda()
    assert made == [2**29]  # four times the cache
    timed = device.timed(lambda: log.append("call") or 7)
    assert log == ["wait", "record", "call", "record", "wait"]
    assert (timed.answer, timed.events) == (7, 1.5)
    assert 0 < timed.wall < 1
    device.flush()
    device.forget()
    told = device.describe()
    assert (told["name"], told["capability"], told["memory_gib"], told["l2_mib"]) == ("a device", "9.0", 8.0, 128.0)


def test_steps_on_a_device_are_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph's stand-in takes back what ran while it was captured, as a device would not have run it."""
    ran: list[int] = []

    class Graph:
        def capture_begin(self) -> None:
            self.before = len(ran)

        def capture_end(self) -> None:
            del ran[self.before :]

        def replay(self) -> None:
            ran.append(1)

    stream = SimpleNamespace(wait_stream=lambda _: None, synchronize=lambda: None)
    stands = {"Stream": lambda: stream, "current_stream": lambda: stream, "stream": lambda _: nullcontext()}
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(CUDAGraph=Graph, **stands))
    for count in (1, 3, 4, 20):
        ran.clear()
        test_g2_greedy.repeat(lambda: ran.append(0), count, SimpleNamespace(real=True))
        assert ran == [0] * min(count, 3) + [1] * max(0, count - 3)
