"""Normalised Bures similarity.

    NBS = tr((K^½ L K^½)^½) / √(tr K · tr L),  K, L centred Gram matrices                     Muzellec & Cuturi 2018
        = ‖XcᵀYc‖_* / (‖Xc‖_F ‖Yc‖_F)          for the linear kernel                        Tang et al. 2020

Range [0, 1] up to rounding (not clamped). Invariant to orthogonal maps, isotropic scaling and translation of the
features. It is the cosine of the angular Procrustes distance; normalised Procrustes² = 2 - 2·NBS.

Published code that differs: deep-reps takes a square root in the wrong place; ``anatome`` and others report 1 - NBS
and call it the orthogonal Procrustes distance. rsatoolbox (``bures``) agrees, and so does the cosine of netrep's angle.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..arrays import Matrix, enough_samples
from .basis import Factor, both, cross_of_factors, factor_as_it_lies, need_of, nuclear_norm
from .measure import Need


@dataclass(frozen=True)
class NBS:
    """Normalised Bures similarity as a measure object."""

    def prepare(self, x: Matrix) -> Factor:
        """The centred features of one representation, reduced to n columns where they are wide.

        Large float64 features are not copied: they must stay as they are until the scores are there.
        """
        enough_samples(x.n, 2, "NBS")
        return factor_as_it_lies(x)

    def need(self, x: Matrix) -> Need:
        """Bytes of the factor, and of finding it."""
        return need_of(x, held=x.n * min(x.n, x.p))

    def score(self, x: Factor, y: Factor) -> float:
        """Nuclear norm of the cross-product of two prepared representations."""
        return bures(x, y)


def nbs(x: object, y: object) -> float:
    """Normalised Bures similarity of ``x [n, p]`` and ``y [n, q]``: 1 for equal up to rotation and scale.

    Range [0, 1]. Invariant to orthogonal maps, isotropic scale and translation of either side; symmetric.

    Raises:
        ValueError: different n; n < 2; NaN or infinite entries; a representation whose features are constant.
        TypeError: input that is not numeric.

    Source: Muzellec & Cuturi 2018; Tang et al. 2020; Harvey et al. 2024 (equal to cos of Procrustes).
    """
    _, (a, b) = both(x, y, factor_as_it_lies, "nbs")
    return bures(a, b)


def bures(x: Factor, y: Factor) -> float:
    """‖W_xᵀ W_y‖_* / (‖W_x‖_F ‖W_y‖_F): the normalised Bures similarity of two factors."""
    return nuclear_norm(cross_of_factors(x, y)) / (x.norm * y.norm)
