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

import math
from dataclasses import dataclass

import numpy as np

from ..arrays import FloatArray
from ..backends.base import Estimator, PairSums
from ..backends.moment_sums import MomentRows, SideSums
from .apart import Apart, outlying
from .moments import Moments, staged_layers
from .units import Held, fit, loosen

DROWNED = 1e-9  # a self-product below this share of what it was subtracted from may be off by more than 1e-6


def finish(state: Moments, estimator: Estimator) -> tuple[PairSums, list[int], list[int]]:
    """(sums, exponents of the rows' and of the columns' layers); leaves the state as it is.

    A layer's Gram matrix is 2^(2·exponent) times that of z. The state must hold at least one full block.
    """
    sums = state.sums
    if sums is None:
        raise ValueError("a stream of fewer than 512 rows has no sums yet")
    raw = [stage[: state.staged] for stage in (state.left_stage, state.right_stage) if stage is not None]
    held = loosen(Held(sums, state.n, state.apart), staged_layers(state))
    sides = [_tail(side, rows) for (side, _), rows in zip(held.sides(), raw, strict=True)]
    held, tail = fit(held, Apart(sides[0], sides[1] if len(sides) > 1 else None))
    sums = held.sums
    far = outlying(*tail.norms, sums, state.n)
    apart, tail = held.apart.join(tail.take(far)), tail.take(~far)
    n = state.n + tail.count
    left = _side(sums.left, tail.left, apart.left, n)
    right = left
    if sums.right is not None and tail.right is not None and apart.right is not None:
        right = _side(sums.right, tail.right, apart.right, n)
    cross, ay = sums.cross, sums.sum_ay + left.tail.a.T @ right.tail.z
    bx = ay if right is left else sums.sum_bx + right.tail.a.T @ left.tail.z
    ab = sums.sum_ab + left.tail.a.T @ right.tail.a
    if right is left:
        cross = cross + np.triu(cross, 1).T
    values = np.empty((len(left.layers), len(right.layers)))
    for i, x in enumerate(left.layers):
        for j, y in enumerate(right.layers):
            if right is left and j < i:
                values[i, j] = values[j, i]
                continue
            c = cross[x.span, y.span] + x.tail.T @ y.tail
            values[i, j] = _pair(n, x, y, _Cross(c, ab[i, j], ay[i, y.span], bx[j, x.span]), estimator)[0]
    own_left, raw_left = _own(left, n, estimator, cross if right is left else None)
    own_right, raw_right = (own_left, raw_left) if right is left else _own(right, n, estimator, None)
    return PairSums(values, own_left, own_right, raw_left, raw_right), left.exponents, right.exponents


@dataclass(frozen=True)
class _Layer:
    """One layer over the n rows of the sums, and its rows apart."""

    span: slice
    tail: FloatArray  # [r, p_l] rows that wait, in z's units
    mean: FloatArray
    sum_a: float
    sum_aa: float
    sum_az: FloatArray
    apart: FloatArray  # [k, p_l] less the mean
    off: FloatArray  # [k, k] their products, zero diagonal


@dataclass(frozen=True)
class _Side:
    side: SideSums
    tail: MomentRows
    layers: list[_Layer]

    @property
    def exponents(self) -> list[int]:
        return [1 - math.frexp(float(self.side.scale[layer.span.start]))[1] for layer in self.layers]


@dataclass(frozen=True)
class _Cross:
    """Sums over two layers: x yᵀ, a b, a y, b x."""

    c: FloatArray
    ab: float
    ay: FloatArray
    bx: FloatArray


def _pair(n: int, x: _Layer, y: _Layer, sums: _Cross, estimator: Estimator) -> tuple[float, float]:
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


def _own(side: _Side, n: int, estimator: Estimator, cross: FloatArray | None) -> tuple[FloatArray, FloatArray]:
    own, raw = np.empty(len(side.layers)), np.empty(len(side.layers))
    for i, layer in enumerate(side.layers):
        if cross is None:
            gram = side.side.gram[i]
            gram = gram + np.triu(gram, 1).T
        else:
            gram = cross[layer.span, layer.span]
        sums = _Cross(gram + layer.tail.T @ layer.tail, layer.sum_aa, layer.sum_az, layer.sum_az)
        own[i], raw[i] = _pair(n, layer, layer, sums, estimator)
    return own, raw


def _tail(side: SideSums, rows: FloatArray) -> MomentRows:
    z = (rows - side.shift) * side.scale
    return MomentRows(z, np.stack([np.einsum("ij,ij->i", z[:, s], z[:, s]) for s in side.spans], axis=1))


def _side(side: SideSums, tail: MomentRows, apart: MomentRows, n: int) -> _Side:
    layers = []
    for i, span in enumerate(side.spans):
        z, a = tail.z[:, span], tail.a[:, i]
        mean = (side.sum_z[span] + z.sum(axis=0)) / n
        far = apart.z[:, span] - mean
        off = far @ far.T
        np.fill_diagonal(off, 0.0)
        layers.append(
            _Layer(
                span,
                z,
                mean,
                float(side.sum_a[i] + a.sum()),
                float(side.sum_aa[i] + (a * a).sum()),
                side.sum_az[span] + a @ z,
                far,
                off,
            )
        )
    return _Side(side, tail, layers)
