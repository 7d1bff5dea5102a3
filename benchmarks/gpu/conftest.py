"""The device or its rehearsal, the `gpu_measure` fixture, and one JSON file a run, written after every workload."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from simkit.backends.cuda_device import device_report

from ..conftest import COMMIT, RESULTS, results_folder
from ..machine import describe_machine, versions
from ..protocol import Missing
from .table import FORMAT

if TYPE_CHECKING:
    from .device import Device
    from .protocol import Contestant, Workload

SIDE, SMALL_SIDE, REHEARSED_SIDE = 8192, 2048, 96
REHEARSED_ROUNDS = 2
RUN = pytest.StashKey[list[dict[str, Any]]]()
STARTED = pytest.StashKey[datetime]()
MACHINE = pytest.StashKey[dict[str, Any]]()
Measure: TypeAlias = Callable[["Workload", "Contestant", Sequence["Contestant | Missing"]], dict[str, Any]]

collect_ignore_glob = ["test_*.py"] if importlib.util.find_spec("torch") is None else []


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RUN] = []
    config.stash[STARTED] = datetime.now(timezone.utc)


def no_device() -> str:
    """Why nothing can be measured here; empty where a device is seen by simkit and by torch."""
    import torch

    _, devices, reason = device_report()
    if not devices:
        return f"no CUDA device is seen: {reason}"
    return "" if torch.cuda.is_available() else "torch sees no CUDA device: the rivals and the references are its"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """What is marked `gpu` is skipped without a device, and fails instead where a device is required."""
    if item.get_closest_marker("gpu") is None:
        return
    reason = no_device()
    if reason and os.environ.get("SIMKIT_REQUIRE_GPU") == "1":
        pytest.fail(f"SIMKIT_REQUIRE_GPU=1, but {reason}")
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="session", params=[pytest.param("gpu", marks=pytest.mark.gpu), "rehearsal"])
def device(request: pytest.FixtureRequest) -> Device:
    """The CUDA device; or the host, for a rehearsal at tiny sizes, which is recorded nowhere."""
    from .device import Cuda, Rehearsal

    if request.param == "gpu":
        return Cuda()
    if results_folder(request.config) is not None:
        pytest.skip("a rehearsal is no measurement: it runs where nothing is recorded")
    return Rehearsal()


@pytest.fixture
def at_full_size(device: Device, full: bool) -> bool:
    """Whether the workload has its full size: on a device, with ``--full``."""
    return device.real and full


@pytest.fixture
def gpu_measure(device: Device, full: bool, pytestconfig: pytest.Config) -> Measure:
    """Check every answer, then time all contestants in turn; returns and records the ratios."""
    from .products import product_errors
    from .protocol import measure

    side = (SIDE if full else SMALL_SIDE) if device.real else REHEARSED_SIDE

    def run(workload: Workload, simkit: Contestant, rivals: Sequence[Contestant | Missing] = ()) -> dict[str, Any]:
        if device.real and MACHINE not in pytestconfig.stash:
            errors = product_errors(device, side)
            seen = {"device": device.describe(), "seen_by_simkit": device_report()[1]}
            pytestconfig.stash[MACHINE] = seen | {"product_errors": errors, "side": side}
        if device.real:
            result = measure(device, workload, simkit, rivals, side=side)
        else:
            with one_thread():
                result = measure(device, workload, simkit, rivals, side=side, rounds=REHEARSED_ROUNDS)
            failed = [row for row in result["contestants"] if "failure" in row]
            assert not failed, "a rival that fails on the host would fail on a device"
        assert result["contestants"][0]["backend"], "simkit's contestant hands on no plan"
        result["full"] = device.real and full
        if device.real:
            keep(pytestconfig, result)
        return result

    return run


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one: a rehearsal's arrays are too small for more."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keep(config: pytest.Config, result: dict[str, Any]) -> None:
    """Add a result to this run's record and write it, should the run be ended before its last workload."""
    config.stash[RUN].append(result)
    folder, when = results_folder(config), config.stash[STARTED]
    if folder is not None:
        run = run_record(config.stash[MACHINE], config.stash[RUN], config.stash[COMMIT], when)
        write_run(folder / "gpu" if folder == RESULTS else folder, run, when)


def run_record(machine: dict[str, Any], results: list[dict[str, Any]], commit: str, when: datetime) -> dict[str, Any]:
    """One run as plain data."""
    return {
        "format": FORMAT,
        "date": when.strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit,
        **machine,
        "machine": describe_machine(),
        "versions": versions(),
        "results": results,
    }


def write_run(folder: Path, run: dict[str, Any], when: datetime) -> Path:
    """Write a run's JSON beside those before it."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"gpu-{when:%Y%m%d-%H%M%S}.json"
    temporary = target.with_suffix(".tmp")
    temporary.write_text(json.dumps(run, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(target)
    return target


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The tables of what was measured."""
    from . import table

    if config.stash[RUN]:
        run = run_record(config.stash[MACHINE], config.stash[RUN], config.stash[COMMIT], config.stash[STARTED])
        terminalreporter.section("GPU", sep="-")
        terminalreporter.write_line(table.render(table.by_key(run)))
