"""Dense linear algebra of measures, all of it by SciPy's BLAS and LAPACK; contiguous arrays are not copied.

NumPy brings a BLAS with threads of its own. After a call they wait, busily, for some tens of milliseconds, on the cores
of whatever comes next: a product of NumPy's within a measure slows the rest of it down, by a third on two cores.
"""

from __future__ import annotations

import numpy as np
import scipy  # its submodules load when first used, so `import simkit` does not pay for scipy.linalg

from ..arrays import FloatArray


def product(a: FloatArray, b: FloatArray) -> FloatArray:
    """a @ b, C-contiguous; no copies of either layout."""
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
    return float(np.sqrt(scipy.linalg.blas.ddot(flat, flat)))


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
