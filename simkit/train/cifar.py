"""CIFAR-10 from its binary version, or from its Python version, which is read without running any of it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from .dataset import Bytes, Dataset, Labels, from_bytes
from .places import candidates, missing
from .python_batches import read_python_batch

SHAPE = (3, 32, 32)
CLASSES = 10
_PIXELS = 3 * 32 * 32
_BINARY = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
_PYTHON = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
_FOLDERS = ("cifar10", "cifar-10-batches-bin", "cifar-10-batches-py", "CIFAR10/cifar-10-batches-py")


def cifar10(path: str | os.PathLike[str] | None = None) -> Dataset:
    """CIFAR-10 (50,000 + 10,000 32x32 colour images) from data_batch_1 ... data_batch_5 and test_batch.

    Either version of Krizhevsky's: the binary one (``.bin``), or the Python one, whose pickles are read as data. They
    are looked for as by :func:`fashion_mnist`, directly or in ``cifar-10-batches-bin``, ``cifar-10-batches-py``.

    Raises:
        ValueError: files missing (the message says where to put them) or damaged.
    """
    searched = candidates("cifar10", path, _FOLDERS)
    for place in searched:
        for names, read in ((_BINARY, _read_binary), (_PYTHON, _read_python)):
            files = [place / name for name in names]
            if all(file.is_file() for file in files):
                parts = [read(file) for file in files]
                images, labels = zip(*parts[:-1], strict=True)
                return from_bytes("cifar10", (np.concatenate(images), np.concatenate(labels)), parts[-1], CLASSES)
    raise missing("cifar10", "data_batch_1 ... data_batch_5 and test_batch (or each with .bin)", searched)


def _read_binary(file: Path) -> tuple[Bytes, Labels]:
    """Records of one label and 3,072 pixels."""
    data = np.fromfile(file, dtype=np.uint8)
    if data.size == 0 or data.size % (1 + _PIXELS):
        raise ValueError(f"{str(file)!r} holds {data.size} bytes, not a multiple of {1 + _PIXELS}")
    records = data.reshape(-1, 1 + _PIXELS)
    return records[:, 1:].reshape(-1, *SHAPE), records[:, 0].astype(np.int64)


def _read_python(file: Path) -> tuple[Bytes, Labels]:
    images, labels = read_python_batch(file)
    if images.ndim != 2 or images.shape[1] != _PIXELS or len(images) != len(labels) or len(labels) == 0:
        raise ValueError(
            f"{str(file)!r} holds data {images.shape} and {len(labels)} labels: they do not belong together"
        )
    return images.reshape(-1, *SHAPE), labels
