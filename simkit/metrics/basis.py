"""Representation -> centred float64 features, their rank-revealing orthonormal basis, or a square factor.

Measures of the CCA family see a representation through the subspace that its centred features span, those of the
Procrustes family through any W with W Wᵀ = Xc Xcᵀ. A wide representation (p > n) is reduced through its n × n side
and a tall one through its p × p side, by QR and never by Gram matrices, which would square the condition number.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import scipy  # its submodules load when first used, so `import simkit` does not pay for scipy.linalg

from ..arrays import FloatArray, Matrix, as_matrix, enough_samples, same_samples
from ..errors import DegenerateWarning
from ..kernels import Linear
from .measure import Need
from .prepare import prepare

Prepared = TypeVar("Prepared")
_SMALL = 2**16  # bytes of column statistics and the like


@dataclass(frozen=True)
class Basis:
    """An orthonormal basis of the centred features of one representation."""

    name: str
    vectors: FloatArray  # [n, rank]
    available: int  # min(n, p) directions before the cut

    @property
    def rank(self) -> int:
        """Number of directions kept."""
        return int(self.vectors.shape[1])

    @property
    def spanning(self) -> bool:
        """Whether every centred vector of n samples lies in the span."""
        return self.rank == len(self.vectors) - 1


@dataclass(frozen=True)
class Factor:
    """Xc up to an orthogonal map of its features: W Wᵀ = Xc Xcᵀ / ‖Xc‖_F², with ‖Xc‖_F = norm · 2^exponent."""

    name: str
    values: FloatArray  # W [n, min(n, p)], unit Frobenius norm
    norm: float
    exponent: int


@dataclass(frozen=True)
class Centred:
    """Xc = z · 2^exponent, and how large its singular values may be by rounding alone."""

    z: FloatArray  # [n, p]
    exponent: int
    noise: float  # in the units of z


def centred(x: Matrix) -> Centred:
    """The centred features of ``x [n, p]`` in float64; a constant column becomes exactly zero.

    The power of two brings the largest deviation near 1, so that squares neither overflow nor vanish. The mean is
    removed twice: the first mean of a column at offset c is off by c · eps, the second pass takes that away.

    Raises:
        ValueError: non-finite entries. Degenerate: every feature is constant.
    """
    block = prepare(x, Linear())
    z = x.float64()
    np.ldexp(z, -block.exponent, out=z)
    noise = _noise(z[:, z.max(axis=0) > z.min(axis=0)], x)
    z -= np.ldexp(block.shift, -block.exponent)
    z -= z.mean(axis=0)
    return Centred(z, block.exponent, noise)


def _noise(z: FloatArray, x: Matrix) -> float:
    """The spectral norm that rounding every entry of ``z``, uncentred, to the precision of ``x`` may have.

    Independent errors of standard deviation σ_ij have a spectral norm of about max_j √(Σ_i σ²) + max_i √(Σ_j σ²)
    (Bandeira & van Handel 2016, theorem 1.1); rounding to nearest has σ ≤ 0.29 eps |z|, and a sum of a few dozen
    products, which features mostly are, about eps |z|: four times that is noise.
    """
    columns, rows = np.einsum("ij,ij->j", z, z), np.einsum("ij,ij->i", z, z)
    return float(4 * np.finfo(x.precision).eps * (np.sqrt(columns.max()) + np.sqrt(rows.max())))


def left_singular(z: FloatArray, *, overwrite: bool = True) -> tuple[FloatArray, FloatArray]:
    """Left singular vectors ``[n, r]`` and singular values ``[r]`` of ``z [n, p]``, r = min(n, p)."""
    n, p = z.shape
    if n > p:
        q, r = scipy.linalg.qr(z, mode="economic", overwrite_a=overwrite, check_finite=False)
        u, s, _ = svd(r)
        return np.asarray(q @ u), s
    u, s, _ = svd(_triangle(z, overwrite).T)
    return u, s


def svd(a: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Thin (U, s, Vᵀ) by divide and conquer, or by QR iteration where that does not converge."""
    try:
        u, s, vt = scipy.linalg.svd(a, full_matrices=False, check_finite=False)
    except np.linalg.LinAlgError:
        u, s, vt = scipy.linalg.svd(a, full_matrices=False, check_finite=False, lapack_driver="gesvd")
    return u, s, vt


