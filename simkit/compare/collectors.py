"""What takes the features of a run, layer by layer and batch by batch, and gives the matrix at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from ..arrays import DeviceMatrix, Matrix, as_matrix
from ..errors import TooLittleMemory
from ..metrics.measure import Measure
from .collect import FOR_ENGINE, Side, mib
from .matrix import SimilarityMatrix, noted, similarity_matrix
from .on_device import LACKING, OnDevice, copied, with_all_memory
from .spool import Spool, check_same_width
from .stream import StreamingCKA

AT_ONCE = 2**26  # bytes of features that come to the host at a time, where they leave a device


class Collector(Protocol):
    """Takes the features of each batch and gives the result at the end."""

    def add(self, side: Side, name: str, features: Matrix) -> None:
        """The rows ``[b, p]`` of one layer in the current batch."""

    def end_batch(self) -> None:
        """All layers of the batch have been added."""

    def result(self) -> SimilarityMatrix:
        """The matrix over everything that was added."""


class ToStream:
    """Features go batch by batch into a :class:`StreamingCKA`, through the host unless they are to ``stay``."""

    def __init__(self, stream: StreamingCKA, order: Mapping[Side, tuple[str, ...]], *, stay: bool) -> None:
        self._stream = stream
        self._order = order
        self._stay = stay
        self._batch: dict[tuple[Side, str], Matrix] = {}
        self._buffers: dict[tuple[Side, str], npt.NDArray[Any]] = {}  # kept: fresh pages cost ten times the copy

    def add(self, side: Side, name: str, features: Matrix) -> None:
        """Copy the rows: the layer's own memory may be overwritten before the batch ends."""
        if self._stay and features.device is not None:
            self._batch[side, name] = copied(features, stay=True)
            return
        here = features.on_host()
        buffer = self._buffers.get((side, name))
        fits = buffer is not None and buffer.dtype == here.values.dtype and buffer.shape[1] == here.p
        if buffer is None or not fits or len(buffer) < here.n:
            buffer = self._buffers[side, name] = np.empty_like(here.values, order="C", subok=False)
        rows = buffer[: here.n]
        np.copyto(rows, here.values, casting="no")
        self._batch[side, name] = replace(here, values=rows)

    def end_batch(self) -> None:
        """Hand the batch to the stream: on the host where the device had no room for all of it."""
        batch, self._batch = self._batch, {}
        if len({features.device for features in batch.values()}) > 1:
            batch = {key: features.on_host() for key, features in batch.items()}
        sides = {side: {name: batch[side, name] for name in names} for side, names in self._order.items()}
        self._stream.update(sides["a"], sides.get("b"))

    def result(self) -> SimilarityMatrix:
        """The stream's matrix."""
        return self._stream.compute()


class ToSpool:
    """Features go to a :class:`Spool`, and at the end through the engine, on the device that they came from, if any."""

    def __init__(
        self,
        spool: Spool,
        order: Mapping[Side, tuple[str, ...]],
        measure: Measure,
        memory: int,
        there: OnDevice | None = None,
    ) -> None:
        self.spool = spool
        self._there = there
        self._order = order
        self._measure = measure
        self._memory = memory

    def add(self, side: Side, name: str, features: Matrix) -> None:
        """Append the rows at once."""
        self.spool.append(spooled_name(side, name), features)

    def end_batch(self) -> None:
        """Nothing waits."""

    def result(self) -> SimilarityMatrix:
        """The engine's matrix, within what the spool leaves of the budget; it goes to disk where that is too little."""
        try:
            return self._compared()
        except TooLittleMemory:
            if self.spool.on_disk:
                raise
        self.spool.to_disk()
        return noted(self._compared(), "they left memory at the end: the engine needs it")

    def _compared(self) -> SimilarityMatrix:
        stored = self.spool.matrices()
        held = 0 if self.spool.on_disk else self.spool.bytes
        sides = {
            side: {name: stored[spooled_name(side, name)] for name in names} for side, names in self._order.items()
        }
        memory = max(int((self._memory - held) * FOR_ENGINE), 1)
        compare = similarity_matrix if self._there is None else self._there.similarity
        result = compare(sides["a"], sides.get("b"), measure=self._measure, memory=memory)
        return noted(
            result, f"{mib(self.spool.bytes)} of features were {'on disk' if self.spool.on_disk else 'in memory'}"
        )


def spooled_name(side: Side, name: str) -> str:
    """One name for a layer of either model."""
    return f"{side}/{name}"


