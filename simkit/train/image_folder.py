"""Images in folders, one for each class."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..errors import first_line
from .dataset import Bytes, Dataset, Labels, from_bytes, stratified_split

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


def folder(
    path: str | os.PathLike[str], *, size: int | None = None, test_fraction: float = 0.2, seed: int = 0
) -> Dataset:
    """Images as ``path/train/CLASS/*`` and ``path/test/CLASS/*``, or as ``path/CLASS/*``, split by class from the seed.

    Training and test samples are in an order drawn from the seed.

    All are read as colour images of 3 channels. ``size`` scales them to squares; without it all must be of one size.

    Raises:
        ValueError: no images (the message says where to put them), an image that cannot be read, or other classes in
            ``test`` than in ``train``. ModuleNotFoundError: Pillow is not installed.
    """
    root = Path(path) if path else None
    if root is None or not root.is_dir():
        raise ValueError(
            f"the folder of images {'' if root is None else str(root)!r} was not found: pass as path= one that holds "
            "train/CLASS/*.png and test/CLASS/*.png, or CLASS/*.png"
        )
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise ValueError(f"size must be an integer of at least 1, not {size!r}")
    if (root / "train").is_dir() and (root / "test").is_dir():
        classes = _classes(root / "train")
        if _classes(root / "test") != classes:
            odd = sorted(set(classes) ^ set(_classes(root / "test")))
            raise ValueError(f"the class {odd[0]!r} is not in both {str(root / 'train')!r} and {str(root / 'test')!r}")
        train, test = _read(root / "train", classes, size), _read(root / "test", classes, size)
    else:
        classes = _classes(root)
        if not 0.0 < test_fraction < 1.0:
            raise ValueError(f"test_fraction must lie between 0 and 1, not {test_fraction!r}")
        images, labels = _read(root, classes, size)
        first, second = stratified_split(labels, test_fraction, seed)
        train, test = (images[first], labels[first]), (images[second], labels[second])
    if train[0].shape[1:] != test[0].shape[1:]:
        raise ValueError(f"training images are {train[0].shape[1:]} and test images {test[0].shape[1:]}: set size")
    if not len(train[0]) or not len(test[0]):
        raise ValueError(f"{str(root)!r} has {len(train[0])} images to train on and {len(test[0])} to test on")
    return from_bytes("folder", _shuffled(train, seed), _shuffled(test, seed), len(classes))


def _shuffled(part: tuple[Bytes, Labels], seed: int) -> tuple[Bytes, Labels]:
    """Files are read class by class; whoever takes the first samples must not get one class."""
    order = np.random.default_rng(seed).permutation(len(part[1]))
    return part[0][order], part[1][order]


def _classes(root: Path) -> list[str]:
    found = sorted(child.name for child in root.iterdir() if child.is_dir() and _images(child))
    if len(found) < 2:
        raise ValueError(
            f"{str(root)!r} has {len(found)} folders with images, and a task needs two classes: put images into "
            f"{str(root / 'CLASS')!r}"
        )
    return found


def _images(place: Path) -> list[Path]:
    return sorted(file for file in place.iterdir() if file.suffix.lower() in ENDINGS)


def _read(root: Path, classes: list[str], size: int | None) -> tuple[Bytes, Labels]:
    try:
        from PIL import Image
    except ImportError:
        raise ModuleNotFoundError("reading a folder of images needs Pillow: pip install pillow") from None
    images: list[Bytes] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        for file in _images(root / name):
            try:
                with Image.open(file) as opened:
                    picture = opened.convert("RGB")
                    picture = picture if size is None else picture.resize((size, size), Image.Resampling.BILINEAR)
                    pixels = np.asarray(picture, dtype=np.uint8).transpose(2, 0, 1)
            except Exception as error:  # Pillow raises what the damage happens to cause
                raise ValueError(f"{str(file)!r} cannot be read: {first_line(error)}") from error
            if images and pixels.shape != images[0].shape:
                raise ValueError(
                    f"{str(file)!r} is {pixels.shape[1:]} pixels large and others {images[0].shape[1:]}: set size"
                )
            images.append(pixels)
            labels.append(label)
    return np.stack(images), np.asarray(labels, dtype=np.int64)
