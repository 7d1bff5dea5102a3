"""Files of named features -> arrays ``[n, p]``, mapped into memory where the format allows; nothing is unpickled."""

from __future__ import annotations

import json
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import Matrix

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


def read_features(path: str | os.PathLike[str]) -> dict[str, object]:
    """The named arrays ``[n, ...]`` in one file, as :func:`simkit.similarity_matrix` takes them.

    ``.safetensors`` files hold several, given by name with numbers in it by value (``conv2`` before ``conv10``);
    ``.npz`` files hold several, in their order; a ``.npy`` file holds one, named like the file. safetensors and npy
    files are mapped, so features may be larger than memory.

    Raises:
        FileNotFoundError: no such file. ValueError: another ending; a file that is damaged, empty, or holds objects.
    """
    file = Path(path)
    readers: dict[str, Callable[[Path], dict[str, object]]] = {
        ".safetensors": _safetensors,
        ".npy": _npy,
        ".npz": _npz,
    }
    reader = readers.get(file.suffix.lower())
    if reader is None:
        raise ValueError(f"{str(file)!r} must end in {', '.join(readers)}: a file of named arrays [n, p]")
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {str(file)!r}")
    arrays = reader(file)
    if not arrays:
        raise ValueError(f"{str(file)!r} holds no arrays")
    return arrays


def read_sides(paths: Sequence[str | os.PathLike[str]]) -> tuple[dict[str, object], dict[str, object] | None]:
    """(rows, columns) of a comparison of files: one, with itself (columns None); two, against each other; or the
    arrays of many together, with one another, their names behind that of their file.

    Raises:
        ValueError, FileNotFoundError: as :func:`read_features`.
    """
    files = [Path(path) for path in paths]
    sides = [read_features(file) for file in files]
    if len(sides) == 1:
        return sides[0], None
    if len(sides) == 2:
        return sides[0], sides[1]
    twice = [file for file in files if files.count(file) > 1]
    if twice:
        raise ValueError(f"{str(twice[0])!r} is given twice")
    unique = len({file.stem for file in files}) == len(files)
    together: dict[str, object] = {}
    for file, side in zip(files, sides, strict=True):
        prefix = file.stem if unique else str(file)
        single = file.suffix.lower() == ".npy"
        together.update({prefix if single else f"{prefix}:{name}": values for name, values in side.items()})
    return together, None


def _safetensors(file: Path) -> dict[str, object]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):  # checks that the header is sound and covers the file
            pass
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{str(file)!r} is not a safetensors file: {error}") from None
    with file.open("rb") as raw:
        length = int.from_bytes(raw.read(8), "little")
        header: dict[str, dict[str, Any]] = json.loads(raw.read(length))
    header.pop("__metadata__", None)
    return {name: _mapped(file, name, header[name], 8 + length) for name in sorted(header, key=_by_value)}


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
    except (ValueError, OSError, EOFError) as error:
        raise _unreadable(file, error) from None
    if not isinstance(values, np.ndarray):
        values.close()
        raise ValueError(f"{str(file)!r} holds an archive of arrays: call it .npz")
    return {file.stem: values}


def _npz(file: Path) -> dict[str, object]:
    try:
        archive = np.load(file, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ValueError("it holds a single array: call it .npy")
        with archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise _unreadable(file, error) from None


def _unreadable(file: Path, error: Exception) -> ValueError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return ValueError(f"{str(file)!r} is damaged or holds Python objects, which are never unpickled: {reason}")
