"""Digits of kernels: values of little difference, cosines of rows of any size, and when none are left."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import oracles
import pytest
from backend_lists import CHOSEN
from tolerance import assert_close

import simkit as sk
from simkit.kernels import Kernel

Array = npt.NDArray[np.floating]


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
