"""The benchmarks of the source tree, run in a process of their own, and their tables."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from ..backends.cuda_device import device_report
from ..files import writable, write_atomically

# `python -m pytest` would put the clone first on the path, and simkit's source before what is installed.
PYTEST = "import sys; del sys.path[0]; import pytest; sys.exit(pytest.console_main())"
SOURCE = "they come with simkit's source, not with its wheel: run this in a clone of it, or name the folder"


def bench(
    folder: str | os.PathLike[str],
    *,
    full: bool,
    select: str | None,
    out: str | os.PathLike[str] | None,
    gpu: bool = False,
) -> str:
    """Run the benchmarks in ``folder`` and return their tables as Markdown; the record stays in ``out``, if named.

    ``gpu`` runs those of its folder ``gpu`` instead, on the CUDA device.

    Raises:
        ValueError: the folder holds no benchmarks, none is selected, no device is seen, or an answer was wrong.
        OSError: ``out`` cannot be made, or written to.
    """
    where = Path(folder)
    package = where / "gpu" if gpu else where
    if not (package / "table.py").is_file():
        raise ValueError(f"the folder {str(where)!r} holds no {'GPU ' * gpu}benchmarks: {SOURCE}")
    if gpu and not device_report()[1]:
        raise ValueError(f"the GPU benchmarks need a CUDA device: {device_report()[2]}")
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
        writable(Path(out) / "record.json")  # said now, not after minutes of work
    with tempfile.TemporaryDirectory() as temporary:
        record = _run(package, Path(temporary), full=full, select=select, gpu=gpu)
        if out is not None:
            write_atomically(Path(out) / record.name, record.read_bytes())
        return _tables(package, record, where)


def _run(package: Path, records: Path, *, full: bool, select: str | None, gpu: bool) -> Path:
    """Run them by pytest; what they recorded."""
    command = [sys.executable, "-c", PYTEST, "-q", "--record", str(records), "--override-ini", "addopts="]
    command += ["-p", "no:cacheprovider", "--import-mode=importlib", "-m", f"not slow and {'' if gpu else 'not '}gpu"]
    command += ["--full"] * full + (["-k", select] if select else [])
    # Workers of OpenBLAS would otherwise spin after each product and take a core from the next contestant.
    environment = os.environ | {"OPENBLAS_THREAD_TIMEOUT": "10"}
    # Progress to stderr: stdout holds the tables alone.
    root = (package.parent if gpu else package).resolve().parent
    done = subprocess.run([*command, str(package.resolve())], cwd=root, env=environment, stdout=2, check=False)
    if done.returncode == 5:
        none = f"no benchmark has {select!r} in its name"
        raise ValueError(none if select else f"the folder {str(package)!r} holds no benchmarks")
    if done.returncode:
        raise ValueError(f"the benchmarks ended with code {done.returncode}: see above")
    found = sorted(records.glob("*.json"))
    if not found:
        raise ValueError(f"the benchmarks selected by {select!r} record nothing")
    return found[-1]


def _tables(package: Path, record: Path, where: Path) -> str:
    """The tables of one record, by the package's own script."""
    root = where.resolve().parent
    module = ".".join((*package.resolve().relative_to(root).parts, "table"))
    command = [sys.executable, "-m", module, "--show", str(record)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.rstrip()
