"""What float32 products may have done to the HSIC of a stream: an estimate of the error of every pair.

A float32 sum of up to 128 products is rounded with each of them, by u / √3 of what has been added so far, u = 2^-24:
where that is random, by u · √128 / √3 of at most √(G_jj H_kk) over all rows (Cauchy); blocks are taken to be wrong
alike. Where rounding does not average out (columns of two values), sums of squares show it, which are formed in float32
as well as in float64 (:class:`simkit.backends.moment_sums.SideSums`): e² = Σ lost² / Σ G_jj² of either layer. So an
entry of C = Σ x yᵀ is off by

    δ_jk = √(G_jj H_kk) · √(128 u² / 3 + e_x² + e_y² + 2 u² / 3)

the last term for z itself, which is all there is where a layer has few columns, whose products are float64; so is the
diagonal of a layer with itself. HSIC, of which D is the derivative by C, is off by √(Σ D_jk² δ_jk²), of which twice is
taken: one or two pairs of columns may decide.

    biased     D = 2 (C - n μνᵀ + UᵀV - g hᵀ / (n + |E|))
    debiased   D = 2 (C - n μνᵀ + UᵀV) - 4 μνᵀ - 2/(n+|E|-2) (g hᵀ + 2 g νᵀ + 2 μ hᵀ + 4 μνᵀ)

in the words of :mod:`.finish`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..arrays import FloatArray
from ..backends.base import Estimator, PairSums
from ..backends.moment_sums import NARROW
from .gathered import Gathered, Layer, own

_UNIT = 2.0**-24


@dataclass(frozen=True)
class Rounding:
    """Estimated errors of :class:`simkit.backends.base.PairSums`, in the same units."""

    values: FloatArray  # [L, M]
    own_left: FloatArray  # [L]
    own_right: FloatArray  # [M]
    same: bool  # the left side with itself: a layer's score with itself is 1 whatever its products are

    def of_scores(self, sums: PairSums) -> FloatArray:
        """Of each S_ab / √(S_aa S_bb) ``[L, M]``; NaN where a self-product is not positive."""
        rows, columns = (np.where(own > 0, own, math.nan) for own in (sums.self_rows, sums.self_columns))
        size = np.sqrt(rows)[:, None] * np.sqrt(columns)[None, :]
        norms = (self.own_left / rows)[:, None] + (self.own_right / columns)[None, :]
        found: FloatArray = self.values / size + np.abs(sums.table) / size * norms / 2
        if self.same:
            np.fill_diagonal(found, 0.0)
        return found


def rounding(rows: Gathered, estimator: Estimator) -> Rounding:
    """The estimate for every pair of layers, and for each with itself."""
    left, right, n = rows.left.layers, rows.right.layers, rows.n
    same = rows.right is rows.left
    values = np.empty((len(left), len(right)))
    for i, x in enumerate(left):
        for j, y in enumerate(right):
            values[i, j] = values[j, i] if same and j < i else _error(n, x, y, rows.across(i, j).c, estimator)
    own_left = np.array([_own_error(n, x, estimator) for x in left])
    own_right = own_left if same else np.array([_own_error(n, y, estimator) for y in right])
    return Rounding(values, own_left, own_right, same)


def _error(n: int, x: Layer, y: Layer, c: FloatArray, estimator: Estimator) -> float:
    slope = _derivative(n, x, y, c, estimator)
    return 2 * math.sqrt(float(x.gram.diagonal() @ (slope * slope) @ y.gram.diagonal())) * _share(x, y)


def _own_error(n: int, x: Layer, estimator: Estimator) -> float:
    """C is symmetric: what is wrong above its diagonal is as wrong below."""
    slope = _derivative(n, x, x, own(x).c, estimator)
    np.fill_diagonal(slope, 0.0)
    squares = x.gram.diagonal()
    return 2 * math.sqrt(2 * float(squares @ (slope * slope) @ squares)) * _share(x, x)


def _derivative(n: int, x: Layer, y: Layer, c: FloatArray, estimator: Estimator) -> FloatArray:
    outer = np.outer(x.mean, y.mean)
    u, v, everything = x.apart, y.apart, n + len(x.apart)
    g, h = u.sum(axis=0), v.sum(axis=0)
    slope: FloatArray = 2 * (c - n * outer + u.T @ v)
    if estimator == "biased":
        return slope - 2 * np.outer(g, h) / everything
    rows = np.outer(g + 2 * x.mean, h + 2 * y.mean)
    return slope - 4 * outer - 2 / (everything - 2) * rows


def _share(x: Layer, y: Layer) -> float:
    """What an entry of C may be off by, over √(G_jj H_kk)."""
    share = 2 / 3 * _UNIT**2
    if min(len(x.mean), len(y.mean)) > NARROW:
        share += 128 * _UNIT**2 / 3 + _lost(x) + _lost(y)
    return math.sqrt(share)


def _lost(x: Layer) -> float:
    """e²."""
    squares = x.gram.diagonal()
    if x.lost is None or not squares.any():
        return 0.0
    size = float(np.linalg.norm(squares))
    return float(np.linalg.norm(x.lost / size)) ** 2
