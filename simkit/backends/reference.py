"""The specification: every op in NumPy float64, written to be read. Kernels are tested against these functions.

They form n × n matrices and take no shortcuts; ``backend="reference"`` runs them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, Matrix
from ..kernels import LARGEST, RBF, Cosine, CustomKernel, Kernel, Laplacian, Linear, Polynomial
from . import bits as packed
from .base import OPS as ALL_OPS
from .base import (
    Adjacency,
    Block,
    CandidateProblem,
    CandidateSums,
    ColumnStats,
    CoverSearch,
    EliminationOrder,
    Estimator,
    Input,
    Levels,
    PairSums,
    Route,
    SquareMatrix,
    UnitFeatures,
    less_one,
)
from .damage_room import ProductsRoom
from .damage_room import reference_candidates as plan_candidates  # noqa: F401
from .damage_room import reference_products as plan_products  # noqa: F401
from .nearest import TIE, NearestProblem, NearestRows, minmax
from .reference_moments import moments_add, moments_rows  # noqa: F401
from .unit_features import host_features

NAME = "reference"
OPS = ALL_OPS


def unsupported_reasons(op: str, inputs: Sequence[Input] = (), kernel: Kernel | None = None) -> list[str]:
    """Nothing is unsupported here."""
    return []


def column_stats(
    matrix: Matrix, *, row_scale: FloatArray | None = None, threads: int = 1, memory: int | None = None
) -> ColumnStats:
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


def row_norms(block: Block, *, threads: int = 1, memory: int | None = None) -> FloatArray:
    """Squared norms ``[n]`` of the rows of z."""
    z = features(block)
    return np.asarray(np.einsum("ij,ij->i", z, z))


def features(block: Block) -> FloatArray:
    """z = (x · row_scale - shift) · 2^-exponent, ``[n, p]``."""
    x = block.matrix.float64()
    if block.row_scale is not None:
        x *= block.row_scale[:, None]
    return np.ldexp(x - block.shift, -block.exponent)


def unshifted(block: Block) -> FloatArray:
    """z without its shift, ``[n, p]``: an outlier's mean would leave no digits to the differences of the others.

    Columns that never change are 0: they may be too large in the units of the others.
    """
    x = block.matrix.float64()
    return features(replace(block, shift=np.where((x == x[0]).all(axis=0), x[0], 0.0)))


def squared_distances(z: FloatArray) -> FloatArray:
    """Squared Euclidean distances ``[n, n]`` from differences, not from products."""
    from scipy.spatial.distance import pdist, squareform

    return np.asarray(squareform(pdist(z, "sqeuclidean")), dtype=np.float64)


def gram(block: Block) -> FloatArray:
    """The Gram matrix ``[n, n]`` of a block's kernel, of wide ones less 1 (:func:`~.base.less_one`)."""
    if isinstance(block.kernel, CustomKernel):
        return custom_matrix(block.matrix.float64(), block.kernel, block.matrix.name)
    z = unshifted(block) if isinstance(block.kernel, RBF | Laplacian) else features(block)
    return kernel_matrix(z, block.kernel, block.length, less_one=less_one(block.kernel))


def custom_matrix(x: FloatArray, kernel: CustomKernel, name: str) -> FloatArray:
    """A user's kernel of all pairs of raw rows of ``x [n, p]``; ValueError when it is out of range somewhere."""
    products, distances = x @ x.T, squared_distances(x)
    values = kernel(products, distances)
    bad = np.argwhere(~(np.abs(values) < LARGEST))
    if len(bad):
        i, j = bad[0]
        raise kernel.out_of_range(name, products[i, j], distances[i, j], values[i, j])
    return values


def kernel_matrix(z: FloatArray, kernel: Kernel, length: float, *, less_one: bool = False) -> FloatArray:
    """The kernel of all pairs of rows of ``z [n, p]``, or a kernel of distances less 1; ``length`` as in Block."""
    if isinstance(kernel, Linear | Cosine):
        return z @ z.T
    if isinstance(kernel, Polynomial):
        return np.asarray((length * (z @ z.T) + kernel.coef0) ** kernel.degree)
    d2 = squared_distances(z)
    scaled = np.sqrt(d2) / length if isinstance(kernel, Laplacian) else d2 / length
    return np.asarray(np.expm1(-scaled) if less_one else np.exp(-scaled))


