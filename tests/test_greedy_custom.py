"""Greedy orders under a custom kernel: native candidates against the brute force and the reference."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from candidate_cases import about, centred

pytest.importorskip("numba")

import numba
from custom_kernels import BACKENDS, DISTANCE, ESTIMATORS, MIXED, PRODUCT, SIGNATURE, mixed, pair
from oracles import centred_kernel
from scipy.spatial.distance import pdist, squareform

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends import native_cpu, reference
from simkit.backends.base import CandidateProblem, Estimator
from simkit.metrics import kernel_damage
from simkit.metrics.prepare import prepare

Array = npt.NDArray[Any]
NONE = np.array([-1])
NAMED = {"mixed": MIXED, "product": PRODUCT, "distance": DISTANCE}


def brute(x: Array, units: list[Array], kernel: sk.CustomKernel, estimator: Estimator) -> tuple[list[int], list[float]]:
    """Every candidate of every step by the definition, up to the last unit."""

    def matrix(columns: Array) -> Array:
        z = x[:, columns]
        return centred_kernel(kernel(z @ z.T, squareform(pdist(z, "sqeuclidean"))), estimator)

    whole, kept, order, scores = matrix(np.concatenate(units)), list(range(len(units))), [], []
    while len(kept) > 1:
        tries = []
        for out in kept:
            k = matrix(np.concatenate([units[u] for u in kept if u != out]))
            tries.append(float((whole * k).sum() / np.sqrt((whole * whole).sum() * (k * k).sum())))
        best = int(np.argmax(np.array(tries) >= max(tries) - 1e-12))
        scores.append(tries[best])
        order.append(kept.pop(best))
    return order, scores


def problem_of(z: Array, widths: list[int], kernel: sk.CustomKernel, estimator: Estimator) -> CandidateProblem:
    """Units of z [p, n], so wide, with the centre of their kernel."""
    n = z.shape[1]
    bare = CandidateProblem(z, np.cumsum([0, *widths]), kernel, math.nan, estimator, np.zeros(n))
    return centred(bare)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize(("n", "p"), [(5, 3), (40, 7), (257, 5)])
def test_the_order_is_that_of_the_brute_force(n: int, p: int, name: str, estimator: Estimator, backend: str) -> None:
    x, _ = pair(n, p, 1)
    order, scores = brute(x, [np.array([c]) for c in range(p)], NAMED[name], estimator)
    found = sk.greedy_cka(x, kernel=NAMED[name], estimator=estimator, backend=backend)
    assert found.order[:-1].tolist() == order
    assert np.allclose(found.cka[:-1], scores, rtol=0, atol=1e-9)
    assert found.backend == backend


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_units_of_several_columns(dtype: Any, estimator: Estimator) -> None:
    x, _ = pair(60, 12, 1, dtype)
    ids = np.array([7, 2, 2, 7, 9, 9, 9, 2, 4, 4, 7, 4])
    names = [2, 4, 7, 9]
    for units, columns in ((4, np.split(np.arange(12), 4)), (ids, [np.flatnonzero(ids == u) for u in names])):
        order, scores = brute(x.astype(np.float64), columns, MIXED, estimator)
        found = sk.greedy_cka(x, units=units, kernel=MIXED, estimator=estimator)
        wanted = order if isinstance(units, int) else [names[u] for u in order]
        assert found.order[:-1].tolist() == wanted
        assert np.allclose(found.cka[:-1], scores, rtol=0, atol=1e-9)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("n", [1, 7, 8, 9, 255, 256, 257, 511, 513, 600])
def test_sums_agree_with_the_reference_around_the_edges_of_tiles(n: int, estimator: Estimator) -> None:
    """And their bits depend neither on threads nor on whether the kernel of all units was packed."""
    if n == 1 and estimator == "debiased":
        pytest.skip("a sample alone has no pairs")
    problem = problem_of(np.ascontiguousarray(pair(n, 6, 1)[0].T), [2, 1, 3], MIXED, estimator)
    kept, chosen = np.array([0, 2]), np.array([2, 0, -1])
    want = reference.candidate_sums(problem, kept, chosen, levels=about(problem, 0.3))
    packed = native_cpu.pack_centred(problem, room=2**30, threads=3)
    sums = [native_cpu.candidate_sums(problem, kept, chosen, levels=about(problem, 0.3), threads=t) for t in (1, 2, 5)]
    sums.append(
        native_cpu.candidate_sums(dataclasses.replace(problem, packed=packed), kept, chosen, levels=about(problem, 0.3))
    )
    for field in ("cross", "squares", "totals", "row_squares", "rows"):
        first = getattr(sums[0], field)
        assert np.allclose(first, getattr(want, field), rtol=1e-11, atol=1e-11 * n)
        assert all(np.array_equal(first, getattr(other, field)) for other in sums[1:])


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("ratio", [30, 3000, 1e5, 1e8])
def test_a_unit_that_dwarfs_the_others(name: str, ratio: float) -> None:
    """Beside it, products and distances are what is left of far larger ones."""
    scale = {"mixed": 1.0, "product": ratio, "distance": ratio}[name]
    x = pair(300, 6, 1)[0]
    x[:, 1] *= ratio
    z = np.ascontiguousarray(x.T) / scale
    for estimator in ESTIMATORS:
        problem = problem_of(z, [1, 2, 1, 2], NAMED[name], estimator)
        got, want = (
            module.candidate_sums(problem, np.arange(4), np.array([1, 0, -1])) for module in (native_cpu, reference)
        )
        for field in ("cross", "squares", "totals"):
            assert getattr(got, field) == pytest.approx(getattr(want, field), rel=1e-9), field
        assert got.rows is not None
        assert np.allclose(got.rows, want.rows, rtol=1e-9, atol=1e-9 * np.abs(want.rows).max(axis=1).min())


STEPS = {
    "equal rows": sk.CustomKernel(lambda product, d: 1.0 if d == 0 else 0.0),
    "no product": sk.CustomKernel(lambda product, d: 1.0 if product == 0 else 0.0),
    "a root": sk.CustomKernel(lambda product, d: math.sqrt(product)),  # NaN below 0
}


@pytest.mark.parametrize("size", [0.7, 1e3, 1e7])
@pytest.mark.parametrize("widths", [[1, 1, 4], [2, 4]])
@pytest.mark.parametrize("name", STEPS)
def test_what_is_left_of_equal_and_of_orthogonal_rows_is_exact(name: str, widths: list[int], size: float) -> None:
    r = np.random.default_rng(0)
    z = np.maximum(r.standard_normal((6, 300)), 0)
    z[2:, 150:] = z[2:, :150]  # equal but for the first unit
    z[2:4, ::2] = z[4:, 1::2] = 0.0  # orthogonal but for it
    z[2:, ::7] = 0.0
    z[0] *= size
    problem = problem_of(z, widths, STEPS[name], "biased")
    units = np.arange(len(widths))
    got, want = (
        module.candidate_sums(problem, units, np.array([0, -1, len(widths) - 1])) for module in (native_cpu, reference)
    )
    tolerance = {"rtol": 1e-9, "atol": 0} if name == "a root" else {"rtol": 0, "atol": 0}
    assert got.rows is not None
    assert np.allclose(got.rows, want.rows, **tolerance)
    assert np.allclose(got.squares, want.squares, **tolerance)


@pytest.mark.parametrize("name", [*STEPS, "mixed"])
@pytest.mark.parametrize("size", [1.0, 1e6])
def test_rows_that_are_mostly_zeros(size: float, name: str) -> None:
    """Most products are 0; those of the second unit, of columns that are opposite, cancel among themselves."""
    r = np.random.default_rng(1)
    z = np.abs(r.standard_normal((7, 300))) * (r.random((7, 300)) < 0.2)
    z[2] = -z[1] if name != "a root" else z[1]
    z[1:3] *= size
    kernel = {**STEPS, "mixed": MIXED}[name]
    problem = problem_of(z, [1, 2, 3, 1], kernel, "biased")
    got, want = (
        module.candidate_sums(problem, np.arange(4), np.array([0, 1, 2, 3, -1])) for module in (native_cpu, reference)
    )
    assert got.rows is not None
    assert np.allclose(got.rows, want.rows, rtol=1e-9, atol=1e-9)
    assert np.allclose(got.squares, want.squares, rtol=1e-9, atol=0)


@pytest.fixture(scope="module")
def out_of_range() -> dict[str, sk.CustomKernel]:
    """Kernels of which some values are none: of all units, without column 2, of a sample with itself or with others."""
    return {
        "whole": sk.CustomKernel(lambda product, d: math.nan if product > 150 else product),
        "left": sk.CustomKernel(lambda product, d: math.nan if product < 0 else product),
        "large": sk.CustomKernel(lambda product, d: 1e144 if product < 0 else product),
        "alone": sk.CustomKernel(lambda product, d: math.inf if d == 0 else product),
        "others": sk.CustomKernel(lambda product, d: math.inf if d > 0 else product),
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_values_out_of_range_are_told(
    out_of_range: dict[str, sk.CustomKernel], estimator: Estimator, threads: int, backend: str
) -> None:
    """Also where they are those of a candidate alone, or of a sample with itself."""
    x = np.abs(pair(300, 4, 1)[0]) + 0.1
    x[:, 2] += 10.0
    x[37, 0] = -9.0
    options: dict[str, Any] = {"estimator": estimator, "threads": threads, "backend": backend}
    alone = out_of_range["alone"]
    for name, value in (("whole", "nan"), ("left", "nan"), ("large", r"1e\+144"), ("alone", "inf")):
        sentence = (
            rf"^CustomKernel\(.*\) is {value} for fc, at product=[-\d.e+]+ and squared_distance=[\d.e+-]+: "
            r"a kernel must be finite, and below 1e\+144 in size$"
        )
        with pytest.raises(ValueError, match=sentence):
            sk.greedy_cka({"fc": x}, kernel=out_of_range[name], **options)
    sums = native_cpu if backend == "native_cpu" else reference
    problem = dataclasses.replace(problem_of(np.ascontiguousarray(x.T), [1] * 4, PRODUCT, estimator), kernel=alone)
    with pytest.raises(ValueError, match=r"^CustomKernel\(.*\) is inf for x, at product=.*: a kernel must be finite"):
        sums.candidate_sums(problem, np.arange(4), NONE, threads=threads)
    above = dataclasses.replace(problem, kernel=out_of_range["others"])
    with pytest.raises(ValueError, match=r"^CustomKernel\(.*\) is inf for x, at product=.*: a kernel must be finite"):
        sums.pack_centred(above, room=2**30, threads=threads)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_pair_that_is_told_does_not_depend_on_the_threads(threads: int) -> None:
    """One at the end of a tile, (511, 255), and a larger one at the start of the next, (512, 0)."""
    z = np.zeros((2, 600))
    z[0, [255, 511]], z[1, [0, 512]] = 100.0, 200.0

    def slow(product: float, d: float) -> float:  # so that workers take turns
        value = product
        for _ in range(100):
            value = math.sin(value)
        return math.nan if product > 5e3 and d == 0 else value

    problem = dataclasses.replace(problem_of(z, [1, 1], PRODUCT, "debiased"), kernel=sk.CustomKernel(slow))
    for _ in range(3):
        with pytest.raises(ValueError, match=r" is nan for x, at product=10000\.0 "):
            native_cpu.pack_centred(problem, room=2**30, threads=threads)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_what_is_left_of_a_unit_whose_squares_are_beyond_float64(estimator: Estimator) -> None:
    """Without it, inf less inf is formed again."""
    z = np.ascontiguousarray(np.abs(pair(300, 4, 1)[0]).T)
    z[1, [3, 7, 280]] = 1e160
    kernel = sk.CustomKernel(lambda product, d: 1 / (1 + d) + 1 / (1 + abs(product)))
    with np.errstate(over="ignore"):
        problem = problem_of(z, [1, 1, 2], kernel, estimator)
        got, want = (
            module.candidate_sums(problem, np.arange(3), np.array([1, 0, -1])) for module in (native_cpu, reference)
        )
    assert got.rows is not None
    assert np.allclose(got.rows, want.rows, rtol=1e-9, atol=0)
    assert got.squares == pytest.approx(want.squares, rel=1e-9)


def test_what_is_left_of_a_sample_alone_is_exact() -> None:
    """On the diagonal too: a unit of several columns, beside which others are small or none."""
    r = np.random.default_rng(2)
    z = r.standard_normal((9, 600))
    z[5:] *= 1e-7
    z[5:, ::3] = 0.0
    kernel = sk.CustomKernel(lambda product, d: (1.0 if product == 0 else 1 + product * 1e14) if d == 0 else 0.0)
    problem = problem_of(z, [5, 2, 2], kernel, "biased")
    got, want = (
        module.candidate_sums(problem, np.arange(3), np.array([0, 2, -1])) for module in (native_cpu, reference)
    )
    assert got.rows is not None
    assert np.allclose(got.rows, want.rows, rtol=1e-9, atol=0)
    assert (got.rows[0, ::3] == 200).all()


def test_a_function_may_write_to_what_it_is_given() -> None:
    @numba.cfunc(SIGNATURE)
    def greedy(products: Any, squared_distances: Any, values: Any, count: int) -> None:
        p, d, out = numba.carray(products, count), numba.carray(squared_distances, count), numba.carray(values, count)
        for i in range(count):
            out[i] = 1 / (1 + d[i] / 8) + math.tanh(p[i] / 4)
            p[i] = d[i] = math.nan

    x, _ = pair(300, 5, 1)
    got, want = (sk.greedy_cka(x, kernel=sk.CustomKernel(f)) for f in (greedy, mixed))
    assert got.order.tolist() == want.order.tolist()
    assert got.cka[:-1] == pytest.approx(want.cka[:-1], abs=1e-12)


def test_a_polynomial_of_ones_own() -> None:
    x, _ = pair(520, 9, 1)
    own = sk.greedy_cka(x, kernel=sk.CustomKernel(lambda product, d: (product / 9 + 1) ** 3))
    theirs = sk.greedy_cka(x, kernel=sk.Polynomial())
    assert own.order.tolist() == theirs.order.tolist()
    assert own.cka[:-1] == pytest.approx(theirs.cka[:-1], abs=1e-11)


def test_candidates_and_packing_agree_on_what_a_step_needs() -> None:
    x, _ = pair(90, 5, 1)
    columns = [np.array([c]) for c in range(5)]
    made, levels = kernel_damage.kernel_damage(
        prepare(as_matrix(x), MIXED), columns, "biased", exact=False, backend=None, threads=2
    )
    assert made.problem.packed is not None
    bare = dataclasses.replace(made, problem=dataclasses.replace(made.problem, packed=None))
    kept = np.arange(5)
    one, other = (each.scores(kept, kept, levels) for each in (made, bare))
    assert [part.tobytes() for part in (one.cka, one.shift)] == [part.tobytes() for part in (other.cka, other.shift)]


def test_the_binding_refuses_what_is_no_function() -> None:
    options: dict[str, Any] = {
        "offsets": np.array([0, 1, 2]),
        "length": math.nan,
        "coef0": 0.0,
        "degree": 1,
        "centre": np.zeros(4),
        "small_centre": True,
        "threads": 1,
    }
    pack, z = native_cpu._core().pack_centred, np.ones((2, 4))
    for kernel, function in (("custom", 0), ("rbf", MIXED.address)):
        with pytest.raises(ValueError, match=r"^a custom kernel is a function$"):
            pack(z=z, kernel=kernel, function=function, **options)
    with pytest.raises(ValueError, match=r"^a custom kernel needs z in float64$"):
        pack(z=z.astype(np.float32), kernel="custom", function=MIXED.address, **options)
