"""Files of named representations, compared: mapped into memory where the format allows; nothing is unpickled."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from ..arrays import Matrix, as_matrix, same_samples
from ..compare.matrix import SimilarityMatrix, similarity_matrix
from ..errors import TooLittleMemory
from ..metrics.measure import Measure
from ..metrics.prepare import checked_stats

_STORED = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "<i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "<u1",
    "BOOL": "?",
}
"""What safetensors calls an element type -> what NumPy calls it."""

_RESULTS = {
    "simkit.SimilarityMatrix.1": "a saved SimilarityMatrix (SimilarityMatrix.load reads it)",
    "simkit.PrunedModel.3": "a model saved by simkit.pruning.save (simkit.pruning.load reads it)",
}
"""Formats that simkit itself writes as safetensors, and what they hold instead of features."""


def compare_files(
    paths: Sequence[str | os.PathLike[str]], *, measure: Measure, memory: int | float | str | None = None
) -> SimilarityMatrix:
    """Similarity of the arrays in files: one file, its arrays with one another; two, those of the first (rows) with
    those of the second (columns); more, all arrays with one another, their names behind that of their file.

    Raises:
        ValueError, FileNotFoundError: as :func:`read_features`; a file given twice among three or more; what
            :func:`simkit.similarity_matrix` refuses, among it too little memory.
    """
    files = [Path(path) for path in paths]
    sides = [read_features(file) for file in files]
    same_samples([layer for side in sides for layer in side.values()])
    rows, columns = (sides[0], sides[1]) if len(sides) == 2 else (_together(files, sides), None)
    try:
        return similarity_matrix(rows, columns, measure=measure, memory=memory)
    except TooLittleMemory:
        raise
    except ValueError:
        for side in sides:
            for layer in side.values():
                checked_stats(layer)  # says which file the entries are in, which names alone may not
        raise


def read_features(path: str | os.PathLike[str]) -> dict[str, Matrix]:
    """The named representations ``[n, ...]`` in one file.

    ``.safetensors`` files hold several, given by name with numbers in it by value (``conv2`` before ``conv10``);
    ``.npz`` files hold several, in their order; a ``.npy`` file holds one, named like the file. safetensors and npy
    files are mapped, so features may be larger than memory: floats in this machine's byte order, row by row (integers
    and other byte orders are converted in memory; a file written column by column takes the room of a whole layer).

    Raises:
        FileNotFoundError: no such file. PermissionError: it may not be read. ValueError: a folder; another ending; a
            file that is damaged, empty, holds objects, or is a result of simkit. MemoryError: an npz file of arrays
            that memory has no room for, as a damaged one may seem to be.
        ValueError, TypeError: an array that is no representation.
    """
    file = Path(path)
    readers: dict[str, Callable[[Path], dict[str, object]]] = {
        ".safetensors": _safetensors,
        ".npz": _npz,
        ".npy": _npy,
    }
    reader = readers.get(file.suffix.lower())
    if file.is_dir():
        raise ValueError(f"{os.fspath(path)!r} is a folder, not a file of named arrays [n, p]")
    if reader is None:
        raise ValueError(f"{os.fspath(path)!r} must end in {', '.join(readers)}: a file of named arrays [n, p]")
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {str(file)!r}")
    arrays = reader(file)
    if not arrays:
        raise ValueError(f"{str(file)!r} holds no arrays")
    return {name: as_matrix(values, name=f"{name} in {str(file)!r}") for name, values in arrays.items()}


def _together(files: Sequence[Path], sides: Sequence[dict[str, Matrix]]) -> dict[str, Matrix]:
    if len(sides) == 1:
        return sides[0]
    twice = [file for file in files if files.count(file) > 1]
    if twice:
        raise ValueError(f"{str(twice[0])!r} is given twice")
    unique = len({file.stem for file in files}) == len(files)
    together: dict[str, Matrix] = {}
    for file, side in zip(files, sides, strict=True):
        prefix = file.stem if unique else str(file)
        single = file.suffix.lower() == ".npy"
        together.update({prefix if single else f"{prefix}:{name}": layer for name, layer in side.items()})
    return together


def _safetensors(file: Path) -> dict[str, object]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):  # checks that the header is sound and covers the file
            pass
    except PermissionError as error:
        raise _unreadable(file, error) from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{str(file)!r} is not a safetensors file: {error}") from None
    with file.open("rb") as raw:
        length = int.from_bytes(raw.read(8), "little")
        header: dict[str, dict[str, Any]] = json.loads(raw.read(length))
    _refuse_results(file, header.pop("__metadata__", {}))
    return {name: _mapped(file, name, header[name], 8 + length) for name in sorted(header, key=_by_value)}


def _refuse_results(file: Path, metadata: dict[str, Any]) -> None:
    """ValueError when a file holds what simkit made of features or models, not features."""
    try:
        written = json.loads(metadata.get("simkit", "null"))
    except ValueError:
        return
    held = _RESULTS.get(str(written.get("format"))) if isinstance(written, dict) else None
    if held is not None:
        raise ValueError(f"{str(file)!r} is {held}, not features [n, p] to compare")


def _by_value(name: str) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts]


def _mapped(file: Path, name: str, entry: dict[str, Any], start: int) -> object:
    kind, shape = entry["dtype"], tuple(entry["shape"])
    stored = "<u2" if kind == "BF16" else _STORED.get(kind)
    if stored is None:
        raise ValueError(f"{name} in {str(file)!r} has dtype {kind}, which is none of BF16, {', '.join(_STORED)}")
    if 0 in shape:
        return np.empty(shape, dtype=stored)
    values = np.memmap(file, dtype=stored, mode="r", offset=start + entry["data_offsets"][0], shape=shape)
    if kind != "BF16":
        return values
    # NumPy has no bfloat16: Matrix holds its bits. A single dimension goes on as it is, to be refused by its shape.
    return Matrix(name, values.reshape(len(values), -1), "bfloat16") if values.ndim > 1 else values


def _npy(file: Path) -> dict[str, object]:
    try:
        values = np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy evaluates the header: a damaged one raises what Python's parser and mmap do
        raise _unreadable(file, error) from None
    if not isinstance(values, np.ndarray):
        values.close()
        raise ValueError(f"{str(file)!r} holds an archive of arrays: call it .npz")
    return {file.stem: values}


def _npz(file: Path) -> dict[str, object]:
    try:
        with file.open("rb") as raw:
            archive = np.load(raw, allow_pickle=False)
            single = isinstance(archive, np.ndarray)
            arrays = {} if single else {name: archive[name] for name in archive.files}
    except Exception as error:  # as of a header, and whatever the damage makes the archive: encrypted, for one
        raise _unreadable(file, error) from None
    if single:
        raise ValueError(f"{str(file)!r} holds a single array: call it .npy")
    return arrays


def _unreadable(file: Path, error: Exception) -> ValueError | PermissionError | MemoryError:
    if isinstance(error, PermissionError):
        return PermissionError(f"the file {str(file)!r} may not be read")
    said = error.args[0] if isinstance(error, SyntaxError | TokenError) else error  # the rest is a place in the header
    reason = (str(said).splitlines() or [type(error).__name__])[0]
    if isinstance(error, MemoryError):
        return MemoryError(f"{str(file)!r} is damaged or needs more memory than there is: {reason}")
    advice = "" if "pickle" in reason else f": {reason}"  # NumPy's is to unpickle
    return ValueError(f"{str(file)!r} is damaged or holds Python objects, which are never unpickled{advice}")
