"""Products on tensor cores on a GPU: against the float64 reference and the plain ones, the same bits twenty times."""

from __future__ import annotations

import itertools
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import oracles
import pytest
from cuda_cases import layouts, moved, relu
from gpu_arrays import OnGpu
from needed import may
from tolerance import assert_close, worst_error

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends import native_cuda, reference
from simkit.backends.base import Block, Cores
from simkit.backends.cuda_cores import FIRST, PAYS
from simkit.backends.cuda_device import capability_of
from simkit.metrics.cka import ForcedRoute, normalised
from simkit.metrics.prepare import prepare, prepare_with_stats

pytestmark = pytest.mark.gpu

Array = npt.NDArray[Any]
Products = Literal["float32", "float64"]
REPEATS = 20


def blocks(layers: list[Array], kernel: Any = None) -> list[Block]:
    return [prepare(as_matrix(OnGpu(x), name=str(k)), kernel or sk.Linear()) for k, x in enumerate(layers)]


def scores(layers: list[Array], **forced: Any) -> Array:
    found = normalised(blocks(layers), None, "debiased", ForcedRoute(**forced))
    assert found.plan.backend == "native_cuda"
    return found.values


@pytest.fixture(autouse=True)
def tensor_cores() -> None:
    if capability_of([as_matrix(OnGpu(np.ones((2, 2), dtype=np.float32)))]) < FIRST:
        may("the device has no tensor cores for TF32 and float64")


@pytest.mark.parametrize("n", [64, 127, 128, 129, 300, 2000])
@pytest.mark.parametrize("products", ["float32", "float64"])
def test_pair_sums_agree_whoever_multiplies(n: int, products: Products) -> None:
    layers = [relu(n, p, p).astype(np.float32) for p in (1, 15, 16, 17, 257, 530)]
    want = oracles.cka_matrix(layers, layers, estimator="debiased")
    for cores in ("tensor", "plain"):
        got = scores(layers, route="sample", products=products, cores=cores)
        assert_close(got, want, "cka", products, n, 530)


def test_errors_stay_at_the_level_of_float32() -> None:
    r = np.random.default_rng(0)
    z = r.standard_normal((1000, 16))
    layers = [np.maximum(z @ r.standard_normal((16, p)) + 2 * r.standard_normal((1000, p)), 0) for p in (2048, 512, 10)]
    for change in (0.0, 1000.0):
        changed = [(x + change).astype(np.float32) for x in layers]
        want = oracles.cka_matrix(changed, changed, estimator="debiased")
        plain, tensor = (
            worst_error(scores(changed, route="sample", cores=cores), want) for cores in ("plain", "tensor")
        )
        assert tensor <= max(2 * plain, 1.5e-8)


def test_the_same_bits_every_time_whatever_the_memory_and_the_layout() -> None:
    layers = [relu(900, p, p).astype(np.float32) for p in (700, 33, 5)]
    for products in ("float32", "float64"):
        want = scores(layers, route="sample", products=products, cores="tensor").tobytes()
        for repeat in range(REPEATS):
            memory = None if repeat % 2 else 4_000_000
            again = scores(layers, route="sample", products=products, cores="tensor", memory=memory)
            assert again.tobytes() == want
        for view in layouts(layers[0]):
            assert scores([view, *layers[1:]], route="sample", products=products, cores="tensor").tobytes() == want


def test_hazards_agree() -> None:
    for hazard in oracles.hazard_battery():
        want = oracles.cka(hazard.x, hazard.y, estimator="debiased")
        got = scores([hazard.x, hazard.y], route="sample", cores="tensor")[0, 1]
        assert_close(got, want, "cka", hazard.x.dtype, *hazard.x.shape)


@pytest.mark.parametrize("kernel", [sk.RBF(0.5), sk.Laplacian(0.7), sk.Polynomial()])
def test_kernels_agree(kernel: Any) -> None:
    layers = [relu(300, p, p).astype(np.float32) for p in (60, 5)]
    found = normalised(blocks(layers, kernel), None, "debiased", ForcedRoute(cores="tensor"))
    named = {str(k): x for k, x in enumerate(layers)}
    want = sk.similarity_matrix(named, measure=sk.CKA(kernel=kernel), backend="native_cpu").values
    assert_close(found.values, want, "cka", "float64", 300, 60)


def test_feature_space_agrees() -> None:
    layers = [relu(3000, p, p) for p in (65, 40)]
    want = oracles.cka_matrix(layers, layers, estimator="debiased")
    assert_close(scores(layers, route="feature", cores="tensor"), want, "cka", np.float64, 3000, 65)


@pytest.mark.parametrize(("n", "p"), [(2, 1), (130, 129), (1025, 64), (10_000, 512)])
def test_products_of_columns_agree(n: int, p: int) -> None:
    both: tuple[Cores, Cores] = ("tensor", "plain")
    for dtype, exact, cores in itertools.product(("float32", "float64"), (False, True), both):
        x = relu(n, p).astype(dtype)
        here, stats = prepare_with_stats(as_matrix(x), sk.Linear())
        want, block = reference.column_products(here, stats), moved(here, OnGpu)
        got = np.asarray(native_cuda.column_products(block, stats, exact=exact, cores=cores))
        size = np.sqrt(np.outer(np.diag(want), np.diag(want)))
        assert_close(got, want, "products", "float64" if exact else "float32", n, p, scale=size)
        for _ in range(REPEATS):
            again = np.asarray(native_cuda.column_products(block, stats, exact=exact, cores=cores))
            assert again.tobytes() == got.tobytes()


def test_the_plan_names_what_multiplied() -> None:
    there = blocks([relu(300, p, p).astype(np.float32) for p in (400, 50)])
    plan = normalised(there, None, "debiased", ForcedRoute(route="sample")).plan
    assert ("on tensor cores" in plan.explain()) == (capability_of(there) in PAYS)
