"""Greedy orders on a GPU against the float64 reference: sizes around every number of units a thread holds, several
layers at once; the same bits twenty times.
"""

from __future__ import annotations

import importlib
import itertools
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from cuda_cases import moved, relu
from gpu_arrays import OnGpu
from needed import torch_on_gpu
from tolerance import assert_close

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends import native_cpu, native_cuda, reference
from simkit.metrics.prepare import prepare_with_stats

pytestmark = pytest.mark.gpu

Array = npt.NDArray[Any]
ESTIMATORS: tuple[Literal["debiased", "biased"], ...] = ("debiased", "biased")
REPEATS = 20


def same_bits(a: Any, b: Any) -> bool:
    return all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("n", "p"), [(2, 1), (63, 65), (130, 129), (1023, 3), (1025, 64), (10_000, 512)])
def test_products_of_columns_agree(n: int, p: int) -> None:
    for dtype, exact in itertools.product(("float32", "float64"), (False, True)):
        x = relu(n, p).astype(dtype)
        here, stats = prepare_with_stats(as_matrix(x), sk.Linear())
        want, block = reference.column_products(here, stats), moved(here, OnGpu)
        got = np.asarray(native_cuda.column_products(block, stats, exact=exact))
        size = np.sqrt(np.outer(np.diag(want), np.diag(want)))
        assert_close(got, want, "products", "float64" if exact else "float32", n, p, scale=size)
        assert np.array_equal(got, got.T)
        squared = native_cuda.column_products(block, stats, exact=exact, squared=True)
        assert np.array_equal(np.asarray(squared), got * got)
        assert squared.sum() == pytest.approx((got * got).sum(), rel=1e-12)
        for _ in range(REPEATS):
            assert same_bits([got], [np.asarray(native_cuda.column_products(block, stats, exact=exact))])


@pytest.mark.parametrize("u", [1, 2, 33, 512, 513, 1500, 2048, 2049])
@pytest.mark.parametrize("greedy", [True, False])
def test_elimination_agrees(u: int, greedy: bool) -> None:
    z = relu(600, u)
    g = (z - z.mean(0)).T @ (z - z.mean(0))
    for a, (count, least) in itertools.product((g * g, np.eye(u)), ((min(u, 60), None), (u, 0.97))):
        options: Any = {"greedy": greedy, "counts": [count], "min_cka": least}
        (want,) = (reference if u <= 512 else native_cpu).eliminate([a], **options)
        (got,) = native_cuda.eliminate([a], **options)
        assert got.order.tolist() == want.order.tolist()
        assert_close(got.cka, want.cka, "greedy", "float64", 600, u)
        for _ in range(REPEATS):
            (again,) = native_cuda.eliminate([a], **options)
            assert same_bits((got.order, got.cka), (again.order, again.cka))


@pytest.mark.parametrize("u", [8192, 8193])
def test_wide_layers_agree(u: int) -> None:
    """In the registers of a block of threads, and beyond them."""
    x = relu(2000, u).astype(np.float32)
    got = sk.greedy_cka(OnGpu(x), exact=True)
    want = sk.greedy_cka(x, exact=True, backend="native_cpu")
    assert got.backend == "native_cuda"
    assert got.order.tolist() == want.order.tolist()
    assert_close(got.cka, want.cka, "greedy", "float64", 2000, u)


def test_sums_that_fall_faster_than_the_queue_foresees() -> None:
    s = 3.0 ** -np.arange(40)
    for greedy in (True, False):
        (got,) = native_cuda.eliminate([np.outer(s, s)], greedy=greedy)
        assert got.order.tolist() == list(range(40))


def test_layers_are_searched_side_by_side() -> None:
    layers = {
        name: OnGpu(relu(900, u).astype(np.float32)) for name, u in zip("abcde", (33, 1, 600, 2100, 40), strict=True)
    }
    alone = {name: sk.greedy_cka(x) for name, x in layers.items()}
    for _ in range(REPEATS):
        for name, got in sk.greedy_cka(layers).items():
            assert got.backend == "native_cuda"
            assert got.order.tolist() == alone[name].order.tolist()
            assert_close(got.cka, alone[name].cka, "greedy", "float64", 900, 2100)


def test_greedy_orders_agree() -> None:
    x = relu(2000, 96)
    ids = np.random.default_rng(0).permutation(np.arange(96) % 12)
    units: tuple[Any, ...] = (None, 12, ids)
    for dtype, estimator, of in itertools.product((np.float32, np.float64), ESTIMATORS, units):
        cast = x.astype(dtype)
        got = sk.greedy_cka(OnGpu(cast), units=of, estimator=estimator, exact=True)
        want = sk.greedy_cka(cast, units=of, estimator=estimator, exact=True, backend="reference")
        assert got.backend == "native_cuda"
        assert got.order.tolist() == want.order.tolist()
        assert_close(got.cka, want.cka, "greedy", "float64", 2000, 96)


def test_models_of_torch_are_ranked_on_their_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a criterion keeps of a model's layers stays on the model's device, and so does the search."""
    torch = torch_on_gpu()
    nn, P = torch.nn, importlib.import_module("simkit.pruning")
    scores = importlib.import_module("simkit.pruning.scores.cka_damage")
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24 * 36, 64), nn.ReLU(), nn.Linear(64, 5)
    )
    model[0].weight.data *= torch.logspace(0, -2, 24)[:, None, None, None]  # no two choices are nearly equal
    model[3].weight.data *= torch.logspace(0, -2, 64)[:, None]
    data = torch.randn(600, 3, 8, 8)
    plans: list[Any] = []
    backends: list[str] = []
    greedy = scores.greedy_cka

    def recorded(*layers: Any, **options: Any) -> Any:
        found = greedy(*layers, **options)
        backends.extend(order.backend for order in found.values())
        return found

    monkeypatch.setattr(scores, "greedy_cka", recorded)
    for device in ("cpu", "cuda"):
        on = model.to(device)
        plans.append(P.plan(on, data[:2].to(device), data=data, score=P.CKADamage()))
    for want, got in zip(plans[0].layers, plans[1].layers, strict=True):
        assert got.removed == want.removed
        assert np.abs(np.subtract(got.scores, want.scores)).max() <= 1e-6
    assert backends == ["native_cpu"] * 2 + ["native_cuda"] * 2
