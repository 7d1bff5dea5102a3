"""The cases that a device repeats and racecheck runs: between them they are every op and every program."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_cases import There, see_device
from device_cases import CASES
from emulated_device import compile_all, forget_programs, module, programs_run

from simkit.backends.base import OPS

CUDA = Path(__file__).parents[1] / "csrc" / "cuda"


def programs() -> set[str]:
    """The structs of csrc/cuda that have steps."""
    found = set()
    for path in CUDA.glob("*.hpp"):
        name = ""
        for line in path.read_text(encoding="utf-8").splitlines():
            if begins := re.match(r"struct (?:alignas\(\d+\) )?(\w+)", line):
                name = begins[1]
            elif re.match(r"    SIMKIT_BOTH bool step\(", line):
                found.add(name)
    return found


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return compile_all(tmp_path_factory.getbasetemp()) or pytest.skip("there is no C++ compiler")


def test_they_run_every_op_and_every_program(libraries: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """On the emulator, at the size that racecheck takes: each twice with the same bits."""
    assert {case.op for case in CASES.values()} == set(OPS)
    see_device(monkeypatch, module(libraries, capability=(8, 0)))
    forget_programs(libraries)  # other tests of this process may have run them
    for name, case in CASES.items():
        run = case.make(There, "small")
        answers = run()
        assert answers, name
        numbers = [a for a in answers if a.dtype.kind == "f" and a.size]
        assert not any(np.isinf(a).any() or np.isnan(a).all() for a in numbers), name
        assert [a.tobytes() for a in answers] == [a.tobytes() for a in run()], name
    wanted = programs()
    assert len(wanted) > 60
    assert wanted - programs_run(libraries) == set()


@pytest.mark.slow
def test_the_tests_of_all_backends_pass_on_the_emulator(
    libraries: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Those of the golden values, of greedy orders and of graphs, so that a device fails none for reasons of a test."""
    here, folder = Path(__file__).parent, Path(libraries[0]._name).parent
    files = [str(here / f"test_{name}.py") for name in ("golden", "greedy", "filter_graph", "gpu_ops")]
    options = ["-p", "rehearsal", "-p", "no:cacheprovider", "-q", "-m", "gpu", "-k", "not twenty_times"]
    paths = os.pathsep.join([str(here / "support"), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", str(here.parent / "pyproject.toml"), *options, *files],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path_factory.mktemp("rehearsal"),
        env=os.environ | {"PYTHONPATH": paths, "SIMKIT_EMULATORS": str(folder)},
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"^\d{3} passed", done.stdout, re.MULTILINE)


def test_the_page_of_the_kernels_names_every_program() -> None:
    """In the table of bytes and operations."""
    page = (CUDA / "README.md").read_text(encoding="utf-8")
    table = page[page.index("## Kernels: bytes") : page.index("### Floors of the workloads")]
    first = [line.split("|")[1] for line in table.splitlines() if line.startswith("| ")]
    named = {name for cell in first for name in re.findall(r"`(\w+)`", cell)}
    assert programs() - named == set()
    assert {name for name in named if name[0].isupper()} - programs() == set()
