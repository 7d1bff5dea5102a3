"""W10: how long `import simkit` and `simkit --help` take, in fresh processes."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest

from .machine import PACKAGES
from .protocol import Missing
from .rivals import package

TIMED = (
    "import sys, time\nimport {before}\nstart = time.perf_counter()\nimport {name}\nprint(time.perf_counter() - start)"
)
LOADED = "import sys, simkit\nprint(*[name for name in ('torch', 'pydantic', 'matplotlib') if name in sys.modules])"
RIVALS = ("cka", "torch_cka", "ckatorch", "rsatoolbox")


def test_w10_import(
    benchmark: Any, full: bool, keep: Callable[[dict[str, Any]], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing heavy is loaded; the times are medians of fresh processes, beside the rivals'."""
    monkeypatch.chdir(tmp_path)  # the installed simkit, not a source tree in the current folder
    assert _python(LOADED).split() == []
    rounds = 1 if benchmark.disabled else 7 if full else 3
    own, beyond = ([_import_seconds("simkit", before) for _ in range(rounds)] for before in ("sys", "numpy"))
    benchmark.pedantic(_import_seconds, args=("simkit",))
    shown = [] if benchmark.disabled else [_help_seconds() for _ in range(rounds)]
    rows = [_row("import simkit", own), _row("import simkit, beyond NumPy", beyond)]
    if shown:
        rows.append(_row("simkit --help", shown))
        for name in RIVALS:
            found = package(name)
            if isinstance(found, Missing):
                rows.append({"name": f"import {name} ({PACKAGES[name]})", "missing": found.reason})
            else:
                rows.append(_row(f"import {name} ({PACKAGES[name]})", [_import_seconds(name) for _ in range(rounds)]))
    keep({"kind": "import", "key": "W10", "title": "seconds to import, NumPy and all", "rows": rows})


def _row(name: str, seconds: list[float]) -> dict[str, Any]:
    return {"name": name, "seconds": statistics.median(seconds), "samples": len(seconds)}


def _import_seconds(name: str, before: str = "sys") -> float:
    return float(_python(TIMED.format(before=before, name=name)))


def _help_seconds() -> float:
    start = perf_counter()
    done = subprocess.run([sys.executable, "-m", "simkit", "--help"], capture_output=True, check=False)
    seconds = perf_counter() - start
    if done.returncode:
        pytest.fail(f"`simkit --help` ended with {done.returncode}")
    return seconds


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()
