"""Least-squares reconstruction of a layer's removed units from those that stay.

With the covariance G = Xcᵀ Xc of the units' values, μ their means, S the units kept, every unit is best replaced by

    x ≈ M x_S + d,     M = G_:S (G_SS + λ I)⁻¹,     d = μ - M μ_S                M [u, k], rows of S are the identity

so that a consumer W x + b becomes W' = W M on the kept units and b' = b + W d. What is lost is tr(W E Wᵀ) / n with the
Schur complement E = G - G_:S G_SS⁻¹ G_S:, against tr(W_R (G_RR + n μ_R μ_Rᵀ) W_Rᵀ) / n when units R are just removed.

The ridge λ is chosen by conditioning, on units scaled to one variance: 0 where the condition is at most 1/√ε of the
precision that the values were computed in, else the least λ that makes it so. Units that never vary have no part in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.linalg

from ..arrays import FloatArray
from ..streaming.covariance import Covariance

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Reconstruction:
    """How the kept units stand in for all.

    Attributes:
        kept: unit numbers ``[k]``, ascending.
        mixing: M ``[u, k]``; the rows of kept units are those of the identity.
        offset: d ``[u]``; 0 for kept units.
        lost: E / n ``[u, u]``, the covariance of what is not reconstructed; 0 in the rows and columns of kept units.
        removed: ``[u, u]``, second moments of what removal alone loses; 0 likewise.
        ridge: λ, as a share of the units' variance; 0 where the units are well conditioned.
        condition: of the kept units' correlations before the ridge.
    """

    kept: Indices
    mixing: FloatArray
    offset: FloatArray
    lost: FloatArray
    removed: FloatArray
    ridge: float
    condition: float

    def error(self, weight: FloatArray) -> tuple[float, float]:
        """Mean squared change of ``weight [out, u] @ x`` when units are removed, and when they are reconstructed."""
        return _quadratic(weight, self.removed), _quadratic(weight, self.lost)

    def error_on(self, rows: Covariance, weight: FloatArray) -> float:
        """Mean squared change of ``weight [out, u] @ x`` over other rows, that the reconstruction was not fitted to.

        ValueError: rows of another number of units, or none.
        """
        units = len(self.offset)
        if rows.p != units or rows.n < 1:
            raise ValueError(f"{rows.n} rows of {rows.p} units do not test a reconstruction of {units}")
        left = np.eye(units)
        left[:, self.kept] -= self.mixing
        mean = left @ rows.mean - self.offset
        return _quadratic(weight @ left, rows.scatter / rows.n) + float(np.square(weight @ mean).sum())


def reconstruction(
    covariance: Covariance,
    kept: npt.ArrayLike,
    *,
    constant: bool = True,
    precision: str = "float32",
    ridge: float | None = None,
) -> Reconstruction:
    """Reconstruct all units from the ``kept [k]`` ones, by the covariance of their values.

    ``constant=False`` leaves out d, for consumers that have no bias: then G are moments around 0. ``precision`` is that
    of the values, ``ridge`` a share of the units' variance instead of the one that is chosen.

    Raises:
        ValueError: no rows; ``kept`` is empty, repeats a unit or names one that does not exist; a negative ridge.
    """
    if covariance.n < 1:
        raise ValueError(f"a covariance of {covariance.n} rows says nothing")
    units = covariance.p
    s = np.unique(np.asarray(kept, dtype=np.int64))
    if not len(s) or len(s) != np.size(kept) or s[0] < 0 or s[-1] >= units:
        raise ValueError(f"kept must be distinct units below {units}, at least one, not {np.asarray(kept).tolist()}")
    if ridge is not None and not 0.0 <= ridge < np.inf:
        raise ValueError(f"ridge must be at least 0 and finite, not {ridge!r}")
    n, mean, g = covariance.n, covariance.mean, covariance.scatter
    around = mean
    if not constant:
        g, mean = g + n * np.outer(mean, mean), np.zeros(units)
    gone = np.setdiff1d(np.arange(units), s)
    spread = np.sqrt(np.maximum(np.diagonal(g), 0.0))
    weights, share, condition = _solve(g, spread, s, gone, np.sqrt(1.0 / np.finfo(precision).eps), ridge)
    mixing = np.zeros((units, len(s)))
    mixing[s, np.arange(len(s))] = 1.0
    mixing[gone] = weights
    offset = np.zeros(units)
    offset[gone] = mean[gone] - weights @ mean[s]
    lost, removed = np.zeros((units, units)), np.zeros((units, units))
    block = np.ix_(gone, gone)
    across = weights @ g[np.ix_(s, gone)]
    lost[block] = (g[block] - across - across.T + weights @ g[np.ix_(s, s)] @ weights.T) / n
    removed[block] = covariance.scatter[block] / n + np.outer(around[gone], around[gone])
    return Reconstruction(s, mixing, offset, lost, removed, share, condition)


def _solve(
    g: FloatArray, spread: FloatArray, s: Indices, gone: Indices, limit: float, ridge: float | None
) -> tuple[FloatArray, float, float]:
    """(weights ``[gone, kept]``, ridge, condition), on units of variance one."""
    weights = np.zeros((len(gone), len(s)))
    alive = spread[s] > 0.0
    if not alive.any():
        return weights, 0.0, 1.0
    live = s[alive]
    correlations = g[np.ix_(live, live)] / np.outer(spread[live], spread[live])
    values, vectors = scipy.linalg.eigh(correlations)
    top, low = float(values[-1]), float(values[0])
    condition = top / low if low > 0.0 else np.inf
    share = ridge if ridge is not None else max(0.0, (top - limit * low) / (limit - 1.0)) if condition > limit else 0.0
    onto = g[np.ix_(gone, live)] / spread[live]
    if ridge is None or ridge > 0.0 or low > 0.0:
        found = (onto @ vectors) / (values + share) @ vectors.T
    else:
        raise ValueError(f"ridge=0.0 cannot solve for units whose correlations have the eigenvalue {low:.3g}")
    weights[:, alive] = found / spread[live]
    return weights, float(share), condition


def _quadratic(weight: FloatArray, moments: FloatArray) -> float:
    return float(np.einsum("ou,uv,ov->", weight, moments, weight, optimize=True))
