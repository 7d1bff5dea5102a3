"""Graphs of every kind and filters whose pairs lie at thresholds, for the tests of device graphs on any machine."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from filter_sets import filters
from tolerance import assert_close

from simkit.backends import reference
from simkit.backends.base import Adjacency, CoverSearch
from simkit.backends.bits import BitArray, on_host, pack, unpack
from simkit.metrics.thresholds import to_squared

Array = npt.NDArray[Any]
DISTANCES = (1.0, 1.38, 0.45, 1.45, 0.0, 2.0, 1.4142, 3.0)


def squared(distances: Any) -> Array:
    """Squared thresholds as `filter_graph` hands them over."""
    return np.array([to_squared(float(d), "distance", 1) for d in distances])


def mixed_filters(n: int, d: int, dtype: str) -> Array:
    """Filters of which some are zero, multiples of one another, or opposite."""
    w = filters(n, d).astype(dtype)
    if n > 5:
        w[3] = w[n - 1] = 0
        w[4], w[2] = 2 * w[1], -w[1]
    return w


def unit_distances(w: Array) -> Array:
    """Distances of unit filters, all pairs, from float64 differences."""
    u = w.astype(np.float64)
    u /= np.linalg.norm(u, axis=1)[:, None]
    return np.sqrt(((u[:, None] - u[None]) ** 2).sum(-1))


def near_pairs(n: int, d: int, dtype: str) -> tuple[Array, list[float]]:
    """Filters, and thresholds at the very distances of pairs and a hair to either side of them."""
    w = filters(n, d).astype(dtype)
    w[n // 2 :] = w[: n - n // 2] + (0.02 * filters(n - n // 2, d, 1)).astype(dtype)
    pairs = unit_distances(w)[np.triu_indices(n, 1)]
    chosen = np.quantile(pairs[pairs > 0], [0, 0.02, 0.3, 0.7, 1], method="nearest")
    return w, [d * (1 + hair) for d in chosen for hair in (0.0, 1e-10, -1e-10, 1e-7, -1e-7)]


def random_graph(n: int, density: float, seed: int = 0) -> Array:
    upper = np.triu(np.random.default_rng([seed, n, int(1e4 * density)]).random((n, n)) < density, 1)
    return upper | upper.T


def joined(n: int, edges: Any) -> Array:
    graph = np.zeros((n, n), dtype=bool)
    for a, b in edges:
        graph[a, b] = graph[b, a] = a != b
    return graph


def families(n: int) -> BitArray:
    """Packed graphs ``[graphs, n, words]``: random ones, and those that are hard for rounds of equal steps."""
    order = np.random.default_rng(n).permutation(n)
    cliques = np.arange(n) // 7
    hubs = joined(n, ((v % 3, v) for v in range(n)))
    path = joined(n, ((v, v + 1) for v in range(n - 1)))
    graphs = [random_graph(n, density, k) for k, density in enumerate((0, 1 / n, 3 / n, 0.02, 0.1, 0.4, 0.9, 1))]
    graphs += [path, path[np.ix_(order, order)], hubs, hubs[np.ix_(order, order)]]
    graphs += [(cliques[:, None] == cliques) & ~np.eye(n, dtype=bool), joined(n, ((v, n - 1) for v in range(n)))]
    graphs.append(joined(n, zip(order, order[::-1], strict=True)))
    return np.stack([pack(graph) for graph in graphs])


def assert_adjacency(found: Adjacency, want: Adjacency, dtype: str, p: int) -> None:
    """The same bits and zeros; the extreme distances to within the products' bound."""
    n = want.bits.shape[1]
    differ = [int(d.sum()) for d in unpack(on_host(found.bits), n) != unpack(on_host(want.bits), n)]
    assert not any(differ), differ
    assert on_host(found.bits).tobytes() == on_host(want.bits).tobytes()
    assert found.finite == want.finite
    assert found.zeros.tolist() == want.zeros.tolist()
    assert_close([found.nearest, found.farthest], [want.nearest, want.farthest], "extremes", dtype, n, p)


def assert_covers(found: list[CoverSearch], want: list[CoverSearch], n: int) -> None:
    """The same centres and packings in the same order; the dual to within rounding."""
    for k, (a, b) in enumerate(zip(found, want, strict=True)):
        assert a.centres.tolist() == b.centres.tolist(), k
        assert a.packing.tolist() == b.packing.tolist(), k
        assert_close(a.dual, b.dual, "dual", "float64", n, 1, scale=b.dual)


def assert_graph_ops(components: Any, cover: Any, bits: Any, oracle: Any = reference) -> None:
    """Labels, edges and covers of packed graphs as the oracle's."""
    labels, edges = components(bits)
    want_labels, want_edges = oracle.components(on_host(bits))
    assert labels.tolist() == want_labels.tolist()
    assert edges.tolist() == want_edges.tolist()
    assert_covers(cover(bits), oracle.cover(on_host(bits)), bits.shape[1])
