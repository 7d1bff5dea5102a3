"""Where a GPU is required nothing that is missing passes in silence."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import needed
import pytest


@pytest.fixture(params=["", "1"])
def required(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setenv(needed.REQUIRE_GPU, request.param)
    return bool(request.param)


def test_torch_is_a_must(required: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """None at all, and one that sees no device."""
    stand_in = SimpleNamespace(__version__="9", cuda=SimpleNamespace(is_available=lambda: False))
    for torch, said in ((None, "torch is not installed"), (stand_in, "torch 9 sees no CUDA device")):
        monkeypatch.setitem(sys.modules, "torch", torch)
        expected: Any = pytest.fail.Exception if required else pytest.skip.Exception
        with pytest.raises(expected, match=f"^{'SIMKIT_REQUIRE_GPU=1, but ' if required else ''}{said}"):
            needed.torch_on_gpu()


def test_cupy_is_told_of(required: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(pytest.skip.Exception, match=f"^{needed.NOT_TESTED if required else 'CuPy is not installed'}"):
        needed.cupy_on_gpu()


def test_the_end_of_a_run_tells_of_it(pytestconfig: pytest.Config) -> None:
    """Of these skips alone."""
    plugins = pytestconfig.pluginmanager.get_plugins()
    tell = next(plugin.pytest_terminal_summary for plugin in plugins if getattr(plugin, "must", None) is needed.must)
    lines: list[str] = []
    skipped = [
        SimpleNamespace(nodeid="a.py::b", longrepr=("a.py", 3, f"Skipped: {needed.NOT_TESTED}: CuPy is not installed")),
        SimpleNamespace(nodeid="a.py::c", longrepr=("a.py", 9, "Skipped: no data")),
    ]
    reporter = SimpleNamespace(
        stats={"skipped": skipped}, section=lambda title, **_: lines.append(title), write_line=lines.append
    )
    tell(reporter)
    assert lines == [f"1 {needed.NOT_TESTED}", "NOT TESTED a.py::b: CuPy is not installed"]
    lines.clear()
    reporter.stats = {"skipped": skipped[1:]}
    tell(reporter)
    assert lines == []
