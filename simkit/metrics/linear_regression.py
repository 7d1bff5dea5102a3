"""Explained variance of a linear regression.

    R² = ‖Q_Yᵀ Xc‖_F² / ‖Xc‖_F² = 1 - min_B ‖Xc - Yc B‖_F² / ‖Xc‖_F²                        Kornblith et al. 2019

The share of the variance of x that a least-squares fit from y (with an intercept) explains, over the n samples it was
fitted to. Asymmetric. Range [0, 1] up to rounding (not clamped). Invariant to every invertible linear map of y, and to
orthogonal maps and isotropic scaling of x; to translation of both. Q_Y is the rank-revealing basis of :mod:`.basis`.

Published code that differs: packages that cross-validate, add a ridge penalty or average R² over features report other
quantities under this name; those that average over features weigh each feature alike, this one by its variance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..arrays import Matrix, enough_samples
from .basis import (
    Basis,
    Factor,
    basis_from,
    both,
    centred,
    cross_about_means,
    left_singular,
    need_of,
    rank_of,
    warn_if_spanning,
)
from .blas import cross, frobenius
from .cholesky import Whitened, whiten
from .measure import Need

SPANNED = "as a predictor it explains every representation, so R² is 1"


@dataclass(frozen=True)
class Regression:
    """One representation in both of its roles."""

    predictor: Basis
    target: Factor


@dataclass(frozen=True)
class LinearRegression:
    """R² of predicting the first representation from the second, as a measure object (rows from columns).

    Warns when a layer spans every direction of the samples: as a predictor it then explains everything.
    """

    def prepare(self, x: Matrix) -> Regression:
        """The basis of one representation (as predictor) and its factor (as target)."""
        enough_samples(x.n, 2, "linear regression")
        sides = regression_of(x)
        warn_if_spanning((sides.predictor,), SPANNED)
        return sides

    def need(self, x: Matrix) -> Need:
        """Bytes of the basis and the factor, and of finding them."""
        return need_of(x, held=2 * x.n * min(x.n, x.p))

    def score(self, x: Regression, y: Regression) -> float:
        """Share of the variance of x that y explains."""
        explained = cross_about_means(y.predictor.vectors, y.predictor.mean, x.target.values, x.target.mean)
        if y.predictor.mixing is not None:
            explained = cross(y.predictor.mixing, explained)
        return float((frobenius(explained) / x.target.norm) ** 2)


def linear_regression(x: object, y: object) -> float:
    """R² of predicting ``x [n, p]`` from ``y [n, q]`` by least squares with an intercept, in sample.

    Range [0, 1]; asymmetric. Invariant to any invertible linear map of y, to orthogonal maps and isotropic scale of
    x, and to translation of both. Warns (``DegenerateWarning``) when y has rank n-1: the result is then 1.

    Raises:
        ValueError: different n; n < 2; NaN or infinite entries; a representation whose features are constant.
        TypeError: input that is not numeric.

    Source: Kornblith et al. 2019, table 1.
    """
    _, (a, b) = both(x, y, regression_of, "linear_regression")
    warn_if_spanning((b.predictor,), SPANNED)
    return LinearRegression().score(a, b)


def regression_of(x: Matrix) -> Regression:
    """The rank-revealing basis of ``x`` and its factor from one decomposition."""
    c = centred(x)
    fast = whiten(c.z, c.noise)
    if isinstance(fast, Whitened):
        target = Factor(x.name, c.z, frobenius(c.z), c.exponent)
        basis = Basis(x.name, fast.vectors, x.p, fast.mixing, fast.route, fast.reason, fast.mean)
        return Regression(basis, target)
    u, s = left_singular(c.z)
    target = Factor(x.name, u * s, float(np.linalg.norm(s)), c.exponent)
    return Regression(basis_from(x, u, rank_of(s, x, c.noise), fast.reason), target)
