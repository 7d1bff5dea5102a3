"""Kernels and the ops under them against their definitions: medians, norms, column statistics and products."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import oracles
import pytest
from backend_lists import CHOSEN, NAMED
from tolerance import assert_close, tolerance

import simkit as sk
from simkit.arrays import Matrix, as_matrix
from simkit.backends.base import Block
from simkit.backends.choose import choose
from simkit.kernels import Kernel, check_kernel

Array = npt.NDArray[np.floating]

KERNELS: dict[str, tuple[Kernel, oracles.GramOf]] = {
    "linear": (sk.Linear(), oracles.linear),
    "cosine": (sk.Cosine(), oracles.cosine),
    "rbf": (sk.RBF(), oracles.rbf(0.5)),
    "rbf, narrow": (sk.RBF(0.15), oracles.rbf(0.15)),
    "rbf, wide": (sk.RBF(4), oracles.rbf(4)),
    "laplacian": (sk.Laplacian(0.7), oracles.laplacian(0.7)),
    "polynomial": (sk.Polynomial(), oracles.polynomial(3, None, 1.0)),
    "polynomial, homogeneous": (sk.Polynomial(2, 0.3, 0.0), oracles.polynomial(2, 0.3, 0.0)),
    "polynomial, of degree one": (sk.Polynomial(1, 1.0, -1.0), oracles.linear),
    "polynomial, of degree seven": (sk.Polynomial(7, 0.05, -0.5), oracles.polynomial(7, 0.05, -0.5)),
}


def block_of(x: Array, shift: float = 0.0, exponent: int = 0) -> Block:
    return Block(as_matrix(x), sk.Linear(), np.full(x.shape[1], shift), exponent)


@pytest.mark.parametrize("backend", CHOSEN)
@pytest.mark.parametrize("estimator", ["debiased", "biased"])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_against_their_definitions(name: str, estimator: str, backend: str | None) -> None:
    kernel, gram = KERNELS[name]
    rng = np.random.default_rng(11)
    for n, p, q in ((4, 3, 2), (63, 17, 1), (64, 5, 40), (150, 1, 7)):
        z = rng.standard_normal((n, 3))
        x = z @ rng.standard_normal((3, p)) + 0.5 * rng.standard_normal((n, p))
        y = np.maximum(z @ rng.standard_normal((3, q)) + rng.standard_normal((n, q)), -0.5)
        if p == 1 and name == "cosine":
            continue  # signs only
        for dtype in (np.float32, np.float64):
            a, b = x.astype(dtype), y.astype(dtype)
            table = oracles.hsic_matrix([a, b], estimator=estimator, gram=gram)
            scale = math.sqrt(table[0, 0] * table[1, 1])
            if min(table[0, 0], table[1, 1]) < 1e-8 * max(table[0, 0], table[1, 1]):
                continue  # a kernel that sees nothing: the tests of degenerate layers
            options = {"kernel": kernel, "estimator": estimator, "backend": backend}
            got = sk.cka(a, b, **options)  # type: ignore[arg-type]
            assert_close(got, table[0, 1] / scale, "cka", dtype, n, max(p, q))
            assert_close(sk.hsic(a, b, **options), table[0, 1], "hsic", dtype, n, max(p, q), scale=scale)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", NAMED)
@pytest.mark.parametrize("n", [2, 3, 4, 5, 30, 31, 257])
def test_the_median_is_of_the_whole_matrix(n: int, backend: str) -> None:
    median = choose("distance_median", backend=backend).function
    rng = np.random.default_rng(n)
    draws = {
        "spread": rng.standard_normal((n, 6)),
        "one column": rng.standard_normal((n, 1)),
        "ties": rng.integers(0, 2, (n, 3)).astype(float),
        "two far groups": rng.standard_normal((n, 2)) + 1e4 * (np.arange(n) % 2)[:, None],
        "an outlier": rng.standard_normal((n, 4)) * np.where(np.arange(n) == 0, 1e4, 1)[:, None],
    }
    for x in draws.values():
        want = float(np.median(oracles.squared_distances(x)))
        centre = float(x.mean())
        for threads in (1, 3):
            got = median(block_of(x, centre), threads=threads)
            assert abs(got - want) <= tolerance("median", "float64", n, x.shape[1]) * want
        scaled = median(block_of(x, centre, 3))
        assert scaled == pytest.approx(want / 64, rel=1e-9, abs=0)


@pytest.mark.parametrize("kind", ["spread", "ties", "mostly equal", "float32"])
def test_the_median_of_more_distances_than_are_gathered(kind: str) -> None:
    """Above 1,448 samples the native median is found by histogram passes."""
    n = 1600
    rng = np.random.default_rng(0)
    x = {
        "spread": rng.standard_normal((n, 3)),
        "ties": rng.integers(0, 2, (n, 4)).astype(float),
        "mostly equal": np.where(rng.random((n, 2)) < 0.999, 1.0, rng.standard_normal((n, 2))),
        "float32": rng.standard_normal((n, 5)).astype(np.float32),
    }[kind]
    want = float(np.median(oracles.squared_distances(x)))
    got = {choose("distance_median", backend="native_cpu").function(block_of(x), threads=t) for t in (1, 2, 3)}
    assert len(got) == 1
    assert got.pop() == pytest.approx(want, rel=1e-10, abs=0)


def test_the_median_between_two_histogram_cells() -> None:
    """An even number of distances, the two in the middle far apart."""
    n = 1600
    x = np.zeros((n, 1))
    x[: n // 2 + 20, 0] = np.linspace(0, 1e-3, n // 2 + 20)
    x[n // 2 + 20 :, 0] = 1e3 + np.linspace(0, 1e-3, n - n // 2 - 20)
    want = float(np.median(oracles.squared_distances(x)))
    assert choose("distance_median", backend="native_cpu").function(block_of(x), threads=2) == pytest.approx(
        want, rel=1e-10
    )


@pytest.mark.parametrize("estimator", ["debiased", "biased"])
def test_rbf_of_more_samples_than_a_pilot_and_a_tile(estimator: str) -> None:
    rng = np.random.default_rng(5)
    x, y = (rng.standard_normal((700, 4)).astype(np.float32) for _ in range(2))
    y[:, 0] += 2 * x[:, 1]
    for kernel, gram in (KERNELS["rbf"], KERNELS["laplacian"]):
        want = oracles.cka(x, y, estimator=estimator, gram=gram)
        assert_close(sk.cka(x, y, kernel=kernel, estimator=estimator), want, "cka", np.float64, 700, 4)  # type: ignore[arg-type]


@pytest.mark.parametrize("kernel", [sk.RBF, sk.Laplacian])
@pytest.mark.parametrize(("length", "tolerance"), [(0.04, 1e-12), (0.1, 1e-12), (1.0, 1e-12), (300.0, 1e-10)])
def test_small_and_large_kernel_values_are_right_relative_to_themselves(
    kernel: Callable[[float], Kernel], length: float, tolerance: float
) -> None:
    """Off the diagonal a narrow kernel is 1e-30 and smaller, and the debiased sums are of nothing else."""
    r = np.random.default_rng(0)
    x = r.standard_normal((90, 20))
    y = x[:, :7] + 0.3 * r.standard_normal((90, 7))
    want = sk.hsic(x, y, kernel=kernel(length), backend="reference")
    assert sk.hsic(x, y, kernel=kernel(length)) == pytest.approx(want, rel=tolerance)


def nearly_linear(n: int, p: int = 5, q: int = 4) -> tuple[Array, Array]:
    r = np.random.default_rng(0)
    x = r.standard_normal((n, p))
    return x, x @ r.standard_normal((p, q)) + r.standard_normal((n, q))


@pytest.mark.parametrize("backend", CHOSEN)
@pytest.mark.parametrize("estimator", ["debiased", "biased"])
@pytest.mark.parametrize("n", [40, 300, 600])
@pytest.mark.parametrize("bandwidth", [1.0, 3.0, 1e4, 1e8, 1e50])
@pytest.mark.parametrize("kernel", [sk.RBF, sk.Laplacian])
def test_a_wide_kernel_is_known_by_how_much_it_falls_short_of_one(
    kernel: Callable[[float], Kernel], bandwidth: float, n: int, estimator: str, backend: str | None
) -> None:
    """Its values are all near 1: of what tells samples apart little or nothing is left in them."""

    def gram(z: Array) -> Array:
        d2 = oracles.squared_distances(z)
        d2 /= np.median(d2)
        return np.expm1(-d2 / (2 * bandwidth**2) if kernel is sk.RBF else -np.sqrt(d2) / bandwidth)

    x, y = nearly_linear(n)
    options = {"kernel": kernel(bandwidth), "estimator": estimator, "backend": backend}
    table = oracles.hsic_matrix([x, y], estimator=estimator, gram=gram)
    assert sk.hsic(x, y, **options) == pytest.approx(table[0, 1], rel=1e-11, abs=0)  # type: ignore[arg-type]
    want = table[0, 1] / math.sqrt(table[0, 0]) / math.sqrt(table[1, 1])
    assert_close(sk.cka(x, y, **options), want, "cka", np.float64, n, 5)  # type: ignore[arg-type]
    if kernel is sk.RBF and bandwidth >= 1e8:
        linear = oracles.cka(x, y, estimator=estimator)
        assert_close(sk.cka(x, y, **options), linear, "cka", np.float64, n, 5)  # type: ignore[arg-type]


FLAT: dict[str, tuple[Kernel, float, float]] = {  # a kernel, the scale and the offset of the features
    "far from zero": (sk.Polynomial(1), 1.0, 1e8),
    "small": (sk.Polynomial(1), 1e-8, 0.0),
    "tiny": (sk.Polynomial(1), 1e-20, 0.0),
    "beside its constant": (sk.Polynomial(1, None, 1e15), 1.0, 0.0),
    "cubic, far from zero": (sk.Polynomial(3), 1.0, 1e9),
    "cubic, small": (sk.Polynomial(3), 1e-8, 0.0),
}


@pytest.mark.parametrize("backend", CHOSEN)
@pytest.mark.parametrize("estimator", ["debiased", "biased"])
@pytest.mark.parametrize("n", [40, 256, 600])
@pytest.mark.parametrize("name", FLAT)
def test_a_kernel_that_rounding_alone_tells_from_a_constant_is_an_error(
    name: str, n: int, estimator: str, backend: str | None
) -> None:
    """Also where the pilots' estimate of its row means takes the constant off before anything is squared."""
    kernel, scale, offset = FLAT[name]
    x, y = nearly_linear(n)
    flat = scale * x + offset
    options = {"kernel": kernel, "estimator": estimator, "backend": backend}
    zero = f"its {estimator} HSIC with itself is zero within rounding"
    for measure in (sk.cka, sk.hsic):
        with pytest.raises(ValueError, match=f"^x is degenerate: {zero}$"):
            measure(flat, y, **options)  # type: ignore[operator]
        with pytest.raises(ValueError, match=f"^[xy] is degenerate: {zero}$"):
            measure(y, flat, **options)  # type: ignore[operator]
    across = sk.CKA(kernel, estimator)  # type: ignore[arg-type]
    matrix = sk.similarity_matrix({"flat": flat}, {"y": y, "x": x}, measure=across, backend=backend)
    assert matrix.degenerate["row", "flat"] == zero
    assert np.isnan(matrix.values).all()


