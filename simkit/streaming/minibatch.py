"""The minibatch estimate of HSIC: the mean over batches of each batch's debiased HSIC, weighted by its pairs.

Unbiased for shuffled batches, wrong for sorted ones; an estimate, never the exact number. Source: Nguyen, Raghu &
Kornblith 2021, "Do Wide and Deep Networks Learn the Same Things?", eq. 4 (there with equal weights, which a short
last batch spoils).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..arrays import FloatArray, Matrix

SMALLEST = 4  # rows the debiased estimator needs


@dataclass
class Estimate:
    """Weighted sums of per-batch HSIC over ``pairs`` pairs of rows, in units of powers of two that the caller fixes."""

    values: FloatArray  # [L, M]
    own_rows: FloatArray  # [L]
    own_columns: FloatArray  # [M]
    pairs: int = 0
    samples: int = 0
    batches: int = 0
    waiting: list[FloatArray] = field(default_factory=list)  # rows of a batch too small to count, per layer


BatchHsic = Callable[[Sequence[Matrix]], tuple[FloatArray, FloatArray, FloatArray]]


def empty(rows: int, columns: int) -> Estimate:
    """The estimate before any batch."""
    return Estimate(np.zeros((rows, columns)), np.zeros(rows), np.zeros(columns))


def update(state: Estimate, layers: Sequence[Matrix], hsic: BatchHsic) -> None:
    """Add one batch; a batch of fewer than four rows waits and joins the next."""
    if state.waiting:
        layers = [
            Matrix(layer.name, np.concatenate([rows, layer.float64()]), "float64")
            for rows, layer in zip(state.waiting, layers, strict=True)
        ]
        state.waiting = []
    n = layers[0].n
    if n < SMALLEST:
        state.waiting = [layer.float64() for layer in layers]
        return
    values, rows, columns = hsic(layers)
    weight = n * (n - 1) // 2
    state.values += weight * values
    state.own_rows += weight * rows
    state.own_columns += weight * columns
    state.pairs += weight
    state.samples += n
    state.batches += 1


def merge(state: Estimate, other: Estimate) -> None:
    """Add another stream's batches, in place (same exponents); its waiting rows are the caller's to add."""
    state.values += other.values
    state.own_rows += other.own_rows
    state.own_columns += other.own_columns
    state.pairs += other.pairs
    state.samples += other.samples
    state.batches += other.batches
