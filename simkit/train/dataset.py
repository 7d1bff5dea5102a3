"""A classification task in memory: standardised images and labels, for training and for testing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]
Bytes = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Dataset:
    """A classification task in memory.

    ``train_x``, ``test_x`` [n, channels, height, width] are float32, standardised by the mean and the standard
    deviation of all training pixels of each channel; ``train_y``, ``test_y`` [n] are int64 labels below ``classes``.
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


def from_bytes(name: str, train: tuple[Bytes, Labels], test: tuple[Bytes, Labels], classes: int) -> Dataset:
    """The data set of images ``[n, height, width]`` or ``[n, channels, height, width]`` of bytes.

    Raises:
        ValueError: a channel that is constant over all training images, or a label that is no class.
    """
    images = [part[0][:, None] if part[0].ndim == 3 else part[0] for part in (train, test)]
    highest = int(max(part[1].max() for part in (train, test)))
    lowest = int(min(part[1].min() for part in (train, test)))
    if lowest < 0 or highest >= classes:
        odd = lowest if lowest < 0 else highest
        raise ValueError(f"{name} has {classes} classes, but its files hold the label {odd}")
    channels = [images[0][:, channel] for channel in range(images[0].shape[1])]
    means, deviations = [float(c.mean()) for c in channels], [float(c.std()) for c in channels]
    if 0.0 in deviations:
        value = means[deviations.index(0.0)]
        raise ValueError(f"every training pixel of {name} has the value {value}" + " in one channel" * (len(means) > 1))

    def standardised(values: Bytes) -> Tensor:
        pixels = torch.from_numpy(values.astype(np.float32))
        for channel, (mean, deviation) in enumerate(zip(means, deviations, strict=True)):
            pixels[:, channel].sub_(mean).div_(deviation)
        return pixels

    return Dataset(
        train_x=standardised(images[0]),
        train_y=torch.from_numpy(train[1]),
        test_x=standardised(images[1]),
        test_y=torch.from_numpy(test[1]),
        classes=classes,
        name=name,
    )


def stratified_split(labels: Labels, test_fraction: float, seed: int) -> tuple[Labels, Labels]:
    """(training indices, test indices), ascending: ``round(test_fraction * n)`` of the n samples of each class test."""
    generator = np.random.default_rng(seed)
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        chosen[generator.permutation(members)[: round(test_fraction * len(members))]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def held_out(data: Dataset, fraction: float, *, seed: int = 0) -> tuple[Pair, Pair | None]:
    """The training samples in two parts, by class: to train on, and to validate on (None for ``fraction`` 0).

    Raises:
        ValueError: ``fraction`` outside [0, 1), or one that leaves either part empty.
    """
    if fraction == 0.0:
        return data.train, None
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"the share to validate on must be at least 0 and below 1, not {fraction!r}")
    first, second = stratified_split(data.train_y.numpy(), fraction, seed)
    if not len(first) or not len(second):
        raise ValueError(
            f"a share of {fraction} to validate on leaves {len(first)} of {len(data.train_y)} samples to train on and "
            f"{len(second)} to validate on"
        )
    parts = [(data.train_x[index], data.train_y[index]) for index in map(torch.from_numpy, (first, second))]
    return parts[0], parts[1]
