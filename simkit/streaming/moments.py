"""Float64 moments of a stream, enough for the exact HSIC of linear kernels: any number of rows, memory that stays.

The sums are those of :class:`simkit.backends.moment_sums.MomentSums`, over z = (x - c) · scale; :mod:`.finish` turns
them into HSIC. Rows are added in blocks of 512 whatever the caller's batches are, so any split of one order gives the
same bits; those that make no block wait in a stage. The shift c is the median of the first block. A few rows that
dwarf the others are kept apart (:mod:`.apart`). States add; states with different shifts are re-based exactly
(:mod:`.units`).

With float32 products z is rounded to float32 and only products of different columns are formed in float32, a block at
a time: squares, norms and everything across blocks are float64 sums over the same z. The first block, from which the
units come, blocks that float32 does not hold, and those with rows to keep apart are float64 throughout. What rounding
does is measured by a few vectors of signs and bounded by :mod:`.rounding`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from ..arrays import FloatArray, Matrix
from ..backends.base import Precision
from ..backends.choose import choose
from ..backends.moment_sums import PROBES, Float32Array, HeldMoments, MomentRows, MomentSums, MomentUnits, SideSums
from .apart import LIMIT, Apart, largest, none_apart, outlying
from .units import Held, common, first_side, fit, float32_holds, loosen, may_round

STAGE = 512  # rows added at a time
RowsIn: TypeAlias = Callable[[Sequence[MomentUnits]], list[MomentRows]]


@dataclass
class Moments:
    """The state of a stream: sums over ``n`` rows, rows apart, and up to 511 rows that wait for their block to fill.

    Where ``held`` is not None, it has the staged rows and the sums that are not of norms alone: see :mod:`.held`.
    """

    left_widths: tuple[int, ...]
    right_widths: tuple[int, ...] | None  # None: the left side with itself
    n: int
    sums: MomentSums | None
    staged: int
    left_stage: FloatArray  # [512, p_left]
    right_stage: FloatArray | None  # [512, p_right]
    apart: Apart
    held: HeldMoments | None = None
    rounded: tuple[Float32Array, ...] = ()  # z of a block [512, p] of each side, for float32 products
    multiplied: int = 0  # blocks that were multiplied in float32

    def __getstate__(self) -> dict[str, Any]:
        """Without memory that holds nothing."""
        rows = slice(self.staged)
        right = None if self.right_stage is None else self.right_stage[rows]
        return self.__dict__ | {
            "left_stage": self.left_stage[rows],
            "right_stage": right,
            "rounded": bool(self.rounded),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """With such memory again."""
        products: Precision = "float32" if state["rounded"] else "float64"
        room = empty(state["left_widths"], state["right_widths"], products)
        room.left_stage[: state["staged"]] = state["left_stage"]
        if room.right_stage is not None:
            room.right_stage[: state["staged"]] = state["right_stage"]
        stages = {"left_stage": room.left_stage, "right_stage": room.right_stage, "rounded": room.rounded}
        self.__dict__.update(state | stages)

    @property
    def products(self) -> Precision:
        """What products of columns are formed in."""
        return "float32" if self.rounded else "float64"

    @property
    def samples(self) -> int:
        """Rows seen."""
        return self.n + self.apart.count + self.staged


def state_bytes(left_widths: Sequence[int], right_widths: Sequence[int] | None, products: Precision = "float64") -> int:
    """Bytes of the sums and the stage."""
    p, q = sum(left_widths), sum(right_widths or ())
    rest = 8 * STAGE * (p + q)
    if products == "float32":
        rest += 4 * STAGE * (p + q) + 8 * PROBES * (p + q + p * len(right_widths or left_widths))
    if right_widths is None:
        return 8 * p * p + rest
    own = sum(width * width for width in [*left_widths, *right_widths])
    return 8 * (p * q + own) + rest


def empty(left_widths: Sequence[int], right_widths: Sequence[int] | None, products: Precision = "float64") -> Moments:
    """The state of a stream that has seen nothing."""
    p, q = sum(left_widths), None if right_widths is None else sum(right_widths)
    widths = [p] if q is None else [p, q]
    return Moments(
        tuple(left_widths),
        None if right_widths is None else tuple(right_widths),
        0,
        None,
        0,
        np.empty((STAGE, p)),
        None if q is None else np.empty((STAGE, q)),
        none_apart(p, len(left_widths), q, len(right_widths or ())),
        rounded=tuple(np.empty((STAGE, width), dtype=np.float32) for width in widths) if products == "float32" else (),
    )


def update(
    state: Moments, left: Sequence[Matrix], right: Sequence[Matrix] | None, *, backend: str | None, threads: int
) -> None:
    """Add the rows of one batch, in place; all lies on the host."""
    rows, at = left[0].n, 0
    while at < rows:
        if not state.staged and rows - at >= STAGE:
            block: Sequence[Sequence[Matrix]] = (left, right or ())
            if rows > STAGE:
                block = [[layer.row_slice(at, at + STAGE) for layer in side] for side in block]
            _flush(state, block[0], block[1] if right is not None else None, backend, threads)
            at += STAGE
            continue
        take = min(STAGE - state.staged, rows - at)
        part = slice(at, at + take)
        place = slice(state.staged, state.staged + take)
        _copy_rows(state.left_stage, place, left, part)
        if right is not None and state.right_stage is not None:
            _copy_rows(state.right_stage, place, right, part)
        state.staged += take
        at += take
        if state.staged == STAGE:
            full = staged_layers(state)
            state.staged = 0
            _flush(state, full[0], full[1] if right is not None else None, backend, threads)


def staged_layers(state: Moments) -> list[list[Matrix]]:
    """The raw layers of the rows that wait, of the left and then of the right side."""
    rows = slice(0, state.staged)
    sides = [_split(state.left_stage[rows], state.left_widths)]
    if state.right_stage is not None and state.right_widths is not None:
        sides.append(_split(state.right_stage[rows], state.right_widths))
    return sides


def merge(state: Moments, other: Moments, *, backend: str | None, threads: int) -> None:
    """Add another stream's rows, in place: its sums re-based to this shift, then its staged rows; all on the host."""
    if other.sums is not None:
        if state.sums is None:
            state.sums, state.n, state.apart = _copy_sums(other.sums), other.n, other.apart
            state.multiplied = other.multiplied
        else:
            mine, theirs = common(Held(state.sums, state.n, state.apart), Held(other.sums, other.n, other.apart))
            state.sums, state.apart = mine.sums, mine.apart
            _add_sums(state.sums, theirs.sums)
            state.multiplied += other.multiplied
            state.n += theirs.n
            keep_apart(state, theirs.apart, backend, threads)
    if other.staged:
        rows = slice(0, other.staged)  # copied: a stream may be merged into itself
        left_rows = _split(other.left_stage[rows].copy(), other.left_widths)
        right_rows = (
            None
            if other.right_stage is None or other.right_widths is None
            else _split(other.right_stage[rows].copy(), other.right_widths)
        )
        update(state, left_rows, right_rows, backend=backend, threads=threads)


