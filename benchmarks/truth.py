"""The float64 references of the benchmarks: short, plain NumPy, independent of simkit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import pdist, squareform

Array: TypeAlias = npt.NDArray[Any]
Floats: TypeAlias = npt.NDArray[np.float64]


def centred(x: npt.ArrayLike) -> Floats:
    """Features in float64 without their column means."""
    values = np.asarray(x, dtype=np.float64)
    return values - values.mean(axis=0)


def cka_table(rows: Sequence[Array], columns: Sequence[Array], *, debiased: bool = True, repeats: int = 1) -> Floats:
    """Linear CKA of all pairs, as if the samples had been seen ``repeats`` times (Kornblith 2019; Song 2012, eq. 5)."""
    n = len(rows[0])
    wide = max(x.shape[1] for x in [*rows, *columns]) > n
    left, right = ([_reduced(x, wide=wide) for x in side] for side in (rows, columns))
    table = np.array([[_hsic(a, b, wide, n * repeats, repeats, debiased) for b in right] for a in left])
    first, second = (
        np.array([_hsic(a, a, wide, n * repeats, repeats, debiased) for a in side]) for side in (left, right)
    )
    return table / np.sqrt(np.outer(first, second))


def cka(x: Array, y: Array, *, debiased: bool = True) -> float:
    """Linear CKA of one pair."""
    return float(cka_table([x], [y], debiased=debiased)[0, 0])


def _reduced(x: Array, *, wide: bool) -> tuple[Floats, Floats]:
    """(the Gram matrix where features outnumber samples, else the centred features; squared norms of the rows)."""
    z = centred(x)
    return (z @ z.T if wide else z), np.einsum("ij,ij->i", z, z)


def _hsic(
    a: tuple[Floats, Floats], b: tuple[Floats, Floats], wide: bool, n: int, repeats: int, debiased: bool
) -> float:
    """n(n-3) times the debiased estimator, from centred features or Gram matrices; or ‖XᵀY‖², the biased one's."""
    products = a[0].T @ b[0] if not wide else None
    total = repeats**2 * float(np.vdot(a[0], b[0]) if products is None else np.vdot(products, products))
    if not debiased:
        return total
    shared = repeats * float(a[1] @ b[1])
    traces = repeats**2 * float(a[1].sum() * b[1].sum())
    return total - n / (n - 2) * shared + traces / ((n - 1) * (n - 2))


def unit_products(x: Array, units: int) -> Floats:
    """⟨K_i, K_j⟩ of the Gram matrices of ``units`` equal blocks of neighbouring columns, [units, units]."""
    z = centred(x)
    if units == x.shape[1]:
        return (z.T @ z) ** 2
    blocks = z.reshape(len(z), units, -1).transpose(1, 0, 2)
    products = np.zeros((units, units))
    for start in range(0, len(z), 64):
        strip = (blocks[:, start : start + 64] @ blocks.transpose(0, 2, 1)).reshape(units, -1)
        products += strip @ strip.T
    return products


def greedy_order(products: Floats) -> tuple[npt.NDArray[np.int64], Floats]:
    """The order of removal that keeps CKA(original, kept) highest, and that CKA after each step (the last is NaN).

    CKA(X, X_S) = Σ_{i∈S} r_i / √(T Q), r = A·1, T = 1ᵀA1, Q = 1_SᵀA1_S; removing k: R - r_k, Q - 2 q_k + A_kk.
    """
    r, diagonal = products.sum(axis=1), np.diagonal(products)
    total, top, bottom, q = r.sum(), r.sum(), r.sum(), r.copy()
    kept = np.ones(len(r), dtype=bool)
    order: list[int] = []
    scores: list[float] = []
    for _ in range(len(r)):
        with np.errstate(invalid="ignore", divide="ignore"):
            score = np.where(kept, (top - r) / np.sqrt(total * (bottom - 2 * q + diagonal)), -np.inf)
        if len(order) == len(r) - 1:
            score = np.where(kept, 0.0, -np.inf)
        k = int(score.argmax())
        kept[k] = False
        top, bottom = top - r[k], bottom - 2 * q[k] + diagonal[k]
        q = q - products[:, k]
        order.append(k)
        scores.append(score[k])
    scores[-1] = np.nan
    return np.array(order), np.array(scores)


def order_error(products: Floats, order: Sequence[int], reported: Floats) -> float:
    """The largest of: how far a choice was from the best one at its step, and a reported CKA from the true one."""
    r, diagonal, total = products.sum(axis=1), np.diagonal(products), products.sum()
    top, bottom, q = total, total, r.copy()
    kept = np.ones(len(r), dtype=bool)
    worst = 0.0
    for k, value in zip(np.asarray(order)[:-1].tolist(), reported[:-1].tolist(), strict=True):
        scores = (top - r[kept]) / np.sqrt(total * (bottom - 2 * q[kept] + diagonal[kept]))
        kept[k] = False
        top, bottom = top - r[k], bottom - 2 * q[k] + diagonal[k]
        chosen = top / np.sqrt(total * bottom)
        worst = max(worst, float(scores.max() - chosen), abs(value - chosen))
        q = q - products[:, k]
    return worst


