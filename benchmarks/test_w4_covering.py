"""W4: components, edge density and covering number of a layer's filter graph over many thresholds."""

from __future__ import annotations

import itertools
import warnings
from functools import partial
from typing import Any

import numpy as np

import simkit as sk

from .conftest import FromNumba, Measure
from .features import cold_sets
from .protocol import Contestant, Missing, Workload
from .rivals import compiled, from_package, package
from .truth import Array, graph_measures

THRESHOLDS = 32
FULL, SMALL = (2048, 4608), (180, 300)


def test_w4_covering(measure: Measure, full: bool, from_numba: FromNumba) -> None:
    """Every component count, edge count and greedy cover is the reference's: the error is how many of them differ."""
    n, d = FULL if full else SMALL
    sets = cold_sets(partial(filters, n=n, d=d), 4 * n * d)
    cosines = np.linspace(0.9, 3 / np.sqrt(d), THRESHOLDS)
    truth = graph_measures(sets[0], cosines)
    some = slice(3, None, 8) if full else slice(None)
    looped = min(n, 60)
    workload = Workload(
        key="W4",
        title=f"filter graph of {n} filters of {d} weights, {THRESHOLDS} thresholds",
        sizes={"n": n, "d": d, "thresholds": THRESHOLDS},
        inputs=sets,
        error=lambda answer: differing(answer, truth),
        tolerance=0.0,
        precision="float32",
        multiply_adds=n * n * d // 2,
        bytes=4 * n * d,
    )
    result = measure(
        workload,
        Contestant("simkit", partial(simkit, cosines=cosines)),
        [
            from_package(
                "networkx",
                Contestant(
                    "NumPy + networkx (its components, a greedy cover by sets whose gains are kept up)",
                    partial(networkx_measures, cosines=cosines[some]),
                    error=lambda answer: differing(answer, truth[some]),
                    scale=THRESHOLDS / len(cosines[some]),
                    prepare=networkx_similarity,
                    once=full,
                    note="every eighth threshold timed and scaled, the product timed once and added as it is"
                    if full
                    else "",
                ),
            ),
            Contestant(
                "NumPy + SciPy (W Wᵀ, one list of edges, csgraph, a greedy cover whose gains are kept up)",
                partial(numpy_measures, cosines=cosines),
            ),
            from_numba(
                Contestant(
                    "numba (NumPy's W Wᵀ, lists of edges, thresholds in parallel)",
                    lambda w: compiled("graph_measures", w, cosines),
                )
            ),
            from_torch_and_numba(from_numba, cosines),
            Contestant(
                "the pair loop of the seed's reproduction",
                partial(pair_loop, filters=looped),
                error=lambda found: float(np.abs(found - pair_distances(sets[0][:looped])).max()),
                scale=n * (n - 1) / (looped * (looped - 1)) * THRESHOLDS,
                once=full,
                note=f"distances of {looped} filters timed and scaled: one graph a threshold; its error is of them",
            ),
        ],
    )
    edges = [row[1] / (n * (n - 1) / 2) for row in truth]
    result["notes"].append(f"edge densities from {min(edges):.1e} to {max(edges):.1e}")


def from_torch_and_numba(from_numba: FromNumba, cosines: Array) -> Contestant | Missing:
    """The product by torch, the rest as numba's."""
    both = from_numba(
        Contestant(
            "torch's W Wᵀ, numba's graphs",
            lambda w: compiled("graph_measures_of", torch_similarity(w), cosines),
        )
    )
    return from_package("torch", both) if isinstance(both, Contestant) else both


def torch_similarity(w: Array) -> Array:
    """Cosines of all filters, float32."""
    import torch

    with torch.inference_mode():
        u = torch.nn.functional.normalize(torch.from_numpy(w), dim=1)
        product: Array = (u @ u.T).numpy()
        return product


