"""Singular vector canonical correlation analysis.

    Keep the smallest k with Σ_{i≤k} s_i² ≥ variance · Σ_i s_i², s the singular values of the centred features;
    SVCCA = mean CCA of the kept directions                                                  Raghu et al. 2017

Range [0, 1] up to rounding (not clamped). Invariant to orthogonal maps, isotropic scaling and translation of the
features, not to linear maps in general: those change which directions carry the variance.

Published code that differs: ReSi (and the identifier derived from it in ``similarity-repository``) keeps one
component whenever the total variance exceeds 1.01, because it compares shares with the total; ``anatome`` truncates
on Σs instead of Σs²; PyPI ``repsim`` truncates an orthonormal basis instead of the data; platonic-rep adds noise and
fits iteratively. The google notebook, contrasim and sim_metric agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

import numpy as np

from ..arrays import FloatArray, Matrix, enough_samples
from .basis import Basis, basis_from, both, centred, left_singular, need_of, rank_of, warn_if_spanning
from .cca import SPANNED, correlations
from .measure import Need


@dataclass(frozen=True)
class SVCCA:
    """SVCCA as a measure object: ``SVCCA(variance=0.99)``; warns when a layer keeps n-1 directions.

    Raises:
        ValueError: ``variance`` outside (0, 1]. TypeError: it is no number.
    """

    variance: float = 0.99

    def __post_init__(self) -> None:
        given: object = self.variance
        if isinstance(given, bool) or not isinstance(given, Real):
            raise TypeError(f"variance must be a number in (0, 1], not {given!r}")
        if not 0.0 < self.variance <= 1.0:
            raise ValueError(f"variance must lie in (0, 1], not {self.variance!r}")

    def prepare(self, x: Matrix) -> Basis:
        """The leading left singular vectors of one representation."""
        enough_samples(x.n, 2, "SVCCA")
        basis = truncated(x, self.variance)
        warn_if_spanning((basis,), SPANNED)
        return basis

    def need(self, x: Matrix) -> Need:
        """Bytes of the basis, and of finding it."""
        return need_of(x, held=x.n * min(x.n, x.p))

    def score(self, x: Basis, y: Basis) -> float:
        """Mean of the canonical correlations of two prepared representations."""
        return float(correlations(x, y).mean())


def svcca(x: object, y: object, *, variance: float = 0.99) -> float:
    """Mean canonical correlation of the leading singular directions of ``x [n, p]`` and ``y [n, q]``.

    ``variance`` in (0, 1] is the share of each side's variance that its kept directions explain at least; 1 keeps
    what the rank rule of :func:`simkit.cca` keeps and equals mean CCA. Range [0, 1]. Invariant to orthogonal maps,
    isotropic scale and translation. Warns (``DegenerateWarning``) when a side keeps n-1 directions: the result is 1.

    Raises:
        ValueError: ``variance`` outside (0, 1], and as :func:`simkit.cca`. TypeError: ``variance`` or input that is
            not numeric.

    Source: Raghu et al. 2017.
    """
    measure = SVCCA(variance)
    _, (a, b) = both(x, y, lambda matrix: truncated(matrix, variance), "svcca")
    warn_if_spanning((a, b), SPANNED)
    return measure.score(a, b)


def truncated(x: Matrix, variance: float) -> Basis:
    """The left singular vectors of the centred features that explain ``variance`` of their variance."""
    c = centred(x)
    u, s = left_singular(c.z)
    return basis_from(x, u, rank_of(s, x, c.noise) if variance == 1.0 else _leading(s, variance, x.n))


def _leading(s: FloatArray, variance: float, n: int) -> int:
    explained = np.cumsum(s * s)
    return min(int(np.searchsorted(explained, variance * explained[-1])) + 1, n - 1)
