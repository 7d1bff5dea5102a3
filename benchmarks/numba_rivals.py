"""What a good user of numba writes: the products by NumPy's BLAS, the loops after them compiled.

Imported only where numba is installed. It takes as many threads as the process has processors, as every contestant.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import get_num_threads, njit, prange

from .truth import Array, Floats

# --- W2: the greedy order from the closed form --------------------------------------------------------------------


def greedy_columns(x: Array) -> tuple[Array, Floats]:
    """NumPy's product in float32, the loop over steps and units compiled."""
    z = x - x.mean(axis=0, dtype=np.float64).astype(x.dtype)
    order, scores = _eliminate(np.square(z.T @ z, dtype=np.float64))
    return order, scores


@njit
def _eliminate(products: Any) -> Any:
    units = len(products)
    r = np.empty(units)
    for i in range(units):
        r[i] = products[i].sum()
    total = r.sum()
    top, bottom, q = total, total, r.copy()
    kept = np.ones(units, dtype=np.bool_)
    order, scores = np.empty(units, dtype=np.int64), np.full(units, np.nan)
    for step in range(units):
        best, pick = -np.inf, -1
        for k in range(units):
            if kept[k]:
                rest = bottom - 2 * q[k] + products[k, k]
                score = (top - r[k]) / np.sqrt(total * rest) if rest > 0 else -1.0
                if score > best:
                    best, pick = score, k
        kept[pick] = False
        top, bottom = top - r[pick], bottom - 2 * q[pick] + products[pick, pick]
        q -= products[pick]
        order[step] = pick
        if step < units - 1:
            scores[step] = best
    return order, scores


# --- W4: components, edges and a greedy cover at every threshold --------------------------------------------------


def graph_measures(w: Array, cosines: Array) -> list[tuple[int, int, int]]:
    """NumPy's product, the edges of the widest threshold as lists, every threshold in parallel from them."""
    u = w / np.linalg.norm(w, axis=1, keepdims=True)
    return graph_measures_of(u @ u.T, cosines)


def graph_measures_of(similarity: Array, cosines: Array) -> list[tuple[int, int, int]]:
    """From the product on."""
    starts, ends, values = _edges(similarity, np.float32(cosines.min()))
    found = _at_thresholds(starts, ends, values, cosines.astype(np.float32))
    return [(int(a), int(b), int(c)) for a, b, c in found]


@njit(parallel=True)
def _edges(similarity: Any, least: Any) -> Any:
    """Neighbours of every vertex and their similarities, one list after the other."""
    n = len(similarity)
    starts = np.zeros(n + 1, dtype=np.int64)
    for i in prange(n):
        count = 0
        for j in range(n):
            count += j != i and similarity[i, j] >= least
        starts[i + 1] = count
    for i in range(n):
        starts[i + 1] += starts[i]
    ends, values = np.empty(starts[n], dtype=np.int32), np.empty(starts[n], dtype=np.float32)
    for i in prange(n):
        at = starts[i]
        for j in range(n):
            if j != i and similarity[i, j] >= least:
                ends[at], values[at] = j, similarity[i, j]
                at += 1
    return starts, ends, values


@njit(parallel=True)
def _at_thresholds(starts: Any, ends: Any, values: Any, cosines: Any) -> Any:
    found = np.empty((len(cosines), 3), dtype=np.int64)
    for t in prange(len(cosines)):
        found[t, 0], found[t, 1] = _components(starts, ends, values, cosines[t])
        found[t, 2] = _cover(starts, ends, values, cosines[t])
    return found


@njit
def _components(starts: Any, ends: Any, values: Any, cosine: Any) -> Any:
    """(components, edges) by union and find."""
    n = len(starts) - 1
    parent = np.arange(n)
    components, edges = n, 0
    for i in range(n):
        for at in range(starts[i], starts[i + 1]):
            if ends[at] < i and values[at] >= cosine:
                edges += 1
                a, b = i, ends[at]
                while parent[a] != a:
                    parent[a] = parent[parent[a]]
                    a = parent[a]
                while parent[b] != b:
                    parent[b] = parent[parent[b]]
                    b = parent[b]
                if a != b:
                    parent[a] = b
                    components -= 1
    return components, edges


@njit
def _cover(starts: Any, ends: Any, values: Any, cosine: Any) -> Any:
    """The size of the greedy cover: gains are kept by subtracting what each choice newly covers."""
    n = len(starts) - 1
    gain = np.ones(n, dtype=np.int64)
    for i in range(n):
        for at in range(starts[i], starts[i + 1]):
            gain[i] += values[at] >= cosine
    covered = np.zeros(n, dtype=np.bool_)
    left, size = n, 0
    while left > 0:
        pick = gain.argmax()
        size += 1
        for at in range(starts[pick] - 1, starts[pick + 1]):
            own = at < starts[pick]
            j = pick if own else ends[at]
            if covered[j] or not (own or values[at] >= cosine):
                continue
            covered[j] = True
            left -= 1
            gain[j] -= 1
            for other in range(starts[j], starts[j + 1]):
                if values[other] >= cosine:
                    gain[ends[other]] -= 1
    return size


