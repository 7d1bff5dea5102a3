"""The graph of filters against its definition, on every path that leads to it."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from backend_lists import HOST, NAMED
from filter_sets import filters, quiet
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import pdist, squareform

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends.bits import pack, unpack, without_vertex, words_of
from simkit.backends.choose import choose

Array = npt.NDArray[Any]

DTYPES = ["float16", "float32", "float64"]
TILE = 64
SIZES = (2, 5, TILE - 1, TILE, TILE + 1, 3 * TILE + 2)


def distances(w: Array) -> Array:
    """Distances of the unit filters ``[n, n]`` from float64 differences; zero filters meet one another only."""
    w = np.asarray(w, dtype=np.float64).reshape(len(w), -1)
    norms = np.linalg.norm(w, axis=1)
    zero = norms == 0
    d: Array = squareform(pdist(w / np.where(zero, 1, norms)[:, None]))
    d[zero] = d[:, zero] = np.inf
    d[np.ix_(zero, zero)] = 0
    np.fill_diagonal(d, np.inf)
    return d


@pytest.mark.parametrize("backend", NAMED)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 2, 33, 300, 520])
def test_edges_are_those_of_the_definition(dtype: str, d: int, backend: str) -> None:
    for n in SIZES:
        w = filters(n, d).astype(dtype)
        if n > 5:
            w[3] = w[n - 1] = 0
            w[4], w[2] = 2 * w[1], -w[1]
        gaps = distances(w)
        thresholds = [0.0, 0.3, 0.9, 1.2, math.sqrt(2) - 1e-3, 1.45, 1.9, 2.0, 2.5]
        for graph in quiet(w, threshold=thresholds, backend=backend):
            expected = gaps <= graph.threshold + 1e-13
            assert np.array_equal(graph.adjacency(), expected), (n, graph)
            assert graph.edges == expected.sum() // 2
            assert graph.edge_density == pytest.approx(expected.sum() / (n * (n - 1)))
            count, labels = connected_components(expected)
            assert graph.components == count
            assert np.array_equal(graph.labels, labels)
            assert graph.backend == backend


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bits_do_not_depend_on_tile_or_team(dtype: str) -> None:
    native, reference = (choose("adjacency", backend=name).function for name in HOST)
    for n, d in ((1, 3), (TILE, 5), (TILE + 1, 600), (3 * TILE + 2, 37), (700, 20)):
        matrix = as_matrix(filters(n, d).astype(dtype))
        squared = np.array([1.0, 1.9, 0.2, 2.1, 1e-28, 4.0])
        expected = reference(matrix, squared)
        for tile, threads in itertools.product((64, 128, 192, 512), (1, 3)):
            found = native(matrix, squared, tile=tile, threads=threads)
            assert np.array_equal(found.bits, expected.bits), (n, d, tile, threads)
            assert np.array_equal(found.zeros, expected.zeros)
            for name in ("nearest", "farthest"):
                close = pytest.approx(getattr(expected, name), abs=5e-5, nan_ok=True)
                assert getattr(found, name) == close


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("d", [4, 700, 4608])
def test_pairs_near_the_threshold_are_decided_exactly(dtype: str, d: int) -> None:
    """Thresholds at the very distances of pairs, and a hair to either side, where float32 products cannot tell."""
    w = filters(40, d).astype(dtype)
    w[20:] = w[:20] + (0.02 * filters(20, d, 1)).astype(dtype)
    gaps = distances(w)
    pairs = gaps[np.triu_indices(40, 1)]
    chosen = np.quantile(pairs[pairs > 0], [0, 0.005, 0.02, 0.1, 0.5, 0.9, 1], method="nearest")
    for hair in (0.0, 1e-10, 1e-8, 1e-6, -1e-10, -1e-8, -1e-6):
        thresholds = chosen * (1 + hair)
        graphs = {name: quiet(w, threshold=thresholds, backend=name) for name in HOST}
        for k, threshold in enumerate(thresholds):
            expected = gaps <= threshold * (1 + 2e-12)
            for name in HOST:
                assert np.array_equal(graphs[name][k].adjacency(), expected), (hair, k, name)


def test_equal_entries_that_round_alike() -> None:
    """Constant filters: float32 sums of equal products are off by more than random ones."""
    for d in (1000, 4608, 20_000):
        w = np.ones((70, d), dtype=np.float32) * np.linspace(0.1, 3, 70, dtype=np.float32)[:, None]
        w[35:, : d // 1000] *= -1
        gap = 2 * math.sqrt(d // 1000 / d)
        for threshold in (0.5 * gap, gap * (1 - 1e-9), gap * (1 + 1e-9)):
            adjacency = quiet(w, threshold=threshold).adjacency()
            assert adjacency[:35, :35].sum() == adjacency[35:, 35:].sum() == 35 * 34
            assert adjacency[:35, 35:].all() == adjacency[:35, 35:].any() == (threshold > gap)


@pytest.mark.parametrize("backend", NAMED)
def test_a_sweep_equals_single_calls(backend: str) -> None:
    w = filters(130, 40)
    thresholds = [1.2, 0.1, 1.41, 0.9, 1.2, 0.5]
    sweep = quiet(w, threshold=thresholds, backend=backend)
    assert [graph.threshold for graph in sweep] == thresholds
    for graph, threshold in zip(sweep, thresholds, strict=True):
        single = quiet(w, threshold=threshold, backend=backend)
        assert np.array_equal(graph.bits, single.bits)
        assert (graph.components, graph.edges) == (single.components, single.edges)
    for form in (tuple(thresholds), np.array(thresholds), iter(thresholds), np.float32(thresholds)):
        assert len(quiet(w, threshold=form)) == 6
    for number in (1, np.float64(1.0), np.array(1.0)):
        assert isinstance(quiet(w, threshold=number), sk.FilterGraph)


def test_wider_thresholds_only_add_edges() -> None:
    w = filters(300, 24).astype(np.float32)
    graphs = quiet(w, threshold=np.linspace(0, 2, 41))
    for narrow, wide in itertools.pairwise(graphs):
        assert not (narrow.bits & ~wide.bits).any()
        assert narrow.components >= wide.components
    assert graphs[-1].components == 1


@pytest.mark.parametrize("d", [2, 9, 500])
def test_the_norms_are_one_threshold_in_three_units(d: int) -> None:
    w = filters(90, d)
    for cosine in (-0.3, 0.0, 0.4, 0.9):
        distance = math.sqrt(2 - 2 * cosine)
        by_cosine = quiet(w, threshold=cosine, norm="cosine")
        by_distance = quiet(w, threshold=distance)
        by_fan_in = quiet(w, threshold=distance / math.sqrt(d), norm="sqrt_fan_in")
        assert np.array_equal(by_cosine.bits, by_distance.bits)
        assert np.array_equal(by_cosine.bits, by_fan_in.bits)
        for graph in (by_cosine, by_distance, by_fan_in):
            assert graph.cosine == pytest.approx(cosine, abs=1e-12)


def test_the_order_of_filters_does_not_matter() -> None:
    w = filters(200, 30).astype(np.float32)
    order = np.random.default_rng(1).permutation(200)
    for a, b in zip(quiet(w, threshold=[0.8, 1.2, 1.3]), quiet(w[order], threshold=[0.8, 1.2, 1.3]), strict=True):
        assert np.array_equal(a.adjacency()[np.ix_(order, order)], b.adjacency())
        assert (a.components, a.edge_density) == (b.components, b.edge_density)


@pytest.mark.parametrize("backend", NAMED)
def test_only_directions_count(backend: str) -> None:
    w = filters(80, 21)
    expected = quiet(w, threshold=1.25, backend=backend).bits
    for exponents in (np.full(80, 300), np.full(80, -320), np.linspace(-1000, 1000, 80).astype(int)):
        scaled = np.ldexp(w, exponents[:, None])
        assert np.array_equal(quiet(scaled, threshold=1.25, backend=backend).bits, expected)
    single = w.astype(np.float32)
    expected = quiet(single, threshold=1.25, backend=backend).bits
    for exponents in (np.full(80, 100), np.full(80, -100), np.linspace(-90, 90, 80).astype(int)):
        scaled = np.ldexp(single, exponents[:, None])
        assert np.array_equal(quiet(scaled, threshold=1.25, backend=backend).bits, expected)


def test_layouts_shapes_and_types_agree() -> None:
    w = filters(70, 24).astype(np.float16)
    expected = quiet(w, threshold=1.3).bits
    wide = np.zeros((140, 48), dtype=np.float32)
    wide[::2, ::2] = w
    for other in (
        w.astype(np.float32),
        w.astype(np.float64),
        np.asfortranarray(w.astype(np.float32)),
        wide[::2, ::2],
        np.ascontiguousarray(w.astype(np.float32)[::-1])[::-1],
        np.ascontiguousarray(w.astype(np.float64)[:, ::-1])[:, ::-1],
        w.astype(">f4"),
        w.astype(np.float32).reshape(70, 6, 2, 2),
        w.tolist(),
    ):
        assert np.array_equal(quiet(other, threshold=1.3).bits, expected)
    small = np.random.default_rng(0).integers(-3, 4, (30, 9))
    expected = quiet(small.astype(np.float64), threshold=0.8).bits
    for dtype in (np.int8, np.int64):
        assert np.array_equal(quiet(small.astype(dtype), threshold=0.8).bits, expected)


def test_weights_in_a_file(tmp_path: Path) -> None:
    for dtype in ("float32", "float64"):
        w = filters(150, 700).astype(dtype)
        np.save(tmp_path / "w.npy", w)
        mapped = np.load(tmp_path / "w.npy", mmap_mode="r")
        for threshold in (0.8, 1.4):
            assert np.array_equal(quiet(mapped, threshold=threshold).bits, quiet(w, threshold=threshold).bits)


def test_inputs_are_left_alone() -> None:
    w = filters(40, 12)
    kept = w.copy()
    w.setflags(write=False)
    graph = quiet(w, threshold=1.0)
    bits = graph.bits.copy()
    graph.remove(3)
    graph.covering(exact=True)
    assert np.array_equal(w, kept)
    assert np.array_equal(graph.bits, bits)


@pytest.mark.parametrize("n", [2, 3, 63, 64, 65, 66, 128, 129])
@pytest.mark.parametrize("backend", NAMED)
def test_removal_equals_a_rebuild(n: int, backend: str) -> None:
    w = filters(n, 10)
    graph = quiet(w, threshold=1.1, backend=backend)
    for i in sorted({0, 1, n // 2, n - 2, n - 1}) if n > 10 else range(n):
        less, rebuilt = graph.remove(i), quiet(np.delete(w, i, axis=0), threshold=1.1, backend=backend)
        assert np.array_equal(less.bits, rebuilt.bits)
        assert np.array_equal(less.labels, rebuilt.labels)
        assert (less.components, less.edges) == (rebuilt.components, rebuilt.edges)
        assert less.filters.tolist() == [k for k in range(n) if k != i]
        assert (less.threshold, less.norm, less.cosine) == (graph.threshold, graph.norm, graph.cosine)
        assert less.backend == backend


def test_removing_one_after_the_other() -> None:
    w = filters(140, 15)
    graph = quiet(w)
    r = np.random.default_rng(0)
    while len(graph.filters) > 1:
        graph = graph.remove(int(r.integers(len(graph.filters))))
        if len(graph.filters) % 17 == 1:
            rebuilt = quiet(w[graph.filters])
            assert np.array_equal(graph.bits, rebuilt.bits)
            assert graph.components == rebuilt.components
    assert (graph.components, graph.edge_density) == (1, 0.0)


def test_the_plan_says_how() -> None:
    for dtype, backend, route in (
        ("float16", None, "float32 products, near a threshold float64 differences"),
        ("float64", None, "float64 products, near a threshold float64 differences"),
        ("float32", "reference", "float64 differences"),
    ):
        graph = sk.filter_graph(filters(30, 8).astype(dtype), threshold=1.2, backend=backend)
        step = graph.plan.steps[0]
        assert (step.op, step.backend, step.route) == ("adjacency", backend or "native_cpu", route)
        assert step.multiply_adds == 30 * 29 // 2 * 8
        assert graph.remove(4).plan.steps[0] == step


def test_packed_bits() -> None:
    r = np.random.default_rng(0)
    for n in (1, 2, 63, 64, 65, 127, 128, 129, 200):
        dense = r.random((n, n)) < 0.4
        bits = pack(dense)
        assert bits.shape == (n, words_of(n))
        assert np.array_equal(unpack(bits, n), dense)
        for i, j in itertools.product(r.integers(0, n, 5), repeat=2):
            assert bool(bits[i, j // 64] >> np.uint64(j % 64) & np.uint64(1)) == dense[i, j]
        for i in {0, n // 2, n - 1} if n > 1 else ():
            smaller = np.delete(np.delete(dense, i, axis=0), i, axis=1)
            assert np.array_equal(without_vertex(bits, i), pack(smaller))


@pytest.mark.parametrize("dtype", DTYPES)
def test_filters_that_are_equal_are_joined(dtype: str) -> None:
    """However their cosines round, also above 1."""
    for seed in range(40):
        r = np.random.default_rng(seed)
        n, d = int(r.integers(2, 9)), int(r.integers(1, 300))
        w = (r.standard_normal((1, d)) * 2.0 ** r.integers(-3, 4, (n, 1))).astype(dtype)
        with pytest.warns(sk.DegenerateWarning, match="complete"):
            found = sk.filter_graph(w, threshold=0.5)
        assert found.edges == n * (n - 1) // 2
