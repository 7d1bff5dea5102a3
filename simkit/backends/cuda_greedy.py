"""Greedy orders on a device: from the products of columns to the elimination, nothing of size u² leaves it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays import DeviceMatrix, FloatArray, Matrix
from ..devices import DeviceView
from . import native_cpu
from .base import (
    EliminationOrder,
    Estimator,
    PairSums,
    Route,
    SquareMatrix,
    UnitBlocks,
)
from .cuda_device import array_on, block_on, cuda, place_of, release


@dataclass(frozen=True)
class DeviceSquare:
    """A matrix ``[u, u]`` float64 on a device (:class:`~simkit.backends.base.HeldMatrix`)."""

    name: str
    device: int
    units: int
    array: Any  # _cuda.Array

    @property
    def nbytes(self) -> int:
        """Its size."""
        return 8 * self.units * self.units

    def __len__(self) -> int:
        """The number u of its rows."""
        return self.units

    def sum(self) -> float:
        """The sum of its entries, formed on the device."""
        return float(cuda().total(self.array))

    def host(self) -> FloatArray:
        """Its entries on the host."""
        entries: FloatArray = cuda().host(self.array)
        return entries

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> FloatArray:
        """Its entries on the host, for NumPy."""
        if copy is False:
            raise ValueError(f"the matrix of {self.name} lies on cuda:{self.device}: NumPy needs a copy of it")
        return self.host().astype(dtype or np.float64, copy=False)


def gather_columns(matrix: Matrix, columns: npt.NDArray[np.int64]) -> Matrix:
    """See :func:`simkit.backends.reference.gather_columns`: where the matrix lies, on its device or on the host.

    What is gathered on the host may go to a device in strips; the copy of the matrix there is let go.
    """
    if not isinstance(matrix, DeviceMatrix):
        release([matrix], place_of([matrix]))
        return native_cpu.gather_columns(matrix, columns)
    device = place_of([matrix])
    held = cuda().gather_columns(array_on(matrix, device), np.ascontiguousarray(columns, dtype=np.int64))
    strides = len(columns) * matrix.itemsize, matrix.itemsize
    view = DeviceView(held.pointer, (matrix.n, len(columns)), strides, matrix.dtype, device, matrix.view.stream, held)
    return DeviceMatrix(matrix.name, view, matrix.origin)


def unit_sums(units: UnitBlocks, estimator: Estimator, route: Route, workspace: int) -> PairSums:
    """The ``pair_sums`` of a layer's units with themselves, in bytes of workspace; their values stay on the device."""
    device = place_of([units.whole])
    values, own, raw = cuda().unit_sums(
        block_on(units.whole, device),
        units.offsets,
        debiased=estimator == "debiased",
        sample_space=route.name == "sample",
        double_products=route.products == "float64",
        tensor=route.cores == "tensor",
        bytes=workspace,
    )
    held = DeviceSquare(units.whole.matrix.name, device, len(units), values)
    return PairSums(held, own, own, raw, raw)


def eliminate(
    matrices: Sequence[SquareMatrix],
    *,
    greedy: bool = True,
    counts: Sequence[int] | None = None,
    min_cka: float | None = None,
) -> list[EliminationOrder]:
    """See :func:`simkit.backends.reference.eliminate`: symmetric matrices on one device, all searched at once.

    Those on the host are copied to the device of the others, or to the current one.
    """
    wanted = [len(a) for a in matrices] if counts is None else counts
    chosen = list(zip(matrices, wanted, strict=True))
    if not chosen:
        return []
    device = place_of([a for a in matrices if not isinstance(a, np.ndarray)])
    found = cuda().eliminate(
        [_on_device(a, device) for a, _ in chosen],
        greedy=greedy,
        counts=[count for _, count in chosen],
        min_cka=math.nan if min_cka is None else min_cka,
    )
    return [
        _on_host(a, greedy=greedy, count=count, min_cka=min_cka) if lost else EliminationOrder(*order)
        for (a, count), (*order, lost) in zip(chosen, found, strict=True)
    ]


def _on_host(a: SquareMatrix, *, greedy: bool, count: int, min_cka: float | None) -> EliminationOrder:
    """Where what a unit leaves is formed without it; on a device it is what rounding leaves of a difference."""
    found = native_cpu.eliminate([np.asarray(a)], greedy=greedy, counts=[count], min_cka=min_cka)[0]
    return replace(found, note="again by native_cpu: a unit is nearly all of what is kept")


def _on_device(a: SquareMatrix, device: int) -> Any:
    if isinstance(a, DeviceSquare):
        return a.array
    return cuda().Array.copied(x=np.ascontiguousarray(a, dtype=np.float64), dtype="float64", device=device)
