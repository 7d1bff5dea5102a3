"""Orthonormal bases of tall features from Cholesky factors of Gram matrices, where their accuracy can be shown.

    G = zᵀz = RᵀR,  Q = z R⁻¹     one pass: Q departs from orthonormal by about eps · condition² / 10
    first R, then again on Q      two passes: to 1e-13, for conditions up to 1e8            Yamamoto et al. 2015

All of it is matrix products, several times as fast as Householder QR, which runs wherever these do not hold. No
estimate is taken on trust. One pass is kept only up to a condition of 1e4, and where the columns of Q that are farthest
from orthonormal, measured on z itself, are so to 1e-8 and all columns on average to 5e-10, which bounds the error of a
mean over canonical correlations (it is 1e-12 in practice, because these errors have either sign); where a second pass
takes no time worth saving, only to 1e-13 in every direction. Two passes ask that the second factor be well
conditioned, and do not care where the first came from: a sample of the rows, with a shift where it is needed. Both
ask that the smallest singular value stand ten times above the rank rule of :func:`simkit.metrics.basis.rank_of`, so
that the rank is full without any doubt. "Condition" is that of the features scaled to unit norm, which is what Cholesky
factors see: scaling single features costs nothing.

Sources: Yamamoto, Nakatsukasa, Yanagisawa & Fukaya 2015 (two passes); Fukaya et al. 2020 (the shift); van der Sluis
1969 (scaling).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray
from .blas import cross, gram_of, inverse_of_triangle, orthonormal, product, svd, times_triangle, upper_cholesky

EPS = float(np.finfo(np.float64).eps)
ONE_PASS_CONDITION = 1.5e4  # the condition is known to a factor, from below
SMALL_DEFECT = 1e-13  # of QᵀQ - I in any direction: one pass is as good as two
ONE_PASS_PRODUCTS = 2**28  # from here on the second pass takes a time that one would notice, and more is allowed:
WORST_DEFECT = 1e-8  # of QᵀQ - I in any direction, for one pass
MEAN_DEFECT = 5e-10  # on average over all directions
TWO_PASS_CONDITION = 1.5e8
SECOND_CONDITION = 1000.0  # of the second factor, in the 1-norm; Q is orthonormal to about eps times its square
ABOVE_NOISE = 10.0  # how far above the rank rule the smallest singular value must stand
FEWEST_FEATURES = 32  # below these sizes Householder QR takes no time
FEWEST_PRODUCTS = 2**20
SAMPLE = 2  # rows a feature of the sample from which the first of two passes takes its factor
WORST = 8  # directions in which the departure from orthonormal is measured
STEPS = 3  # of the block power iteration that finds them


@dataclass(frozen=True)
class Whitened:
    """Orthonormal Q = (vectors - mean) @ mixing; without a mean, vectors are centred."""

    vectors: FloatArray  # [n, k]
    mixing: FloatArray  # [k, rank]
    loadings: FloatArray  # Qᵀz [rank, p]
    route: str
    reason: str
    mean: FloatArray | None = None  # [k]


@dataclass(frozen=True)
class Refused:
    """Why the fast routes were not taken."""

    reason: str
    overwritten: bool = False  # the features are no more


@dataclass(frozen=True)
class _First:
    """The Cholesky factor of a Gram matrix and what it says of the condition."""

    r: FloatArray
    inverse: FloatArray
    sizes: FloatArray  # norms of the features
    growth: float  # 1 / the smallest singular value of the features scaled to unit norm
    condition: float  # of those; infinite where the Gram matrix had to be shifted
    worst: FloatArray  # directions in which Q is farthest from orthonormal


def tall_enough(z: FloatArray) -> bool:
    """Whether ``z [n, p]`` is so tall and so large that Gram matrices pay."""
    n, p = z.shape
    return bool(n >= 2 * p and p >= FEWEST_FEATURES and n * p * p >= FEWEST_PRODUCTS)


def whiten(
    z: FloatArray, noise: float, *, mean: FloatArray | None = None, overwrite: bool = False
) -> Whitened | Refused:
    """An orthonormal basis of ``z [n, p]`` of full rank; ``noise`` as :attr:`basis.Centred.noise`.

    z is centred, or has a ``mean [p]`` of no more than its columns' deviations: one pass needs no copy without it.
    """
    if not tall_enough(z):
        return Refused("small or wide")
    rows = _sample(*z.shape)
    first = None if rows is None else _first(z[rows] if mean is None else z[rows] - mean)
    if first is None:  # features that none of those rows has
        rows, first = None, _first(z, mean)
    if first is None:
        return Refused("dependent features")
    if first.condition <= 2 * ONE_PASS_CONDITION:  # of a sample: about that of all
        whole = first if rows is None else _first(z, mean)
        found = None if whole is None else _one_pass(z, mean, whole, noise)
        if found is not None:
            return found
    return _repeated(z, first, noise, overwrite) if mean is None else _repeated(z - mean, first, noise, True)


def _sample(n: int, p: int) -> npt.NDArray[np.int64] | None:
    """The rows whose Gram matrix is good enough for the first of two passes; None for all."""
    if n < 4 * SAMPLE * p:
        return None
    return np.sort(np.random.default_rng(0).choice(n, SAMPLE * p, replace=False))


def _first(z: FloatArray, mean: FloatArray | None = None) -> _First | None:
    half = gram_of(z)
    if mean is not None:
        half -= np.triu(np.outer(len(z) * mean, mean))
    sizes = np.sqrt(np.diagonal(half))
    if not sizes.all():
        return None
    r, shifted = _factor(half, sizes)
    if r is None:
        return None
    inverse = inverse_of_triangle(r)
    growth, worst = _norm_and_directions(sizes[:, None] * inverse)
    condition = growth * _norm_and_directions(r / sizes)[0]
    return _First(r, inverse, sizes, growth, np.inf if shifted else condition, worst)


def _one_pass(z: FloatArray, mean: FloatArray | None, first: _First, noise: float) -> Whitened | None:
    """Q = (z - mean) R⁻¹ if that is orthonormal enough."""
    if first.condition > ONE_PASS_CONDITION or not _full_rank(z, first.sizes, first.growth, noise):
        return None
    turn = product(first.inverse, first.worst)
    farthest = product(z, turn)
    if mean is not None:
        farthest -= product(mean[None], turn)
    defect = defect_of(farthest)
    shares = np.square(first.sizes[:, None] * first.inverse).sum() / first.growth**2 / z.shape[1]
    saves = z.size * z.shape[1] >= ONE_PASS_PRODUCTS
    if defect <= SMALL_DEFECT or (saves and defect <= WORST_DEFECT and defect * shares <= MEAN_DEFECT):
        why = f"condition about {first.condition:.0e}, orthonormal to {defect:.0e}"
        return Whitened(z, first.inverse, first.r, "one Cholesky pass", why, mean)
    return None


def _repeated(z: FloatArray, first: _First, noise: float, overwrite: bool) -> Whitened | Refused:
    """Passes on Q itself, until its factor is well conditioned; a third only where a sample misled the first."""
    q, r, inverse = z, first.r, first.inverse
    whole = back = np.eye(len(r))
    for passes in ("two", "three"):
        q = times_triangle(q, inverse, overwrite=overwrite or passes == "three")
        whole, back = product(r, whole), product(back, inverse)
        half = gram_of(q)
        factor, shifted = _factor(half, np.sqrt(np.diagonal(half)))
        if factor is None:
            break
        r, inverse = factor, inverse_of_triangle(factor)
        repeated = float(np.abs(r).sum(axis=0).max() * np.abs(inverse).sum(axis=0).max())
        if repeated <= SECOND_CONDITION and not shifted:
            whole, back = product(r, whole), product(back, inverse)
            sizes = np.linalg.norm(whole, axis=0)
            growth = _norm_and_directions(sizes[:, None] * back)[0]
            condition = growth * _norm_and_directions(whole / sizes)[0]
            why = f"condition about {condition:.0e}"
            if not condition <= TWO_PASS_CONDITION:
                return Refused(why, overwrite)
            if not _full_rank(z, sizes, growth, noise):
                return Refused("rank in doubt", overwrite)
            return Whitened(q, inverse, whole, f"{passes} Cholesky passes", why)
    return Refused("dependent features", overwrite)


def _full_rank(z: FloatArray, sizes: FloatArray, growth: float, noise: float) -> bool:
    """Whether the smallest singular value, at least min(sizes) / growth, is above the rank rule without doubt."""
    floor = ABOVE_NOISE * max(noise, len(z) * EPS * float(np.linalg.norm(sizes)))
    return bool(growth * floor < sizes.min())


def _factor(half: FloatArray, sizes: FloatArray) -> tuple[FloatArray | None, bool]:
    """(upper Cholesky factor or None, whether the diagonal was shifted so that there is one)."""
    r = upper_cholesky(half)
    if r is not None:
        return r, False
    whole = half + np.triu(half, 1).T
    shift = 16 * EPS * _norm_and_directions(whole / np.outer(sizes, sizes))[0]
    return upper_cholesky(half + np.diag(shift * sizes * sizes)), True


def defect_of(q: FloatArray) -> float:
    """max |QᵀQ - I| of a few columns ``q [n, k]``."""
    return float(np.abs(cross(q, q) - np.eye(q.shape[1])).max())


def _norm_and_directions(a: FloatArray) -> tuple[float, FloatArray]:
    """(spectral norm of ``a [p, p]``, from below and close; orthonormal right directions ``[p, k]`` where it is large).

    A block power iteration from fixed starting directions.
    """
    p = a.shape[1]
    v = orthonormal(np.random.default_rng(0).standard_normal((p, min(WORST, p))))
    for _ in range(STEPS):
        v = orthonormal(cross(a, product(a, v)))
    _, s, turn = svd(product(a, v))
    return float(s[0]), product(v, turn.T)
