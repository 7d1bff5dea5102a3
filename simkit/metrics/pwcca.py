"""Projection-weighted canonical correlation analysis.

    PWCCA = Σ α_i ρ_i / Σ α_i,   α_i = Σ_j |⟨h_i, x_j⟩|                                      Morcos et al. 2018

ρ_i are the canonical correlations (see :mod:`.cca`), h_i = Q_x a_i the canonical variates of the weighting side in
sample space (a_i the left singular vectors of Q_xᵀQ_y) and x_j the columns of its *centred* features. Asymmetric:
the weights come from one side. Range [0, 1] up to rounding (not clamped). Invariant to translation of both sides, to
isotropic scaling of the weighting side (not to rotations of it: α sums over its features), and to any invertible
linear map of the other side. Where two correlations coincide exactly while others differ, the definition leaves the
variates of the pair, and with them the weights, undetermined.

Published code that differs: google/svcca, ReSi, contrasim and rtd project with directions that lack the whitening, so
they are no canonical variates and the result moves with the scale of features; google/svcca also raises when the
second side has more features; ``anatome`` orthonormalises the weights and uses uncentred features; PyPI ``repsim``
averages both directions; deep-reps does not run. sim_metric agrees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..arrays import FloatArray, Matrix, enough_samples
from .basis import Basis, basis_and_loadings, both, need_of, overlap, warn_if_spanning
from .blas import cross, svd
from .cca import SPANNED
from .measure import Need

WEIGHTS = ("smaller", "x", "y")


@dataclass(frozen=True)
class Loaded:
    """A basis and the coordinates of every centred feature in it."""

    basis: Basis
    loadings: FloatArray  # [rank, p], up to a power of two


@dataclass(frozen=True)
class PWCCA:
    """PWCCA as a measure object: ``PWCCA(weights="x")``; warns when a layer spans every direction of the samples.

    Raises:
        ValueError: ``weights`` is none of "smaller", "x", "y".
    """

    weights: Literal["smaller", "x", "y"] = "smaller"

    def __post_init__(self) -> None:
        if self.weights not in WEIGHTS:
            raise ValueError(f'weights must be "smaller", "x" or "y", not {self.weights!r}')

    def prepare(self, x: Matrix) -> Loaded:
        """The rank-revealing basis of one representation and its features' coordinates.

        Large float64 features are not copied: they must stay as they are until the scores are there.
        """
        enough_samples(x.n, 2, "PWCCA")
        loaded = loaded_of(x)
        warn_if_spanning((loaded.basis,), SPANNED)
        return loaded

    def need(self, x: Matrix) -> Need:
        """Bytes of the basis with the coordinates, and of finding them."""
        return need_of(x, held=(x.n + x.p) * min(x.n, x.p))

    def score(self, x: Loaded, y: Loaded) -> float:
        """Weighted mean of the canonical correlations of two prepared representations."""
        smaller_x = x.loadings.shape[1] <= y.loadings.shape[1]
        if self.weights == "y" or (self.weights == "smaller" and not smaller_x):
            x, y = y, x
        a, rho, _ = svd(overlap(x.basis, y.basis))
        alpha = np.abs(cross(a, x.loadings)).sum(axis=1)
        return float(alpha @ rho / alpha.sum())


def pwcca(x: object, y: object, *, weights: Literal["smaller", "x", "y"] = "smaller") -> float:
    """Projection-weighted canonical correlation of ``x [n, p]`` and ``y [n, q]``.

    ``weights`` names the side whose features weigh the correlations: "smaller" takes the side with fewer features,
    x when equal, so swapping the arguments can change the result. Range [0, 1]. Invariant to translation, to
    isotropic scale, and to any invertible linear map of the side that does not give the weights. Warns
    (``DegenerateWarning``) when a side has rank n-1: the result is then 1.

    Raises:
        ValueError: ``weights`` unknown, and as :func:`simkit.cca`. TypeError: input that is not numeric.

    Source: Morcos et al. 2018. Packages without the whitening give other numbers; see the module's text.
    """
    measure = PWCCA(weights)
    _, (a, b) = both(x, y, loaded_of, "pwcca")
    warn_if_spanning((a.basis, b.basis), SPANNED)
    return measure.score(a, b)


def loaded_of(x: Matrix) -> Loaded:
    """The rank-revealing basis of ``x`` with the coordinates of its features."""
    return Loaded(*basis_and_loadings(x))
