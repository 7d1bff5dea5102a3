"""The non-linear kernels of the CUDA programs, on the emulator (tests/native), against the reference."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import emulated_cuda
import numpy as np
import numpy.typing as npt
import pytest
from cuda_cases import agrees, block_of, bound, every_order, half, layouts, pair_sums, relu, see_device
from emulated_cuda import compile_programs
from tolerance import assert_close

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends import native_cuda, reference
from simkit.backends.base import Block
from simkit.backends.routes import plan_pair_sums
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
@pytest.mark.parametrize("n", [4, 63, 64, 65, 129, 255, 256, 257, pytest.param(520, marks=pytest.mark.slow)])
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


@pytest.mark.parametrize("kernel", [sk.RBF(1.0), sk.Laplacian(3.0), sk.RBF(1e8)], ids=["rbf", "laplacian", "widest"])
def test_wide_kernels_keep_what_they_fall_short_of_one_by(programs: Any, kernel: Any) -> None:
    rows = blocks_of([relu(300, 5), relu(300, 9, 1)], kernel)
    for debiased in (True, False):
        agrees(every_order(pair_sums(programs, rows, [], debiased, True, 2**24)), rows, [], debiased, True)


@pytest.mark.parametrize("debiased", [True, False])
@pytest.mark.parametrize("n", [40, 600])
def test_what_rounding_may_leave_of_a_kernel_is_told(programs: Any, n: int, debiased: bool) -> None:
    """As the reference tells it, where the estimate of the row means takes off what all values have in common too."""
    kernels = (sk.Polynomial(1), sk.Polynomial(1, None, 1e15), sk.Polynomial(3), sk.Linear())
    layers = (1e-8 * relu(n, 4), relu(n, 4), relu(n, 3, 1) + 1e6, relu(n, 5, 2))
    rows = [block_of(x, kernel)[0] for x, kernel in zip(layers, kernels, strict=True)]
    _, own, raw = pair_sums(programs, rows, [], debiased, True, 2**24)(0)
    route = plan_pair_sums(rows, None, route="sample")
    want = reference.pair_sums(rows, None, estimator="debiased" if debiased else "biased", route=route)
    assert raw[:3] == pytest.approx(want.raw_rows[:3], rel=1e-6, abs=0)
    lost = own <= 8 * n * np.finfo(np.float64).eps * raw
    assert lost.tolist() == [True, True, False, False]


# The median of distances, which gives RBF and Laplacian kernels their length.


def medians(programs: Any, x: Array, most: int) -> Callable[[int], Sequence[Array]]:
    block = block_of(x)[0]

    def compute(order: int) -> Sequence[Array]:
        return (np.array(emulated_cuda.distance_median(programs, order, bound(block), most)),)

    return compute


@pytest.mark.parametrize("n", [2, 3, 4, 5, 63, 64, 65, 129, 300])
def test_median_of_distances(programs: Any, n: int) -> None:
    """Collected at once, or found between edges that close in on it: the same bits."""
    for p in (1, 17, 40):
        x = relu(n, p)
        want = reference.distance_median(block_of(x)[0])
        (got,) = every_order(medians(programs, x, 2**20))
        assert_close(got, want, "median", "float64", n, p, scale=max(want, 1e-300))
        for most in (1, 7, n * n // 40):
            assert medians(programs, x, most)(0)[0] == got


@pytest.mark.parametrize("levels", [1, 2, 3, 30])
def test_median_of_distances_that_are_equal(programs: Any, levels: int) -> None:
    """Values on a grid: many distances are the same number, and more of them than are collected at once."""
    r = np.random.default_rng(levels)
    for n, p in ((90, 1), (90, 3), (91, 2)):
        x = r.integers(0, levels + 1, (n, p)).astype(np.float64)
        want = reference.distance_median(block_of(x)[0])
        for most in (1, 50, 2**20):
            (got,) = every_order(medians(programs, x, most)) if most == 50 else medians(programs, x, most)(0)
            assert_close(got, want, "median", "float64", n, p, scale=max(want, 1e-300))


def test_median_of_distances_between_two_numbers(programs: Any) -> None:
    """The middle lies between two distances: one may be the last of its part, the other the first of the next."""
    for n, p in itertools.product((4, 6, 8, 70), (1, 2)):
        x = np.repeat(np.arange(n // 2), 2)[:, None] * np.ones(p) * 10.0**-8 + np.arange(n)[:, None]
        want = reference.distance_median(block_of(x)[0])
        for most in (1, 2, 2**20):
            (got,) = medians(programs, x, most)(1)
            assert_close(got, want, "median", "float64", n, p, scale=want)


def test_median_of_a_sample_unlike_the_rest(programs: Any) -> None:
    """The rows that place the first edges lie far closer together, or apart, than the others."""
    for size in (1e-6, 1e6):
        x = relu(600, 4)
        x[::2] *= size
        want = reference.distance_median(block_of(x)[0])
        for most in (40, 5000):
            (got,) = medians(programs, x, most)(0)
            assert_close(got, want, "median", "float64", 600, 4, scale=want)


@pytest.fixture
def device(programs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    see_device(monkeypatch, emulated_cuda.module(programs))


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("kernel", KERNELS, ids=NAMES)
def test_scores_of_kernels(kernel: Any) -> None:
    """From the arrays on, by the planner's own route."""
    layers = {str(p): relu(150, p, p).astype(np.float32) for p in (30, 4)}
    blocks = [prepare(as_matrix(x, name=name), kernel, backend="native_cuda") for name, x in layers.items()]
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
@pytest.mark.parametrize("kernel", KERNELS, ids=NAMES)
def test_kernels_run_on_a_named_device_from_end_to_end(kernel: Any) -> None:
    x, y = relu(120, 20), relu(120, 9, 1)
    m = sk.similarity_matrix({"x": x, "y": y}, measure=sk.CKA(kernel=kernel), backend="native_cuda")
    assert m.backend == "native_cuda"
    want = sk.cka(x, y, kernel=kernel, backend="reference")
    assert_close(m["x", "y"], want, "cka", "float64", 120, 20)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("estimator", ["debiased", "biased"])
def test_a_kernel_that_rounding_alone_tells_from_a_constant_is_an_error(estimator: Any) -> None:
    x, y = relu(120, 5), relu(120, 9, 1)
    zero = rf"^x is degenerate: its {estimator} HSIC with itself is zero within rounding$"
    for measure in (sk.cka, sk.hsic):
        with pytest.raises(ValueError, match=zero):
            measure(1e-8 * x, y, kernel=sk.Polynomial(1), estimator=estimator, backend="native_cuda")
