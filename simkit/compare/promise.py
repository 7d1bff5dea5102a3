"""What a stream with float32 products promises of its scores, and what its plan says of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..backends.base import PairSums
from ..streaming.moments import STAGE, Moments
from ..streaming.rounding import Rounding
from .matrix import SimilarityMatrix

PROMISE = 1e-6  # what float32 products may do to a score


def within_promise(matrix: SimilarityMatrix, state: Moments, rounded: Rounding, sums: PairSums) -> SimilarityMatrix:
    """The matrix with the estimate of what float32 products did to it.

    Raises:
        ValueError: it is above what is promised, for the pair that is named.
    """
    errors = np.where(np.isnan(matrix.values), 0.0, rounded.of_scores(sums))
    i, j = np.unravel_index(int(errors.argmax()), errors.shape)
    worst = float(errors[i, j])
    if not worst <= PROMISE:
        raise ValueError(
            f"float32 products may be off by {worst:.1e} in the CKA of {matrix.rows[i]} and {matrix.columns[j]}, "
            f'more than {PROMISE:g}: take products="float64"'
        )
    blocks = (state.n + state.apart.count) // STAGE
    note = f"float32 products: {state.multiplied} of {blocks} blocks of {STAGE} rows; "
    if state.multiplied:
        note += f"scores are off by {worst:.1e} at most, as a few float64 sums of the same products show"
    else:
        note += "all were multiplied in float64"
    return replace(matrix, plan=replace(matrix.plan, notes=(*matrix.plan.notes, note)))
