"""Models on a CUDA device: where their features can be compared, and work there that may lack memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch

from ..arrays import DeviceMatrix, Matrix, as_matrix
from ..backends.base import Block
from ..backends.choose import Choice, choose
from ..errors import TooLittleMemory
from ..metrics.cka import CKA
from ..metrics.measure import Measure
from .matrix import SimilarityMatrix, noted, similarity_matrix

FOR_FEATURES = 0.5  # of what is free on a device, that features may take: the models and the engine need some
LACKING = (TooLittleMemory, MemoryError, torch.OutOfMemoryError)

Result = TypeVar("Result")


@dataclass(frozen=True)
class OnDevice:
    """A device that all features of a batch lie on, and the backend that computes their similarity there."""

    ordinal: int
    backend: str
    free: int  # bytes
    bounded: bool  # memory= was given: it bounds what the engine takes there too

    @property
    def room(self) -> int:
        """Bytes that features may take there."""
        return int(self.free * FOR_FEATURES)

    def similarity(
        self,
        layers: Mapping[str, Matrix],
        others: Mapping[str, Matrix] | None,
        *,
        measure: Measure,
        memory: int,
    ) -> SimilarityMatrix:
        """The matrix of features that lie on the host: computed on the device, on the host where that has no room.

        ``memory`` bounds the workspace here, and copies and workspace there where they are bounded. Raises what
        :func:`simkit.similarity_matrix` does on the host.
        """

        def there() -> SimilarityMatrix:
            bound = memory if self.bounded else None
            with current(self.ordinal):
                return similarity_matrix(layers, others, measure=measure, memory=bound, backend=self.backend)

        try:
            return with_all_memory(there)
        except LACKING as error:
            why = str(error)
        here = similarity_matrix(layers, others, measure=measure, memory=memory)
        return noted(here, f"not compared on cuda:{self.ordinal}: {why}")


def device_of_all(features: Sequence[Matrix], measure: Measure, memory: int | None = None) -> OnDevice | None:
    """The device of all ``features``, where a backend computes ``measure`` there; None where there is none."""
    engine = engine_there(features, measure)
    ordinal = features[0].device
    if engine is None or engine.free_memory is None or ordinal is None:
        return None
    return OnDevice(ordinal, engine.backend, engine.free_memory(ordinal), memory is not None)


def engine_there(features: Sequence[Matrix], measure: Measure) -> Choice | None:
    """What computes ``measure`` on the one device that all features lie on; None where nothing does."""
    ordinal, *others = {x.device for x in features}
    if not isinstance(measure, CKA) or others or ordinal is None:
        return None
    chosen = choose("pair_sums", inputs=[Block(x, measure.kernel, np.empty(0), 0) for x in features])
    return None if chosen.on_host else chosen


def current(ordinal: int) -> AbstractContextManager[Any]:
    """Makes a device the current one, which matrices of the host are sent to."""
    device: AbstractContextManager[Any] = torch.cuda.device(ordinal)
    return device


def with_all_memory(work: Callable[[], Result]) -> Result:
    """The result of work on a device, which begins again where memory lacks, without what torch keeps for itself.

    Raises:
        One of :data:`LACKING`: it lacks all the same.
    """
    try:
        return work()
    except LACKING:
        torch.cuda.empty_cache()
    return work()


def copied(features: Matrix, *, stay: bool) -> Matrix:
    """The same features in memory of their own: the layer's may be overwritten by the next one.

    On the host, or where they lie if they are to ``stay`` and there is room.
    """
    if stay and isinstance(features, DeviceMatrix):
        array = features.view.array
        try:
            again = as_matrix(array.clone() if hasattr(array, "clone") else array.copy(), name=features.name)
        except torch.OutOfMemoryError:
            return copied(features, stay=False)
        return DeviceMatrix(again.name, again.view, features.origin) if isinstance(again, DeviceMatrix) else again
    return replace(features.on_host(), values=np.array(features.values, order="C"))
