"""Representation -> centred float64 features, their rank-revealing orthonormal basis, or a square factor.

Measures of the CCA family see a representation through the subspace that its centred features span, those of the
Procrustes family through any W with W Wᵀ = Xc Xcᵀ. A wide representation (p > n) is reduced through its n × n side
and a tall one through its p × p side: by Cholesky factors of Gram matrices where :mod:`.cholesky` can show that they
are accurate, and by Householder QR and SVD everywhere else.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import scipy  # its submodules load when first used, so `import simkit` does not pay for scipy.linalg

from ..arrays import FloatArray, Matrix, as_matrix, enough_samples, same_samples
from ..backends.base import Block, ColumnStats
from ..backends.mapped import PASSING, mapped_of, release
from ..errors import DegenerateWarning
from ..kernels import Linear
from .blas import (
    cross,
    frobenius,
    gram_of,
    inverse_of_triangle,
    product,
    svd,
    times_vector,
    upper_cholesky,
    values_by_bidiagonalization,
)
from .cholesky import EPS, Refused, Whitened, whiten
from .measure import Need
from .prepare import prepare_with_stats

Prepared = TypeVar("Prepared")
_SMALL = 2**16  # bytes of what is as long as there are samples, and the like
_VECTORS = 12  # as long as there are features, of column statistics and of centring
_LARGE = 2**20  # entries from which a copy takes a time that one would notice
_EXPONENT = 100  # of two, within which no product or square of features comes near the range of float64
_CHUNK = 2**16  # entries that are centred at a time
_BY_GRAM = 128  # width from which the eigenvalues of a Gram matrix are tried for singular values
_FEWEST = 256  # eps of the first singular value, that rounding may leave of dependent columns
_VALUE_ERROR = 1e-13  # of each, relative to the largest, up to which they are taken
_SUM_ERROR = 1e-11  # of their sum, if all errors had one sign


@dataclass(frozen=True)
class Basis:
    """An orthonormal basis Q of the centred features of one representation: vectors, or (vectors - mean) @ mixing.

    Without a ``mean``, vectors are centred.
    """

    name: str
    vectors: FloatArray  # [n, rank], or [n, k] before mixing
    available: int  # min(n, p) directions before the cut
    mixing: FloatArray | None = None  # [k, rank]
    route: str = "QR and SVD"
    reason: str = ""
    mean: FloatArray | None = None  # [k]

    @property
    def rank(self) -> int:
        """Number of directions kept."""
        return int((self.vectors if self.mixing is None else self.mixing).shape[1])

    @property
    def spanning(self) -> bool:
        """Whether every centred vector of n samples lies in the span."""
        return self.rank == len(self.vectors) - 1


@dataclass(frozen=True)
class Factor:
    """Xc up to an orthogonal map of its features: W Wᵀ = Xc Xcᵀ / 4^exponent, with ‖Xc‖_F = norm · 2^exponent.

    With a ``mean``, W = values - mean.
    """

    name: str
    values: FloatArray  # [n, min(n, p)]
    norm: float
    exponent: int
    mean: FloatArray | None = None  # [p]


@dataclass(frozen=True)
class Centred:
    """Xc = z · 2^exponent, and how large its singular values may be by rounding alone."""

    z: FloatArray  # [n, p]
    exponent: int
    noise: float  # in the units of z


def centred(x: Matrix) -> Centred:
    """:func:`centred_only` of ``x``, with what rounding its entries can make."""
    return _centred_with_noise(x, *prepare_with_stats(x, Linear()))


def _centred_with_noise(x: Matrix, block: Block, stats: ColumnStats) -> Centred:
    z, shift, exponent = _centred(x, block, stats)
    return Centred(z, exponent, _noise(z, shift, exponent, x, stats))


def centred_only(x: Matrix) -> tuple[FloatArray, int]:
    """(z ``[n, p]``, exponent) of ``x``: its columns less their means, times 2^-exponent, in float64.

    The exponent is 0 unless squares might overflow or vanish; otherwise it brings the largest deviation near 1. A
    constant column becomes exactly zero. The mean of a column at a large offset is off by offset · eps: where that
    shows, what is left of it is removed too.

    Raises:
        ValueError: non-finite entries. Degenerate: every feature is constant.
    """
    z, _, exponent = _centred(x, *prepare_with_stats(x, Linear()))
    return z, exponent


def _centred(x: Matrix, block: Block, stats: ColumnStats) -> tuple[FloatArray, FloatArray, int]:
    """(z ``[n, p]``, shift ``[p]`` in the units of z, exponent)."""
    exponent = 0 if abs(block.exponent) <= _EXPONENT else block.exponent
    scale = math.ldexp(1.0, -exponent)  # a product with a power of two is as exact as ldexp, and much faster
    shift = block.shift * scale
    z = np.empty((x.n, x.p))
    left = np.zeros(x.p)
    step = max(1, _CHUNK // x.p)
    mapped, read = mapped_of([x]), 0  # bytes of a mapped file, which NumPy's reading leaves resident
    (row, whole), *_ = mapped.layers if mapped else ((0, 0),)
    by_rows = row < whole  # the whole of a file by columns would be read again for every strip
    for start in range(0, x.n, step):
        rows = slice(start, start + step)
        part = x.values[rows] if x.dtype == "float64" else x.float64(rows)
        if exponent:
            part = np.multiply(part, scale, out=z[rows])
        np.subtract(part, shift, out=z[rows])
        left += z[rows].sum(axis=0)
        if by_rows:
            read += step * row
            if read >= PASSING[0] // 2:
                release(x)
                read = 0
    if mapped is not None:
        release(x)
    left /= x.n
    squares = np.einsum("ij,ij->j", z, z) if exponent else stats.sum_sq_dev  # those of x may overflow or vanish
    deviation = np.sqrt(squares / x.n)
    if (np.abs(left) > EPS * deviation).any():
        z -= left
    return z, shift, exponent


def _noise(z: FloatArray, shift: FloatArray, exponent: int, x: Matrix, stats: ColumnStats) -> float:
    """The spectral norm that rounding every entry of z + shift to the precision of ``x`` may have.

    Independent errors of standard deviation σ_ij have a spectral norm of about max_j √(Σ_i σ²) + max_i √(Σ_j σ²)
    (Bandeira & van Handel 2016, theorem 1.1); rounding to nearest has σ ≤ 0.29 eps |z|, and a sum of a few dozen
    products, which features mostly are, about eps |z|: four times that is noise. Constant columns have none.
    """
    squares = np.einsum("ij,ij->j", z, z) if exponent else stats.sum_sq_dev
    moving = squares > 0.0
    if not moving.all():
        moving[~moving] = z[:, ~moving].any(axis=0)  # squares may vanish where values do not
    offset = np.where(moving, shift, 0.0)
    columns = squares + x.n * offset * offset
    if exponent == 0 and x.dtype == "float64" and not x.mapped and moving.all():
        rows = np.einsum("ij,ij->i", x.values, x.values)
    else:
        rows = np.einsum("ij,ij->i", z, z) + 2.0 * times_vector(z, offset) + frobenius(offset) ** 2
    return float(4 * np.finfo(x.precision).eps * (np.sqrt(columns.max()) + np.sqrt(max(rows.max(), 0.0))))


def left_singular(z: FloatArray, *, overwrite: bool = True) -> tuple[FloatArray, FloatArray]:
    """Left singular vectors ``[n, r]`` and singular values ``[r]`` of ``z [n, p]``, r = min(n, p)."""
    n, p = z.shape
    if n > p:
        q, r = scipy.linalg.qr(z, mode="economic", overwrite_a=overwrite, check_finite=False)
        u, s, _ = svd(r)
        return product(q, u), s
    u, s, _ = svd(_triangle(z, overwrite).T)
    return u, s


def singular_values(a: FloatArray) -> FloatArray:
    """Singular values of ``a``, descending, to about 1e-13 of the largest."""
    roots = _roots(a)
    if roots is not None and EPS * roots[0] <= _VALUE_ERROR * roots[-1]:
        return roots
    return values_by_bidiagonalization(a)


def nuclear_norm(a: FloatArray) -> float:
    """The sum of the singular values of ``a``, to 1e-11 of itself at worst."""
    roots = _roots(a)
    if roots is not None and EPS * roots[0] ** 2 * float((1.0 / roots).sum()) <= _SUM_ERROR * float(roots.sum()):
        return float(roots.sum())
    return float(values_by_bidiagonalization(a).sum())


def _roots(a: FloatArray) -> FloatArray | None:
    """√λ of the Gram matrix of the smaller side of ``a``, descending, where all λ > 0; None for small matrices.

    λ is right to about 2 eps λ₁, so √λ to eps λ₁ / √λ: for the caller to allow or not.
    """
    if min(a.shape) < _BY_GRAM:
        return None
    half = gram_of(a if a.shape[0] >= a.shape[1] else a.T)
    r = upper_cholesky(half)
    if r is None:
        return None
    diagonal = half.diagonal()
    largest = (2 * frobenius(half) ** 2 - diagonal @ diagonal) / diagonal.sum()  # Σ λ² / Σ λ, at most λ₁
    allowed = _SUM_ERROR * np.sqrt(len(r) * diagonal.sum())
    error = EPS * largest  # times Σ 1 / √λ >= ‖R⁻¹‖_F >= 1 / r_kk
    if error > allowed * r.diagonal().min() or error * frobenius(inverse_of_triangle(r)) > allowed:
        return None  # the eigenvalues, which cost more, would not do
    try:
        values = scipy.linalg.eigvalsh(half, lower=False, check_finite=False, driver="evd")
    except np.linalg.LinAlgError:
        return None
    return np.sqrt(values[::-1]) if values[0] > 0.0 else None


def rank_of(s: FloatArray, x: Matrix, noise: float) -> int:
    """How many singular values ``s`` of the centred features are kept: those above what rounding may have made.

    s > noise (of the entries in their own precision: float64, or float32 for float32, for half types, whose own eps
    would discard real directions, and for integers of up to 16 bits), and s > max(min(n, p), 256) · eps(float64) · s₁,
    the error of the decomposition: QR leaves up to 31 eps s₁ of dependent columns of few values, and no more of a
    million samples than of ten thousand. The usual max(n, p) · eps · s₁ drops real directions of long data: below
    2e-12 s₁ at n = 10,000, and with the eps of float32 all below 0.024 s₁ at n = 200,000. Centring leaves at most n-1
    directions, and what is not constant has one.
    """
    kept = int(np.count_nonzero(s > max(noise, max(min(x.n, x.p), _FEWEST) * EPS * s[0])))
    return max(1, min(kept, x.n - 1))


def need_of(x: Matrix, *, held: int) -> Need:
    """What a measure on orthogonal decompositions of ``x [n, p]`` takes, ``held`` float64 numbers of it for good.

    QR holds the centred features, what LAPACK makes of them and the result; divide and conquer holds seven matrices
    of the smaller side. Scoring holds no more. Cholesky factors take less for good: a square one beside the features.
    Of fewer than six samples the sums of columns, and what centring forms of them, are more than all of that.
    """
    k, mapped = min(x.n, x.p), mapped_of([x])
    pages = 0 if mapped is None else mapped.passing(0)
    working = max(3 * x.n * x.p + 7 * k * k, (x.n + _VECTORS) * x.p)
    return Need(8 * (held + k * k), 8 * working + pages + _SMALL)


def basis_of(x: Matrix) -> Basis:
    """The rank-revealing orthonormal basis of the centred features of ``x``."""
    return basis_and_loadings(x, loadings=False)[0]


def basis_and_loadings(x: Matrix, *, loadings: bool = True) -> tuple[Basis, FloatArray]:
    """(the rank-revealing basis Q of ``x``, Qᵀz ``[rank, p]``), z the centred features up to a power of two.

    Without ``loadings`` they are left empty where they would cost a product. Features that lie near their mean are
    taken as they lie, as by :func:`factor_as_it_lies`.
    """
    seen = prepare_with_stats(x, Linear())
    c, fast = None, _as_it_lies(x, *seen)
    if fast is None:
        c = _centred_with_noise(x, *seen)
        fast = whiten(c.z, c.noise, overwrite=True)
    if isinstance(fast, Whitened):
        return Basis(x.name, fast.vectors, x.p, fast.mixing, fast.route, fast.reason, fast.mean), fast.loadings
    if c is None or fast.overwritten:
        c = _centred_with_noise(x, *seen)
    u, s = left_singular(c.z, overwrite=not loadings)
    basis = basis_from(x, u, rank_of(s, x, c.noise), fast.reason)
    return basis, cross(basis.vectors, c.z) if loadings else np.empty((basis.rank, 0))


def _as_it_lies(x: Matrix, block: Block, stats: ColumnStats) -> Whitened | Refused | None:
    """The basis of ``x`` without a copy of it; None where it must be centred first."""
    if not (_near_its_mean(x, block, stats) and stats.sum_sq_dev.all()):
        return None
    return whiten(x.values, _noise(x.values, block.shift, 0, x, stats), mean=block.shift)


def overlap(x: Basis, y: Basis) -> FloatArray:
    """Q_xᵀ Q_y ``[rank x, rank y]``."""
    cosines = cross_about_means(x.vectors, x.mean, y.vectors, y.mean)
    if x.mixing is not None:
        cosines = cross(x.mixing, cosines)
    return cosines if y.mixing is None else product(cosines, y.mixing)


def basis_from(x: Matrix, u: FloatArray, rank: int, reason: str = "") -> Basis:
    """The first ``rank`` columns of ``u [n, r]`` as the basis of ``x``."""
    vectors = u if rank == u.shape[1] else np.ascontiguousarray(u[:, :rank])
    return Basis(x.name, vectors, u.shape[1], reason=reason)


def factor_of(x: Matrix) -> Factor:
    """The centred features of ``x``, or their triangular factor where they are wide."""
    z, exponent = centred_only(x)
    w = z if x.n >= x.p else np.asarray(_triangle(z, True).T)
    return Factor(x.name, w, frobenius(w), exponent)


def factor_as_it_lies(x: Matrix) -> Factor:
    """:func:`factor_of` without a copy, the mean apart, where ``x`` is large, float64 and not far from centred.

    Products of uncentred features then lose no more than one bit to the mean. The array must stay as it is as long as
    the factor is in use.
    """
    block, stats = prepare_with_stats(x, Linear())
    if not _near_its_mean(x, block, stats):
        return factor_of(x)
    return Factor(x.name, x.values, float(np.sqrt(stats.sum_sq_dev.sum())), 0, block.shift)


def _near_its_mean(x: Matrix, block: Block, stats: ColumnStats) -> bool:
    """Whether ``x`` is large, tall, float64 in memory, and its columns deviate from their means by these or more."""
    values = x.values
    plain = x.dtype == "float64" and not x.mapped and (values.flags.c_contiguous or values.flags.f_contiguous)
    if not (plain and x.n >= x.p and values.size >= _LARGE and abs(block.exponent) <= _EXPONENT):
        return False
    return bool((x.n * block.shift * block.shift <= stats.sum_sq_dev).all())


def cross_of_factors(x: Factor, y: Factor) -> FloatArray:
    """W_xᵀ W_y."""
    return cross_about_means(x.values, x.mean, y.values, y.mean)


def cross_about_means(x: FloatArray, x_mean: FloatArray | None, y: FloatArray, y_mean: FloatArray | None) -> FloatArray:
    """(x - x_mean)ᵀ (y - y_mean) ``[p, q]``; what has no mean is centred.

    The columns of a basis sum to zero only as far as rounding of the features, times their condition, allows: the
    mean of the other side must not meet that.
    """
    sums = cross(x, y)
    if x_mean is not None and y_mean is not None:
        sums -= np.outer(len(x) * x_mean, y_mean)
    elif x_mean is not None:
        sums -= np.outer(x_mean, y.sum(axis=0))
    elif y_mean is not None:
        sums -= np.outer(x.sum(axis=0), y_mean)
    return sums


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
