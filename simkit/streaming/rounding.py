"""What float32 products may have done to the HSIC of a stream: an estimate for every pair, measured on its sums.

Rounding is not random: of features of few values every product is rounded the same way. So the error E of C = Σ x yᵀ is
measured. Sums h of y under vectors g of signs (:mod:`.signs`) are formed for every row in float64, and so are Σ x h,
which is what C g would be without rounding: E g is the difference. Over random signs the mean of |E g|² is ‖E‖², and
‖E‖² is at least |E g|² / |g|²: the largest of those few is taken for it. HSIC, of which D is the derivative by C, is
then off by no more than about

    2 ‖D‖ ‖E‖ + 2 √(Σ D_jk² δ_jk²),    δ_jk² = u²/3 (R_j H_kk + G_jj S_k),    u = 2^-24

twice, since few vectors may see too little, and one or two pairs of columns may decide. It is no strict bound: an
error of rank one in a direction of random signs is seen at less than half of its size once in sixteen times or so. The
second term is for z itself: R and S are the sums of the squares of what was rounded to float32, as it was then.

    biased     D = 2 (C - n μνᵀ + UᵀV - g hᵀ / (n + |E|))
    debiased   D = 2 (C - n μνᵀ + UᵀV) - 4 μνᵀ - 2/(n+|E|-2) (g hᵀ + 2 g νᵀ + 2 μ hᵀ + 4 μνᵀ)

in the words of :mod:`.finish`, where E are rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..arrays import FloatArray
from ..backends.base import Estimator, PairSums
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
            if same and j < i:
                values[i, j] = values[j, i]
                continue
            slope = _derivative(n, x, y, rows.across(i, j).c, estimator)
            values[i, j] = _estimate(x, y, slope, _missed(rows.cross[x.span, y.span], y, rows.probed(i, j)))
    own_left = np.array([_own_estimate(n, x, estimator) for x in left])
    own_right = own_left if same else np.array([_own_estimate(n, y, estimator) for y in right])
    return Rounding(values, own_left, own_right, same)


def _own_estimate(n: int, x: Layer, estimator: Estimator) -> float:
    slope = _derivative(n, x, x, own(x).c, estimator)
    np.fill_diagonal(slope, 0.0)  # squares are float64 sums
    assert x.own_probes is not None
    return _estimate(x, x, slope, _missed(x.gram, x, x.own_probes))


def _missed(c: FloatArray, y: Layer, probes: FloatArray) -> float:
    """‖E‖ as the signs see it: ‖E‖² is the mean over random ones, and for all ones at least |E g|² / p."""
    assert y.signs is not None
    seen = np.linalg.norm(c @ y.signs.T - probes.T, axis=0)
    seen[0] /= math.sqrt(len(y.mean))
    return float(seen.max())


def _estimate(x: Layer, y: Layer, slope: FloatArray, missed: float) -> float:
    """Of a layer with itself both δ_jk and δ_kj are the same: twice their squares."""
    assert x.rounded is not None
    assert y.rounded is not None
    squares = slope * slope
    entries = float(x.rounded @ squares @ y.gram.diagonal() + x.gram.diagonal() @ squares @ y.rounded)
    random = _UNIT * math.sqrt(entries * (2 if y is x else 1) / 3)
    return 2 * (float(np.linalg.norm(slope)) * missed + random)


def _derivative(n: int, x: Layer, y: Layer, c: FloatArray, estimator: Estimator) -> FloatArray:
    outer = np.outer(x.mean, y.mean)
    u, v, everything = x.apart, y.apart, n + len(x.apart)
    g, h = u.sum(axis=0), v.sum(axis=0)
    slope: FloatArray = 2 * (c - n * outer + u.T @ v)
    if estimator == "biased":
        return slope - 2 * np.outer(g, h) / everything
    rows = np.outer(g + 2 * x.mean, h + 2 * y.mean)
    return slope - 4 * outer - 2 / (everything - 2) * rows