def singular_values(a: FloatArray) -> FloatArray:
    """Singular values of ``a``, descending."""
    try:
        return np.asarray(scipy.linalg.svdvals(a, check_finite=False))
    except np.linalg.LinAlgError:
        return svd(a)[1]


def rank_of(s: FloatArray, x: Matrix, noise: float) -> int:
    """How many singular values ``s`` of the centred features are kept: those above what rounding may have made.

    s > noise (of the entries in their own precision: float64, or float32 for float32, for half types, whose own eps
    would discard real directions, and for integers of up to 16 bits), and s > max(n, p) · eps(float64) · s₁, the error
    of the decomposition. The usual max(n, p) · eps(float32) · s₁ drops real directions of long float32 data: all
    below 0.024 s₁ at n = 200,000. Centring leaves at most n-1 directions, and what is not constant has one.
    """
    kept = int(np.count_nonzero(s > max(noise, max(x.n, x.p) * np.finfo(np.float64).eps * s[0])))
    return max(1, min(kept, x.n - 1))


def need_of(x: Matrix, *, held: int) -> Need:
    """What a measure on orthogonal decompositions of ``x [n, p]`` takes, ``held`` float64 numbers of it for good.

    QR holds the centred features, what LAPACK makes of them and the result; divide and conquer holds seven matrices
    of the smaller side. Scoring holds no more.
    """
    k = min(x.n, x.p)
    return Need(8 * held, 8 * (3 * x.n * x.p + 7 * k * k) + _SMALL)


def basis_of(x: Matrix) -> Basis:
    """The rank-revealing orthonormal basis of the centred features of ``x``."""
    c = centred(x)
    u, s = left_singular(c.z)
    return basis_from(x, u, rank_of(s, x, c.noise))


def basis_from(x: Matrix, u: FloatArray, rank: int) -> Basis:
    """The first ``rank`` columns of ``u [n, r]`` as the basis of ``x``."""
    return Basis(x.name, u if rank == u.shape[1] else np.ascontiguousarray(u[:, :rank]), u.shape[1])


def factor_of(x: Matrix) -> Factor:
    """The centred features of ``x``, or their triangular factor where they are wide, at unit Frobenius norm."""
    c = centred(x)
    w = c.z if x.n >= x.p else np.asarray(_triangle(c.z, True).T)
    norm = float(np.linalg.norm(w))
    w /= norm
    return Factor(x.name, w, norm, c.exponent)


def _triangle(z: FloatArray, overwrite: bool) -> FloatArray:
    """R ``[n, n]`` of the QR decomposition of zᵀ, so that z zᵀ = Rᵀ R; ``z [n, p]`` with p >= n."""
    _, r = scipy.linalg.qr(z.T, mode="raw", overwrite_a=overwrite, check_finite=False)
    return np.asarray(r)


def both(
    x: object, y: object, prepare_one: Callable[[Matrix], Prepared], measure: str
) -> tuple[tuple[Matrix, Matrix], tuple[Prepared, Prepared]]:
    """Admit ``x [n, p]`` and ``y [n, q]`` and prepare each, once if they are the same object.

    Raises:
        ValueError: different n, or n < 2, and as :func:`simkit.arrays.as_matrix`.
    """
    a, b = as_matrix(x, name="x"), as_matrix(y, name="y")
    enough_samples(same_samples((a, b)), 2, measure)
    first = prepare_one(a)
    return (a, b), (first, first if x is y else prepare_one(b))


def warn_if_spanning(bases: Sequence[Basis], consequence: str, *, stacklevel: int = 3) -> None:
    """Emit one DegenerateWarning naming the bases that span every centred vector; correlations are then all 1."""
    names = list(dict.fromkeys(basis.name for basis in bases if basis.spanning))
    if names:
        n = len(bases[0].vectors)
        warnings.warn(
            f"{' and '.join(names)} {'has' if len(names) == 1 else 'have'} rank {n - 1} on {n} samples, "
            f"which leaves no direction out: {consequence}; take more samples or fewer features",
            DegenerateWarning,
            stacklevel=stacklevel,
        )