@pytest.mark.parametrize("backend", CHOSEN)
@pytest.mark.parametrize("estimator", ["debiased", "biased"])
@pytest.mark.parametrize("n", [40, 600])
def test_what_is_above_rounding_is_answered(n: int, estimator: str, backend: str | None) -> None:
    """The values of these kernels have their first digits in common, and others that tell samples apart."""
    x, y = nearly_linear(n)
    want = [measure(x, y, estimator=estimator) for measure in (oracles.cka, oracles.hsic)]
    for coef0, scale, offset in ((1.0, 1.0, 1e5), (1.0, 1e-5, 0.0), (1e9, 1.0, 0.0)):
        options = {"kernel": sk.Polynomial(1, None, coef0), "estimator": estimator, "backend": backend}
        z = scale * x + offset
        assert sk.cka(z, y, **options) == pytest.approx(want[0], rel=1e-4)  # type: ignore[arg-type]
        unit = scale**2 / (x.shape[1] * y.shape[1])
        assert sk.hsic(z, y, **options) == pytest.approx(want[1] * unit, rel=1e-4, abs=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", CHOSEN)
def test_a_narrow_kernel_keeps_its_debiased_score(backend: str | None) -> None:
    """Its diagonal of ones, beside which its other values are nothing, is dropped and tells nothing of their digits."""
    x, y = nearly_linear(40)
    for kernel, gram in ((sk.RBF(0.02), oracles.rbf(0.02)), (sk.Laplacian(0.01), oracles.laplacian(0.01))):
        want = oracles.cka(x, y, estimator="debiased", gram=gram)
        assert sk.cka(x, y, kernel=kernel, backend=backend) == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("backend", CHOSEN)
def test_distances_of_close_and_equal_samples_are_exact(backend: str | None) -> None:
    """Near-duplicates far from the origin: products would leave nothing of their distance."""
    rng = np.random.default_rng(2)
    base = 1e6 * rng.standard_normal((40, 3))
    x = np.concatenate([base, base, base + 1e-3 * rng.standard_normal((40, 3))])
    y = rng.standard_normal((120, 2))
    for t in (1e-7, 1e-9):
        want = oracles.cka(x, y, estimator="biased", gram=oracles.rbf(0.5))
        assert_close(
            sk.cka(x, y, kernel=sk.RBF(), estimator="biased", backend=backend), want, "cka", np.float64, 120, 3
        )
        narrow = oracles.hsic(x, x, estimator="debiased", gram=oracles.rbf(t))
        got = sk.hsic(x, x, kernel=sk.RBF(t), backend=backend)
        assert got == pytest.approx(narrow, rel=1e-9)


@pytest.mark.parametrize("backend", CHOSEN)
@pytest.mark.parametrize("name", ["rbf", "laplacian", "cosine", "linear", "polynomial, homogeneous"])
def test_kernels_do_not_feel_scale(name: str, backend: str | None) -> None:
    kernel, _ = KERNELS[name]
    rng = np.random.default_rng(3)
    x, y = (rng.standard_normal((70, 5)) for _ in range(2))
    plain = sk.cka(x, y, kernel=kernel, backend=backend)
    for c in (1e-30, 1e-4, 1e6, 1e30):
        for dtype in (np.float32, np.float64):
            assert sk.cka((c * x).astype(dtype), y, kernel=kernel, backend=backend) == pytest.approx(plain, abs=1e-6)
    for exponent in (-300, 7, 300):
        if kernel != KERNELS["polynomial, homogeneous"][0] or abs(exponent) < 100:
            scaled = sk.cka(np.ldexp(x, exponent), y, kernel=kernel, backend=backend)
            assert scaled == pytest.approx(plain, abs=1e-14)


@pytest.mark.parametrize("backend", CHOSEN)
@pytest.mark.parametrize("name", ["rbf", "laplacian"])
def test_distance_kernels_do_not_feel_a_shift(name: str, backend: str | None) -> None:
    kernel, gram = KERNELS[name]
    case = next(c for c in oracles.hazard_battery() if c.name == "+1e5, float64")
    want = oracles.cka(case.x, case.y, estimator="debiased", gram=gram)
    assert_close(sk.cka(case.x, case.y, kernel=kernel, backend=backend), want, "cka", np.float64, 512, 64)
    plain = next(c for c in oracles.hazard_battery() if c.name == "plain")
    assert want == pytest.approx(oracles.cka(plain.x, plain.y, estimator="debiased", gram=gram), abs=1e-6)


@pytest.mark.parametrize("backend", CHOSEN)
def test_cosine_needs_directions(backend: str | None) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((80, 5))
    x[13] = 0
    for kernel in (sk.Cosine(),):
        with pytest.raises(ValueError, match=r"^x has a zero row, number 13: its cosine is undefined$"):
            sk.cka(x, x[::-1], kernel=kernel, backend=backend)
    with pytest.raises(ValueError, match=r"^fc has a zero row, number 13: its cosine is undefined$"):
        sk.similarity_matrix({"fc": x}, measure=sk.CKA(sk.Cosine()), backend=backend)
    rays = np.outer(np.arange(1, 81), [1.0, 2.0])  # one direction: every cosine is 1
    with pytest.raises(ValueError, match=r"^x is degenerate: its samples all point the same way within rounding$"):
        sk.cka(rays, x + 1, kernel=sk.Cosine(), backend=backend)


@pytest.mark.parametrize("backend", CHOSEN)
def test_a_median_of_zero_has_no_bandwidth(backend: str | None) -> None:
    x = np.zeros((40, 2))
    x[:5] = np.random.default_rng(0).standard_normal((5, 2))
    y = np.random.default_rng(1).standard_normal((40, 2))
    sentence = "the median distance between its samples is zero, so the kernel has no bandwidth"
    for kernel in (sk.RBF(), sk.Laplacian()):
        for call in (sk.cka, sk.hsic):
            with pytest.raises(ValueError, match=f"^x is degenerate: {sentence}$"):
                call(x, y, kernel=kernel, backend=backend)
        m = sk.similarity_matrix({"x": x, "y": y}, measure=sk.CKA(kernel), backend=backend)
        assert m.degenerate == {("row", "x"): sentence, ("column", "x"): sentence}
        assert np.array_equal(np.isnan(m.values), [[True, True], [True, False]])


@pytest.mark.parametrize("backend", CHOSEN)
def test_polynomials_that_overflow_are_refused(backend: str | None) -> None:
    x = np.random.default_rng(0).standard_normal((20, 3))
    with pytest.raises(ValueError, match=r"^x overflows the polynomial kernel of degree 3: rescale its features$"):
        sk.cka(1e40 * x, x, kernel=sk.Polynomial(3), backend=backend)
    with pytest.raises(ValueError, match=r"^y overflows the polynomial kernel of degree 200: rescale its features$"):
        sk.cka(x, 1000 * x, kernel=sk.Polynomial(200, 1e-3), backend=backend)
    assert math.isfinite(sk.cka(1e30 * x, x, kernel=sk.Polynomial(2), backend=backend))


@pytest.mark.parametrize("degree", [5, 64, 1000, 10**6, 2**31 - 1])
def test_polynomials_of_high_degree(degree: int) -> None:
    """Right where they can be, refused where they overflow, and never a multiplication per degree."""
    rng = np.random.default_rng(1)
    x, y = (rng.standard_normal((300, p)) / math.sqrt(degree) for p in (3, 70))
    kernel = sk.Polynomial(degree)
    started = time.process_time()
    assert sk.cka(x, y, kernel=kernel) == pytest.approx(sk.cka(x, y, kernel=kernel, backend="reference"), abs=1e-6)
    if degree >= 1000:
        large = rng.standard_normal((30, 4))
        for call in (lambda: sk.cka(large, large, kernel=kernel), lambda: sk.greedy_cka(large, kernel=kernel)):
            with pytest.raises(ValueError, match=rf"^x overflows the polynomial kernel of degree {degree}: rescale"):
                call()
    assert time.process_time() - started < 5


@pytest.mark.parametrize("layout", ["C", "F", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("p", [1, 15, 17, 255, 257, 530])
def test_distances_of_equal_rows(p: int, layout: str) -> None:
    """Three rows many times over, and rows near them: as the reference, whatever the layout."""
    rng = np.random.default_rng(p)
    rows = rng.standard_normal((3, p)).astype(np.float32)[rng.integers(0, 3, 90)]
    x = rows + np.float32(2**-12) * rng.integers(0, 2, (90, p)).astype(np.float32) * (np.arange(90) > 60)[:, None]
    x = {"C": np.float64, "F": np.float64, "float16": np.float16}.get(layout, np.float32)(x)
    given: object = np.asfortranarray(x) if layout == "F" else x
    if layout == "bfloat16":
        given = Matrix("x", (x.view(np.uint32) >> 16).astype(np.uint16), "bfloat16")
    y = rng.standard_normal((90, 4))
    for kernel in (sk.RBF(), sk.Laplacian()):
        want = sk.cka(given, y, kernel=kernel, backend="reference")
        assert sk.cka(given, y, kernel=kernel) == pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize("backend", NAMED)
@pytest.mark.parametrize("n", [40, 257, 1500])
@pytest.mark.parametrize("size", [1e4, 1e12, 1e22])
def test_distances_beside_a_far_row(size: float, n: int, backend: str) -> None:
    """Its share of the mean, taken off, would leave no digits to the differences of the other rows."""
    rng = np.random.default_rng(n)
    y = rng.standard_normal((n, 3))
    for dtype in (np.float32, np.float64):
        x = rng.standard_normal((n, 5)).astype(dtype)
        x[3, 2] = size
        for kernel, gram in ((sk.RBF(), oracles.rbf(0.5)), (sk.Laplacian(), oracles.laplacian(0.5))):
            for estimator in ("biased", "debiased"):
                options = {"kernel": kernel, "estimator": estimator, "backend": backend}
                want = oracles.cka(x, y, estimator=estimator, gram=gram)
                assert_close(sk.cka(x, y, **options), want, "cka", dtype, n, 5)  # type: ignore[arg-type]


def test_equal_rows_do_not_cost_much_more_than_distinct_ones() -> None:
    """Processor time: distances formed again from differences, half of them here, took seven times all else."""
    rng = np.random.default_rng(0)
    y = rng.standard_normal((1200, 1024)).astype(np.float32)
    x = rng.standard_normal((1200, 1024)).astype(np.float32)
    dead = x.copy()
    dead[rng.random(1200) < 0.65] = 0

    def seconds(features: Array) -> float:
        started = time.process_time()
        sk.cka(features, y, kernel=sk.RBF())
        return time.process_time() - started

    seconds(x)
    assert min(seconds(dead) for _ in range(3)) < 5 * min(seconds(x) for _ in range(3))


BAD_OPTIONS = [
    (lambda: sk.RBF(0), ValueError, r"RBF\(bandwidth=\) must be a positive number, not 0"),
    (lambda: sk.RBF(True), ValueError, r"RBF\(bandwidth=\) must be a positive number, not True"),
    (lambda: sk.RBF(np.bool_(True)), ValueError, r"RBF\(bandwidth=\) must be a positive number, not .*True_?"),  # type: ignore[arg-type]
    (lambda: sk.Polynomial(2, 1.0, True), ValueError, r"Polynomial\(coef0=\) must be a finite number, not True"),
    (
        lambda: sk.Polynomial(np.float64(2)),
        ValueError,
        r"Polynomial\(degree=\) must be a positive integer, not .*2.0.*",
    ),  # type: ignore[arg-type]
    (lambda: sk.RBF(math.nan), ValueError, r"RBF\(bandwidth=\) must be a positive number, not nan"),
    (lambda: sk.RBF("wide"), ValueError, r"RBF\(bandwidth=\) must be a positive number, not 'wide'"),  # type: ignore[arg-type]
    (lambda: sk.Laplacian(-1), ValueError, r"Laplacian\(bandwidth=\) must be a positive number, not -1"),
    (lambda: sk.Polynomial(0), ValueError, r"Polynomial\(degree=\) must be a positive integer, not 0"),
    (lambda: sk.Polynomial(2.0), ValueError, r"Polynomial\(degree=\) must be a positive integer, not 2.0"),  # type: ignore[arg-type]
    (lambda: sk.Polynomial(True), ValueError, r"Polynomial\(degree=\) must be a positive integer, not True"),
    (lambda: sk.Polynomial(2**31), ValueError, r"Polynomial\(degree=\) must be below 2\*\*31, not 2147483648"),
    (lambda: sk.Polynomial(2, -1.0), ValueError, r"Polynomial\(gamma=\) must be a positive number, not -1.0"),
    (lambda: sk.Polynomial(2, 1.0, math.inf), ValueError, r"Polynomial\(coef0=\) must be a finite number, not inf"),
    (lambda: check_kernel("rbf"), TypeError, r"kernel must be a kernel object such as .*, not 'rbf'"),
    (lambda: check_kernel(sk.RBF), TypeError, r"kernel must be a kernel object .*write simkit.RBF\(\)"),
    (lambda: sk.CKA(kernel=None), TypeError, r"kernel must be a kernel object such as .*, not None"),  # type: ignore[arg-type]
    (lambda: sk.CKA(estimator="unbiased"), ValueError, r'estimator must be "debiased" or "biased", not \'unbiased\''),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("make", "error", "sentence"), BAD_OPTIONS)
def test_options_are_checked_with_their_value(make: object, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=f"^{sentence}$"):
        make()  # type: ignore[operator]


def test_kernels_are_values() -> None:
    assert sk.RBF(0.5) == sk.RBF()
    assert len({sk.Linear(), sk.Linear(), sk.Cosine(), sk.Polynomial(), sk.Polynomial(3, None, 1.0)}) == 3
    assert repr(sk.RBF(np.float32(0.25))) == "RBF(bandwidth=0.25)"  # type: ignore[arg-type]
    assert repr(sk.Laplacian(np.int64(2))) == "Laplacian(bandwidth=2.0)"  # type: ignore[arg-type]
    scalars = sk.Polynomial(np.int32(2), np.float64(0.5), np.float16(1))  # type: ignore[arg-type]
    assert repr(scalars) == repr(sk.Polynomial(2, 0.5, 1.0))
    assert repr(sk.RBF(4)) == "RBF(bandwidth=4)"
    with pytest.raises(AttributeError):
        sk.RBF().bandwidth = 1.0  # type: ignore[misc]


# The ops on one matrix.


@pytest.mark.parametrize("n", [513, 2049, 1_046_528, 1_046_529, 1_049_599, 1_214_209])
@pytest.mark.parametrize("exact", [True, False])
def test_every_row_is_multiplied_once(n: int, exact: bool) -> None:
    """Rows are multiplied in equal groups, of which none may be empty: from a million rows on, their number matters."""
    x = np.random.default_rng(0).standard_normal((n, 2)).astype(np.float32)
    matrix = as_matrix(x)
    op = choose("column_stats", backend="native_cpu").function
    stats = op(matrix, threads=2)
    wide = x - x.mean(axis=0, dtype=np.float64)
    want = wide.T @ wide
    for threads in (1, 2):
        block = Block(matrix, sk.Linear(), stats.mean, 0)
        got = choose("column_products", backend="native_cpu").function(block, stats, exact=exact, threads=threads)
        assert np.abs(got - want).max() <= (1e-12 if exact else 1e-6) * want.max()


@pytest.mark.parametrize("backend", NAMED)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (9, 1), (300, 511), (300, 513), (3000, 100), (5, 70_000)])
def test_column_stats(shape: tuple[int, int], dtype: type[np.floating], backend: str) -> None:
    rng = np.random.default_rng(0)
    x = (100 + rng.standard_normal(shape)).astype(dtype)
    x[:, 0] = 0.1
    wide = x.astype(np.longdouble)
    layouts = (x, np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2])
    for threads, values in ((1, x), *((3, values) for values in layouts)):
        stats = choose("column_stats", backend=backend).function(as_matrix(values), threads=threads)
        assert_close(
            stats.mean, wide.mean(axis=0), "mean", dtype if dtype != np.float16 else "float16", *shape, scale=100
        )
        deviations = wide - wide.mean(axis=0)
        assert np.allclose(stats.sum_sq_dev, (deviations**2).sum(axis=0).astype(float), rtol=1e-10, atol=1e-20)
        assert stats.max_abs == np.abs(x).max()
        largest = float(np.abs(deviations).max())
        assert largest * (1 - 1e-10) - 1e-12 <= stats.max_dev <= 4 * largest + 1e-12
        assert stats.mean[0] == x[0, 0]  # exactly, so that a constant column is one
        assert stats.sum_sq_dev[0] == 0.0
        assert (stats.nonfinite, stats.first_nonfinite) == (0, None)


