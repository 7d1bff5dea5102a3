"""The minibatch estimate of HSIC: the mean over batches of each batch's debiased HSIC, weighted by its pairs.

Unbiased for shuffled batches, wrong for sorted ones; an estimate, never the exact number. Source: Nguyen, Raghu &
Kornblith 2021, "Do Wide and Deep Networks Learn the Same Things?", eq. 4 (there with equal weights, which a short
last batch spoils).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..arrays import FloatArray, Matrix

SMALLEST = 4  # rows the debiased estimator needs


_FAR = 64  # powers of two: a batch that much larger than the units moves the units


@dataclass(frozen=True)
class BatchHsic:
    """Debiased HSIC of one batch, layer i's features in units of 2^exponents[i]; None: constant, and its HSIC zero."""

    values: FloatArray  # [L, M]
    own_rows: FloatArray  # [L]
    own_columns: FloatArray  # [M]
    exponents: list[int | None]  # of the rows, then of the columns, which follow only where there are two sides


@dataclass
class Estimate:
    """Weighted sums of per-batch HSIC over ``pairs`` pairs of rows, in units of 2^exponents."""

    values: FloatArray  # [L, M]
    own_rows: FloatArray  # [L]
    own_columns: FloatArray  # [M]
    exponents: list[int | None]  # as in BatchHsic; None: constant so far
    pairs: int = 0
    samples: int = 0
    batches: int = 0
    waiting: list[FloatArray] = field(default_factory=list)  # rows of a batch too small to count, per layer


def empty(rows: int, columns: int | None) -> Estimate:
    """The estimate before any batch; ``columns`` None: the rows with themselves."""
    wide = rows if columns is None else columns
    return Estimate(np.zeros((rows, wide)), np.zeros(rows), np.zeros(wide), [None] * (rows + (columns or 0)))


def waits(state: Estimate | None, rows: int) -> bool:
    """Whether a batch of so many rows is kept, or joined with what was kept, in memory of the host."""
    return rows < SMALLEST or (state is not None and bool(state.waiting))


def update(state: Estimate, layers: Sequence[Matrix], hsic: Callable[[Sequence[Matrix]], BatchHsic]) -> None:
    """Add one batch; a batch of fewer than four rows waits and joins the next."""
    if state.waiting:
        layers = [
            Matrix(layer.name, np.concatenate([rows, layer.float64()]), "float64")
            for rows, layer in zip(state.waiting, layers, strict=True)
        ]
    n = layers[0].n
    if n < SMALLEST:
        state.waiting = [layer.float64() for layer in layers]
        return
    batch = hsic(layers)
    weight = n * (n - 1) // 2
    state.waiting = []
    _add(state, batch, weight)
    state.pairs += weight
    state.samples += n
    state.batches += 1


def merge(state: Estimate, other: Estimate) -> None:
    """Add another stream's batches, in place; its waiting rows are the caller's to add."""
    _add(state, BatchHsic(other.values, other.own_rows, other.own_columns, other.exponents), 1)
    state.pairs += other.pairs
    state.samples += other.samples
    state.batches += other.batches


def _add(state: Estimate, batch: BatchHsic, weight: int) -> None:
    left, right = _sides(state, _common_units(state, batch.exponents))
    state.values += weight * batch.values * left[:, None] * right[None, :]
    state.own_rows += weight * batch.own_rows * left**2
    state.own_columns += weight * batch.own_columns * right**2


def _common_units(state: Estimate, exponents: Sequence[int | None]) -> FloatArray:
    """The factors from the newcomers' units to the state's, which move first where a newcomer is far larger."""
    old, new = np.ones(len(exponents)), np.ones(len(exponents))
    for i, (mine, theirs) in enumerate(zip(state.exponents, exponents, strict=True)):
        if theirs is None:
            continue
        if mine is None or theirs > mine + _FAR:
            old[i] = 1.0 if mine is None else math.ldexp(1.0, 2 * (mine - theirs))
            state.exponents[i] = theirs
        else:
            new[i] = math.ldexp(1.0, 2 * (theirs - mine))
    left, right = _sides(state, old)
    state.values *= left[:, None] * right[None, :]
    state.own_rows *= left**2
    state.own_columns *= right**2
    return new


def _sides(state: Estimate, factors: FloatArray) -> tuple[FloatArray, FloatArray]:
    rows = len(state.own_rows)
    left = factors[:rows]
    return left, factors[rows:] if len(factors) > rows else left
