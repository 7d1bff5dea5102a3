"""Moments of streams on a device: ops on the host's sums, and sums that stay on the device from batch to batch.

See ``csrc/ops/moments.hpp`` for what lies there, and ``csrc/cuda/moments.hpp`` for the round trips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays import DeviceMatrix, FloatArray, Matrix
from .base import Cores
from .cuda_cores import cores_for, products_in_words
from .cuda_device import array_on, cuda, place_of
from .moment_sums import MomentRows, MomentSums, MomentUnits, SideSums

BLOCK = 512  # rows that are added at a time, as in csrc/ops/moments.hpp
ROOM = 2**26  # bytes of rows that wait to be added, and
MOST = 16  # their blocks
_ELSEWHERE: FloatArray = np.empty(0)


def largest_entries(matrices: Sequence[Matrix], *, threads: int = 1) -> list[float]:
    """See :func:`simkit.backends.reference.largest_entries`."""
    device = place_of(matrices)
    found: list[float] = cuda().largest_entries([array_on(matrix, device) for matrix in matrices])
    return found


def moments_rows(units: Sequence[MomentUnits], *, threads: int = 1) -> list[MomentRows]:
    """See :func:`simkit.backends.reference.moments_rows`; z is copied to the host, where it is wanted."""
    widths = [_widths(each.side) for each in units]
    layers = [layer for each in units for layer in each.layers]
    return hold_moments(layers, widths[0], widths[1] if len(widths) > 1 else None).rows_in(units)


def moments_add(
    sums: MomentSums, left: MomentRows, right: MomentRows | None, *, threads: int = 1, cores: Cores | None = None
) -> bool:
    """See :func:`simkit.backends.reference.moments_add`; the sums go to the device and back. ``cores`` forces them."""
    held = hold_moments([], _widths(sums.left), None if sums.right is None else _widths(sums.right), cores=cores)
    held.load(sums)
    held.add_rows(left, right)
    sums.add_norms(left.a, None if right is None else right.a)
    added = held.whole(sums)
    for mine, theirs in zip(_large(sums), _large(added), strict=True):
        mine[...] = theirs
    return False


def hold_moments(
    layers: Sequence[Matrix], left: Sequence[int], right: Sequence[int] | None, *, cores: Cores | None = None
) -> CudaMoments:
    """:class:`simkit.backends.moment_sums.HeldMoments` of layers of these widths, on the device of ``layers``.

    Raises:
        NotImplementedError: ``cores`` forces what the device does not have.
    """
    return CudaMoments(place_of(layers), left, right, cores_for(layers, cores))


class CudaMoments:
    """As :class:`simkit.backends.moment_sums.HeldMoments`."""

    backend = "native_cuda"

    def __init__(self, device: int, left: Sequence[int], right: Sequence[int] | None, cores: Cores) -> None:
        self._widths = [list(left)] + ([] if right is None else [list(right)])
        columns = sum(map(sum, self._widths))
        self.room = max(1, min(MOST, ROOM // (8 * BLOCK * columns)))
        self.device, self.products = device, products_in_words("float64", cores)
        self._held = cuda().Moments(
            device=device,
            left=self._widths[0],
            right=[] if right is None else self._widths[1],
            blocks=self.room,
            tensor=cores == "tensor",
        )
        self._stream = 0  # that the last batch came with

    def rows_in(self, units: Sequence[MomentUnits]) -> list[MomentRows]:
        """As :func:`moments_rows`, while no sums are held here."""
        self._set([each.side for each in units], np.zeros(self._held.count))
        layers = [layer for each in units for layer in each.layers]
        norms = []
        for first in range(0, layers[0].n, BLOCK):
            count = min(BLOCK, layers[0].n - first)
            norms.append(self.rows(layers, first, count, staged=False))
            for each, z in zip(units, self.take(np.arange(count)), strict=True):
                each.z[first : first + count] = z
        return [MomentRows(x.z, np.concatenate([found[side][0] for found in norms])) for side, x in enumerate(units)]

    def load(self, sums: MomentSums) -> MomentSums:
        """Take units and sums; returns them without those that are held here."""
        sides = _sides(sums)
        self._set(sides, np.concatenate([array.ravel() for array in _large(sums)]))
        kept = [replace(side, sum_z=_ELSEWHERE, sum_az=_ELSEWHERE, gram=()) for side in sides]
        right = kept[1] if len(kept) > 1 else None
        return replace(sums, left=kept[0], right=right, cross=_ELSEWHERE, sum_ay=_ELSEWHERE, sum_bx=_ELSEWHERE)

    def whole(self, sums: MomentSums) -> MomentSums:
        """The same with a copy of the sums that are held here."""
        numbers, at = self._held.numbers(), 0

        def next_of(*shape: int) -> FloatArray:
            nonlocal at
            size = int(np.prod(shape))
            at += size
            part: FloatArray = numbers[at - size : at].reshape(shape)
            return part

        sides, widths = _sides(sums), self._widths
        alone = len(sides) == 1
        columns, layers = [sum(of) for of in widths], [len(of) for of in widths]
        sum_z, sum_az = ([next_of(p) for p in columns] for _ in range(2))
        ay = next_of(layers[0], columns[-1])
        bx = np.zeros((0, 0)) if alone else next_of(layers[1], columns[0])
        cross = next_of(columns[0], columns[-1])
        grams = [() if alone else tuple(next_of(w, w) for w in of) for of in widths]
        full = [
            replace(side, sum_z=z, sum_az=az, gram=gram)
            for side, z, az, gram in zip(sides, sum_z, sum_az, grams, strict=True)
        ]
        right = None if alone else full[1]
        return replace(sums, left=full[0], right=right, cross=cross, sum_ay=ay, sum_bx=bx)

    def keep(self, layers: Sequence[Matrix], first: int, count: int, at: int) -> None:
        """Put raw rows ``first:first + count`` of a batch to row ``at`` of the stage."""
        self._held.keep(self._batch(layers), first=first, count=count, at=at)

    def set_stage(self, rows: Sequence[FloatArray]) -> None:
        """Put rows ``[count, p]`` of the host to the front of the stage."""
        self._held.set_stage(np.concatenate(rows, axis=1))

    def stage(self, count: int) -> list[FloatArray]:
        """The first rows of the stage ``[count, p]``."""
        return self._split(self._held.stage(count))

    def rows(self, layers: Sequence[Matrix], first: int, count: int, *, staged: bool) -> list[tuple[FloatArray, ...]]:
        """Bring the stage, where it is full, and rows of a batch to the units of the sums."""
        total = count + BLOCK * staged
        norms = self._held.rows(self._batch(layers), first=first, rows=total, staged=staged)
        ends = np.cumsum([0, *map(len, self._widths)])
        return [
            tuple(np.ascontiguousarray(norms[:, kind, start:end]) for kind in (0, 1)) for start, end in pairwise(ends)
        ]

    def take(self, rows: npt.NDArray[np.int64]) -> list[FloatArray]:
        """z ``[rows, p]`` of those rows, which are zeros from then on."""
        return self._split(self._held.take(rows.astype(np.int64), stream=self._stream))

    def add(self, first: int, count: int) -> None:
        """Add the rows ``first:first + count`` to the sums that are held here."""
        self._held.add(first, count, stream=self._stream)

    def add_rows(self, left: MomentRows, right: MomentRows | None) -> None:
        """Add rows of the host to the sums that are held here."""
        both = [left] if right is None else [left, right]
        z = np.concatenate([rows.z for rows in both], axis=1)
        a = np.concatenate([rows.a for rows in both], axis=1)
        norms = np.stack([a, np.zeros_like(a)], axis=1)
        for first in range(0, len(z), BLOCK):
            part = slice(first, first + BLOCK)
            self._held.put(z[part], norms[part], stream=self._stream)
            self.add(self.room * BLOCK, len(z[part]))

    def _set(self, sides: Sequence[SideSums], numbers: FloatArray) -> None:
        shift, scale = (np.concatenate([getattr(side, name) for side in sides]) for name in ("shift", "scale"))
        self._held.set(shift, scale, numbers)

    def _batch(self, layers: Sequence[Matrix]) -> list[Any]:
        self._stream = layers[0].view.stream if isinstance(layers[0], DeviceMatrix) else 0
        return [array_on(layer, self.device) for layer in layers]

    def _split(self, rows: FloatArray) -> list[FloatArray]:
        columns = sum(self._widths[0])
        return [rows[:, :columns], rows[:, columns:]][: len(self._widths)]


def _widths(side: SideSums) -> list[int]:
    return [span.stop - span.start for span in side.spans]


def _sides(sums: MomentSums) -> list[SideSums]:
    return [sums.left] if sums.right is None else [sums.left, sums.right]


def _large(sums: MomentSums) -> list[FloatArray]:
    """The sums that are not of norms alone, in the order of csrc/ops/moments.hpp."""
    sides = _sides(sums)
    grams = [gram for side in sides for gram in side.gram]
    products = [sums.sum_ay, *([] if sums.right is None else [sums.sum_bx]), sums.cross]
    return [*(side.sum_z for side in sides), *(side.sum_az for side in sides), *products, *grams]
