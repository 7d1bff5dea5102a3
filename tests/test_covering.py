"""Covering bounds against brute force, known families, linear programming and their own definition."""

from __future__ import annotations

import itertools
import math
import time
import warnings
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from backend_lists import HOST, NAMED
from scipy.optimize import linprog
from scipy.sparse.csgraph import shortest_path

import simkit as sk
from simkit.backends.base import CoverSearch
from simkit.backends.bits import pack
from simkit.backends.choose import choose

Array = npt.NDArray[Any]


def graph_of(adjacency: Array, backend: str | None = None) -> sk.FilterGraph:
    """Filters whose graph is given: unit vectors with cosine 1/n on edges and 0 elsewhere, which always exist."""
    n = len(adjacency)
    cosine = 0.9 / n
    weight = np.linalg.cholesky(np.eye(n) + cosine * adjacency)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sk.DegenerateWarning)
        graph = sk.filter_graph(weight, threshold=cosine / 2, norm="cosine", backend=backend)
    assert np.array_equal(graph.adjacency(), adjacency)
    return graph


def random_graph(n: int, density: float, seed: int) -> Array:
    upper = np.triu(np.random.default_rng([seed, n, int(1000 * density)]).random((n, n)) < density, 1)
    return upper | upper.T


def from_edges(n: int, edges: Any) -> Array:
    a = np.zeros((n, n), dtype=bool)
    for i, j in edges:
        a[i, j] = a[j, i] = True
    return a


def brute_force(adjacency: Array) -> int:
    """The least number of balls that cover all vertices, over all subsets, smallest first."""
    n = len(adjacency)
    balls = [sum(1 << int(j) for j in np.flatnonzero(row)) | 1 << i for i, row in enumerate(adjacency)]
    for size in range(1, n + 1):
        for chosen in itertools.combinations(balls, size):
            covered = 0
            for ball in chosen:
                covered |= ball
            if covered == (1 << n) - 1:
                return size
    raise AssertionError


def covers(adjacency: Array, centres: Array) -> bool:
    return bool((adjacency | np.eye(len(adjacency), dtype=bool))[centres].any(axis=0).all())


def checked(adjacency: Array, covering: sk.Covering) -> sk.Covering:
    assert covering.lower <= covering.upper == len(covering.centres) == len(set(covering.centres.tolist()))
    assert covering.exact == (covering.lower == covering.upper)
    assert covers(adjacency, covering.centres)
    return covering


@cache
def small_graphs() -> list[tuple[Array, int]]:
    """400 random graphs of 1 to 11 vertices, from empty to complete, and their covering numbers."""
    r = np.random.default_rng(0)
    graphs = []
    for seed in range(400):
        adjacency = random_graph(int(r.integers(1, 12)), float(r.choice([0, 0.1, 0.2, 0.3, 0.5, 0.8, 1])), seed)
        graphs.append((adjacency, brute_force(adjacency)))
    return graphs


@pytest.mark.parametrize("backend", NAMED)
def test_bounds_hold_the_brute_force(backend: str) -> None:
    met = 0
    for adjacency, number in small_graphs():
        covering = checked(adjacency, graph_of(adjacency, backend).covering())
        assert covering.lower <= number <= covering.upper
        assert covering.backend == backend
        met += covering.exact
    assert met > 300


def test_exact_mode_is_the_brute_force() -> None:
    for adjacency, number in small_graphs():
        covering = checked(adjacency, graph_of(adjacency).covering(exact=True))
        assert (covering.lower, covering.upper, covering.exact) == (number, number, True)


def test_exact_mode_on_larger_graphs() -> None:
    """Against one integer program for the whole graph; components are solved apart."""
    for n, density, seed in ((40, 0.05, 0), (60, 0.03, 1), (60, 0.15, 2), (90, 0.02, 3)):
        adjacency = random_graph(n, density, seed)
        graph = graph_of(adjacency)
        covering = checked(adjacency, graph.covering(exact=True, time_limit=60))
        assert covering.exact
        whole = linprog(
            np.ones(n), A_ub=-(adjacency + np.eye(n)), b_ub=-np.ones(n), bounds=(0, 1), integrality=np.ones(n)
        )
        assert covering.upper == round(whole.fun)
        plain = checked(adjacency, graph.covering())
        assert plain.lower <= covering.upper <= plain.upper
        solved = [step for step in covering.plan.steps if step.backend == "HiGHS"]
        assert bool(solved) != plain.exact


