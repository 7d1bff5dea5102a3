"""Kernels against their definitions, and what they do not feel."""

from __future__ import annotations

import math
import time

import numpy as np
import numpy.typing as npt
import oracles
import pytest
from backend_lists import CHOSEN, NAMED
from tolerance import assert_close

import simkit as sk
from simkit.arrays import Matrix
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


@pytest.mark.parametrize("estimator", ["debiased", "biased"])
def test_rbf_of_more_samples_than_a_pilot_and_a_tile(estimator: str) -> None:
    rng = np.random.default_rng(5)
    x, y = (rng.standard_normal((700, 4)).astype(np.float32) for _ in range(2))
    y[:, 0] += 2 * x[:, 1]
    for kernel, gram in (KERNELS["rbf"], KERNELS["laplacian"]):
        want = oracles.cka(x, y, estimator=estimator, gram=gram)
        assert_close(sk.cka(x, y, kernel=kernel, estimator=estimator), want, "cka", np.float64, 700, 4)  # type: ignore[arg-type]


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
