"""Representation -> block: check every entry, centre, scale by a power of two, find the kernel's length."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..arrays import COPIED, FloatArray, Matrix
from ..backends.base import Block, ColumnStats, Step
from ..backends.choose import choose
from ..backends.preparing import check_pass
from ..backends.routes import check_threads
from ..kernels import RBF, Cosine, CustomKernel, Kernel, Laplacian, Polynomial
from .measure import Degenerate
from .partners import row_norms

CONSTANT = "every feature is constant over the samples"
_FAR = 100  # squared offset over variance from which distances are formed of centred rows, raw products apart
LARGEST = 2.0**1000  # of an entry
_SAME_WAY = 1e-9  # unit rows, right to a few 1e-16, that differ by less are off by more than 1e-6 of their difference


def prepare(
    x: Matrix,
    kernel: Kernel,
    *,
    backend: str | None = None,
    threads: int | None = None,
    memory: int | None = None,
) -> Block:
    """Make ``x [n, p]`` ready for products with ``kernel``; ``memory`` bounds what that takes, what stays included.

    Raises:
        ValueError: non-finite entries, named with their number and the first position; zero rows under Cosine, or
            such whose norm is below 5.6e-309; features too large to centre, or to multiply; too little memory, on the
            host.
        Degenerate: constant features.
    """
    return prepare_with_stats(x, kernel, backend=backend, threads=threads, memory=memory)[0]


def prepare_with_stats(
    x: Matrix,
    kernel: Kernel,
    *,
    backend: str | None = None,
    threads: int | None = None,
    memory: int | None = None,
) -> tuple[Block, ColumnStats]:
    """:func:`prepare`, with the column statistics of what the kernel sees."""
    team = check_threads(threads)
    stats_of = choose("column_stats", backend=backend, inputs=[x])
    if memory is not None and stats_of.on_host:
        check_pass(x, kernel, memory)
        memory -= 8 * x.n if isinstance(kernel, Cosine) else 0  # its scales
    stats = checked_stats(x, backend=backend, threads=threads, memory=memory)
    scale = None
    if isinstance(kernel, Cosine):
        largest = stats.max_abs
        del stats  # two vectors as long as a row, for which the second pass has no room
        scale = _to_unit_length(x, row_norms(x, largest, backend=backend, threads=team, memory=memory))
        stats = stats_of.function(x, row_scale=scale, threads=team, memory=memory)
    if stats.max_dev == 0.0:
        raise Degenerate(x.name, CONSTANT)
    if scale is not None and stats.max_dev < _SAME_WAY:
        raise Degenerate(x.name, "its samples all point the same way within rounding")
    if isinstance(kernel, Polynomial):
        return _polynomial(x, kernel, _exponent(stats.max_abs)), stats
    if isinstance(kernel, CustomKernel):
        return _custom(x, kernel, stats), stats
    spread = float(stats.sum_sq_dev.sum()) / x.n
    block = Block(x, kernel, stats.mean, _exponent(stats.max_dev), scale, spread=spread)
    if isinstance(kernel, RBF | Laplacian):
        median_of = choose("distance_median", backend=backend, inputs=[block])
        left = memory if memory is None or not stats_of.on_host else memory - 16 * x.p  # beside the statistics
        median = median_of.function(block, threads=team, memory=left)
        if median == 0.0:
            raise Degenerate(x.name, "the median distance between its samples is zero, so the kernel has no bandwidth")
        t = kernel.bandwidth
        block = block.with_length(2 * t * t * median if isinstance(kernel, RBF) else t * math.sqrt(median))
    return block, stats


def preparing_steps(kernel: Kernel, *, backend: str | None = None, inputs: Sequence[Matrix] = ()) -> tuple[Step, ...]:
    """Which backends run each op of :func:`prepare` for ``kernel`` on every one of the ``inputs``."""
    ops = ["column_stats"]
    if isinstance(kernel, Cosine):
        ops.append("row_norms")
    if isinstance(kernel, RBF | Laplacian):
        ops.append("distance_median")
    alone = [[x] for x in {(x.device, x.origin.endswith(COPIED)): x for x in inputs}.values()] or [
        []
    ]  # each is prepared by itself
    choices = [(op, choose(op, backend=backend, inputs=x)) for op in ops for x in alone]
    return tuple(dict.fromkeys(Step(op, choice.backend, choice.reason) for op, choice in choices))


def check_finite(
    matrices: Sequence[Matrix], *, first_row: int = 0, backend: str | None = None, threads: int | None = None
) -> None:
    """As :func:`checked_stats` of each, without the statistics where the largest entries show that all are fine."""
    chosen = choose("largest_entries", backend=backend, inputs=matrices)
    largest = chosen.function(matrices, threads=check_threads(threads))
    for x, entry in zip(matrices, largest, strict=True):
        if not entry <= LARGEST:
            checked_stats(x, first_row=first_row, backend=backend, threads=threads)


def checked_stats(
    x: Matrix,
    *,
    first_row: int = 0,
    backend: str | None = None,
    threads: int | None = None,
    memory: int | None = None,
) -> ColumnStats:
    """The column statistics of ``x``; ValueError when an entry is NaN or infinite, with their number and the first, or
    when one is too large to centre.

    ``first_row`` is the number of rows that came before, on a stream; ``memory`` bounds what the passes take.
    """
    choice = choose("column_stats", backend=backend, inputs=[x])
    stats: ColumnStats = choice.function(x, threads=check_threads(threads), memory=memory)
    if stats.first_nonfinite is not None:
        row, column = stats.first_nonfinite
        what = "entry" if stats.nonfinite == 1 else "entries"
        where = f"row {first_row + row}, column {column}"
        raise ValueError(f"{x.name} has {stats.nonfinite} non-finite {what}, the first at {where}")
    if stats.max_abs > LARGEST:
        raise ValueError(f"{x.name} holds {stats.max_abs:.3g}, too large to centre in float64: rescale its features")
    return stats


def _to_unit_length(x: Matrix, norms: FloatArray) -> FloatArray:
    """What brings each row to unit length, in place of the norms: of long layers another vector would be a layer.

    Raises:
        ValueError: a zero row, or one so small that float64 has no such number.
    """
    row = int(np.argmin(norms))
    least = float(norms[row])
    if least == 0.0:
        raise ValueError(f"{x.name} has a zero row, number {row}: its cosine is undefined")
    with np.errstate(over="ignore"):
        np.divide(1.0, norms, out=norms)
    if np.isinf(norms[row]):
        raise ValueError(
            f"row {row} of {x.name} has the norm {least:.3g}, too small to divide by in float64: rescale its features"
        )
    return norms


def _exponent(largest: float) -> int:
    """The power of two that brings the largest magnitude into [1/2, 1), as far as float64 has the power."""
    return max(-1000, math.frexp(largest)[1])


def _polynomial(x: Matrix, kernel: Polynomial, exponent: int) -> Block:
    gamma = 1.0 / x.p if kernel.gamma is None else kernel.gamma
    largest = (
        (gamma * x.p * math.ldexp(1.0, min(2 * exponent, 1000)) + abs(kernel.coef0)) if exponent < 500 else math.inf
    )
    if largest > 0 and kernel.degree * math.log2(largest) > 480:
        raise ValueError(f"{x.name} overflows the polynomial kernel of degree {kernel.degree}: rescale its features")
    return Block(x, kernel, np.zeros(x.p), exponent, length=math.ldexp(gamma, 2 * exponent))


def _custom(x: Matrix, kernel: CustomKernel, stats: ColumnStats) -> Block:
    if 2 * _exponent(stats.max_abs) + math.log2(x.p) > 1000:
        raise ValueError(f"{x.name} overflows the products that {kernel!r} is given: rescale its features")
    far = float(stats.mean @ stats.mean) * x.n > _FAR * float(stats.sum_sq_dev.sum())
    return Block(x, kernel, stats.mean if far else np.zeros(x.p), 0)
