"""Graphs of filters by the CUDA programs on the emulator: the bits, labels, centres and packings of the reference."""

from __future__ import annotations

import copy
import itertools
import pickle
from types import SimpleNamespace
from typing import Any

import emulated_cuda
import emulated_graphs
import numpy as np
import numpy.typing as npt
import pytest
from cuda_cases import ORDERS, There, array_of, half, layouts, see_device
from emulated_cuda import compile_programs
from emulated_graphs import Bits
from filter_sets import filters, quiet
from graph_cases import (
    DISTANCES,
    assert_adjacency,
    assert_covers,
    assert_graph_ops,
    families,
    joined,
    mixed_filters,
    near_pairs,
    random_graph,
    squared,
    unit_distances,
)

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends import native_cpu, native_cuda, reference
from simkit.backends.base import Adjacency, CoverSearch
from simkit.backends.bits import DeviceBits, on_host, pack, unpack
from simkit.backends.choose import choose

Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    found = compile_programs(tmp_path_factory.getbasetemp(), "cuda_graphs_programs")
    return found or pytest.skip("there is no C++ compiler")


def adjacency(programs: Any, x: Any, limits: Array, order: int = 0) -> Adjacency:
    found = emulated_graphs.adjacency(programs, order, x=array_of(as_matrix(x)), squared=limits.tolist())
    finite, nearest, farthest, zeros, held = found
    return Adjacency(DeviceBits(held), finite, nearest, farthest, zeros, "")


def ops(programs: Any, order: int) -> tuple[Any, Any]:
    def components(bits: Any) -> Any:
        return emulated_graphs.components(programs, order, Bits(bits))

    def cover(bits: Any) -> list[CoverSearch]:
        return [CoverSearch(*found) for found in emulated_graphs.cover(programs, order, Bits(bits))]

    return components, cover


# Adjacency.