def unit_features(block: Block, columns: npt.NDArray[np.int64], *, double: bool, threads: int = 1) -> UnitFeatures:
    """``columns [p]`` of a block as rows ``[p, n]`` in units that leave its kernel no length but the polynomial's."""
    return host_features(block, columns, double=double)


def pack_centred(problem: CandidateProblem, *, room: int, threads: int = 1) -> FloatArray | None:
    """L ``[n, n]``: the kernel of all units less centre_i + centre_j; None where half of it exceeds ``room``."""
    return _centred_kernel(problem) if problem.half_bytes <= room else None


def _centred_kernel(problem: CandidateProblem) -> FloatArray:
    full = _candidate_matrix(problem, problem.z, problem.small_centre)
    return full if problem.centre is None else full - problem.centre[:, None] - problem.centre


def _candidate_matrix(problem: CandidateProblem, rows: npt.NDArray[Any], small: bool) -> FloatArray:
    """f of rows of z ``[., n]``; of distances, where it is not small, f - 1."""
    x = rows.T.astype(np.float64, copy=False)
    if isinstance(problem.kernel, CustomKernel):
        return custom_matrix(x, problem.kernel, problem.name)
    length = problem.length if isinstance(problem.kernel, Polynomial) else 1 / math.log(2)
    return kernel_matrix(x, problem.kernel, length, less_one=not small)


def candidate_sums(
    problem: CandidateProblem,
    kept: npt.NDArray[np.int64],
    candidates: npt.NDArray[np.int64],
    *,
    levels: Levels | None = None,
    rows: bool = True,
    threads: int = 1,
) -> CandidateSums:
    """The sums of every candidate, a unit to leave out of the kept ones; candidate -1 leaves none out.

    ``levels=None`` takes nothing off the kernel.
    """
    levels = levels or Levels(np.zeros(problem.z.shape[1]))
    centred_all = _centred_kernel(problem) if problem.packed is None else problem.packed
    count, n = len(candidates), problem.z.shape[1]
    cross, squares, row_sums = np.empty(count), np.empty(count), np.empty((count, n))
    for k, candidate in enumerate(candidates):
        stays = np.isin(np.arange(len(problem.offsets) - 1), kept[kept != candidate])
        matrix = _candidate_matrix(problem, problem.z[np.repeat(stays, np.diff(problem.offsets))], levels.small)
        about = levels.values if levels.values.ndim == 1 else levels.values[k]
        matrix = matrix - about[:, None] - about
        if problem.estimator == "debiased":
            np.fill_diagonal(matrix, 0.0)
        cross[k] = (matrix * centred_all).sum()
        squares[k] = (matrix * matrix).sum()
        row_sums[k] = matrix.sum(axis=1)
    return CandidateSums.with_rows(cross, squares, row_sums, keep=rows)


def distance_median(block: Block, *, threads: int = 1, memory: int | None = None) -> float:
    """Median of the full n × n matrix of squared distances, zero diagonal included."""
    return float(np.median(squared_distances(unshifted(block))))


def centred(k: FloatArray, estimator: Estimator) -> FloatArray:
    """H K H, or the U-centred K̃ of Székely & Rizzo 2014, whose inner products are Song's debiased numerator."""
    n = len(k)
    if estimator == "biased":
        return np.asarray(k - k.mean(axis=0)[:, None] - k.mean(axis=0) + k.mean(axis=0).mean())
    k = k.copy()
    np.fill_diagonal(k, 0.0)
    r = k.sum(axis=0)
    u: FloatArray = k - r[:, None] / (n - 2) - r[None, :] / (n - 2) + r.sum() / ((n - 1) * (n - 2))
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
            flat = centred(k, estimator).ravel()
            if estimator == "debiased" and isinstance(block.kernel, RBF | Laplacian):
                np.fill_diagonal(k, 0.0)  # it is dropped, and tells nothing of the rounding of the others
            # Centring comes before squaring, so what rounding leaves is eps² of ⟨K, K⟩, not eps.
            raw.append(max(np.vdot(flat, flat), np.finfo(np.float64).eps * np.vdot(k, k)))
            out.append(flat)
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


def column_products(
    block: Block, stats: ColumnStats, *, exact: bool = True, squared: bool = False, room: ProductsRoom | None = None
) -> FloatArray:
    """zᵀz ``[p, p]`` of the centred columns; ``squared``: the squares of its entries."""
    z = features(block)
    g = z.T @ z
    return g * g if squared else g


