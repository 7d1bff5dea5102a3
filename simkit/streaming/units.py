"""The units of a stream's sums, a shift and a power of two per layer: chosen on the first block, moved where they fail.

They fail when a layer that was dead so far wakes up, when rows come that are so large that their fourth powers would
leave float64, and when two streams meet whose units are that far apart. Every move is exact but for the rounding of
the sums themselves (:mod:`.rebase`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, Matrix
from ..backends.base import Precision
from ..backends.moment_sums import PROBES, MomentRows, MomentSums, SideSums
from .apart import LIMIT, Apart, may_outlie
from .rebase import rebase, rebased_rows
from .signs import signs_of

_FAR = 2.0**100  # distance, in the units of the sums, above which the units grow
_SMALLEST, _LARGEST = 2.0**-80, 2.0**100  # squared norms of rows that float32 products are formed of
_OFTEN = 16  # a value that so large a part of a column has is what the column often is
_TINY, _ROOM = 2.0**20, 500  # units of features so small that rows may come whose z would pass 2^500


@dataclass(frozen=True)
class Held:
    """What is held of a stream: sums over ``n`` rows, and the rows kept apart, in the same units."""

    sums: MomentSums
    n: int
    apart: Apart

    def sides(self) -> list[tuple[SideSums, MomentRows]]:
        """Each side with its rows apart."""
        out = [(self.sums.left, self.apart.left)]
        if self.sums.right is not None and self.apart.right is not None:
            out.append((self.sums.right, self.apart.right))
        return out


def first_side(layers: Sequence[Matrix], alone: bool, products: Precision = "float64") -> SideSums:
    """Empty sums of one side in the units of its first block's raw layers; ``alone``: no Gram matrices.

    For float32 products a value that a column often has (the zeros of a ReLU) is its shift, and stays an exact zero:
    equal values round alike, which does not average out. And the scale is that of all rows but the few largest, which
    are kept apart, as far as these stay within the distance above which the units of later blocks would move.
    """
    widths = [layer.p for layer in layers]
    offsets = tuple(int(v) for v in np.concatenate([[0], np.cumsum(widths)]))
    rows = np.concatenate([layer.float64() for layer in layers], axis=1)
    shift = np.median(rows, axis=0)  # not the mean: one outlying row would drag it away from all the others
    fast = products == "float32"
    if fast:
        shift = _frequent(rows, shift)
    scale = np.empty(offsets[-1])
    for s in [slice(start, end) for start, end in pairwise(offsets)]:
        largest = np.abs(rows[:, s] - shift[s]).max(axis=1)
        scale[s] = _power(float(largest.max()))
        if fast and len(rows) > LIMIT and (usual := float(np.partition(largest, -LIMIT - 1)[-LIMIT - 1])):
            scale[s] = min(_power(usual), scale[s.start] * _FAR)
    p, count = offsets[-1], len(widths)
    grams = () if alone else tuple(np.zeros((width, width)) for width in widths)
    empty = SideSums(offsets, shift, scale, np.zeros(p), np.zeros(p), np.zeros(count), np.zeros(count), grams)
    if not fast:
        return empty
    probes = None if alone else np.zeros((PROBES, p))
    return replace(empty, rounded=np.zeros(p), signs=signs_of(widths), probes=probes)


def fit(held: Held, rows: Apart) -> tuple[Held, Apart]:
    """Move what is held, and new rows in its units, to units that hold both; as they are where those do."""
    new = [rows.left] if rows.right is None else [rows.left, rows.right]
    targets = [_fitting(*mine, theirs) for mine, theirs in zip(held.sides(), new, strict=True)]
    if all(target is mine for target, (mine, _) in zip(targets, held.sides(), strict=True)):
        return held, rows
    moved = _moved(held, targets)
    return moved, _moved_rows(rows, held.sums, moved.sums)


def loosen(held: Held, raw: Sequence[Sequence[Matrix]]) -> Held:
    """Move what is held where raw layers ``[rows, p_l]``, a list for each side, would leave float64 in its units."""
    targets = []
    for (side, _), rows in zip(held.sides(), raw, strict=True):
        if side.scale.max() <= _TINY:
            targets.append(side)
            continue
        scale = side.scale.copy()
        for layer, s in zip(rows, side.spans, strict=True):
            if layer.n and scale[s.start] > _TINY:
                largest = float(np.abs(layer.float64() - side.shift[s]).max())
                if math.frexp(largest)[1] + math.frexp(float(scale[s.start]))[1] > _ROOM:
                    scale[s] = _power(largest)
        targets.append(side if np.array_equal(scale, side.scale) else replace(side, scale=scale))
    if all(target is mine for target, (mine, _) in zip(targets, held.sides(), strict=True)):
        return held
    return _moved(held, targets)


def common(held: Held, other: Held) -> tuple[Held, Held]:
    """Both in units that hold both: those of the first where they do."""
    targets = [_shared(*mine, *theirs) for mine, theirs in zip(held.sides(), other.sides(), strict=True)]
    same = all(target is mine for target, (mine, _) in zip(targets, held.sides(), strict=True))
    return held if same else _moved(held, targets), _moved(other, targets)


def may_round(held: Held, raw: Sequence[Sequence[Matrix]]) -> bool:
    """Whether the units of the sums suit a block's raw layers: those that were constant so far still are.

    And the usual row is one that float32 holds: a few rows kept apart may be so large that it would become zeros.
    """
    for (side, _), layers in zip(held.sides(), raw, strict=True):
        if ((side.sum_a > 0) & (side.sum_a <= _SMALLEST * held.n)).any():
            return False
        for i in np.flatnonzero(side.sum_a == 0).tolist():
            if not (layers[i].float64() == side.shift[side.spans[i]]).all():  # float32 might make it zeros
                return False
    return True


def float32_holds(held: Held, rows: Apart) -> bool:
    """Whether float32 holds a block's rows in the units of the sums, and their products, and none stands out."""
    for side, a in ((held.sums.left, rows.left.a), (held.sums.right, None if rows.right is None else rows.right.a)):
        if side is None or a is None:
            continue
        largest = a.max(axis=0)
        if not largest.max() < _LARGEST or may_outlie(a, largest, side.sum_a, held.n):
            return False
        if not a.min() > _SMALLEST and not np.where(a > 0, a, 1.0).min() > _SMALLEST:
            return False
    return True


