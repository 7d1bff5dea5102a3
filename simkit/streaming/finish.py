"""The HSIC of every pair of layers from a stream's moments.

All in the units of z = (x - c) · scale. Over the rows of the sums: μ, ν the means of two layers, C = Σ (x - μ)(y - ν)ᵀ,
a = |x - μ|², b = |y - ν|². Over the rows E kept apart: u = x - μ, v = y - ν, g = Σ u, h = Σ v.

    (n-1)² HSIC_biased = ‖C + UᵀV - g hᵀ / (n + |E|)‖²
    n(n-3) HSIC_debiased = P - 2/(n-2) r·l + (1·r)(1·l) / ((n-1)(n-2))                   n: all rows here
    P   = ‖C‖² - Σab + 2 Σ_E uᵀCv + Σ_{e≠f} (u_e·u_f)(v_e·v_f)                          Σ K_ij L_ij, i ≠ j
    r·l = gᵀCh - g·Σbu - h·Σav + Σab + Σ_E r_e l_e,   r_e = Σ_{f≠e} u_e·u_f
    1·r = Σ_E r_e - Σa

The centred Σa, Σab, Σav, Σbu follow from the moments by expanding the squares. Without rows apart this is
‖C‖² - n/(n-2) Σab + ΣaΣb / ((n-1)(n-2)). Derived from Song et al. 2012, eq. 5.
"""

from __future__ import annotations

import numpy as np

from ..arrays import FloatArray
from ..backends.base import Estimator, PairSums
from .gathered import Cross, GatheredSide, Layer, gather, own
from .moments import Moments
from .rounding import Rounding, rounding

DROWNED = 1e-9  # a self-product below this share of what it was subtracted from may be off by more than 1e-6


def finish(state: Moments, estimator: Estimator) -> tuple[PairSums, Rounding | None]:
    """The sums, and what float32 products may have done to them; leaves the state as it is.

    The state must hold at least one full block. A layer's Gram matrix is that of z.
    """
    rows = gather(state)
    left, right = rows.left, rows.right
    values = np.empty((len(left.layers), len(right.layers)))
    for i, x in enumerate(left.layers):
        for j, y in enumerate(right.layers):
            if right is left and j < i:
                values[i, j] = values[j, i]
                continue
            values[i, j] = _pair(rows.n, x, y, rows.across(i, j), estimator)[0]
    own_left, raw_left = _own(left, rows.n, estimator)
    own_right, raw_right = (own_left, raw_left) if right is left else _own(right, rows.n, estimator)
    rounded = rounding(rows, estimator) if state.products == "float32" else None
    return PairSums(values, own_left, own_right, raw_left, raw_right), rounded


def _pair(n: int, x: Layer, y: Layer, sums: Cross, estimator: Estimator) -> tuple[float, float]:
    """(the centred inner product, the largest sum that it was subtracted from)."""
    mu, nu = x.mean, y.mean
    mm, nn = float(mu @ mu), float(nu @ nu)
    c = sums.c - n * np.outer(mu, nu)
    u, v, everything = x.apart, y.apart, n + len(x.apart)
    g, h = u.sum(axis=0), v.sum(axis=0)
    if estimator == "biased":
        total = float(np.linalg.norm(c + u.T @ v - np.outer(g, h) / everything) ** 2)
        return total, total
    a, b = x.sum_a - n * mm, y.sum_a - n * nn
    ab = (
        sums.ab
        - 2 * float(nu @ sums.ay)
        + nn * x.sum_a
        - 2 * float(mu @ sums.bx)
        + 4 * float(mu @ sums.c @ nu)
        + mm * y.sum_a
        - 3 * n * mm * nn
    )
    av = sums.ay - x.sum_a * nu - 2 * (mu @ c)
    bu = sums.bx - y.sum_a * mu - 2 * (c @ nu)
    r, s = x.off.sum(axis=0), y.off.sum(axis=0)
    square = float(np.vdot(c, c))
    products = square - ab + 2 * float(np.einsum("ij,ij->", u @ c, v)) + float(np.vdot(x.off, y.off))
    rows = float(g @ c @ h - g @ bu - h @ av) + ab + float(r @ s)
    both = (float(r.sum()) - a) * (float(s.sum()) - b)
    m = everything
    return products - 2 / (m - 2) * rows + both / ((m - 1) * (m - 2)), max(square, abs(products))


def _own(side: GatheredSide, n: int, estimator: Estimator) -> tuple[FloatArray, FloatArray]:
    pairs = [_pair(n, layer, layer, own(layer), estimator) for layer in side.layers]
    # Beside a row that dwarfs them by 1e160 the squares of the others vanish: 0 is left to layers that are constant.
    least = [np.finfo(np.float64).smallest_subnormal if layer.apart.any() else 0.0 for layer in side.layers]
    return np.array([total for total, _ in pairs]), np.maximum([raw for _, raw in pairs], least)
