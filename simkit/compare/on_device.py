"""Features of models on a CUDA device: kept there where there is room, compared there wherever they were kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..arrays import DeviceMatrix, Matrix, as_matrix
from ..backends.base import Block
from ..backends.choose import choose
from ..errors import TooLittleMemory
from ..metrics.cka import CKA
from ..metrics.measure import Measure
from .collect import FOR_ENGINE, Side, mib, noted
from .matrix import SimilarityMatrix, similarity_matrix
from .spool import check_same_width

SHARE_OF_FREE = 2  # features stay where they take at most what is free over this: the models and the engine need some


@dataclass(frozen=True)
class OnDevice:
    """A device that all features of a batch lie on, and the backend that computes their similarity there."""

    ordinal: int
    backend: str
    free: int  # bytes
    bounded: bool  # memory= was given: it bounds what is taken there too

    @property
    def room(self) -> int:
        """Bytes that features may take there."""
        return self.free // SHARE_OF_FREE

    def similarity(
        self,
        layers: Mapping[str, Matrix],
        others: Mapping[str, Matrix] | None,
        *,
        measure: Measure,
        memory: int,
    ) -> SimilarityMatrix:
        """The matrix of features that lie on the host: computed on the device, on the host where that is too small.

        ``memory`` bounds the workspace here, and copies and workspace there where they are bounded.
        """
        try:
            with current(self.ordinal):
                bound = memory if self.bounded else None
                return similarity_matrix(layers, others, measure=measure, memory=bound, backend=self.backend)
        except (TooLittleMemory, MemoryError) as error:
            found = similarity_matrix(layers, others, measure=measure, memory=memory)
            return noted(found, f"not compared on cuda:{self.ordinal}: {error}")


def device_of_all(features: Sequence[Matrix], measure: Measure, memory: int | None = None) -> OnDevice | None:
    """The device of all ``features``, where a backend computes ``measure`` there; None where there is none."""
    ordinal, *others = {x.device for x in features}
    if not isinstance(measure, CKA) or others or ordinal is None:
        return None
    chosen = choose("pair_sums", inputs=[Block(x, measure.kernel, np.empty(0), 0) for x in features])
    free = chosen.free_memory
    return None if free is None else OnDevice(ordinal, chosen.backend, free(ordinal), memory is not None)


def current(ordinal: int) -> AbstractContextManager[Any]:
    """Makes a device the current one, which matrices of the host are sent to."""
    device: AbstractContextManager[Any] = torch.cuda.device(ordinal)
    return device


@dataclass
class Rows:
    """The rows ``[n, p]`` of one layer so far, in memory with room for more."""

    values: torch.Tensor
    dtype: str
    device: int | None
    n: int = 0


class ToDevice:
    """Features stay on the device, in memory for ``rows`` rows of each layer, and go through the engine at the end."""

    def __init__(self, rows: int, order: Mapping[Side, tuple[str, ...]], measure: Measure, memory: int | None) -> None:
        self._expected = rows
        self._order = order
        self._measure = measure
        self._memory = memory
        self._layers: dict[tuple[Side, str], Rows] = {}

    @property
    def bytes(self) -> int:
        """What the features take, room for more included."""
        return sum(layer.values.nbytes for layer in self._layers.values())

    def add(self, side: Side, name: str, features: Matrix) -> None:
        """Copy the rows: the layer's own memory may be overwritten before the batch ends.

        Raises:
            ValueError: another number of features, another type or another device than before.
        """
        layer = self._layers.get((side, name))
        if layer is not None:
            check_same_width(name, (layer.values.shape[1], layer.dtype), features)
        if not isinstance(features, DeviceMatrix) or (layer is not None and features.device != layer.device):
            raise ValueError(f"{name!r} does not lie on one device in all batches")
        values = features.view.array.reshape(features.n, features.p)
        if layer is None:
            room = values.new_empty((max(self._expected, features.n), features.p))
            layer = self._layers[side, name] = Rows(room, features.dtype, features.device)
        end = layer.n + features.n
        if end > len(layer.values):  # more than the data said
            grown = values.new_empty((end * 5 // 4, features.p))
            grown[: layer.n] = layer.values[: layer.n]
            layer.values = grown
        layer.values[layer.n : end] = values
        layer.n = end

    def end_batch(self) -> None:
        """Nothing waits."""

    def result(self) -> SimilarityMatrix:
        """The engine's matrix, within what the features leave of ``memory``."""
        sides = {side: {name: self._whole(side, name) for name in names} for side, names in self._order.items()}
        memory = None if self._memory is None else max(int((self._memory - self.bytes) * FOR_ENGINE), 1)
        result = similarity_matrix(sides["a"], sides.get("b"), measure=self._measure, memory=memory)
        return noted(result, f"{mib(self.bytes)} of features stayed on cuda:{next(iter(sides['a'].values())).device}")

    def _whole(self, side: Side, name: str) -> Matrix:
        layer = self._layers[side, name]
        return as_matrix(layer.values[: layer.n], name=name)
