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
import scipy

from ..arrays import FloatArray, Matrix, enough_samples
from .basis import Basis, basis_from, basis_of, both, centred_only, left_singular, need_of, warn_if_spanning
from .blas import gram_of, product
from .cca import SPANNED, correlations
from .cholesky import EPS, ONE_PASS_CONDITION, WORST, defect_of, tall_enough
from .measure import Need

CLEAR = 1e-12  # of the total variance: nearer to the cut, a cumulated share is a tie within rounding
CUT_ERROR = 1e-11  # of what Gram matrices may change in the kept directions
FEW = 0.4  # share of the features up to which forming the directions is cheaper than products of all features
ROUTE = "eigenvectors of the Gram matrix"


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
        """The leading left singular vectors of one representation.

        At ``variance=1`` large float64 features are not copied: they must stay as they are until the scores are there.
        """
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
    if variance == 1.0:
        return basis_of(x)
    z, _ = centred_only(x)
    fast = _by_eigenvectors(x, z, variance)
    if fast is not None:
        return fast
    u, s = left_singular(z)
    return basis_from(x, u, min(leading(s * s, variance), x.n - 1))


def leading(squares: FloatArray, variance: float) -> int:
    """The least number of squared singular values, descending, that explain ``variance`` of their sum."""
    explained = np.cumsum(squares)
    return int(np.searchsorted(explained, variance * explained[-1])) + 1


def _by_eigenvectors(x: Matrix, z: FloatArray, variance: float) -> Basis | None:
    """The leading directions from the eigenvectors of zᵀz, or None where the SVD would find others.

    Whatever the condition of ``z``, the kept directions carry variance, and their eigenvalues are right to
    eps λ₁. They are taken if the cut stands clear of the eigenvalues' error, the gap behind it of the eigenvectors',
    and if the weakest of them, measured on z itself, are orthonormal.
    """
    if not tall_enough(z):
        return None
    values, vectors = scipy.linalg.eigh(gram_of(z), lower=False, check_finite=False, driver="evd")
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    total = float(values.sum())
    k = leading(values, variance)
    margin = np.abs(np.cumsum(values)[max(0, k - 2) : k] - variance * total).min()
    gap = values[k - 1] - values[k] if k < len(values) else values[k - 1]
    if margin <= CLEAR * total or EPS * values[0] > CUT_ERROR * k * gap:
        return None
    if values[0] > ONE_PASS_CONDITION**2 * values[k - 1]:
        return None
    mixing = vectors[:, :k] / np.sqrt(values[:k])
    defect = defect_of(product(z, mixing[:, -WORST:]))
    if defect > CUT_ERROR:
        return None
    reason = f"orthonormal to {defect:.0e}"
    if k > FEW * x.p:
        return Basis(x.name, z, x.p, mixing, ROUTE, reason)
    return Basis(x.name, product(z, mixing), x.p, None, ROUTE, reason)
