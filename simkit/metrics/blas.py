"""Dense linear algebra of measures, all that takes time by SciPy's BLAS and LAPACK.

NumPy's wheels bring a BLAS with threads of its own. After a call they wait, busily, for up to a tenth of a second, on
the cores of whatever comes next: one product of NumPy's within a measure slows the rest of it down (NBS of two layers
of 512: 142 ms instead of 89 on two cores).
"""

from __future__ import annotations

import math

import numpy as np
import scipy  # its submodules load when first used, so `import simkit` does not pay for scipy.linalg

from ..arrays import FloatArray

LONGEST = 2**30  # entries of a vector in one call: BLAS counts them in 32 bits


def product(a: FloatArray, b: FloatArray) -> FloatArray:
    """a @ b, C-contiguous; nothing is copied that is contiguous, by rows or by columns."""
    right, turn_right = (b.T, 0) if b.flags.c_contiguous else (b, 1)
    left, turn_left = (a.T, 0) if a.flags.c_contiguous else (a, 1)
    return np.asarray(scipy.linalg.blas.dgemm(1.0, right, left, trans_a=turn_right, trans_b=turn_left).T)


def cross(x: FloatArray, y: FloatArray) -> FloatArray:
    """xᵀ y ``[p, q]``."""
    return product(x.T, y)


def gram_of(z: FloatArray) -> FloatArray:
    """The upper half of zᵀ z ``[p, p]``; the other is zero."""
    by_rows = z.flags.c_contiguous
    return np.asarray(scipy.linalg.blas.dsyrk(1.0, z.T if by_rows else z, trans=not by_rows))


def upper_cholesky(half: FloatArray) -> FloatArray | None:
    """R of G = RᵀR, from the upper half of G; None where G is not positive definite in float64."""
    r, failed = scipy.linalg.lapack.dpotrf(half)
    return None if failed else np.asarray(r)


def inverse_of_triangle(r: FloatArray) -> FloatArray:
    """The inverse of an upper triangular matrix."""
    return np.asarray(scipy.linalg.lapack.dtrtri(r)[0])


def times_triangle(z: FloatArray, upper: FloatArray, *, overwrite: bool) -> FloatArray:
    """z @ upper ``[n, p]`` for a triangular matrix, in the place of ``z`` if it may be overwritten."""
    return np.asarray(scipy.linalg.blas.dtrmm(1.0, upper, z.T, trans_a=1, overwrite_b=overwrite).T)


def frobenius(a: FloatArray) -> float:
    """‖a‖_F."""
    flat = a.ravel(order="K")
    parts = (flat[start : start + LONGEST] for start in range(0, flat.size, LONGEST))
    return math.sqrt(sum(scipy.linalg.blas.ddot(part, part) for part in parts))


def times_vector(a: FloatArray, v: FloatArray) -> FloatArray:
    """a @ v ``[n]``, for contiguous ``a [n, p]``."""
    by_rows = a.flags.c_contiguous
    return np.asarray(scipy.linalg.blas.dgemv(1.0, a.T if by_rows else a, v, trans=by_rows))


def orthonormal(a: FloatArray) -> FloatArray:
    """Q ``[n, k]`` of the QR decomposition of a few columns ``a [n, k]``, n >= k."""
    return np.asarray(scipy.linalg.qr(a, mode="economic", check_finite=False)[0])


def svd(a: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Thin (U, s, Vᵀ) by divide and conquer, or by QR iteration where that does not converge."""
    try:
        u, s, vt = scipy.linalg.svd(a, full_matrices=False, check_finite=False)
    except np.linalg.LinAlgError:
        u, s, vt = scipy.linalg.svd(a, full_matrices=False, check_finite=False, lapack_driver="gesvd")
    return u, s, vt


def values_by_bidiagonalization(a: FloatArray) -> FloatArray:
    """Singular values of ``a``, descending, to eps of the largest."""
    try:
        return np.asarray(scipy.linalg.svdvals(a, check_finite=False))
    except np.linalg.LinAlgError:
        return svd(a)[1]