# --- W7: which kept filter absorbs each pruned one ----------------------------------------------------------------


def merging(layer: Any, balance: float, threshold: float) -> tuple[Array, Floats]:
    """NumPy's product in float32, both passes over the kept filters fused for every pruned one, pruned in parallel."""
    w, mask, norm = layer
    norms = np.linalg.norm(w, axis=1).astype(np.float64)
    n, m = np.flatnonzero(~mask), np.flatnonzero(mask)
    partner, scale = _absorb(w[n] @ w[m].T, norms, n, m, *norm, balance, threshold)
    return partner, scale


@njit(parallel=True)
def _absorb(
    products: Any, norms: Any, pruned: Any, kept: Any, gamma: Any, beta: Any, mean: Any, var: Any, balance: Any,
    threshold: Any,
) -> Any:  # fmt: skip
    partner, scales = np.empty(len(pruned), dtype=np.int64), np.empty(len(pruned))
    for i in prange(len(pruned)):
        n = pruned[i]
        scale, ratio = np.empty(len(kept)), np.empty(len(kept))
        shift = mean[n] - var[n] * beta[n] / gamma[n]
        for j in range(len(kept)):
            m = kept[j]
            s = norms[n] / norms[m]
            scale[j] = s * (gamma[m] / gamma[n]) * (var[n] / var[m])
            ratio[j] = abs((gamma[m] / var[m]) * (s * shift - mean[m]) + beta[m]) / scale[j]
        low, high = ratio.min(), ratio.max()
        best, pick = np.inf, 0
        for j in range(len(kept)):
            cosine = products[i, j] / (norms[n] * norms[kept[j]])
            cost = balance * (1 - cosine) + (1 - balance) * (ratio[j] - low) / (high - low)
            if cost < best:
                best, pick = cost, j
        absorbed = products[i, pick] / (norms[n] * norms[kept[pick]]) >= threshold
        partner[i], scales[i] = (kept[pick], scale[pick]) if absorbed else (-1, 0.0)
    return partner, scales


# --- W8: every candidate under the RBF kernel ---------------------------------------------------------------------


def rbf_prepared(x: Array) -> tuple[Array, Array, Array, np.float32, float]:
    """What a layer needs once: its rows, their distances, its centred kernel, the bandwidth, that kernel's norm."""
    z = np.ascontiguousarray(x - x.mean(axis=0))
    norms = (z * z).sum(axis=1)
    distances = np.maximum(norms[:, None] + norms - 2 * (z @ z.T), 0)
    scale = np.float32(-1 / (0.5 * np.median(distances)))
    original = np.exp(scale * distances)
    original -= original.mean(axis=0)
    original -= original.mean(axis=1)[:, None]
    return z, distances, original, scale, float(np.vdot(original, original))


def rbf_candidates(prepared: tuple[Array, Array, Array, np.float32, float]) -> Floats:
    """Biased CKA(all units, all but one) for every unit: all candidates in one pass over the pairs of samples."""
    z, distances, original, scale, own = prepared
    n = len(z)
    rows, squares, cross = _candidate_sums(z, distances, original, scale)
    rows = rows.sum(axis=0, dtype=np.float64) + 1  # what is left out of the pass: the diagonal, which is 1
    squares = 2 * squares.sum(axis=0) + n - 2 / n * (rows * rows).sum(axis=0) + rows.sum(axis=0) ** 2 / n**2
    cross = 2 * cross.sum(axis=0) + float(np.trace(original, dtype=np.float64))
    result: Floats = cross / np.sqrt(squares * own)
    return result


@njit(parallel=True, fastmath=True)
def _candidate_sums(z: Any, distances: Any, original: Any, scale: Any) -> Any:
    """Over the pairs below the diagonal, for every candidate: sums of its rows, of its squares, of its products."""
    n, units = z.shape
    teams = get_num_threads()
    rows = np.zeros((teams, n, units), dtype=np.float32)
    squares, cross = np.zeros((teams, units)), np.zeros((teams, units))
    for team in prange(teams):
        for i in range(team, n, teams):  # one row after the other: each is longer than the last
            row, square = np.zeros(units, dtype=np.float32), np.zeros(units, dtype=np.float32)
            product = np.zeros(units, dtype=np.float32)
            for j in range(i):
                distance, level = distances[i, j], original[i, j]
                for k in range(units):
                    difference = z[i, k] - z[j, k]
                    value = np.exp(scale * (distance - difference * difference))
                    row[k] += value
                    rows[team, j, k] += value
                    square[k] += value * value
                    product[k] += value * level
            rows[team, i] += row
            squares[team] += square
            cross[team] += product
    return rows, squares, cross