def filters(seed: int, n: int, d: int) -> Array:
    """Half of the filters are random; the others lie about n / 16 centres, some close, some far."""
    r = np.random.default_rng(seed)
    w = r.standard_normal((n, d), dtype=np.float32)
    centres = r.standard_normal((max(1, n // 16), d), dtype=np.float32)
    strength = np.where(r.random(n) < 0.5, 0, r.uniform(0.3, 4, n)).astype(np.float32)
    w += strength[:, None] * centres[r.integers(0, len(centres), n)]
    return w


def simkit(w: Array, cosines: Array) -> list[tuple[int, int, int]]:
    """One call; thresholds at which the graph is empty are part of the sweep."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sk.DegenerateWarning)
        sweep = sk.redundancy(w, threshold=cosines, norm="cosine")
    return [(found.components, found.graph.edges, found.covering.upper) for found in sweep]


def differing(answer: Any, truth: list[tuple[int, int, int]]) -> float:
    """How many thresholds have another answer."""
    return float(sum(tuple(a) != b for a, b in zip(answer, truth, strict=True)))


def unit(w: Array) -> Array:
    """Unit rows, float32."""
    return w / np.linalg.norm(w, axis=1, keepdims=True)


def pair_loop(w: Array, filters: int) -> Array:
    """Both filters of every pair flattened, normalised and subtracted, one pair after the other."""
    found = []
    for i in range(filters):
        for j in range(i + 1, filters):
            a, b = w[i].reshape(-1, 1), w[j].reshape(-1, 1)
            found.append(np.linalg.norm(a / np.linalg.norm(a) - b / np.linalg.norm(b)))
    return np.array(found)


def pair_distances(w: Array) -> Array:
    """The same in float64, at once."""
    u = np.float64(w)
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    i, j = np.triu_indices(len(w), 1)
    return np.linalg.norm(u[i] - u[j], axis=1)


def numpy_measures(w: Array, cosines: Array) -> list[tuple[int, int, int]]:
    """One product and one list of edges for all thresholds, gains kept up; a pair at a threshold may fall anywhere."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    u, n = unit(w), len(w)
    similarity = u @ u.T
    i, j = np.nonzero(np.triu(similarity >= np.float32(cosines.min()), 1))
    found = similarity[i, j]
    answer = []
    for cosine in cosines:
        edge = found >= np.float32(cosine)
        ends = np.concatenate([i[edge], j[edge]]), np.concatenate([j[edge], i[edge]])
        graph = csr_array((np.ones(len(ends[0]), dtype=np.int8), ends), shape=(n, n))
        around = np.split(graph.indices, graph.indptr[1:-1])
        components, _ = connected_components(graph, directed=False)
        gain, uncovered, cover = np.diff(graph.indptr) + 1, np.ones(n, dtype=bool), 0
        while gain[best := gain.argmax()] > 1:
            new = np.append(around[best], best)
            new = new[uncovered[new]]
            uncovered[new] = False
            gain -= np.bincount(np.concatenate([new, *(around[k] for k in new)]), minlength=n)
            cover += 1
        answer.append((int(components), int(edge.sum()), cover + int(uncovered.sum())))
    return answer


def networkx_similarity(w: Array) -> Array:
    """Cosines of all filters in float64, of a filter and itself 0."""
    u = np.float64(w)
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    similarity = u @ u.T
    np.fill_diagonal(similarity, 0)
    return np.asarray(similarity)


def networkx_measures(similarity: Array, cosines: Array) -> list[tuple[int, int, int]]:
    """As a user of networkx writes it: a graph for every threshold, its components, a greedy dominating set."""
    nx = package("networkx")
    answer = []
    for cosine in cosines:
        graph = nx.from_numpy_array(similarity >= cosine)
        balls = {v: {v, *graph[v]} for v in graph}
        gain, uncovered, cover = {v: len(ball) for v, ball in balls.items()}, set(graph), 0
        while gain[best := max(gain, key=gain.__getitem__)] > 1:
            new = balls[best] & uncovered
            uncovered -= new
            for v in itertools.chain.from_iterable(balls[k] for k in new):
                gain[v] -= 1
            cover += 1
        cover += len(uncovered)
        answer.append((nx.number_connected_components(graph), graph.number_of_edges(), cover))
    return answer
