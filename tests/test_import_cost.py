"""`import simkit` is cheap: it loads no framework, and takes little time beyond NumPy's and SciPy's."""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

HEAVY = {"torch", "pydantic", "matplotlib", "sklearn", "cupy", "numba", "tqdm", "pandas", "jax"}
BUDGET = 0.15  # seconds of the processor: other work on the machine does not count
RUNS = 7

LIST = "import sys, simkit; print(*sys.modules)"
CLOCK = """
import importlib, sys, time
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError:  # a part of SciPy that only its package may import
        pass
start = time.process_time()
import simkit
print(time.process_time() - start)
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
    seconds = [float(_python(tmp_path, CLOCK, *theirs)) for _ in range(RUNS)]
    assert statistics.median(seconds) <= BUDGET, seconds