@pytest.mark.parametrize(("n", "p"), [(1, 3), (2, 1), (5, 15), (63, 16), (64, 17), (65, 257), (129, 33), (260, 20)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_adjacency(programs: Any, n: int, p: int, dtype: str) -> None:
    """Around every tile, slice, chunk and word, with zero rows, multiples and opposites."""
    w = mixed_filters(n, p, dtype)
    want = reference.adjacency(as_matrix(w), squared(DISTANCES))
    for order in ORDERS if n in (65, 129) else ORDERS[:1]:
        assert_adjacency(adjacency(programs, w, squared(DISTANCES), order), want, dtype, p)


@pytest.mark.parametrize("thresholds", [1, 2, 3, 4, 7, 33])
def test_any_number_of_thresholds(programs: Any, thresholds: int) -> None:
    w = mixed_filters(70, 12, "float32")
    limits = squared(np.random.default_rng(0).permutation(np.linspace(0.0, 2.0, thresholds)))
    assert_adjacency(adjacency(programs, w, limits), reference.adjacency(as_matrix(w), limits), "float32", 12)


@pytest.mark.parametrize(("d", "dtype"), [(4, "float32"), (700, "float32"), (700, "float64")])
def test_pairs_at_a_threshold_are_decided_by_their_differences(programs: Any, d: int, dtype: str) -> None:
    w, distances = near_pairs(90, d, dtype)
    want = reference.adjacency(as_matrix(w), squared(distances))
    for order in ORDERS if d == 4 else ORDERS[:1]:
        assert_adjacency(adjacency(programs, w, squared(distances), order), want, dtype, d)
    exact = unit_distances(w)
    for k, distance in enumerate(distances):
        edges = unpack(on_host(want.bits)[k], 90)
        assert np.array_equal(edges | np.eye(90, dtype=bool), exact <= distance * (1 + 2e-12) + 1e-14)


def test_equal_rows_are_adjacent_at_every_threshold(programs: Any) -> None:
    """All pairs of a square lie at the threshold, in squares on the diagonal and off it."""
    w = np.repeat(filters(3, 40), 70, axis=0).astype(np.float32) * np.tile([1, 2, 0.5], 70)[:, None].astype(np.float32)
    want = reference.adjacency(as_matrix(w), squared([0.0, 1e-9]))
    assert_adjacency(adjacency(programs, w, squared([0.0, 1e-9])), want, "float32", 40)


def test_rows_whose_products_round_alike(programs: Any) -> None:
    for d in (1000, 2600):
        w = np.ones((70, d), dtype=np.float32) * np.linspace(0.1, 3, 70, dtype=np.float32)[:, None]
        w[35:, : d // 1000] *= -1
        gap = 2 * np.sqrt(d // 1000 / d)
        limits = squared([0.5 * gap, gap * (1 - 1e-9), gap * (1 + 1e-9)])
        assert_adjacency(adjacency(programs, w, limits), reference.adjacency(as_matrix(w), limits), "float32", d)


def test_only_directions_count(programs: Any) -> None:
    w = filters(70, 21)
    for dtype, exponents in (
        ("float64", (300, -320, np.linspace(-1000, 1000, 70).astype(int))),
        ("float32", (100, -100, np.linspace(-90, 90, 70).astype(int))),
    ):
        plain = adjacency(programs, w.astype(dtype), squared(DISTANCES))
        for exponent in exponents:
            scaled = np.ldexp(w.astype(dtype), np.broadcast_to(exponent, 70)[:, None])
            assert_adjacency(adjacency(programs, scaled, squared(DISTANCES)), plain, dtype, 21)


def test_norms_that_no_number_inverts_count_as_zero(programs: Any) -> None:
    w = filters(6, 5)
    w[1], w[4] = w[1] * 1e-310, 5e-324
    got, want = adjacency(programs, w, squared([1.0])), reference.adjacency(as_matrix(w), squared([1.0]))
    assert_adjacency(got, want, "float64", 5)
    assert got.zeros.tolist() == [1, 4]


def test_any_layout_and_type_is_the_same(programs: Any) -> None:
    w = filters(130, 30).astype(np.float32)
    same = adjacency(programs, w, squared(DISTANCES))
    for view in layouts(w):
        got = adjacency(programs, view, squared(DISTANCES))
        assert_adjacency(got, same, "float32", 30)
        assert (got.nearest, got.farthest) == (same.nearest, same.farthest)
    for kind in emulated_cuda.DTYPES:
        x = half(w, kind)
        want = reference.adjacency(as_matrix(x), squared(DISTANCES))
        assert_adjacency(adjacency(programs, x, squared(DISTANCES)), want, "float32", 30)


def test_nonfinite_entries_are_reported(programs: Any) -> None:
    for value in (np.nan, np.inf, -np.inf):
        w = filters(70, 40).astype(np.float32)
        w[65, 39] = value
        assert not adjacency(programs, w, squared([1.0])).finite


# Components and covers.


@pytest.mark.parametrize("n", [1, 2, 3, 63, 64, 65, 130, 257])
def test_components_and_covers(programs: Any, n: int) -> None:
    for order in ORDERS if n in (65, 257) else ORDERS[:1]:
        assert_graph_ops(*ops(programs, order), families(n))


def test_more_vertices_than_are_looked_at_at_once(programs: Any) -> None:
    n = 4200
    r = np.random.default_rng(0)
    edges = r.integers(0, n, (n, 2))
    graphs = np.stack([pack(joined(n, edges)), pack(joined(n, np.concatenate([edges, edges[::-1] // 2 + 2000])))])
    assert_graph_ops(*ops(programs, 0), graphs, native_cpu)


def test_edges_that_go_one_way_only_are_refused(programs: Any) -> None:
    lopsided = np.zeros((100, 100), dtype=bool)
    lopsided[0, 1:4] = lopsided[3, 1:3] = True
    with pytest.raises(ValueError, match=r"^the adjacency is not symmetric$"):
        ops(programs, 0)[1](pack(lopsided)[None])


def test_graphs_do_not_depend_on_those_beside_them(programs: Any) -> None:
    many = families(130)
    components, cover = ops(programs, 0)
    labels, _ = components(many)
    together = cover(many)
    for k in range(len(many)):
        assert components(many[k : k + 1].copy())[0].tolist() == labels[k : k + 1].tolist()
        alone = cover(many[k : k + 1].copy())
        assert_covers(alone, together[k : k + 1], 130)
        assert alone[0].dual == together[k].dual


# Everything above the module, end to end.


@pytest.fixture
def device(programs: Any, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    def column_stats(**options: Any) -> Any:
        others = compile_programs(tmp_path_factory.getbasetemp())
        return emulated_cuda.column_stats(others, 0, **options)

    module = emulated_graphs.module(programs, column_stats=column_stats)
    see_device(monkeypatch, module)
    monkeypatch.setattr(Bits, "fetches", 0)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_graphs_of_a_weight_on_a_device_stay_there(dtype: str) -> None:
    w = filters(90, 27).astype(dtype).reshape(90, 3, 3, 3)
    thresholds = [0.6, 1.2, 1.4, 1.2]
    got, want = quiet(There(w), threshold=thresholds), quiet(w, threshold=thresholds)
    for graph, same in zip(got, want, strict=True):
        assert graph.backend == "native_cuda"
        assert [step.op for step in graph.plan.steps] == ["adjacency", "components"]
        assert (graph.components, graph.edges, graph.cosine) == (same.components, same.edges, same.cosine)
        assert graph.labels.tolist() == same.labels.tolist()
        cover, other = graph.covering(), same.covering()
        assert cover.backend == "native_cuda"
        assert (cover.lower, cover.upper, cover.exact) == (other.lower, other.upper, other.exact)
        assert cover.centres.tolist() == other.centres.tolist()
    assert Bits.fetches == 0
    for graph, same in zip(got, want, strict=True):
        assert np.array_equal(graph.bits, same.bits)
        assert np.array_equal(graph.bits, same.bits)
    assert Bits.fetches == len(got)  # each once
    explained = got[0].plan.explain()
    route = "float64" if dtype == "float64" else "float32"
    assert f"adjacency: native_cuda, {route} products, near a threshold float64 differences" in explained
    assert "MiB of workspace (first choice)\ncomponents: native_cuda (first choice)" in explained
    assert "copied" not in explained


@pytest.mark.usefixtures("device")
def test_what_needs_bits_on_the_host_fetches_them() -> None:
    w = filters(60, 9)
    graph, same = quiet(There(w), threshold=1.0), quiet(w, threshold=1.0)
    exact, other = graph.covering(exact=True), same.covering(exact=True)
    assert (exact.lower, exact.upper, exact.exact) == (other.lower, other.upper, True)
    less, rest = graph.remove(5), same.remove(5)
    assert np.array_equal(less.bits, rest.bits)
    assert less.labels.tolist() == rest.labels.tolist()
    assert less.plan.backend == "native_cuda, native_cpu"  # compared on the device, components of what came to the host
    assert less.covering().backend == "native_cpu"
    assert graph.total_degree_covering() == same.total_degree_covering()
    assert np.array_equal(graph.adjacency(), same.adjacency())
    assert Bits.fetches == 1


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda graph: pickle.loads(pickle.dumps(graph))])
def test_a_graph_on_a_device_is_copied_and_pickled_as_one_on_the_host(copied: Any) -> None:
    graph = quiet(There(filters(60, 9)), threshold=1.0)
    again = copied(graph)
    assert isinstance(graph.packed, DeviceBits)
    assert isinstance(again.packed, np.ndarray)
    assert np.array_equal(again.bits, graph.bits)
    assert (again.plan, again.labels.tolist()) == (graph.plan, graph.labels.tolist())
    assert again.covering().centres.tolist() == graph.covering().centres.tolist()


@pytest.mark.usefixtures("device")
def test_redundancy_of_a_weight_on_a_device() -> None:
    w = filters(100, 40).astype(np.float32)
    got = sk.redundancy(There(w), threshold=[0.9, 1.2, 1.35])
    want = sk.redundancy(w, threshold=[0.9, 1.2, 1.35], backend="reference")
    assert [r.value for r in got] == [r.value for r in want]
    assert {r.backend for r in got} == {"native_cuda"}
    assert sk.redundancy(got[1].graph).value == want[1].value
    assert sk.redundancy(There(w)).value == sk.redundancy(w).value
    assert Bits.fetches == 0
    there = sk.redundancy(got[1].graph, backend="native_cpu")
    assert there.value == want[1].value
    assert there.plan.steps[-1].reason == "asked for; copied from the device to the host"
    assert Bits.fetches == 1


@pytest.mark.usefixtures("device")
def test_a_named_device_takes_host_arrays() -> None:
    w = filters(70, 12)
    graph, same = (sk.filter_graph(w, threshold=1.1, backend=backend) for backend in ("native_cuda", "reference"))
    assert graph.backend == "native_cuda"
    for _ in range(3):
        assert np.array_equal(graph.bits, same.bits)
        assert graph.covering().centres.tolist() == same.covering().centres.tolist()
        graph, same = graph.remove(2), same.remove(2)
        assert graph.backend == "native_cuda"


@pytest.mark.usefixtures("device")
def test_hazards_are_told_as_on_the_host() -> None:
    w = filters(40, 6).astype(np.float32)
    w[7] = w[9] = 0
    for threshold, said in ((1.0, "2 zero filters, the first number 7"), (1e-3, "is empty"), (2.0, "is complete")):
        with pytest.warns(sk.DegenerateWarning) as there:
            graph = sk.filter_graph(There(w if threshold == 1.0 else w[10:]), threshold=threshold)
        with pytest.warns(sk.DegenerateWarning) as here:
            same = sk.filter_graph(w if threshold == 1.0 else w[10:], threshold=threshold)
        assert [str(a.message) for a in there] == [str(a.message) for a in here]
        assert any(said in str(a.message) for a in here)
        assert np.array_equal(graph.bits, same.bits)
    w[3, 2] = np.inf
    with pytest.raises(ValueError, match=r"^weight has 1 non-finite entry, the first at filter 3, entry 2$"):
        sk.filter_graph(There(w), threshold=1.0)


@pytest.mark.usefixtures("device")
def test_bits_have_a_place() -> None:
    bits = native_cuda.adjacency(as_matrix(There(filters(30, 4))), squared([1.0, 0.5])).bits
    assert isinstance(bits, DeviceBits)
    assert (bits.shape, bits.device, bits.nbytes) == ((2, 30, 1), 0, 480)
    elsewhere = DeviceBits(SimpleNamespace(shape=(1, 30, 1), device=3))
    with pytest.raises(ValueError, match=r"^the adjacency lies on cuda:0 and the adjacency on cuda:3: move them"):
        choose("cover", inputs=[bits, elsewhere])


@pytest.mark.slow
@pytest.mark.parametrize("n", [500, 1030])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_layers_of_real_sizes(programs: Any, n: int, dtype: str) -> None:
    w = mixed_filters(n, 300, dtype)
    limits = squared(np.linspace(0.3, 1.5, 32))
    want = reference.adjacency(as_matrix(w), limits)
    found = adjacency(programs, w, limits)
    assert_adjacency(found, want, dtype, 300)
    bits = want.bits
    assert isinstance(bits, np.ndarray)
    for order, chosen in itertools.product(ORDERS, (bits, np.stack([pack(random_graph(n, 4 / n))] * 2))):
        assert_graph_ops(*ops(programs, order), chosen, native_cpu)
