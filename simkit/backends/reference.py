"""The specification: every op in NumPy float64, written to be read. Kernels are tested against these functions.

They form n × n matrices and take no shortcuts; ``backend="reference"`` runs them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ..arrays import FloatArray, Matrix
from ..kernels import Cosine, Laplacian, Linear, Polynomial
from .base import Block, ColumnStats, EliminationOrder, Estimator, PairSums, Route

NAME = "reference"


def unsupported_reasons(op: str) -> list[str]:
    """Nothing is unsupported here."""
    return []


def column_stats(matrix: Matrix, *, row_scale: FloatArray | None = None, threads: int = 1) -> ColumnStats:
    """Means and deviations of the columns of ``x [n, p]``; the mean of a constant column is exact."""
    x = matrix.float64()
    finite = np.isfinite(x)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        nan = np.full(matrix.p, math.nan)
        return ColumnStats(nan, nan, math.nan, math.nan, int((~finite).sum()), (int(row), int(column)))
    if row_scale is not None:
        x *= row_scale[:, None]
    largest = float(np.abs(x).max())
    mean = x[0] + (x - x[0]).mean(axis=0)
    x -= mean
    return ColumnStats(mean, np.einsum("ij,ij->j", x, x), largest, float(np.abs(x).max()), 0, None)


def row_norms(block: Block, *, threads: int = 1) -> FloatArray:
    """Squared norms ``[n]`` of the rows of z."""
    z = features(block)
    return np.asarray(np.einsum("ij,ij->i", z, z))


def features(block: Block) -> FloatArray:
    """z = (x · row_scale - shift) · 2^-exponent, ``[n, p]``."""
    x = block.matrix.float64()
    if block.row_scale is not None:
        x *= block.row_scale[:, None]
    return np.ldexp(x - block.shift, -block.exponent)


def squared_distances(z: FloatArray) -> FloatArray:
    """Squared Euclidean distances ``[n, n]`` from differences, not from products."""
    from scipy.spatial.distance import pdist, squareform

    return np.asarray(squareform(pdist(z, "sqeuclidean")), dtype=np.float64)


def gram(block: Block) -> FloatArray:
    """The Gram matrix ``[n, n]`` of a block's kernel."""
    z = features(block)
    kernel = block.kernel
    if isinstance(kernel, Linear | Cosine):
        return z @ z.T
    if isinstance(kernel, Polynomial):
        return (block.length * (z @ z.T) + kernel.coef0) ** kernel.degree
    d2 = squared_distances(z)
    return np.exp(-np.sqrt(d2) / block.length) if isinstance(kernel, Laplacian) else np.exp(-d2 / block.length)


def distance_median(block: Block, *, threads: int = 1) -> float:
    """Median of the full n × n matrix of squared distances, zero diagonal included."""
    return float(np.median(squared_distances(features(block))))


def centred(k: FloatArray, estimator: Estimator) -> FloatArray:
    """H K H, or the U-centred K̃ of Székely & Rizzo 2014, whose inner products are Song's debiased numerator."""
    n = len(k)
    if estimator == "biased":
        r = k.mean(axis=0)
        return k - r[:, None] - r[None, :] + r.mean()
    k = k.copy()
    np.fill_diagonal(k, 0.0)
    r = k.sum(axis=0)
    u = k - r[:, None] / (n - 2) - r[None, :] / (n - 2) + r.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(u, 0.0)
    return u


def pair_sums(
    rows: Sequence[Block], columns: Sequence[Block] | None, *, estimator: Estimator, route: Route
) -> PairSums:
    """All-pairs centred inner products; ``columns=None`` pairs ``rows`` with themselves."""

    def flatten(blocks: Sequence[Block]) -> tuple[FloatArray, FloatArray]:
        out, raw = [], []
        for block in blocks:
            k = gram(block)
            out.append(centred(k, estimator).ravel())
            if estimator == "debiased":
                np.fill_diagonal(k, 0.0)
            raw.append(np.vdot(k, k))
        return np.stack(out), np.array(raw)

    left, raw_rows = flatten(rows)
    right, raw_columns = (left, raw_rows) if columns is None else flatten(columns)
    return PairSums(
        left @ right.T,
        np.einsum("ij,ij->i", left, left),
        np.einsum("ij,ij->i", right, right),
        raw_rows,
        raw_columns,
    )


def column_products(block: Block, stats: ColumnStats, *, exact: bool = True, threads: int = 1) -> FloatArray:
    """zᵀz ``[p, p]`` of the centred columns."""
    z = features(block)
    return z.T @ z


def eliminate(
    a: FloatArray, *, greedy: bool = True, count: int | None = None, min_cka: float | None = None
) -> EliminationOrder:
    """Greedy (or one-shot) elimination on the all-pairs matrix ``a [u, u]``, every sum formed afresh.

    After removing k from the kept set S: CKA = R / √(T Q), R = Σ_{i∈S} Σ_j a_ij, Q = Σ_{i,j∈S} a_ij, T = Σ a_ij
    (bilinearity of HSIC; seed: "Representation Aware Pruning with CKA"). Scores within 1e-12 tie to the lowest index.
    """
    u = len(a)
    kept = np.ones(u, dtype=bool)
    r, total = a.sum(axis=1), a.sum()
    limit = u if count is None else count
    order: list[int] = []
    cka: list[float] = []
    smallest_gap = math.inf
    ranking: list[int] | None = None
    while len(order) < limit:
        alive = np.flatnonzero(kept)
        inside = a[np.ix_(alive, alive)]
        q = inside.sum() - 2 * inside.sum(axis=1) + np.diag(inside)
        with np.errstate(divide="ignore", invalid="ignore"):
            scores = (r[alive].sum() - r[alive]) / (math.sqrt(total) * np.sqrt(q)) if len(alive) > 1 else [math.nan]
        scores = np.asarray(scores)
        ranked = np.where(np.isnan(scores), -np.inf, scores)
        if ranking is None and not greedy:
            ranking = [int(alive[i]) for i in sorted(range(u), key=lambda i: (-round(ranked[i] / 1e-12), i))]
        pick = int(np.flatnonzero(ranked >= ranked.max() - 1e-12)[0])
        if ranking is not None:
            pick = int(np.flatnonzero(alive == ranking[len(order)])[0])
        if min_cka is not None and not scores[pick] >= min_cka:
            break
        if len(alive) > 1:
            smallest_gap = min(smallest_gap, float(ranked[pick] - np.delete(ranked, pick).max()))
        order.append(int(alive[pick]))
        cka.append(float(scores[pick]))
        kept[alive[pick]] = False
    return EliminationOrder(np.array(order, dtype=np.int64), np.array(cka, dtype=np.float64), smallest_gap)


def moments_add(
    state: Mapping[str, FloatArray], left: Sequence[Block], right: Sequence[Block] | None, *, threads: int = 1
) -> None:
    """Add rows to a stream's moments in place; the fields are those of :mod:`simkit.streaming.moments`."""
    x = np.concatenate([features(b) for b in left], axis=1)
    y = x if right is None else np.concatenate([features(b) for b in right], axis=1)
    state["cross"][...] += x.T @ y
    for side, blocks in (("left", left), ("right", right)):
        if blocks is None:
            continue
        for i, block in enumerate(blocks):
            z = features(block)
            state[f"{side}.gram.{i}"][...] += z.T @ z
