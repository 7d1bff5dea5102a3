"""Canonical correlation analysis.

    ρ_i = i-th singular value of Q_xᵀ Q_y, Q an orthonormal basis of the centred features     Björck & Golub 1973
    mean CCA = Σ ρ_i / k,   R² CCA = Σ ρ_i² / k,   k = min(rank x, rank y)                   Kornblith et al. 2019

Both lie in [0, 1] and are invariant to every invertible linear map and every translation of the features of either
side, as far as the rank rule sees the same directions. The basis is rank-revealing: it keeps the singular values
of the centred features that are larger than rounding the entries can make them (:func:`simkit.metrics.basis.rank_of`),
so constant, repeated and dependent columns change nothing.
The results are not clamped: rounding can leave a correlation of 1 a few units of 1e-16 above it. Everything is
float64. Bases come from Cholesky factors where these can be shown to be accurate (:mod:`.cholesky`) and from QR and SVD
elsewhere; each correlation is right to about 1e-16 times the condition number of the kept directions. Only for large
layers (n p² of 2.7e8 or more) of a condition up to 1e4 is more allowed: 1e-8 for one, 5e-10 for their mean, at worst.

Published code that differs: PyPI ``repsim`` divides by the rank of the *uncentred* features; implementations with a
plain QR (no rank rule) change when a constant or dependent column is added; ``similarity-repository`` lists values
of 0.04 to 0.67 under one identifier for one data set.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..arrays import FloatArray, Matrix, enough_samples
from ..backends.base import Plan, Step
from .basis import Basis, basis_of, both, need_of, overlap, singular_values, warn_if_spanning
from .measure import Need

SPANNED = "each of its canonical correlations is 1, with any representation"


@dataclass(frozen=True)
class CCA:
    """Canonical correlations of two representations.

    Attributes:
        correlations: ``[k]`` descending, k = min(rank x, rank y), each in [0, 1] up to rounding.
        plan: what ran, and how many directions each side kept.
    """

    correlations: FloatArray
    plan: Plan

    @property
    def mean(self) -> float:
        """Mean CCA: the mean of the correlations."""
        return float(self.correlations.mean())

    @property
    def r2(self) -> float:
        """R² CCA: the mean of the squared correlations."""
        return float((self.correlations**2).mean())

    @property
    def backend(self) -> str:
        """The backends that ran."""
        return self.plan.backend


@dataclass(frozen=True)
class MeanCCA:
    """Mean canonical correlation as a measure object; warns when a layer spans every direction of the samples."""

    def prepare(self, x: Matrix) -> Basis:
        """The rank-revealing orthonormal basis of one representation.

        Large float64 features are not copied: they must stay as they are until the scores are there.
        """
        return _prepared(x, "mean CCA")

    def need(self, x: Matrix) -> Need:
        """Bytes of the basis, and of finding it."""
        return need_of(x, held=x.n * min(x.n, x.p))

    def score(self, x: Basis, y: Basis) -> float:
        """Mean of the canonical correlations of two prepared representations."""
        return float(correlations(x, y).mean())


@dataclass(frozen=True)
class R2CCA:
    """R² CCA, the mean squared canonical correlation, as a measure object; warns as :class:`MeanCCA`."""

    def prepare(self, x: Matrix) -> Basis:
        """The rank-revealing orthonormal basis of one representation.

        Large float64 features are not copied: they must stay as they are until the scores are there.
        """
        return _prepared(x, "R² CCA")

    def need(self, x: Matrix) -> Need:
        """Bytes of the basis, and of finding it."""
        return need_of(x, held=x.n * min(x.n, x.p))

    def score(self, x: Basis, y: Basis) -> float:
        """Mean of the squared canonical correlations of two prepared representations."""
        cosines = overlap(x, y)
        return float((cosines * cosines).sum() / min(cosines.shape))


def cca(x: object, y: object) -> CCA:
    """Canonical correlations of ``x [n, p]`` and ``y [n, q]``, with their mean and mean square.

    Every correlation lies in [0, 1]. Invariant to any invertible linear map and to translation of either side. When
    a side has rank n-1 (as with p >= n features in general position) all of them are 1 whatever the data, and a
    ``DegenerateWarning`` says so.

    Raises:
        ValueError: different n; n < 2; NaN or infinite entries; a representation whose features are constant.
        TypeError: input that is not numeric.

    Source: Hotelling 1936; Björck & Golub 1973; Kornblith et al. 2019, table 1 (mean and R²).
    """
    _, (a, b) = both(x, y, basis_of, "cca")
    warn_if_spanning((a, b), SPANNED)
    kept = f"x keeps {a.rank} of {a.available} directions, y {b.rank} of {b.available}"
    why = "; ".join([kept, *(f"{side.name}: {side.reason}" for side in (a, b) if side.reason)])
    route = a.route if a.route == b.route else f"{a.route} for x, {b.route} for y"
    n, p, q = len(a.vectors), a.available, b.available
    work = n * (p * p + q * q + a.rank * b.rank)
    step = Step("canonical_correlations", "numpy", f"float64; {why}", f"{route}, then SVD", work)
    return CCA(correlations(a, b), Plan((step,)))


def correlations(x: Basis, y: Basis) -> FloatArray:
    """Cosines of the principal angles between two subspaces, ``[min(rank x, rank y)]`` descending."""
    return singular_values(overlap(x, y))


def _prepared(x: Matrix, measure: str) -> Basis:
    enough_samples(x.n, 2, measure)
    basis = basis_of(x)
    warn_if_spanning((basis,), SPANNED, stacklevel=4)
    return basis