def _copy_rows(stage: FloatArray, place: slice, layers: Sequence[Matrix], part: slice) -> None:
    at = 0
    for layer in layers:
        values = layer.float64(part) if layer.dtype == "bfloat16" else layer.values[part]
        stage[place, at : at + layer.p] = values
        at += layer.p


def _flush(
    state: Moments, left: Sequence[Matrix], right: Sequence[Matrix] | None, backend: str | None, threads: int
) -> None:
    rows_in = partial(choose("moments_rows", backend=backend).function, threads=threads)
    rounded = _rounded(state, left, right, rows_in)
    if rounded is not None:
        _add(state, rounded, backend, threads)
    else:
        add_rows(state, in_units(state, left, right, rows_in), backend, threads)


def _rounded(state: Moments, left: Sequence[Matrix], right: Sequence[Matrix] | None, rows_in: RowsIn) -> Apart | None:
    """The rows of a block for float32 products; None where float32 does not hold them, and for the first block."""
    sums = state.sums
    if sums is None or not state.rounded:
        return None
    held = Held(sums, state.n, state.apart)
    if not may_round(held, [left] if right is None else [left, right]):
        return None
    units = [MomentUnits(left, sums.left, state.rounded[0])]
    if right is not None and sums.right is not None:
        units.append(MomentUnits(right, sums.right, state.rounded[1]))
    moved = rows_in(units)
    rows = Apart(moved[0], moved[1] if len(moved) > 1 else None)
    return rows if float32_holds(held, rows) else None


