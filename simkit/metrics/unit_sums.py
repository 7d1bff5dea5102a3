"""Units of a layer: which columns each is, and the sums of all pairs of them within ``memory=``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ..backends.base import Block, Estimator, PairSums, Step, UnitBlocks
from ..backends.choose import choose
from ..backends.mapped import Mapped, mapped_of
from ..backends.routes import check_threads
from ..errors import TooLittleMemory
from .cka import ForcedRoute, sums_of


def unit_columns(
    units: int | npt.ArrayLike | None, p: int
) -> tuple[npt.NDArray[np.int64], list[npt.NDArray[np.int64]] | None]:
    """(unit ids ``[u]`` ascending, the columns of each unit; None where units are equal neighbouring blocks).

    Raises:
        ValueError: a number of units that does not divide p, or ids that are not ``[p]`` integers or beyond int64.
    """
    if units is None:
        return np.arange(p), None
    if isinstance(units, int | np.integer) and not isinstance(units, bool):
        if units < 1 or p % int(units):
            raise ValueError(f"units={units} must divide the {p} columns into equal blocks")
        return np.arange(int(units)), None
    labels = np.asarray(units)
    if labels.shape != (p,) or labels.dtype.kind not in "iu":
        raise ValueError(f"units must be [{p}] integer ids, not {labels.dtype} of shape {labels.shape}")
    ids, inverse = np.unique(labels, return_inverse=True)
    if ids[-1] > np.iinfo(np.int64).max:
        raise ValueError(f"units holds the id {ids[-1]}, which int64, the type of ids, cannot hold")
    return ids.astype(np.int64), [np.flatnonzero(inverse == k) for k in range(len(ids))]


def sums_of_units(
    block: Block, columns: list[npt.NDArray[np.int64]] | None, count: int, estimator: Estimator, forced: ForcedRoute
) -> tuple[PairSums, tuple[Step, ...]]:
    """The all-pairs sums of ``count`` units, and what ran: columns that are not neighbours are brought together first.

    Raises:
        TooLittleMemory: there is no room for the sums, beside the columns where these are brought together.
    """
    offsets, order = _laid_out(columns, count, block.p)
    if order is None:
        sums, plan = sums_of(UnitBlocks(block, offsets), None, estimator, forced)
        return sums, plan.steps
    gather = choose("gather_columns", backend=forced.backend, inputs=[block])
    taken = _together_bytes(block)
    with _room_beside(block, count, forced) as left:
        if left.memory is not None:
            _check_room(UnitBlocks(block, offsets), left)
        matrix = gather.function(block.matrix, order)
        together = Block(matrix, block.kernel, block.shift[order], block.exponent)
        sums, plan = sums_of(UnitBlocks(together, offsets), None, estimator, left)
    where = "" if gather.on_host or matrix.device is not None else "; on the host, where the layer lies"
    ran = Step("gather_columns", gather.backend, f"{gather.reason}{where}", bytes=taken)
    return sums, (ran, *plan.steps)


def check_units(block: Block, columns: list[npt.NDArray[np.int64]] | None, count: int, forced: ForcedRoute) -> None:
    """Raise TooLittleMemory where there is no room for the sums of units of a layer that is yet to be prepared."""
    offsets, order = _laid_out(columns, count, block.p)
    if order is None:
        _check_room(UnitBlocks(block, offsets), forced, mapped_of([block.matrix]))
        return
    with _room_beside(block, count, forced) as left:
        _check_room(UnitBlocks(block, offsets), left)


def _laid_out(
    columns: list[npt.NDArray[np.int64]] | None, count: int, p: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64] | None]:
    """(where units begin and end, the order of columns that brings them together; None where they are)."""
    if columns is None:
        return np.arange(count + 1) * (p // count), None
    offsets, order = np.cumsum([0, *(len(own) for own in columns)]), np.concatenate(columns)
    return offsets, None if np.array_equal(order, np.arange(p)) else order


def _together_bytes(block: Block) -> int:
    """Of the columns once more, of the pages that they come from, and of vectors: units, order, shift, a comparison."""
    mapped = mapped_of([block.matrix])
    pages = 0 if mapped is None else mapped.whole
    return block.n * block.p * block.matrix.itemsize + pages + 4 * 8 * block.p


@contextmanager
def _room_beside(block: Block, count: int, forced: ForcedRoute) -> Iterator[ForcedRoute]:
    """What columns that are brought together leave; errors tell the whole."""
    taken = _together_bytes(block)
    try:
        yield forced if forced.memory is None else replace(forced, memory=forced.memory - taken)
    except TooLittleMemory as error:
        work = f"bringing the columns of {count} units of {block.matrix.name} together and {error.work}"
        raise TooLittleMemory(f"{forced.memory} bytes", work, error.needed + taken) from None


def _check_room(units: UnitBlocks, forced: ForcedRoute, mapped: Mapped | None = None) -> None:
    """Plan the sums of units whose columns are yet to be brought together: a plan depends on widths alone."""
    planner = choose("pair_sums", backend=forced.backend, inputs=[units.whole])
    threads = check_threads(forced.threads)
    planner.plan_pair_sums(units, None, memory=forced.memory, threads=threads, products=forced.products, mapped=mapped)
