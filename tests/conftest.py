"""Refuses to test a simkit without its compiled module; decides what `gpu` tests do where no device is seen."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import Run
from needed import NOT_TESTED, must

import simkit
from simkit import cli
from simkit.backends import cuda_device, native_cpu
from simkit.backends.base import OPS


def pytest_configure() -> None:
    """Without the check every test would run on the NumPy reference, and pass."""
    if os.environ.pop("PYTEST_XDIST_WORKER", None):  # which a pytest that a test starts would take for its own
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # one processor for each process
    reasons = native_cpu.unsupported_reasons(OPS[0])
    if reasons:
        raise pytest.UsageError(
            f"the simkit under test, {Path(simkit.__file__).parent}, has no compiled module: run `pip install .` "
            f"and then `pytest`, not `python -m pytest`, which puts the source tree first ({'; '.join(reasons)})"
        )


def pytest_report_header() -> str:
    """Which copy is tested."""
    return f"simkit: {Path(simkit.__file__).parent}"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test marked `gpu` is skipped without a device, and fails instead where a device is required."""
    if item.get_closest_marker("gpu") is None:
        return
    _, devices, reason = cuda_device.device_report()
    if not devices:
        must(f"no CUDA device is seen: {reason}")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What was skipped though a GPU is required, where nobody overlooks it: a skip reads as a pass."""
    skipped = [(report.nodeid, str(report.longrepr[2])) for report in terminalreporter.stats.get("skipped", [])]
    missing = [f"{where}: {why.removeprefix('Skipped: ')}" for where, why in skipped if NOT_TESTED in why]
    if missing:
        terminalreporter.section(f"{len(missing)} {NOT_TESTED}", red=True, bold=True)
        for line in missing:
            terminalreporter.write_line(f"NOT TESTED {line.replace(f'{NOT_TESTED}: ', '')}")


@pytest.fixture
def run_simkit(capsys: pytest.CaptureFixture[str]) -> Run:
    """``run_simkit(*arguments)`` -> (exit code, stdout, stderr) of the command line, in this process."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch on one thread: networks as small as those of tests are slower on more, and sums keep their order."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def seeded_torch() -> Iterator[None]:
    """Torch with seed 0 and on one thread: networks drawn in a test do not depend on what ran before."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests run in an empty folder: `python -c` in the source tree would import simkit from there, uncompiled."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    yield
    os.chdir(before)