def in_units(
    state: Moments,
    left: Sequence[Matrix],
    right: Sequence[Matrix] | None,
    rows_in: RowsIn,
) -> Apart:
    """The rows of a block of raw layers in the units of the sums, which move where they must; all on the host.

    ``rows_in`` brings rows to units that are given. The stage's memory is overwritten.
    """
    if state.sums is None:
        state.sums = _first_sums(left, right, state.products)
    if state.n + state.apart.count:
        held = loosen(Held(state.sums, state.n, state.apart), [left] if right is None else [left, right])
        state.sums, state.apart = held.sums, held.apart
    units = [MomentUnits(left, state.sums.left, state.left_stage)]
    if right is not None and state.sums.right is not None and state.right_stage is not None:
        units.append(MomentUnits(right, state.sums.right, state.right_stage))
    moved = rows_in(units)
    rows = Apart(moved[0], moved[1] if len(moved) > 1 else None)
    if state.n + state.apart.count:
        held, rows = fit(Held(state.sums, state.n, state.apart), rows)
        state.sums, state.apart = held.sums, held.apart
    return rows


def add_rows(state: Moments, rows: Apart, backend: str | None, threads: int) -> None:
    """Add a block of rows to the sums, but for those to keep apart."""
    assert state.sums is not None
    far = outlying(*rows.norms, state.sums, state.n)
    if far.any():
        _add(state, rows.take(~far), backend, threads)
        keep_apart(state, rows.take(far), backend, threads)
    else:
        _add(state, rows, backend, threads)


def _add(state: Moments, rows: Apart, backend: str | None, threads: int) -> None:
    assert state.sums is not None
    if rows.count and state.held is not None:
        state.held.add_rows(rows.left, rows.right)
        state.sums.add_norms(*rows.norms)
    elif rows.count:
        add = choose("moments_add", backend=backend).function
        state.multiplied += add(state.sums, rows.left, rows.right, threads=threads)
    state.n += rows.count


def keep_apart(state: Moments, rows: Apart, backend: str | None, threads: int) -> None:
    """Keep the rows apart; where they are too many, those that stand out least join the sums."""
    assert state.sums is not None
    rows = state.apart.join(rows)
    if rows.count > LIMIT:
        keep = largest(rows, state.sums, state.n, LIMIT)
        _add(state, rows.take(~keep), backend, threads)
        rows = rows.take(keep)
    state.apart = rows


def _first_sums(
    layers_left: Sequence[Matrix], layers_right: Sequence[Matrix] | None, products: Precision
) -> MomentSums:
    left = first_side(layers_left, layers_right is None, products)
    right = None if layers_right is None else first_side(layers_right, False, products)
    other = right or left
    p, q = left.offsets[-1], other.offsets[-1]
    layers, others = len(left.offsets) - 1, len(other.offsets) - 1
    return MomentSums(
        left,
        right,
        np.zeros((p, q)),
        np.zeros((layers, others)),
        np.zeros((layers, q)),
        np.zeros((others, p) if right is not None else (0, 0)),
        np.zeros((others, PROBES, p)) if products == "float32" else None,
    )


def _split(rows: FloatArray, widths: Sequence[int]) -> list[Matrix]:
    ends = np.cumsum(widths)
    return [Matrix("staged", rows[:, e - w : e], "float64") for w, e in zip(widths, ends, strict=True)]


def _side_arrays(side: SideSums) -> list[FloatArray]:
    fast = [array for array in (side.rounded, side.probes) if array is not None]
    return [side.sum_z, side.sum_az, side.sum_a, side.sum_aa, *side.gram, *fast]


def _arrays(sums: MomentSums) -> list[FloatArray]:
    right = [] if sums.right is None else _side_arrays(sums.right)
    probes = [] if sums.probes is None else [sums.probes]
    return [*_side_arrays(sums.left), *right, sums.cross, sums.sum_ab, sums.sum_ay, sums.sum_bx, *probes]


def _add_sums(sums: MomentSums, other: MomentSums) -> None:
    for mine, theirs in zip(_arrays(sums), _arrays(other), strict=True):
        np.add(mine, theirs, out=mine)


def _copy_sums(sums: MomentSums) -> MomentSums:
    def side(s: SideSums) -> SideSums:
        return SideSums(
            s.offsets,
            s.shift.copy(),
            s.scale.copy(),
            s.sum_z.copy(),
            s.sum_az.copy(),
            s.sum_a.copy(),
            s.sum_aa.copy(),
            tuple(g.copy() for g in s.gram),
            None if s.rounded is None else s.rounded.copy(),
            s.signs,
            None if s.probes is None else s.probes.copy(),
        )

    return MomentSums(
        side(sums.left),
        None if sums.right is None else side(sums.right),
        sums.cross.copy(),
        sums.sum_ab.copy(),
        sums.sum_ay.copy(),
        sums.sum_bx.copy(),
        None if sums.probes is None else sums.probes.copy(),
    )
