"""Image data sets as tensors in memory: scikit-learn's digits, MNIST and Fashion-MNIST from local IDX files."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .idx import read_idx

Pair = tuple[Tensor, Tensor]

CLASSES = 10  # of every data set here
_FILES = {
    "train_x": ("train-images-idx3-ubyte", "train-images.idx3-ubyte"),
    "train_y": ("train-labels-idx1-ubyte", "train-labels.idx1-ubyte"),
    "test_x": ("t10k-images-idx3-ubyte", "t10k-images.idx3-ubyte"),
    "test_y": ("t10k-labels-idx1-ubyte", "t10k-labels.idx1-ubyte"),
}
_FOLDERS = {"mnist": ("mnist", "MNIST", "MNIST/raw"), "fashion-mnist": ("fashion-mnist", "FashionMNIST/raw")}
_SYSTEM = {"fashion-mnist": Path("/usr/share/datasets/fashion-mnist"), "mnist": Path("/usr/share/datasets/mnist")}


@dataclass(frozen=True)
class Dataset:
    """A classification task in memory.

    ``train_x``, ``test_x`` [n, channels, height, width] are float32, standardised by the mean and the standard
    deviation of all training pixels (two numbers); ``train_y``, ``test_y`` [n] are int64 labels below ``classes``.
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int
    name: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one sample."""
        channels, height, width = self.train_x.shape[1:]
        return channels, height, width

    @property
    def train(self) -> Pair:
        """(inputs, labels) to train on."""
        return self.train_x, self.train_y

    @property
    def test(self) -> Pair:
        """(inputs, labels) to test on."""
        return self.test_x, self.test_y


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
    return _dataset("digits", (images[train], labels[train]), (images[test], labels[test]))


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


LOADERS: dict[str, Callable[..., Dataset]] = {"digits": digits, "mnist": mnist, "fashion-mnist": fashion_mnist}
"""Loaders by the name a config uses."""


def stratified_split(
    labels: npt.NDArray[np.int64], test_fraction: float, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(training indices, test indices), ascending: ``round(test_fraction * n)`` of the n samples of each class test."""
    generator = np.random.default_rng(seed)
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        chosen[generator.permutation(members)[: round(test_fraction * len(members))]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _dataset(
    name: str,
    train: tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]],
    test: tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]],
) -> Dataset:
    mean, deviation = float(train[0].mean()), float(train[0].std())
    if deviation == 0.0:
        raise ValueError(f"every training pixel of {name} has the value {mean}")

    def standardised(images: npt.NDArray[np.uint8]) -> Tensor:
        pixels = torch.from_numpy(images.astype(np.float32))
        return ((pixels - mean) / deviation)[:, None]

    return Dataset(
        train_x=standardised(train[0]),
        train_y=torch.from_numpy(train[1]),
        test_x=standardised(test[0]),
        test_y=torch.from_numpy(test[1]),
        classes=CLASSES,
        name=name,
    )


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
    highest = int(max(arrays["train_y"].max(), arrays["test_y"].max()))
    if highest >= CLASSES:
        raise ValueError(f"{name} has {CLASSES} classes, but its files hold the label {highest}")
    train, test = ((arrays[f"{split}_x"], arrays[f"{split}_y"].astype(np.int64)) for split in ("train", "test"))
    return _dataset(name, train, test)


def _find(name: str, path: str | os.PathLike[str] | None) -> dict[str, Path]:
    candidates = _candidates(name, path)
    for folder in candidates:
        found = {part: _first_file(folder, stems) for part, stems in _FILES.items()}
        if all(found.values()):
            return {part: file for part, file in found.items() if file is not None}
    searched = ", ".join(str(folder) for folder in candidates)
    names = ", ".join(stems[0] for stems in _FILES.values())
    raise ValueError(
        f"{name} was not found: put {names} (each may end in .gz) into a folder and pass it as path=, or into "
        f"$SIMKIT_DATA/{name} (searched: {searched})"
    )


def _candidates(name: str, path: str | os.PathLike[str] | None) -> list[Path]:
    configured = str(path or os.environ.get("SIMKIT_DATA") or "")
    # Named folders first: in a folder for all data sets, loose files could be those of another one.
    inside = [Path(configured) / folder for folder in (*_FOLDERS[name], "")] if configured else []
    return inside if path else [*inside, _SYSTEM[name]]


def _first_file(folder: Path, stems: tuple[str, ...]) -> Path | None:
    for stem in stems:
        for suffix in ("", ".gz"):
            if (folder / f"{stem}{suffix}").is_file():
                return folder / f"{stem}{suffix}"
    return None
