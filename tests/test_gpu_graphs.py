"""Graphs of filters on a GPU: the bits, labels, centres and packings of the reference, the same twenty times."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from filter_sets import filters, quiet
from gpu_arrays import OnGpu
from graph_cases import (
    DISTANCES,
    assert_adjacency,
    assert_graph_ops,
    families,
    joined,
    mixed_filters,
    near_pairs,
    squared,
)
from needed import torch_on_gpu

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends import native_cpu, native_cuda, reference
from simkit.backends.base import Adjacency
from simkit.backends.bits import DeviceBits, on_host, pack

pytestmark = pytest.mark.gpu

Array = npt.NDArray[Any]
REPEATS = 20


def adjacency(w: Array, limits: Array) -> Adjacency:
    found = native_cuda.adjacency(as_matrix(OnGpu(w)), limits)
    assert isinstance(found.bits, DeviceBits)
    return found


@pytest.mark.parametrize("n", [1, 2, 5, 63, 64, 65, 127, 128, 129, 260, 1030])
@pytest.mark.parametrize("p", [1, 15, 16, 17, 255, 256, 257, 1000])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_small_adjacency_agrees(n: int, p: int, dtype: str) -> None:
    w = mixed_filters(n, p, dtype)
    want = reference.adjacency(as_matrix(w), squared(DISTANCES))
    assert_adjacency(adjacency(w, squared(DISTANCES)), want, dtype, p)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("d", [4, 700, 4608])
def test_pairs_at_a_threshold_agree(d: int, dtype: str) -> None:
    w, distances = near_pairs(90, d, dtype)
    want = reference.adjacency(as_matrix(w), squared(distances))
    for _ in range(REPEATS):
        assert_adjacency(adjacency(w, squared(distances)), want, dtype, d)


def test_equal_rows_agree() -> None:
    w = np.repeat(filters(3, 40), 400, axis=0).astype(np.float32)
    want = reference.adjacency(as_matrix(w), squared([0.0, 1e-9, 1.2]))
    assert_adjacency(adjacency(w, squared([0.0, 1e-9, 1.2])), want, "float32", 40)


def test_layouts_agree() -> None:
    w = filters(300, 60).astype(np.float32)
    padded = np.zeros((600, 180), dtype=np.float32)
    padded[::2, ::3] = w
    same = adjacency(w, squared(DISTANCES))
    for view in (np.asfortranarray(w), padded[::2, ::3], w[::-1, ::-1].copy()[::-1, ::-1]):
        got = adjacency(view, squared(DISTANCES))
        assert_adjacency(got, same, "float32", 60)
        assert (got.nearest, got.farthest) == (same.nearest, same.farthest)


def test_a_layer_of_real_size_agrees_every_time() -> None:
    w = filters(3000, 600).astype(np.float32)
    limits = squared(np.linspace(0.3, 1.5, 32))
    want = native_cpu.adjacency(as_matrix(w), limits)
    for _ in range(REPEATS):
        found = adjacency(w, limits)
        assert_adjacency(found, want, "float32", 600)
    assert_graph_ops(native_cuda.components, native_cuda.cover, found.bits, native_cpu)


@pytest.mark.parametrize("n", [1, 2, 3, 63, 64, 65, 130, 257, 700])
def test_components_and_covers_agree(n: int) -> None:
    graphs = families(n)
    for _ in range(REPEATS if n < 300 else 2):
        assert_graph_ops(native_cuda.components, native_cuda.cover, graphs, native_cpu)


def test_many_vertices_agree() -> None:
    n = 9000
    edges = np.random.default_rng(0).integers(0, n, (2 * n, 2))
    graphs = np.stack([pack(joined(n, edges)), pack(joined(n, edges[:n])), pack(joined(n, edges[: n // 3]))])
    assert_graph_ops(native_cuda.components, native_cuda.cover, graphs, native_cpu)


def test_edges_that_go_one_way_only_are_refused() -> None:
    lopsided = np.zeros((100, 100), dtype=bool)
    lopsided[0, 1:4] = lopsided[3, 1:3] = True
    with pytest.raises(ValueError, match=r"^the adjacency is not symmetric$"):
        native_cuda.cover(pack(lopsided)[None])


def test_bits_stay_on_the_device_and_come_when_asked_for() -> None:
    w = filters(500, 100).astype(np.float32)
    got, want = (quiet(x, threshold=[0.9, 1.2, 1.4]) for x in (OnGpu(w), w))
    for graph, same in zip(got, want, strict=True):
        assert graph.backend == graph.covering().backend == "native_cuda"
        assert np.array_equal(graph.bits, same.bits)
        assert graph.covering().centres.tolist() == same.covering().centres.tolist()
    kept = got[1]
    del got
    assert np.array_equal(on_host(kept.packed)[0], want[1].bits)
    assert sk.redundancy(OnGpu(w)).value == sk.redundancy(w).value


def test_torch_weights_run_on_their_device() -> None:
    torch = torch_on_gpu()
    weight = torch.nn.Conv2d(16, 200, 3).weight
    for kind in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        there, here = weight.detach().to("cuda", kind), weight.detach().to(kind)
        with torch.cuda.stream(torch.cuda.Stream()):
            graph = quiet(there, threshold=1.35)
        assert graph.backend == "native_cuda"
        assert np.array_equal(graph.bits, quiet(here, threshold=1.35).bits)


def test_too_little_memory_is_explained() -> None:
    """More graphs than any device holds: nothing is formed before they have a place."""
    w = filters(30_000, 2).astype(np.float32)
    said = r"^CUDA cannot allocate \d+ bytes on the device: its memory is full even with the smallest workspace; the "
    with pytest.raises(MemoryError, match=said):
        native_cuda.adjacency(as_matrix(OnGpu(w)), np.linspace(0, 4, 9000))
