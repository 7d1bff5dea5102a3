"""The non-linear kernels of the CUDA programs, on the emulator (tests/native), against the reference."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import emulated_cuda
import numpy as np
import numpy.typing as npt
import oracles
import pytest
from cuda_cases import agrees, block_of, every_order, half, layouts, pair_sums, relu
from emulated_cuda import compile_programs
from tolerance import assert_close

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends import native_cuda
from simkit.backends.base import Block
from simkit.metrics.cka import ForcedRoute, normalised
from simkit.metrics.prepare import prepare

Array = npt.NDArray[Any]
KERNELS = (sk.RBF(0.5), sk.Laplacian(0.7), sk.Polynomial(), sk.Polynomial(degree=6, gamma=0.1, coef0=-0.5))
NAMES = ("rbf", "laplacian", "cubic", "sextic")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    found = compile_programs(tmp_path_factory.getbasetemp())
    return found or pytest.skip("there is no C++ compiler")


def blocks_of(layers: Sequence[Array], kernel: Any) -> list[Block]:
    return [block_of(x, kernel)[0] for x in layers]


@pytest.mark.parametrize("kernel", KERNELS, ids=NAMES)
@pytest.mark.parametrize("n", [4, 63, 64, 65, 129, 255, 256, 257, 520])
def test_kernels_of_any_number_of_samples(programs: Any, n: int, kernel: Any) -> None:
    """Around every tile, and around the 256 rows that estimate the row means."""
    rows = blocks_of([relu(n, 5), relu(n, 19, 1)], kernel)
    for debiased in (True, False):
        compute = pair_sums(programs, rows, [], debiased, True, 2**24)
        agrees(every_order(compute) if n in (65, 257) else compute(0), rows, [], debiased, True)


@pytest.mark.parametrize("kernel", KERNELS, ids=NAMES)
@pytest.mark.parametrize("p", [1, 15, 16, 17, 257, 530])
def test_kernels_of_any_number_of_features(programs: Any, p: int, kernel: Any) -> None:
    rows = blocks_of([relu(70, p), relu(70, 3, 1)], kernel)
    agrees(every_order(pair_sums(programs, rows, [], True, True, 2**24)), rows, [], True, True)


def test_kernels_side_by_side_and_across(programs: Any) -> None:
    """Every block has a kernel of its own, linear ones among them; wide ones are computed first."""
    kernels = (sk.Linear(), *KERNELS, sk.Cosine())
    rows = [block_of(relu(130, 3 + 7 * k % 12, k), kernel)[0] for k, kernel in enumerate(kernels)]
    for debiased in (True, False):
        agrees(every_order(pair_sums(programs, rows, [], debiased, True, 2**24)), rows, [], debiased, True)
        for left in (1, 4):
            compute = pair_sums(programs, rows[:left], rows[left:], debiased, True, 2**24)
            agrees(compute(0), rows[:left], rows[left:], debiased, True)


@pytest.mark.parametrize("kernel", KERNELS, ids=NAMES)
def test_kernels_do_not_depend_on_the_room_or_the_layout(programs: Any, kernel: Any) -> None:
    x, y = relu(140, 9).astype(np.float32), relu(140, 4, 1).astype(np.float32)
    rows = blocks_of([x, y], kernel)
    want = pair_sums(programs, rows, [], True, True, 2**28)(0)
    others = [pair_sums(programs, rows, [], True, True, room)(0) for room in (0, 300_000)]
    for view in layouts(x):
        others.append(pair_sums(programs, [block_of(view, kernel)[0], rows[1]], [], True, True, 2**28)(0))
    for got in others:
        for a, b in zip(want, got, strict=True):
            assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("kind", emulated_cuda.DTYPES)
def test_kernels_of_any_type(programs: Any, kind: str) -> None:
    for kernel in KERNELS:
        rows = blocks_of([half(relu(90, 12), kind), half(relu(90, 7, 1), kind)], kernel)
        agrees(pair_sums(programs, rows, [], True, True, 2**24)(0), rows, [], True, True)


@pytest.mark.parametrize("kernel", [sk.RBF(0.5), sk.Laplacian(0.5)], ids=["rbf", "laplacian"])
def test_small_distances_keep_their_digits(programs: Any, kernel: Any) -> None:
    """Pairs of samples that are equal, or nearly so, far from zero: products alone would know nothing of them."""
    r = np.random.default_rng(0)
    for far in (0.0, 1e6):
        x = np.repeat(r.standard_normal((45, 8)), 2, axis=0)
        x[1::4] += 1e-7 * r.standard_normal(x[1::4].shape)
        rows = blocks_of([x + far, relu(90, 5)], kernel)
        agrees(every_order(pair_sums(programs, rows, [], True, True, 2**24)), rows, [], True, True)


@pytest.mark.parametrize("debiased", [True, False])
def test_kernels_that_cancel_are_centred_by_their_row_means(programs: Any, debiased: bool) -> None:
    """Far from zero, the rows that estimate the row means unlike the others: most of K is left after the estimate."""
    x, y = relu(600, 3), relu(600, 4, 1)
    x[1::2] += 1
    far = sk.Polynomial(degree=1, gamma=1.0, coef0=0.0)
    rows = blocks_of([x + 1000, y], far)
    values = pair_sums(programs, rows, [], debiased, True, 2**24)(0)
    agrees(values, rows, [], debiased, True)
    assert (values[2][0] < 10 * values[1][0]).all()  # what is left of K when the sums are formed is small


@pytest.fixture
def device(programs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_cuda, "_load", lambda: (emulated_cuda.module(programs), ""))
    monkeypatch.setattr(native_cuda, "device_report", lambda: (True, ["an emulator"], ""))


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("kernel", KERNELS, ids=NAMES)
def test_scores_of_kernels(kernel: Any) -> None:
    """From the arrays on, by the planner's own route."""
    layers = {str(p): relu(150, p, p).astype(np.float32) for p in (30, 4)}
    blocks = [prepare(as_matrix(x, name=name), kernel) for name, x in layers.items()]
    forced = ForcedRoute(backend="native_cuda")
    found = normalised(blocks, None, "debiased", forced)
    want = sk.similarity_matrix(layers, measure=sk.CKA(kernel=kernel), backend="reference").values
    assert_close(found.values, want, "cka", "float64", 150, 30)
    step = found.plan.steps[0]
    assert (step.backend, step.route) == ("native_cuda", "sample space")
    with pytest.raises(ValueError, match=r"^the feature-space route needs a linear kernel$"):
        normalised(blocks, None, "debiased", ForcedRoute(backend="native_cuda", route="feature"))


@pytest.mark.usefixtures("device")
def test_memory_bounds_the_workspace_of_kernels() -> None:
    x = relu(150, 6)
    for kernel, products in itertools.product((sk.Linear(), sk.Polynomial()), ("float32", "float64")):
        blocks = [prepare(as_matrix(x, name=name), kernel) for name in "ab"]
        route = native_cuda.plan_pair_sums(blocks, None, route="sample", products=products)  # type: ignore[arg-type]
        less = native_cuda.plan_pair_sums(
            blocks,
            None,
            route="sample",
            products=products,  # type: ignore[arg-type]
            memory=route.bytes - 1,
        )
        assert less.bytes < route.bytes


@pytest.mark.usefixtures("device")
def test_polynomials_run_on_a_named_device_from_end_to_end() -> None:
    x, y = relu(120, 20), relu(120, 9, 1)
    got = sk.cka(x, y, kernel=sk.Polynomial(), backend="native_cuda")
    want = oracles.cka(x, y, estimator="debiased", gram=lambda x: (x @ x.T / x.shape[1] + 1) ** 3)
    assert_close(got, want, "cka", "float64", 120, 20)