def gather_columns(matrix: Matrix, columns: npt.NDArray[np.int64]) -> Matrix:
    """``x[:, columns]``."""
    return Matrix(matrix.name, matrix.values[:, columns], matrix.dtype, matrix.origin)


def eliminate(
    matrices: Sequence[SquareMatrix],
    *,
    greedy: bool = True,
    counts: Sequence[int] | None = None,
    min_cka: float | None = None,
) -> list[EliminationOrder]:
    """Greedy (or one-shot) elimination of the units of each layer; ``counts`` of them, or all."""
    wanted = [len(a) for a in matrices] if counts is None else counts
    return [_eliminate(np.asarray(a), greedy, count, min_cka) for a, count in zip(matrices, wanted, strict=True)]


def _eliminate(a: FloatArray, greedy: bool, count: int, min_cka: float | None) -> EliminationOrder:
    """Elimination on the all-pairs matrix ``a [u, u]``, every sum formed afresh.

    After removing k from the kept set S: CKA = R / √(T Q), R = Σ_{i∈S} Σ_j a_ij, Q = Σ_{i,j∈S} a_ij, T = Σ a_ij
    (bilinearity of HSIC). Scores within 1e-12 of the best tie, to the lowest index.
    """
    alive = np.arange(len(a))
    order: list[int] = []
    cka: list[float] = []
    smallest_gap = math.inf
    ranking = [] if greedy else _ranking(_scores(a, alive))
    while len(order) < count:
        scores = _scores(a, alive)
        pick = _best(scores) if greedy else int(np.flatnonzero(alive == ranking[len(order)])[0])
        if min_cka is not None and not scores[pick] >= min_cka:
            break
        if greedy and len(alive) > 1 and scores[pick] > -math.inf:
            smallest_gap = min(smallest_gap, abs(float(scores[pick] - np.delete(scores, pick).max())))
        order.append(int(alive[pick]))
        cka.append(float(scores[pick]) if scores[pick] > -math.inf else math.nan)
        alive = np.delete(alive, pick)
    return EliminationOrder(np.array(order, dtype=np.int64), np.array(cka, dtype=np.float64), smallest_gap)


def _scores(a: FloatArray, alive: npt.NDArray[np.int64]) -> FloatArray:
    """CKA(all, alive without k) for every k of ``alive``; -inf where it is undefined."""
    inside = a[np.ix_(alive, alive)]
    rows = a.sum(axis=1)[alive]
    linear, quadratic = rows.sum() - rows, inside.sum() - 2 * inside.sum(axis=1) + np.diag(inside)
    for k in np.flatnonzero(quadratic < inside.sum() / 8):  # k is nearly all of it: what it leaves is lost in rounding
        rest = np.arange(len(alive)) != k
        linear[k], quadratic[k] = rows[rest].sum(), inside[np.ix_(rest, rest)].sum()
    total = float(a.sum())
    defined = (quadratic > 0) & (len(alive) > 1) & (total > 0)
    root = np.sqrt(np.where(defined, quadratic, 1.0)) * math.sqrt(total if total > 0 else 1.0)
    return np.where(defined, linear / root, -np.inf)


def _best(scores: FloatArray) -> int:
    best = scores.max()
    return int(np.flatnonzero((scores >= best - 1e-12) | (scores == best))[0])


def _ranking(scores: FloatArray) -> list[int]:
    units = np.arange(len(scores))
    ranking = []
    while len(units):
        place = _best(scores)
        ranking.append(int(units[place]))
        units, scores = np.delete(units, place), np.delete(scores, place)
    return ranking


def adjacency(matrix: Matrix, squared: FloatArray, *, threads: int = 1, tile: int | None = None) -> Adjacency:
    """Graphs of the unit rows of ``x [n, p]``: edge iff |u_i - u_j|² ≤ squared[t], from differences."""
    x = matrix.float64()
    if not np.isfinite(x).all():
        nothing = np.empty((0, matrix.n, packed.words_of(matrix.n)), dtype=np.uint64)
        return Adjacency(nothing, False, math.nan, math.nan, np.empty(0, dtype=np.int64), "")
    _, exponents = np.frexp(np.abs(x).max(axis=1))  # so that squares neither overflow nor vanish
    u = np.ldexp(x, -exponents[:, None])
    norms = np.linalg.norm(u, axis=1)
    with np.errstate(divide="ignore", over="ignore"):
        zero = np.isinf(np.ldexp(1 / norms, -exponents))  # a norm below 2^-1024 counts as zero
    u /= np.where(zero, 1.0, norms)[:, None]
    d2 = squared_distances(u)
    pairs = d2[~zero][:, ~zero][np.triu_indices(matrix.n - int(zero.sum()), 1)]
    d2[zero] = d2[:, zero] = np.inf
    d2[np.ix_(zero, zero)] = 0.0
    np.fill_diagonal(d2, np.inf)
    nearest, farthest = (float(pairs.min()), float(pairs.max())) if len(pairs) else (math.nan, math.nan)
    graphs = np.stack([packed.pack(d2 <= limit) for limit in squared])
    return Adjacency(graphs, True, nearest, farthest, np.flatnonzero(zero), "float64 differences")


