"""Products of float16 and bfloat16 as they are on a GPU: against float64 and plain ones, the same bits twenty times."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import oracles
import pytest
from cuda_cases import layouts, relu
from gpu_arrays import OnGpu
from needed import may, torch_here
from tolerance import assert_close, worst_error

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends.cuda_cores import FIRST
from simkit.backends.cuda_device import capability_of
from simkit.metrics.cka import ForcedRoute, normalised
from simkit.metrics.prepare import prepare

pytestmark = pytest.mark.gpu

Array = npt.NDArray[Any]
REPEATS = 20


def near_zero(n: int, p: int, seed: int = 0) -> Array:
    """ReLU features, as the rule for products of halves takes them."""
    return np.maximum(relu(n, p, seed), 0).astype(np.float16)


def scores(layers: list[Any], **forced: Any) -> Any:
    blocks = [prepare(as_matrix(x, name=str(k)), sk.Linear()) for k, x in enumerate(layers)]
    return normalised(blocks, None, "debiased", ForcedRoute(route="sample", **forced))


def as_they_are(layers: list[Any], **forced: Any) -> Array:
    found = scores(layers, cores="half", **forced)
    assert "products as they are on tensor cores" in found.plan.explain()
    return np.asarray(found.values)


@pytest.fixture(autouse=True)
def tensor_cores() -> None:
    if capability_of([as_matrix(OnGpu(np.ones((2, 2), dtype=np.float32)))]) < FIRST:
        may("the device has no tensor cores for bfloat16")


@pytest.mark.parametrize("n", [64, 127, 128, 129, 300, 2000])
def test_pair_sums_agree(n: int) -> None:
    layers = [near_zero(n, p, p) for p in (1, 7, 8, 9, 31, 33, 257, 1025, 2080)]
    want = oracles.cka_matrix(layers, layers, estimator="debiased")
    assert_close(as_they_are([OnGpu(x) for x in layers]), want, "cka", "float16", n, 2080)


def test_bfloat16_agrees_torch() -> None:
    torch = torch_here()
    layers = [torch.from_numpy(near_zero(500, p, p).astype(np.float32)).bfloat16() for p in (700, 33, 8)]
    held = [x.double().numpy() for x in layers]
    want = oracles.cka_matrix(held, held, estimator="debiased")
    assert_close(as_they_are([x.to("cuda") for x in layers]), want, "cka", "bfloat16", 500, 700)


def test_errors_stay_at_the_level_of_float32() -> None:
    r = np.random.default_rng(0)
    z = r.standard_normal((1000, 16))
    layers = [np.maximum(z @ r.standard_normal((16, p)) + 2 * r.standard_normal((1000, p)), 0) for p in (2048, 512, 10)]
    for change in (0.0, 0.7):
        changed = [(x + change).astype(np.float16) for x in layers]
        want, there = oracles.cka_matrix(changed, changed, estimator="debiased"), [OnGpu(x) for x in changed]
        plain, own = worst_error(scores(there, cores="plain").values, want), worst_error(as_they_are(there), want)
        assert own <= max(2 * plain, 1.5e-8)


def test_the_same_bits_every_time_whatever_the_memory_and_the_layout() -> None:
    layers = [near_zero(900, p, p) for p in (704, 33, 5)]
    want = as_they_are([OnGpu(x) for x in layers]).tobytes()
    for repeat in range(REPEATS):
        memory = None if repeat % 2 else 4_000_000
        assert as_they_are([OnGpu(x) for x in layers], memory=memory).tobytes() == want
    for view in layouts(layers[0]):
        assert as_they_are([OnGpu(view), *(OnGpu(x) for x in layers[1:])]).tobytes() == want


def test_they_are_taken_unasked() -> None:
    """Where they pay, of layers near zero alone."""
    x = near_zero(300, 70)
    near, far = (scores([OnGpu(layer), OnGpu(x)]).plan.explain() for layer in (x, x + np.float16(9)))
    assert "as they are" not in far
    assert "times as far from zero" in far or "float32 products: no float64 input" in far
    assert "float16 products as they are" in near or "float32 products: no float64 input" in near
