"""Where results go: a similarity matrix to a file by its ending, a folder of results as a whole or not at all."""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..compare.matrix import SimilarityMatrix
from ..files import writable, write_atomically

PICTURES = (".png", ".pdf", ".svg")
MATRICES = (*PICTURES, ".csv", ".json", ".safetensors")
MATRIX_FORMAT = "simkit similarity matrix 1"


def check_output(
    path: str | os.PathLike[str],
    *,
    inputs: Sequence[str | os.PathLike[str]] = (),
    endings: Sequence[str] = MATRICES,
) -> None:
    """Refuse, before any work is done, a file that :func:`write_matrix` could not write.

    Raises:
        ValueError: an unknown ending, or one of ``inputs``, which it would replace. OSError: as
            :func:`simkit.files.writable`. ImportError: a picture without matplotlib.
    """
    file = Path(path)
    if file.suffix.lower() not in endings:
        raise ValueError(f"the output {os.fspath(path)!r} must end in {', '.join(endings)}")
    writable(file)
    if file.exists() and any(Path(given).exists() and file.samefile(given) for given in inputs):
        raise ValueError(f"the output {str(file)!r} is one of the files to compare: name another")
    if file.suffix.lower() in PICTURES and find_spec("matplotlib") is None:
        raise ImportError("plots need matplotlib: pip install 'simkit[plot]'")


def output_argument(*endings: str) -> Callable[[str], str]:
    """The argparse type of a file to write that has one of the ``endings``: refused before any work is done."""

    def output(text: str) -> str:
        try:
            check_output(text, endings=endings)
        except (ValueError, OSError, ImportError) as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return text

    return output


def write_matrix(matrix: SimilarityMatrix, path: str | os.PathLike[str]) -> None:
    """Write a matrix as a picture, CSV, JSON or safetensors, by the ending of ``path``; atomic."""
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix in PICTURES:
        matrix.plot(file)
    elif suffix == ".csv":
        matrix.to_csv(file)
    elif suffix == ".json":
        write_atomically(file, as_json(matrix_as_data(matrix)))
    else:
        matrix.save(file)


def matrix_as_data(matrix: SimilarityMatrix) -> dict[str, Any]:
    """The matrix as plain data: NaN is None, ``degenerate`` a list of side, name and reason."""
    return {
        "format": MATRIX_FORMAT,
        "measure": matrix.measure,
        "samples": matrix.samples,
        "rows": list(matrix.rows),
        "columns": list(matrix.columns),
        "values": [[None if math.isnan(value) else value for value in row] for row in matrix.values.tolist()],
        "degenerate": [
            {"side": side, "name": name, "reason": reason} for (side, name), reason in matrix.degenerate.items()
        ],
        "plan": {"steps": [asdict(step) for step in matrix.plan.steps], "notes": list(matrix.plan.notes)},
    }


def as_json(data: dict[str, Any]) -> bytes:
    """Strict JSON, indented, with a final newline."""
    return (json.dumps(data, indent=1, allow_nan=False) + "\n").encode()


@contextmanager
def staged(out: str | os.PathLike[str], *, ours: Callable[[Path], bool]) -> Iterator[Path]:
    """A folder to write results to, whose files move into ``out`` when the block ends well, and vanish otherwise.

    ``out`` may be new, empty, or hold earlier results, as ``ours`` says: those are replaced, file by file.

    Raises:
        ValueError: ``out`` is a file, or holds something else. OSError: it cannot be made or written to.
    """
    target = Path(out)
    _refuse_foreign(target, ours)
    new = not target.exists()
    target.mkdir(parents=True, exist_ok=True)
    stage = target / f"{_STAGE}{os.getpid()}"
    try:
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir()
        yield stage
        for file in sorted(path for path in stage.rglob("*") if path.is_file()):
            place = target / file.relative_to(stage)
            place.parent.mkdir(exist_ok=True)
            file.replace(place)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if new and not any(target.iterdir()):
            target.rmdir()


_STAGE = ".simkit-unfinished-"


def _refuse_foreign(target: Path, ours: Callable[[Path], bool]) -> None:
    if target.exists() and not target.is_dir():
        raise ValueError(f"the output {str(target)!r} is a file, not a folder")
    found = [] if not target.exists() else [path.name for path in target.iterdir() if not path.name.startswith(_STAGE)]
    if found and not ours(target):
        raise ValueError(
            f"the folder {str(target)!r} holds something else, such as {min(found)!r}: name a new or an empty one"
        )