def components(bits: packed.GraphBits, *, threads: int = 1) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Labels ``[graphs, n]``, components numbered by their lowest vertex, and numbers of edges ``[graphs]``."""
    n = bits.shape[1]
    graphs = packed.unpack(packed.on_host(bits), n)
    labels = np.full((len(graphs), n), -1, dtype=np.int64)
    for graph, label in zip(graphs, labels, strict=True):
        for start in range(n):
            reached = np.zeros(n, dtype=bool)
            frontier = reached.copy()
            frontier[start] = label[start] < 0
            while frontier.any():
                reached |= frontier
                frontier = graph[frontier].any(axis=0) & ~reached
            label[reached] = label.max() + 1
    return labels, graphs.sum(axis=(1, 2)) // 2


def cover(bits: packed.GraphBits, *, threads: int = 1) -> list[CoverSearch]:
    """Greedy cover, packing and dual bound of every graph; ties go to the lowest index."""
    n = bits.shape[1]
    return [_cover(graph | np.eye(n, dtype=bool)) for graph in packed.unpack(packed.on_host(bits), n)]


def _cover(ball: packed.BoolArray) -> CoverSearch:
    sizes = ball.sum(axis=1)
    by_size = np.argsort(sizes, kind="stable")
    centres, uncovered = [], np.ones(len(ball), dtype=bool)
    while uncovered.any():
        centres.append(int((ball & uncovered).sum(axis=1).argmax()))
        uncovered &= ~ball[centres[-1]]
    packing, free = [], np.ones(len(ball), dtype=bool)
    for v in by_size:
        if free[v]:
            packing.append(int(v))
            free &= ~ball[ball[v]].any(axis=0)
    y = 1 / (ball * sizes).max(axis=1)  # feasible: its sum over any ball is at most 1
    if ball.sum() - len(ball) <= 32 * len(ball):  # at most 16 edges a vertex: raise it as far as that allows
        load = ball @ y
        for u in by_size:
            rise = 1 - load[ball[u]].max()
            if rise > 1e-9:
                y[u] += rise
                load[ball[u]] += rise
    return CoverSearch(np.array(centres), np.array(packing), float(y.sum()))


def largest_entries(matrices: Sequence[Matrix], *, threads: int = 1) -> list[float]:
    """The largest |x| of each matrix; infinite where an entry is NaN or infinite."""
    sizes = (np.abs(matrix.float64()) for matrix in matrices)
    return [float(values.max()) if np.isfinite(values).all() else math.inf for values in sizes]


def nearest_rows(problem: NearestProblem, k: int = 1, *, threads: int = 1) -> NearestRows:
    """The k best others of each row, one after another: the lowest of those within TIE of the best that is left."""
    rows, others = problem.rows, problem.others
    mantissa, exponents = np.frexp(problem.norms)
    x = problem.matrix.float64()
    if problem.last is not None:
        x = np.concatenate([x, problem.last[:, None]], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        u = np.ldexp(x, -exponents[:, None]) / mantissa[:, None]
    cosine = u[rows] @ u[others].T
    score, admissible = problem.balance * (1.0 - cosine), rows[:, None] != others
    if problem.residues is not None:
        r, defined = problem.residues.between(rows, others)
        admissible &= defined
        score += (1.0 - problem.balance) * minmax(problem.residues, rows, others, r, admissible)
    score[~admissible] = np.inf
    found = NearestRows.none(len(rows), k, "float64 products, a whole table")
    for nth in range(min(k, len(others))):
        best = score.min(axis=1)
        place = (score <= best[:, None] + TIE).argmax(axis=1)
        has = np.flatnonzero(best < np.inf)
        at = has, place[has]
        found.row[has, nth], found.cosine[has, nth], found.score[has, nth] = others[place[has]], cosine[at], score[at]
        score[at] = np.inf
    return found