def path(n: int) -> Array:
    return from_edges(n, itertools.pairwise(range(n)))


FAMILIES: dict[str, tuple[Array, int]] = {
    "one vertex": (from_edges(1, []), 1),
    "no edges": (from_edges(70, []), 70),
    "complete": (random_graph(130, 1.0, 0), 1),
    "star": (from_edges(65, [(7, k) for k in range(65) if k != 7]), 1),
    "pairs": (from_edges(128, [(2 * k, 2 * k + 1) for k in range(64)]), 64),
    "path": (path(65), 22),
    "cycle": (path(64) | from_edges(64, [(0, 63)]), 22),
    "Petersen": (
        from_edges(
            10,
            [(k, (k + 1) % 5) for k in range(5)]
            + [(k, k + 5) for k in range(5)]
            + [(5 + k, 5 + (k + 2) % 5) for k in range(5)],
        ),
        3,
    ),
    "5 x 5 grid": (
        from_edges(25, [(k, k + 1) for k in range(25) if k % 5 < 4] + [(k, k + 5) for k in range(20)]),
        7,
    ),
    "two stars": (from_edges(40, [(0, k) for k in range(1, 20)] + [(20, k) for k in range(21, 40)]), 2),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_known_covering_numbers(name: str) -> None:
    adjacency, number = FAMILIES[name]
    graph = graph_of(adjacency)
    covering = checked(adjacency, graph.covering())
    assert covering.lower <= number <= covering.upper
    assert checked(adjacency, graph.covering(exact=True)).upper == number


def literal_greedy(adjacency: Array) -> list[int]:
    """Take the vertex whose ball holds most of what is uncovered, the first of equals."""
    left = set(range(len(adjacency)))
    balls = [{i, *np.flatnonzero(row).tolist()} for i, row in enumerate(adjacency)]
    centres = []
    while left:
        gains = [len(ball & left) for ball in balls]
        centres.append(gains.index(max(gains)))
        left -= balls[centres[-1]]
    return centres


def search(adjacency: Array, backend: str) -> CoverSearch:
    found = choose("cover", backend=backend).function(pack(adjacency)[None])[0]
    assert isinstance(found, CoverSearch)
    return found


@pytest.mark.parametrize(
    ("n", "density"),
    [(1, 0), (30, 0.1), (63, 0.02), (64, 0.5), (65, 0.9), (130, 0.01), (130, 0.05), (200, 0.2), (260, 0.015)],
)
def test_the_search_is_what_it_says(n: int, density: float) -> None:
    """Greedy by residual degree with ties to the lowest index; a packing; a feasible dual; both backends alike."""
    for seed in range(4):
        adjacency = random_graph(n, density, seed)
        native, reference = (search(adjacency, name) for name in HOST)
        assert native.centres.tolist() == reference.centres.tolist() == literal_greedy(adjacency)
        assert native.packing.tolist() == reference.packing.tolist()
        assert native.dual == pytest.approx(reference.dual, rel=1e-12)
        hops = shortest_path(adjacency, unweighted=True)[np.ix_(native.packing, native.packing)]
        assert (hops[np.triu_indices(len(native.packing), 1)] > 2).all()
        blocked = (adjacency | np.eye(n, dtype=bool)).astype(int)
        assert ((blocked @ blocked)[native.packing] > 0).any(axis=0).all()  # none can be added
        relaxed = linprog(np.ones(n), A_ub=-(adjacency + np.eye(n)), b_ub=-np.ones(n), bounds=(0, None))
        assert native.dual <= relaxed.fun + 1e-9
        assert len(native.packing) <= relaxed.fun + 1e-9
        degrees = adjacency.sum(axis=1) + 1
        assert native.dual >= n / degrees.max() - 1e-9


def test_several_graphs_at_once() -> None:
    adjacencies = np.stack([random_graph(100, density, 0) for density in (0, 0.02, 0.1, 0.5, 1)])
    for backend in HOST:
        cover, components = (choose(op, backend=backend).function for op in ("cover", "components"))
        for threads in (1, 3):
            labels, edges = components(pack(adjacencies), threads=threads)
            for k, found in enumerate(cover(pack(adjacencies), threads=threads)):
                alone = cover(pack(adjacencies[k : k + 1]))[0]
                assert found.centres.tolist() == alone.centres.tolist()
                assert found.packing.tolist() == alone.packing.tolist()
                assert found.dual == alone.dual
                assert edges[k] == adjacencies[k].sum() // 2
                assert labels[k].tolist() == components(pack(adjacencies[k : k + 1]))[0][0].tolist()


def test_the_exact_number_does_not_depend_on_the_order() -> None:
    adjacency = random_graph(40, 0.12, 5)
    order = np.random.default_rng(0).permutation(40)
    numbers = {graph_of(a).covering(exact=True).upper for a in (adjacency, adjacency[np.ix_(order, order)])}
    assert len(numbers) == 1


def test_a_time_limit_leaves_bounds() -> None:
    """A graph that HiGHS cannot solve in a moment."""
    adjacency = random_graph(400, 0.06, 0)
    graph = graph_of(adjacency)
    start = time.monotonic()
    stopped = checked(adjacency, graph.covering(exact=True, time_limit=0.5))
    assert time.monotonic() - start < 20
    plain = graph.covering()
    assert not stopped.exact
    assert plain.lower <= stopped.lower < stopped.upper <= plain.upper
    assert "not proved in time" in stopped.plan.explain()
    hasty = checked(adjacency, graph.covering(exact=True, time_limit=1e-9))
    assert (hasty.lower, hasty.upper) == (plain.lower, plain.upper)


def test_time_limits_are_checked() -> None:
    graph = graph_of(path(5))
    for limit in (0, -1.0, math.nan, math.inf, "1", True):
        with pytest.raises(ValueError, match=r"^time_limit must be a positive number of seconds, not"):
            graph.covering(exact=True, time_limit=limit)  # type: ignore[arg-type]


def test_asymmetric_bits_are_refused() -> None:
    """No graph of filters is; native code stops instead of looping."""
    lopsided = np.zeros((100, 100), dtype=bool)
    lopsided[0, 1:4] = lopsided[3, 1:3] = True
    with pytest.raises(ValueError, match=r"^the adjacency is not symmetric$"):
        search(lopsided, "native_cpu")


def literal_total_degree(adjacency: Array) -> float:
    """The reproduction's procedure, step by step: the last uncovered vertex of the largest degree, twice."""
    n, sizes = len(adjacency), []
    a = adjacency.astype(int)
    for reach in (a, a @ a):
        covered, size = np.zeros(n, dtype=bool), 0
        while not covered.all():
            node, degree = 0, 0
            for i in range(n):
                if not covered[i] and a[i].sum() >= degree:
                    node, degree = i, a[i].sum()
            covered[node] = True
            covered |= reach[node] > 0
            size += 1
        sizes.append(size)
    return sum(sizes) / 2


def test_the_total_degree_estimate_of_the_reproduction() -> None:
    for seed, (n, density) in enumerate([(1, 0), (2, 1), (9, 0.3), (40, 0.1), (70, 0.03), (70, 0.5), (65, 1)]):
        adjacency = random_graph(n, density, seed)
        assert graph_of(adjacency).total_degree_covering() == literal_total_degree(adjacency)
    # Two neighbours with no third between them: one centre by neighbours, two by common neighbours.
    assert graph_of(from_edges(2, [(0, 1)])).total_degree_covering() == 1.5


def test_bounds_after_removals() -> None:
    adjacency = random_graph(60, 0.06, 1)
    graph = graph_of(adjacency)
    for _ in range(20):
        graph = graph.remove(int(graph.adjacency().sum(axis=1).argmax()))
        inside = adjacency[np.ix_(graph.filters, graph.filters)]
        assert np.array_equal(graph.adjacency(), inside)
        bounds = checked(inside, graph.covering())
        exact = checked(inside, graph.covering(exact=True))
        assert bounds.lower <= exact.upper <= bounds.upper
        assert exact.exact
