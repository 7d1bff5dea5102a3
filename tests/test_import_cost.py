"""`import simkit` is cheap: it loads no framework, and takes little time beyond NumPy's and SciPy's."""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process
HEAVY = {"torch", "pydantic", "matplotlib", "sklearn", "cupy", "numba", "tqdm", "pandas", "jax"}
BUDGET = 0.15  # seconds of the processor: other work on the machine does not count
WAITED = 10 * BUDGET  # seconds on the wall: waiting costs no processor, and a busy machine has its part in it
RUNS = 7

LIST = "import sys, simkit; print(*sys.modules)"
CLOCK = """
import importlib, sys, time
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError:  # a part of SciPy that only its package may import
        pass
processor, wall = time.process_time(), time.perf_counter()
import simkit
print(time.process_time() - processor, time.perf_counter() - wall)
"""


def _python(folder: Path, code: str, *arguments: str) -> str:
    # Not in the source tree: `python -c` would take simkit from there.
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True, cwd=folder
    ).stdout


def test_import_loads_no_framework(tmp_path: Path) -> None:
    loaded = {name.partition(".")[0] for name in _python(tmp_path, LIST).split()}
    assert "simkit" in loaded
    assert not loaded & HEAVY


def test_import_is_fast(tmp_path: Path) -> None:
    names = _python(tmp_path, LIST).split()
    theirs = [name for name in names if name.partition(".")[0] in ("numpy", "scipy")]
    runs = [[float(word) for word in _python(tmp_path, CLOCK, *theirs).split()] for _ in range(RUNS)]
    processor, wall = zip(*runs, strict=True)
    assert statistics.median(processor) <= BUDGET, processor
    assert min(wall) <= WAITED, wall