def _frequent(rows: FloatArray, otherwise: FloatArray) -> FloatArray:
    """The most frequent value of each column of ``rows [n, p]`` that many rows have; elsewhere the other value.

    And where it lies further from the mean than three deviations the other value is taken too: products of what that
    shift leaves would be far larger than what the mean leaves of them.
    """
    ordered = np.sort(rows, axis=0)
    places = np.arange(len(rows))[:, None]
    begins = np.ones(rows.shape, dtype=bool)
    begins[1:] = ordered[1:] != ordered[:-1]
    run = places - np.maximum.accumulate(np.where(begins, places, 0), axis=0)  # values before it that are equal
    last = run.argmax(axis=0)
    columns = np.arange(rows.shape[1])
    value = ordered[last, columns]
    often = run[last, columns] + 1 >= len(rows) / _OFTEN
    size = -np.frexp(np.abs(rows - otherwise).max(axis=0))[1]  # squares stay in range
    spread, off = np.ldexp(rows - otherwise, size), np.ldexp(value - otherwise, size)
    near = (spread.mean(axis=0) - off) ** 2 <= 9 * spread.var(axis=0)
    return np.where(often & near, value, otherwise)


def _power(largest: float) -> float:
    """The power of two that brings ``largest`` near 1."""
    return math.ldexp(1.0, -max(-1000, min(1000, math.frexp(largest)[1])))