@pytest.mark.parametrize("backend", NAMED)
def test_column_stats_of_scaled_rows(backend: str) -> None:
    rng = np.random.default_rng(1)
    x, scale = rng.standard_normal((400, 6)), rng.random(400) + 0.5
    stats = choose("column_stats", backend=backend).function(as_matrix(x), row_scale=scale, threads=2)
    scaled = x * scale[:, None]
    assert np.allclose(stats.mean, scaled.mean(axis=0), atol=1e-14)
    assert np.allclose(stats.sum_sq_dev, ((scaled - scaled.mean(axis=0)) ** 2).sum(axis=0), rtol=1e-12)
    assert stats.max_abs == np.abs(scaled).max()


@pytest.mark.parametrize("backend", NAMED)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_column_stats_count_what_is_not_finite(dtype: type[np.floating], backend: str) -> None:
    """Across pieces of work, with infinities that could cancel; the first comes first with any number of threads."""
    x = np.zeros((4000, 300), dtype=dtype)
    x[3999, 299], x[2500, 7], x[2500, 3], x[1200, 290] = np.nan, np.inf, -np.inf, np.nan
    for values in (x, np.asfortranarray(x), x[::-1], x[:, ::-1]):
        wrong = np.argwhere(~np.isfinite(values))
        for threads in (1, 2, 5):
            stats = choose("column_stats", backend=backend).function(as_matrix(values), threads=threads)
            assert stats.nonfinite == 4
            assert stats.first_nonfinite == tuple(wrong[0])


