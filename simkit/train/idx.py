"""The IDX format of MNIST and its relatives: magic number, sizes as big-endian 32-bit integers, then the bytes."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

_GZIP = b"\x1f\x8b"
_UBYTE = 0x08
_LARGEST = 2**32  # bytes; a header that promises more is damage, not data


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """The array of unsigned bytes in an IDX file, gzipped or not.

    Raises:
        ValueError: a wrong magic number, another element type, sizes that do not match the file, or a damaged gzip
            stream; the message names the file and what it holds.
    """
    with path.open("rb") as raw:
        zipped = raw.read(2) == _GZIP
    try:
        with gzip.open(path, "rb") if zipped else path.open("rb") as file:
            return _parse(file, path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{str(path)!r} is a damaged gzip file: {error}") from error


def _parse(file: IO[bytes] | gzip.GzipFile, path: Path) -> npt.NDArray[np.uint8]:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise ValueError(f"{str(path)!r} is no IDX file: it starts with {magic.hex() or 'nothing'} and not with 0000")
    kind, dims = magic[2], magic[3]
    if kind != _UBYTE or dims == 0:
        raise ValueError(f"{str(path)!r} holds IDX type 0x{kind:02x} in {dims} dimensions, not unsigned bytes (0x08)")
    header = file.read(4 * dims)
    if len(header) < 4 * dims:
        raise ValueError(f"{str(path)!r} ends within its header of {dims} sizes")
    shape = struct.unpack(f">{dims}I", header)
    expected = math.prod(shape)
    if expected > _LARGEST:
        raise ValueError(f"{str(path)!r} promises {shape}, more than {_LARGEST} bytes")
    body = file.read(expected + 1)
    if len(body) != expected:
        found = f"only {len(body)}" if len(body) < expected else "more"
        raise ValueError(f"{str(path)!r} promises {expected} bytes for {shape} and holds {found}")
    return np.frombuffer(body, dtype=np.uint8).reshape(shape)
