"""Street View House Numbers from its two MATLAB files of cropped digits."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..errors import first_line
from .dataset import Bytes, Dataset, Labels, from_bytes
from .places import candidates, missing

CLASSES = 10
_FILES = ("train_32x32.mat", "test_32x32.mat")


def svhn(path: str | os.PathLike[str] | None = None) -> Dataset:
    """SVHN (73,257 + 26,032 32x32 colour digits) from train_32x32.mat and test_32x32.mat; the label 10 is the digit 0.

    Raises:
        ValueError: files missing (the message says where to put them) or damaged.
    """
    searched = candidates("svhn", path, ("svhn", "SVHN"))
    for place in searched:
        files = [place / name for name in _FILES]
        if all(file.is_file() for file in files):
            train, test = map(_read, files)
            return from_bytes("svhn", train, test, CLASSES)
    raise missing("svhn", " and ".join(_FILES), searched)


def _read(file: Path) -> tuple[Bytes, Labels]:
    """``X [height, width, channels, n]`` and ``y [n, 1]``, as the authors wrote them."""
    from scipy.io import loadmat

    try:
        found = loadmat(file, variable_names=("X", "y"))
        images, labels = np.asarray(found["X"]), np.asarray(found["y"]).ravel()
    except Exception as error:  # SciPy raises what the damage happens to cause
        raise ValueError(f"{str(file)!r} is no file of SVHN: {first_line(error)}") from error
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[3] != len(labels) or len(labels) == 0:
        raise ValueError(
            f"{str(file)!r} holds images {images.shape} of {images.dtype} and {len(labels)} labels, not bytes "
            "[32, 32, 3, n]"
        )
    return np.ascontiguousarray(images.transpose(3, 2, 0, 1)), labels.astype(np.int64) % 10
