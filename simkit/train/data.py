"""Image data sets as tensors in memory: scikit-learn's digits, and others from local files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .cifar import cifar10
from .dataset import Dataset, from_bytes, stratified_split
from .idx import read_idx
from .image_folder import folder
from .places import candidates, first_file, missing
from .svhn import svhn

CLASSES = 10  # of MNIST and Fashion-MNIST
_FILES = {
    "train_x": ("train-images-idx3-ubyte", "train-images.idx3-ubyte"),
    "train_y": ("train-labels-idx1-ubyte", "train-labels.idx1-ubyte"),
    "test_x": ("t10k-images-idx3-ubyte", "t10k-images.idx3-ubyte"),
    "test_y": ("t10k-labels-idx1-ubyte", "t10k-labels.idx1-ubyte"),
}
_FOLDERS = {"mnist": ("mnist", "MNIST", "MNIST/raw"), "fashion-mnist": ("fashion-mnist", "FashionMNIST/raw")}


def digits(*, test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """The 1,797 8x8 digits that ship with scikit-learn, split by class (stratified) from the seed.

    Raises:
        ValueError: ``test_fraction`` outside (0, 1).
        ModuleNotFoundError: scikit-learn is not installed.
    """
    if not 0.0 < test_fraction < 1.0:
        raise ValueError(f"test_fraction must lie between 0 and 1, not {test_fraction!r}")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images, labels = bunch.images.astype(np.uint8), bunch.target.astype(np.int64)
    train, test = stratified_split(labels, test_fraction, seed)
    if not len(train) or not len(test):
        raise ValueError(
            f"test_fraction={test_fraction} leaves {len(train)} samples to train on, {len(test)} to test on"
        )
    return from_bytes("digits", (images[train], labels[train]), (images[test], labels[test]), CLASSES)


def mnist(path: str | os.PathLike[str] | None = None) -> Dataset:
    """MNIST (60,000 + 10,000 28x28 digits) from its four IDX files; see :func:`fashion_mnist` for where they lie."""
    return _from_idx("mnist", path)


def fashion_mnist(path: str | os.PathLike[str] | None = None) -> Dataset:
    """Fashion-MNIST (60,000 + 10,000 28x28 images of clothes) from its four IDX files, gzipped or not.

    They are looked for in ``path``; without it in the folder that the environment variable SIMKIT_DATA names, then
    where Debian's package dataset-fashion-mnist puts them. In a folder, the files may lie directly, in
    ``fashion-mnist`` or in torchvision's ``FashionMNIST/raw``.

    Raises:
        ValueError: files missing (the message says where to put them), damaged, or at odds with one another.
    """
    return _from_idx("fashion-mnist", path)


LOADERS: dict[str, Callable[..., Dataset]] = {
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "mnist": mnist,
    "cifar10": cifar10,
    "svhn": svhn,
    "folder": folder,
}
"""Loaders by the name a config uses."""


def _from_idx(name: str, path: str | os.PathLike[str] | None) -> Dataset:
    files = _find(name, path)
    arrays = {part: read_idx(file) for part, file in files.items()}
    for split in ("train", "test"):
        images, labels = arrays[f"{split}_x"], arrays[f"{split}_y"]
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or images.size == 0:
            raise ValueError(
                f"{str(files[f'{split}_x'])!r} holds images {images.shape} and {files[f'{split}_y'].name!r} labels "
                f"{labels.shape}: they do not belong together"
            )
    if arrays["train_x"].shape[1:] != arrays["test_x"].shape[1:]:
        raise ValueError(
            f"{name} has training images {arrays['train_x'].shape} and test images {arrays['test_x'].shape}"
        )
    train, test = ((arrays[f"{split}_x"], arrays[f"{split}_y"].astype(np.int64)) for split in ("train", "test"))
    return from_bytes(name, train, test, CLASSES)


def _find(name: str, path: str | os.PathLike[str] | None) -> dict[str, Path]:
    searched = candidates(name, path, _FOLDERS[name])
    for place in searched:
        found = {part: first_file(place, stems, ("", ".gz")) for part, stems in _FILES.items()}
        if all(found.values()):
            return {part: file for part, file in found.items() if file is not None}
    names = ", ".join(stems[0] for stems in _FILES.values())
    raise missing(name, f"{names} (each may end in .gz)", searched)
