"""The benchmarks of the source tree, run in a process of their own, and their tables."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from ..files import writable, write_atomically


def bench(folder: str | os.PathLike[str], *, full: bool, select: str | None, out: str | os.PathLike[str] | None) -> str:
    """Run the benchmarks in ``folder`` and return their tables as Markdown; the record stays in ``out``, if named.

    Raises:
        ValueError: the folder holds no benchmarks, none is selected, or an answer was wrong. OSError: ``out`` cannot be
            made, or written to.
    """
    where = Path(folder)
    if not (where / "table.py").is_file():
        raise ValueError(f"the folder {str(where)!r} holds no benchmarks: run this in a clone of simkit's source")
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
        writable(Path(out) / "record.json")  # said now, not after minutes of work
    with tempfile.TemporaryDirectory() as temporary:
        records = Path(temporary)
        command = [sys.executable, "-m", "pytest", "-q", "--record", str(records), "--override-ini", "addopts="]
        command += ["-p", "no:cacheprovider", "--import-mode=importlib", "-m", "not slow and not gpu"]
        command += ["--full"] * full + (["-k", select] if select else [])
        # Workers of OpenBLAS would otherwise spin after each product and take a core from the next contestant.
        environment = os.environ | {"OPENBLAS_THREAD_TIMEOUT": "10"}
        # Progress to stderr: stdout holds the tables alone.
        done = subprocess.run(
            [*command, where.name], cwd=where.resolve().parent, env=environment, stdout=2, check=False
        )
        if done.returncode == 5:
            none = f"no benchmark has {select!r} in its name"
            raise ValueError(none if select else f"the folder {str(where)!r} holds no benchmarks")
        if done.returncode:
            raise ValueError(f"the benchmarks ended with code {done.returncode}: see above")
        found = sorted(records.glob("*.json"))
        if not found:
            raise ValueError(f"the benchmarks selected by {select!r} record nothing")
        if out is not None:
            write_atomically(Path(out) / found[-1].name, found[-1].read_bytes())
        shown = [sys.executable, "-m", f"{where.name}.table", "--show", str(found[-1])]
        done = subprocess.run(shown, cwd=where.resolve().parent, capture_output=True, text=True, check=True)
        return done.stdout.rstrip()