@dataclass
class Rows:
    """The rows ``[n, p]`` of one layer so far, in memory of a device with room for more."""

    values: torch.Tensor
    dtype: str
    device: int | None
    n: int = 0

    @property
    def bytes(self) -> int:
        """What the rows take."""
        return self.values[: self.n].nbytes


class ToDevice:
    """Features stay on the device, in memory for ``rows`` rows of each layer, and go through the engine at the end.

    Where they turn out to be more than ``room`` bytes, or the engine lacks memory beside them, they go on to
    ``elsewhere()``. ``memory`` bounds them and the engine together; None: what is free.
    """

    def __init__(
        self,
        rows: int,
        order: Mapping[Side, tuple[str, ...]],
        measure: Measure,
        *,
        room: int,
        memory: int | None,
        elsewhere: Callable[[], ToSpool],
    ) -> None:
        self._expected = rows
        self._order = order
        self._measure = measure
        self._room = room
        self._memory = memory
        self._elsewhere = elsewhere
        self._layers: dict[tuple[Side, str], Rows] = {}
        self._gone: ToSpool | None = None
        self._why = ""

    def add(self, side: Side, name: str, features: Matrix) -> None:
        """Copy the rows: the layer's own memory may be overwritten before the batch ends.

        Raises:
            ValueError: another number of features or another type than before. OSError: of the spool.
        """
        if self._gone is None:
            why = self._kept(side, name, features)
            if not why:
                return
            self._leave(why)
        assert self._gone is not None
        self._gone.add(side, name, features)

    def end_batch(self) -> None:
        """Nothing waits."""

    def result(self) -> SimilarityMatrix:
        """The engine's matrix, within what the features leave of ``memory``, or that of elsewhere."""
        if self._gone is None:
            try:
                return with_all_memory(self._compared)
            except LACKING as error:
                why = str(error)
            self._leave(why)
        assert self._gone is not None
        return noted(self._gone.result(), self._why)

    def _kept(self, side: Side, name: str, features: Matrix) -> str:
        """Keep the rows; why they cannot be, else."""
        layer = self._layers.get((side, name))
        if layer is not None:
            check_same_width(name, (layer.values.shape[1], layer.dtype), features)
        if not isinstance(features, DeviceMatrix) or (layer is not None and features.device != layer.device):
            return f"{name!r} is not there in all batches"
        values = features.view.array.reshape(features.n, features.p)
        end = features.n + (0 if layer is None else layer.n)
        try:
            if layer is None or end > len(layer.values):  # the first rows, or more than the data said
                rows = max(self._expected, end) if layer is None else end * 5 // 4
                taken = sum(held.values.nbytes for held in self._layers.values())
                if taken + values[:1].nbytes * rows > self._room:
                    return f"they take more than {mib(self._room)}"
                grown = values.new_empty((rows, features.p))
                if layer is None:
                    layer = self._layers[side, name] = Rows(grown, features.dtype, features.device)
                grown[: layer.n] = layer.values[: layer.n]
                layer.values = grown
        except torch.OutOfMemoryError:
            return "the device is full"
        layer.values[layer.n : end] = values
        layer.n = end
        return ""

    def _leave(self, why: str) -> None:
        """Hand all rows on, some at a time, and let go of each layer before the next one."""
        self._gone, self._why = self._elsewhere(), f"features did not stay on their device: {why}"
        for side, name in list(self._layers):
            layer = self._layers.pop((side, name))
            step = max(1, AT_ONCE // layer.values[:1].nbytes)
            for start in range(0, layer.n, step):
                self._gone.add(side, name, as_matrix(layer.values[start : min(start + step, layer.n)], name=name))
            del layer
        torch.cuda.empty_cache()

    def _compared(self) -> SimilarityMatrix:
        sides = {side: {name: self._whole(side, name) for name in names} for side, names in self._order.items()}
        taken = sum(layer.values.nbytes for layer in self._layers.values())
        memory = None if self._memory is None else max(int((self._memory - taken) * FOR_ENGINE), 1)
        result = similarity_matrix(sides["a"], sides.get("b"), measure=self._measure, memory=memory)
        kept = sum(layer.bytes for layer in self._layers.values())
        return noted(result, f"{mib(kept)} of features stayed on cuda:{next(iter(sides['a'].values())).device}")

    def _whole(self, side: Side, name: str) -> Matrix:
        layer = self._layers[side, name]
        return as_matrix(layer.values[: layer.n], name=name)