def _dead(side: SideSums, apart: MomentRows) -> npt.NDArray[np.bool_]:
    """Layers of which every row so far lies on the shift."""
    return np.asarray((side.sum_a == 0) & ~apart.a.any(axis=0))


def failing(side: SideSums, apart: MomentRows, a: FloatArray, moved: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Layers whose units do not hold new rows with these norms ``a [rows, layers]``.

    ``moved [layers]``: some row does not lie on the shift, though its norm may have vanished.
    """
    return np.asarray((_dead(side, apart) & moved) | ~(a.max(axis=0, initial=0.0) < _FAR**2))


def _fitting(side: SideSums, apart: MomentRows, rows: MomentRows) -> SideSums:
    dead = _dead(side, apart)
    moved = np.array([is_dead and rows.z[:, s].any() for is_dead, s in zip(dead, side.spans, strict=True)])
    moving = np.flatnonzero(failing(side, apart, rows.a, moved)).tolist()
    if not moving:
        return side
    shift, scale = side.shift.copy(), side.scale.copy()
    for i in moving:
        s = side.spans[i]
        z = rows.z[:, s]
        middle = np.median(z, axis=0) if dead[i] else np.zeros(z.shape[1])
        shift[s] += middle / scale[s]
        scale[s] *= _power(max(float(np.abs(z - middle).max()), float(np.abs(middle).max())))
    return replace(side, shift=shift, scale=scale)


def _shared(mine: SideSums, my_apart: MomentRows, theirs: SideSums, their_apart: MomentRows) -> SideSums:
    dead, quiet = _dead(mine, my_apart), _dead(theirs, their_apart)
    shift, scale, moved = mine.shift.copy(), mine.scale.copy(), False
    for i, s in enumerate(mine.spans):
        gap = float(np.abs(mine.shift[s] - theirs.shift[s]).max())
        if dead[i] and quiet[i]:
            if gap > 0:  # two constants make a layer that is none
                scale[s], moved = _power(gap), True
            continue
        if dead[i]:
            shift[s], scale[s], moved = theirs.shift[s], theirs.scale[s], True
        elif not quiet[i] and float(theirs.scale[s.start]) < float(scale[s.start]) / _FAR:
            scale[s], moved = theirs.scale[s], True
        if gap > 0 and math.frexp(gap)[1] + math.frexp(float(scale[s.start]))[1] > math.frexp(_FAR)[1]:
            scale[s], moved = _power(gap), True
    return replace(mine, shift=shift, scale=scale) if moved else mine


def _moved(held: Held, targets: Sequence[SideSums]) -> Held:
    """The same rows in other units; a dead layer's zeros are zeros in any scale."""
    sides = [
        _in_scale_of(side, target, _dead(side, apart))
        for (side, apart), target in zip(held.sides(), targets, strict=True)
    ]
    sums = replace(held.sums, left=sides[0], right=sides[1] if len(sides) > 1 else None)
    moved = rebase(sums, held.n, targets[0], targets[1] if len(targets) > 1 else None)
    return Held(moved, held.n, _moved_rows(held.apart, sums, moved))


def _in_scale_of(side: SideSums, other: SideSums, layers: npt.NDArray[np.bool_]) -> SideSums:
    scale = side.scale.copy()
    for i in np.flatnonzero(layers).tolist():
        scale[side.spans[i]] = other.scale[side.spans[i]]
    return replace(side, scale=scale)


def _moved_rows(rows: Apart, old: MomentSums, new: MomentSums) -> Apart:
    """Rows in the units of other sums."""

    def side(of: MomentRows, before: SideSums, after: SideSums) -> MomentRows:
        z = rebased_rows(of.z, before, after)
        return MomentRows(z, np.stack([np.einsum("ij,ij->i", z[:, s], z[:, s]) for s in after.spans], axis=1))

    right = None
    if rows.right is not None and old.right is not None and new.right is not None:
        right = side(rows.right, old.right, new.right)
    return Apart(side(rows.left, old.left, new.left), right)