def graph_measures(w: Array, cosines: npt.ArrayLike) -> list[tuple[int, int, int]]:
    """(components, edges, size of the greedy cover by residual degree) of the filter graph at every cosine.

    Ties of the cover go to the lowest index. Gains are kept by subtracting what each choice newly covers.
    """
    u = np.asarray(w, dtype=np.float64)
    u = u / np.linalg.norm(u, axis=1, keepdims=True)
    similarity = u @ u.T
    n = len(u)
    measures = []
    for cosine in np.atleast_1d(np.asarray(cosines, dtype=np.float64)):
        ball = similarity >= cosine
        np.fill_diagonal(ball, True)
        labels = np.arange(n)
        while True:  # every vertex takes the lowest label around it, until nothing changes
            lower = np.where(ball, labels, n).min(axis=1)
            if np.array_equal(lower, labels):
                break
            labels = lower
        gain, uncovered, cover = ball.sum(axis=1), np.ones(n, dtype=bool), 0
        while uncovered.any():
            new = ball[gain.argmax()] & uncovered
            gain -= ball[:, new].sum(axis=1)
            uncovered &= ~new
            cover += 1
        measures.append((len(np.unique(labels)), (int(ball.sum()) - n) // 2, cover))
    return measures


def kernel_gram(x: Array, kernel: str) -> Floats:
    """k(x_i, x_j) of all rows: "RBF" and "Laplacian" by the median of the squared distances, or "polynomial"."""
    return _evaluated(_pairs(np.asarray(x, dtype=np.float64), kernel), kernel, _length(x, kernel))


def kernel_cka_table(rows: Sequence[Array], columns: Sequence[Array], kernel: str) -> Floats:
    """Debiased CKA of all pairs under a kernel, from U-centred Gram matrices (Székely and Rizzo 2014)."""
    left, right = (np.array([_u_centred(kernel_gram(x, kernel)).ravel() for x in side]) for side in (rows, columns))
    result: Floats = (left @ right.T) / np.outer(np.linalg.norm(left, axis=1), np.linalg.norm(right, axis=1))
    return result


def kernel_candidates(x: Array, kept: Array, candidates: Array, kernel: str = "RBF") -> Floats:
    """Biased CKA(all columns, kept columns without each candidate) under a kernel with the bandwidth of all.

    From the pairs of the columns that remain, not from those of more columns less a part.
    """
    z = np.asarray(x, dtype=np.float64)
    length = _length(x, kernel)
    original = _double_centred(_evaluated(_pairs(z, kernel), kernel, length))
    own = np.vdot(original, original)
    scores = np.empty(len(candidates))
    for k, candidate in enumerate(candidates):
        left = _double_centred(_evaluated(_pairs(z[:, np.setdiff1d(kept, [candidate])], kernel), kernel, length))
        scores[k] = np.vdot(original, left) / np.sqrt(own * np.vdot(left, left))
    return scores


def kernel_order_error(x: Array, order: Array, cka: Floats, steps: Sequence[int], kernel: str = "RBF") -> float:
    """How far the choices at some steps fall short of the best, or their CKA is off, whichever is more."""
    worst = 0.0
    for step in steps:
        kept = np.setdiff1d(np.arange(x.shape[1]), order[:step])
        scores = kernel_candidates(x, kept, kept, kernel)
        chosen = scores[np.flatnonzero(kept == order[step])[0]]
        worst = max(worst, float(scores.max() - chosen), abs(float(cka[step] - chosen)))
    return worst


def _pairs(z: Floats, kernel: str) -> Floats:
    """What the kernel is a function of: inner products, or squared distances."""
    return np.asarray(z @ z.T if kernel == "polynomial" else squareform(pdist(z, "sqeuclidean")))


def _length(x: Array, kernel: str) -> float:
    """Simkit's defaults: bandwidth 1/2 in units of the median; 1 / p of the polynomial."""
    if kernel == "polynomial":
        return float(x.shape[1])
    median = float(np.median(squareform(pdist(np.asarray(x, dtype=np.float64), "sqeuclidean"))))
    return 0.5 * median if kernel == "RBF" else 0.5 * float(np.sqrt(median))


def _evaluated(pairs: Floats, kernel: str, length: float) -> Floats:
    if kernel == "polynomial":
        return np.asarray((pairs / length + 1) ** 3)
    return np.asarray(np.exp(-(pairs if kernel == "RBF" else np.sqrt(pairs)) / length))


def _u_centred(k: Floats) -> Floats:
    n = len(k)
    k = k - np.diag(np.diagonal(k))
    sums = k.sum(axis=0) / (n - 2)
    k -= sums + sums[:, None] - k.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(k, 0)
    return k


def _double_centred(k: Floats) -> Floats:
    return np.asarray(k - k.mean(axis=0) - k.mean(axis=1)[:, None] + k.mean())
