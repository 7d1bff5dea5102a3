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
from .prepare import prepare

Prepared = TypeVar("Prepared")


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


def centred(x: Matrix) -> tuple[FloatArray, int]:
    """(z, exponent): Xc = z · 2^exponent, ``z [n, p]`` float64; a constant column becomes exactly zero.

    The power of two brings the largest deviation near 1, so that squares neither overflow nor vanish. The mean is
    removed twice: the first mean of a column at offset c is off by c · eps, the second pass takes that away.

    Raises:
        ValueError: non-finite entries. Degenerate: every feature is constant.
    """
    block = prepare(x, Linear())
    z = x.float64()
    z -= block.shift
    np.ldexp(z, -block.exponent, out=z)
    z -= z.mean(axis=0)
    return z, block.exponent


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


def rank_of(s: FloatArray, x: Matrix) -> int:
    """How many singular values of the centred features are kept: s > max(n, p) · eps · s₁.

    eps is that of the precision the input is held in: float64, or float32 for float32, for half types (whose own
    eps would discard real directions: float16 with 512 samples would keep s > s₁/2) and for integers of up to 16
    bits. Centring leaves at most n-1 directions, and a representation that is not constant has one.
    """
    kept = int(np.count_nonzero(s > max(x.n, x.p) * np.finfo(x.precision).eps * s[0]))
    return max(1, min(kept, x.n - 1))


def basis_of(x: Matrix) -> Basis:
    """The rank-revealing orthonormal basis of the centred features of ``x``."""
    z, _ = centred(x)
    u, s = left_singular(z)
    return basis_from(x, u, rank_of(s, x))


def basis_from(x: Matrix, u: FloatArray, rank: int) -> Basis:
    """The first ``rank`` columns of ``u [n, r]`` as the basis of ``x``."""
    return Basis(x.name, u if rank == u.shape[1] else np.ascontiguousarray(u[:, :rank]), u.shape[1])


def factor_of(x: Matrix) -> Factor:
    """The centred features of ``x``, or their triangular factor where they are wide, at unit Frobenius norm."""
    z, exponent = centred(x)
    w = z if x.n >= x.p else np.asarray(_triangle(z, True).T)
    norm = float(np.linalg.norm(w))
    w /= norm
    return Factor(x.name, w, norm, exponent)


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
