"""A stream whose sums and staged rows lie in a backend's own memory, a device's, from batch to batch.

What comes to the host are the norms of the rows that are to be added, once for all blocks that a batch completes: with
them the host finds the rows to keep apart, as :mod:`.moments` does, and sees whether the units of the sums hold. Where
they do not, and in the first block, which chooses them, that block and the sums come to the host, move to other units
there, and go back. So the answer is that of :mod:`.moments` but for the last bits, which no split of the rows changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, Matrix
from ..backends.moment_sums import HeldMoments, MomentRows
from .apart import Apart, outlying
from .moments import STAGE, Moments, add_rows, in_units, keep_apart, staged_layers
from .units import Held, failing

Norms = Sequence[tuple[FloatArray, ...]]  # of each side: a and the largest |z|, [rows, layers]


def enter(state: Moments, held: HeldMoments) -> None:
    """Hand what the state holds to ``held``, in place."""
    if state.staged:
        held.set_stage(_staged(state))
    _enter_sums(state, held)


def leave(state: Moments) -> None:
    """Bring all that is held elsewhere to the host, in place."""
    here = on_host(state)
    state.sums, state.left_stage, state.right_stage = here.sums, here.left_stage, here.right_stage
    state.held = None


def on_host(state: Moments) -> Moments:
    """The state with a copy of what is held elsewhere; the state itself where nothing is."""
    if state.held is None:
        return state
    stages = [np.empty_like(stage) for stage in (state.left_stage, state.right_stage) if stage is not None]
    if state.staged:
        for stage, rows in zip(stages, state.held.stage(state.staged), strict=True):
            stage[: state.staged] = rows
    return replace(
        state,
        sums=None if state.sums is None else state.held.whole(state.sums),
        left_stage=stages[0],
        right_stage=stages[1] if len(stages) > 1 else None,
        held=None,
    )


def update(state: Moments, held: HeldMoments, layers: Sequence[Matrix], threads: int) -> None:
    """Add the rows of one batch, in place: layers of the left and then of the right side, wherever they lie."""
    rows, at = layers[0].n, 0
    if state.staged:
        at = min(STAGE - state.staged, rows)
        held.keep(layers, 0, at, state.staged)
        state.staged += at
    while state.staged == STAGE or rows - at >= STAGE:
        staged = state.staged == STAGE
        blocks = min(held.room, staged + (rows - at) // STAGE)
        added = _add_blocks(state, held, layers, at, blocks, staged, threads)
        at += (added - staged) * STAGE
        state.staged = 0
    if at < rows:
        held.keep(layers, at, rows - at, 0)
        state.staged = rows - at


def _add_blocks(
    state: Moments, held: HeldMoments, layers: Sequence[Matrix], at: int, blocks: int, staged: bool, threads: int
) -> int:
    """Add up to ``blocks`` blocks, the stage's first where it is full; returns how many were added."""
    if state.sums is None:
        _add_in_new_units(state, held, None if staged else (layers, at), threads)
        return 1
    norms = held.rows(layers, at, (blocks - staged) * STAGE, staged=staged)
    first = 0  # block that was not added yet
    for block in range(blocks):
        rows = slice(block * STAGE, (block + 1) * STAGE)
        here = [tuple(found[rows] for found in side) for side in norms]
        if _fails(state, here):
            _add_held(held, first, block)
            where = None if staged and not block else (layers, at + (block - staged) * STAGE)
            _add_in_new_units(state, held, where, threads)
            return block + 1
        left, right = here[0][0], here[1][0] if len(here) > 1 else None
        far = outlying(left, right, state.sums, state.n)
        if not far.any():
            state.sums.add_norms(left, right)
            state.n += STAGE
            continue
        apart = _taken(held, far, block, left, right)
        kept = ~far
        state.sums.add_norms(left[kept], None if right is None else right[kept])
        state.n += int(kept.sum())
        _add_held(held, first, block + 1)
        first = block + 1
        keep_apart(state, apart, held.backend, threads)
    _add_held(held, first, blocks)
    return blocks


def _add_held(held: HeldMoments, first: int, end: int) -> None:
    """Add these blocks to the sums that are held: rows that were taken out of them are zeros."""
    if end > first:
        held.add(first * STAGE, (end - first) * STAGE)


def _taken(
    held: HeldMoments, far: npt.NDArray[np.bool_], block: int, left: FloatArray, right: FloatArray | None
) -> Apart:
    z = held.take(np.flatnonzero(far) + block * STAGE)
    return Apart(MomentRows(z[0], left[far]), None if right is None else MomentRows(z[1], right[far]))


def _fails(state: Moments, norms: Norms) -> bool:
    """Whether the units of the sums do not hold a block's rows."""
    assert state.sums is not None
    sides = Held(state.sums, state.n, state.apart).sides()
    return any(
        failing(side, apart, a, largest.max(axis=0) > 0).any()
        for (side, apart), (a, largest) in zip(sides, norms, strict=True)
    )


def _add_in_new_units(
    state: Moments, held: HeldMoments, where: tuple[Sequence[Matrix], int] | None, threads: int
) -> None:
    """Add a block of a batch (None: the stage), whose units are found on the host."""
    if where is not None:
        held.keep(*where, STAGE, 0)
    state.staged = STAGE
    if state.held is None:  # nothing was added so far
        state.held = held
    leave(state)
    left, *right = staged_layers(state)
    rows = in_units(state, left, right[0] if right else None, held.rows_in)
    _enter_sums(state, held)
    add_rows(state, rows, held.backend, threads)


def _enter_sums(state: Moments, held: HeldMoments) -> None:
    if state.sums is not None:
        state.sums = held.load(state.sums)
    state.held = held


def _staged(state: Moments) -> list[FloatArray]:
    stages = (state.left_stage, state.right_stage)
    return [stage[: state.staged] for stage in stages if stage is not None]
