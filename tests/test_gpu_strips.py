"""Host arrays that go to a real device in strips: agreement, the bits of whole copies, the same bits twenty times."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cuda_cases import half, layouts, relu
from least_memory import least_memory
from tolerance import assert_close

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends import cuda_strips, native_cuda
from simkit.metrics.prepare import prepare

pytestmark = pytest.mark.gpu

Array = npt.NDArray[Any]
REPEATS = 20


def same_bits(first: Any, other: Any) -> bool:
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(first, other, strict=True))


def in_strips(layers: dict[str, Any], memory: int, **options: Any) -> Any:
    m = sk.similarity_matrix(layers, memory=memory, backend="native_cuda", **options)
    assert "pass" in m.plan.steps[0].reason
    return m


def smallest(layers: Any, call: Callable[..., Any] = sk.similarity_matrix, **options: Any) -> int:
    return least_memory(lambda memory: call(layers, memory=memory, backend="native_cuda", **options))


@pytest.mark.parametrize(("n", "p"), [(511, 3000), (513, 3000), (40_000, 33), (100_000, 2000)])
def test_columns_have_the_bits_of_whole_copies(n: int, p: int) -> None:
    """Several strips of rows, and bands of columns."""
    x = np.random.default_rng(0).standard_normal((n, p)).astype(np.float32) + 100
    want = native_cuda.column_stats(as_matrix(x))
    for memory in (2_000_000, 20_000_000, 200_000_000):
        if memory < 2 * x.nbytes:
            got = native_cuda.column_stats(as_matrix(x), threads=4, memory=memory)
            assert same_bits((want.mean, want.sum_sq_dev, want.max_dev), (got.mean, got.sum_sq_dev, got.max_dev))


@pytest.mark.parametrize("n", [2600, 40_000])
def test_medians_of_distances_have_the_bits_of_whole_copies(n: int) -> None:
    block = prepare(as_matrix(relu(n, 900).astype(np.float32)), sk.Linear())
    want = native_cuda.distance_median(block)
    for number, memory in enumerate((8_000_000, 40_000_000, 8_000_000)):
        fresh = replace(block, matrix=as_matrix(block.matrix.values))  # without the copy that stays
        assert cuda_strips.median_strips(fresh.matrix, 0, memory, 1) is not None
        for _ in range(REPEATS if n == 2600 and number == 0 else 1):
            assert native_cuda.distance_median(fresh, threads=4, memory=memory) == want


@pytest.mark.parametrize(
    "kernel",
    [sk.Linear(), sk.Cosine(), sk.RBF(0.5), sk.Laplacian(), sk.Polynomial()],
    ids=["linear", "cosine", "rbf", "laplacian", "polynomial"],
)
@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_sample_space_agrees(kind: str, kernel: Any) -> None:
    layers = {str(p): half(relu(2600, p, p), kind) for p in (3000, 70)}
    measure = sk.CKA(kernel=kernel)
    want = sk.similarity_matrix(layers, measure=measure, backend="native_cpu").values
    least = smallest(layers, measure=measure)
    for memory in (least, least * 2):
        m = in_strips(layers, memory, measure=measure)
        assert_close(m.values, want, "cka", kind, 2600, 3000)
        for _ in range(REPEATS if memory == least else 3):
            assert same_bits([m.values], [in_strips(layers, memory, measure=measure).values])


def test_feature_space_has_the_bits_of_whole_copies() -> None:
    layers = {str(p): relu(50_000, p, p).astype(np.float32) for p in (200, 9)}
    want = sk.similarity_matrix(layers, backend="native_cuda").values
    least = smallest(layers)
    for memory, _ in itertools.product((least, 2 * least), range(REPEATS)):
        assert same_bits([in_strips(layers, memory).values], [want])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_orders_of_columns_have_the_bits_of_whole_copies(dtype: Any) -> None:
    x = relu(40_000, 300).astype(dtype)
    want = sk.greedy_cka(x, backend="native_cuda")
    least = smallest(x, sk.greedy_cka)
    for memory, _ in itertools.product((least, 2 * least), range(REPEATS)):
        got = sk.greedy_cka(x, memory=memory, backend="native_cuda")
        assert "pass" in got.plan.explain()
        assert same_bits((got.order, got.cka), (want.order, want.cka))


def test_orders_of_units_agree() -> None:
    x = relu(20_000, 320).astype(np.float32)
    for options in ({"units": 20}, {"units": 20, "estimator": "debiased"}):
        want = sk.greedy_cka(x, backend="native_cpu", **options)
        got = sk.greedy_cka(x, memory=smallest(x, sk.greedy_cka, **options), backend="native_cuda", **options)
        assert "pass" in got.plan.explain()
        assert got.order.tolist() == want.order.tolist()
        assert_close(got.cka, want.cka, "greedy", "float32", 20_000, 320)


def test_layouts_and_mapped_files(tmp_path: Path) -> None:
    x, y = relu(2600, 1500).astype(np.float32), relu(2600, 1200, 1).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    memory = smallest({"x": x, "y": y})
    want = in_strips({"x": x, "y": y}, memory).values
    for view in (*layouts(x), np.load(tmp_path / "x.npy", mmap_mode="r")):
        assert same_bits([want], [in_strips({"x": view, "y": y}, memory).values])


@pytest.mark.parametrize("kernel", [sk.Linear(), sk.RBF(0.5)], ids=["linear", "rbf"])
def test_small_layers_in_strips_agree(kernel: Any) -> None:
    """In as little memory as there may be: through every wait between copies and programs."""
    layers = {str(p): relu(600, p, p).astype(np.float32) for p in (700, 40)}
    measure = sk.CKA(kernel=kernel)
    want = sk.similarity_matrix(layers, measure=measure, backend="native_cpu").values
    memory = smallest(layers, measure=measure)
    found = in_strips(layers, memory, measure=measure).values
    assert_close(found, want, "cka", "float32", 600, 700)
    assert same_bits([found], [in_strips(layers, memory, measure=measure).values])


def test_small_orders_in_strips_have_the_bits_of_whole_copies() -> None:
    x = relu(3000, 20).astype(np.float32)
    want = sk.greedy_cka(x, backend="native_cuda")
    got = sk.greedy_cka(x, memory=smallest(x, sk.greedy_cka), backend="native_cuda")
    assert "pass" in got.plan.explain()
    assert same_bits((got.order, got.cka), (want.order, want.cka))
