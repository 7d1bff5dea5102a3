"""W4: components, edge density and covering number of a layer's filter graph over many thresholds."""

from __future__ import annotations

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
                    "NumPy + networkx (its components, a greedy cover by sets)",
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
                "NumPy + SciPy (W Wᵀ, csgraph, a greedy cover by rows of booleans)",
                partial(numpy_measures, cosines=cosines),
                once=full,
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
    """One product for all thresholds; a pair at a threshold may fall to either side."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    u = unit(w)
    similarity = u @ u.T
    np.fill_diagonal(similarity, 1)
    answer = []
    for cosine in cosines:
        ball = similarity >= np.float32(cosine)
        components, _ = connected_components(csr_array(ball), directed=False)
        uncovered, cover = np.ones(len(w), dtype=np.float32), 0
        rows = ball.astype(np.float32)
        while uncovered.any():
            uncovered[ball[(rows @ uncovered).argmax()]] = 0
            cover += 1
        answer.append((int(components), (int(ball.sum()) - len(w)) // 2, cover))
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
        uncovered, cover = set(graph), 0
        while uncovered:
            uncovered -= max(balls.values(), key=lambda ball: len(ball & uncovered))
            cover += 1
        answer.append((nx.number_connected_components(graph), graph.number_of_edges(), cover))
    return answer