@pytest.mark.parametrize("backend", NAMED)
@pytest.mark.parametrize("p", [1, 511, 512, 513, 1500])
def test_row_norms(p: int, backend: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, p)).astype(np.float32)
    want = (((x.astype(np.float64) - 0.25) / 8) ** 2).sum(axis=1)
    for threads in (1, 3):
        got = choose("row_norms", backend=backend).function(block_of(x, 0.25, 3), threads=threads)
        assert_close(got, want, "norms", np.float32, 300, p, scale=want)


@pytest.mark.parametrize("backend", NAMED)
@pytest.mark.parametrize("shape", [(2, 1), (5, 9), (1023, 31), (1025, 65), (2100, 130), (40, 513), (40, 1030)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_column_products(shape: tuple[int, int], dtype: type[np.floating], backend: str) -> None:
    """float32 products of ReLU features, of columns far from zero and of columns that rarely move, in one matrix."""
    n, p = shape
    rng = np.random.default_rng(p)
    x = np.maximum(rng.standard_normal(shape), 0)
    x[:, ::3] += 50
    x[:, ::4] *= 1e-3
    x[:, ::5] = rng.random((n, len(range(0, p, 5)))) < 0.9
    x[0], x[-1] = 0.1, 0.2  # no column is constant
    matrix = as_matrix(x.astype(dtype))
    stats = choose("column_stats", backend=backend).function(matrix, threads=1)
    z = oracles.centred_features(matrix.values)
    want = z.T @ z
    size = np.sqrt(np.outer(np.diag(want), np.diag(want)))
    for exact in (True, False) if dtype == np.float32 else (True,):
        for threads in (1, 2, 3):
            block = Block(matrix, sk.Linear(), stats.mean, 2)
            op = choose("column_products", backend=backend).function
            got = np.asarray(op(block, stats, exact=exact, threads=threads))  # of a device: its copy on the host
            assert np.array_equal(got, got.T)
            entry = "device products" if backend == "native_cuda" else "products"
            assert_close(16 * got, want, entry, np.float64 if exact else np.float32, n, p, scale=size)


@pytest.mark.parametrize("backend", [None, "reference"])
def test_cosines_of_rows_of_every_size(backend: str | None) -> None:
    """A row's length does not matter, down to where float64 has no reciprocal of it."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal((60, 7))
    y = x @ rng.standard_normal((7, 5)) + rng.standard_normal((60, 5))
    want = sk.cka(x, y, kernel=sk.Cosine(), backend=backend)
    sizes = np.resize(10.0 ** np.array([0.0, -150, -161, -165, -170, -250, -300, 290]), 60)
    for scale in (sizes[:, None], 1e-300, 1e290):
        assert sk.cka(x * scale, y, kernel=sk.Cosine(), backend=backend) == pytest.approx(want, abs=1e-12)
    for tiny in (x * 1e-310, np.where(np.arange(60)[:, None] == 17, x * 1e-310, x)):
        with pytest.raises(
            ValueError, match=r"^row \d+ of x has the norm .*e-31\d, too small to divide by in float64: re"
        ):
            sk.cka(tiny, y, kernel=sk.Cosine(), backend=backend)
