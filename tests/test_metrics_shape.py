"""nbs, procrustes and linear_regression against their definitions, identities and constructed truths."""

from __future__ import annotations

import math
import tracemalloc
import warnings
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from simkit.compare.matrix import similarity_matrix
from simkit.errors import DegenerateWarning
from simkit.metrics.linear_regression import LinearRegression, linear_regression
from simkit.metrics.nbs import NBS, nbs
from simkit.metrics.procrustes import Procrustes, procrustes

SHAPES = [(30, 4, 7), (30, 7, 4), (64, 1, 1), (12, 40, 25), (12, 3, 25), (12, 12, 12), (2, 1, 3), (13, 12, 14)]


def pair(n: int, p: int, q: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Representations that share some of their directions."""
    r = np.random.default_rng(seed)
    shared = r.standard_normal((n, 3))
    x = shared @ r.standard_normal((3, p)) + r.standard_normal((n, p))
    y = shared @ r.standard_normal((3, q)) + r.standard_normal((n, q))
    return x, y


def orthonormal(n: int, k: int, seed: int = 0) -> np.ndarray:
    """k orthonormal columns that sum to zero."""
    z = np.random.default_rng(seed).standard_normal((n, k))
    return np.linalg.qr(z - z.mean(axis=0))[0]


def rotation(p: int, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((p, p)))[0]


def centred(x: np.ndarray) -> np.ndarray:
    return x - x.mean(axis=0)


def brute_procrustes(x: np.ndarray, y: np.ndarray, *, normalise: bool) -> float:
    """‖X R - Y‖_F with SciPy's R, the narrower side padded by zero columns."""
    x, y = centred(x), centred(y)
    if normalise:
        x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    width = max(x.shape[1], y.shape[1])
    x, y = (np.pad(z, ((0, 0), (0, width - z.shape[1]))) for z in (x, y))
    r, _ = scipy.linalg.orthogonal_procrustes(x, y)
    return float(np.linalg.norm(x @ r - y))


def quiet(function: Any, *args: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateWarning)
        return function(*args, **options)


def test_golden_value() -> None:
    r = np.random.RandomState(1337)
    x = r.randn(100, 10)
    y = r.randn(100, 10) + x
    assert f"{nbs(x, y):.5f}" == "0.73626"


def test_nbs_by_matrix_square_roots() -> None:
    """tr((K^½ L K^½)^½) / √(tr K tr L); both Gram matrices have full rank on the n-1 centred directions."""
    x, y = pair(12, 20, 15)
    helmert = scipy.linalg.helmert(12)
    k, ell = helmert @ x @ x.T @ helmert.T, helmert @ y @ y.T @ helmert.T
    root = scipy.linalg.sqrtm(k)
    expected = np.trace(scipy.linalg.sqrtm(root @ ell @ root)).real / math.sqrt(np.trace(k) * np.trace(ell))
    assert nbs(x, y) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(("n", "p", "q"), SHAPES)
def test_against_the_definitions(n: int, p: int, q: int) -> None:
    x, y = pair(n, p, q)
    xc, yc = centred(x), centred(y)
    expected = np.linalg.norm(xc.T @ yc, "nuc") / np.linalg.norm(xc) / np.linalg.norm(yc)
    assert nbs(x + 5.0, y) == pytest.approx(expected, abs=1e-12)
    size = brute_procrustes(x, y, normalise=False)
    assert procrustes(x, y, form="size-and-shape") == pytest.approx(size, rel=1e-12)
    assert procrustes(x, y, form="normalized") == pytest.approx(brute_procrustes(x, y, normalise=True), abs=1e-12)
    residual = xc - yc @ np.linalg.lstsq(yc, xc, rcond=None)[0]
    r2 = 1 - np.linalg.norm(residual) ** 2 / np.linalg.norm(xc) ** 2
    assert quiet(linear_regression, x, y - 9.0) == pytest.approx(r2, abs=1e-12)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(n=st.integers(2, 40), p=st.integers(1, 60), q=st.integers(1, 60), seed=st.integers(0, 10**6))
def test_identities_for_any_shape(n: int, p: int, q: int, seed: int) -> None:
    x, y = pair(n, p, q, seed)
    similarity, angle, chord = nbs(x, y), procrustes(x, y), procrustes(x, y, form="normalized")
    assert 0 < similarity < 1 + 1e-14
    assert math.cos(angle) == pytest.approx(similarity, abs=1e-14)
    assert chord**2 == pytest.approx(2 - 2 * similarity, abs=1e-13)
    size = procrustes(x, y, form="size-and-shape")
    a, b = np.linalg.norm(centred(x)), np.linalg.norm(centred(y))
    assert size**2 == pytest.approx(a**2 + b**2 - 2 * a * b * similarity, rel=1e-11, abs=1e-12 * a * b)
    assert nbs(y, x) == pytest.approx(similarity, abs=1e-14)
    for form in ("angular", "normalized", "size-and-shape"):
        # where n = 2 and p = q = 1 the shapes are the same, and the distance is rounding
        assert procrustes(y, x, form=form) == pytest.approx(procrustes(x, y, form=form), rel=1e-10, abs=1e-14)
        turned = procrustes(x @ rotation(p) + 2.0, y @ rotation(q, 1) - 1.0, form=form)
        assert turned == pytest.approx(procrustes(x, y, form=form), rel=1e-10, abs=1e-14)
    assert -1e-15 < quiet(linear_regression, x, y) < 1 + 1e-13
    assert quiet(linear_regression, x, x) == pytest.approx(1, abs=1e-13)


@pytest.mark.parametrize("form", ["angular", "normalized", "size-and-shape"])
@pytest.mark.parametrize("condition", [1e0, 1e4, 1e8, 1e12, 1e16])
@pytest.mark.parametrize(("n", "p"), [(200, 40), (40, 200), (41, 40), (40, 40)])
def test_distance_to_itself_is_zero_to_rounding(form: Any, condition: float, n: int, p: int) -> None:
    """√(2 - 2·NBS) would leave 1e-8, as would a residual from one SVD at condition numbers above 1e8."""
    k = min(n - 1, p)
    x = orthonormal(n, k) * np.geomspace(1, 1 / condition, k) @ rotation(p)[:k]
    assert procrustes(x, x, form=form) == 0.0
    limit = 5e-14 * (1.0 if form != "size-and-shape" else np.linalg.norm(x))
    assert procrustes(x, x.copy(), form=form) < limit
    assert procrustes(x, x @ rotation(p, 2) + 0.25, form=form) < limit
    padded = np.pad(x, ((0, 0), (0, 3))) @ rotation(p + 3, 3)
    assert procrustes(x, padded, form=form) < limit
    assert procrustes(padded, x, form=form) < limit


@pytest.mark.parametrize("theta", [1.5, 0.5, 0.15, 0.14, 1e-2, 1e-4, 1e-6, 1e-8, 1e-10])
@pytest.mark.parametrize("condition", [10.0, 1e10])
@pytest.mark.parametrize("q", [6, 15])
def test_known_angles_keep_their_digits(theta: float, condition: float, q: int) -> None:
    """Y = cosθ X + sinθ Z with Z ⟂ X of equal norm: XᵀY = cosθ XᵀX, so the angle is θ exactly."""
    basis = orthonormal(100, 12)
    scales = np.geomspace(1, 1 / condition, 6)
    x, z = basis[:, :6] * scales, basis[:, 6:] * scales
    y = np.pad(math.cos(theta) * x + math.sin(theta) * z, ((0, 0), (0, q - 6))) @ rotation(q)
    assert procrustes(x, y) == pytest.approx(theta, rel=1e-12, abs=2e-14)
    assert procrustes(y * 8e3, x * 1e-5) == pytest.approx(theta, rel=1e-12, abs=2e-14)
    chord = 2 * math.sin(theta / 2)
    assert procrustes(x, y, form="normalized") == pytest.approx(chord, rel=1e-12, abs=2e-14)
    expected = math.sqrt(0.5**2 + 0.5 * chord**2) * np.linalg.norm(x)  # sizes 1 and 1/2
    assert procrustes(x, y / 2, form="size-and-shape") == pytest.approx(expected, rel=1e-12)


def test_angular_distance_is_a_metric() -> None:
    r = np.random.default_rng(0)
    base = r.standard_normal((30, 6))
    for _ in range(30):
        a, b, c = (base[:, : r.integers(1, 7)] + r.uniform(0, 2) * r.standard_normal((30, 1)) for _ in range(3))
        for form in ("angular", "normalized", "size-and-shape"):
            whole, first, second = (procrustes(u, v, form=form) for u, v in ((a, c), (a, b), (b, c)))
            assert whole <= first + second + 1e-13


def test_scale_and_units() -> None:
    x, y = pair(50, 6, 9)
    values = [f(x, y) for f in (nbs, procrustes, linear_regression)]
    for a, b in [(1e-20, 1.0), (1e150, 1e-150), (1e-300, 1e300), (1e6, 3.0)]:
        scaled = [f(x * a, y * b) for f in (nbs, procrustes, linear_regression)]
        np.testing.assert_allclose(scaled, values, rtol=1e-13)
    size = procrustes(x, y, form="size-and-shape")
    for a in (1e-300, 1e-20, 1e150, 1e300):
        assert procrustes(x * a, y * a, form="size-and-shape") == pytest.approx(size * a, rel=1e-12)
    lone = procrustes(x, y * 1e-200, form="size-and-shape")
    assert lone == pytest.approx(np.linalg.norm(centred(x)), rel=1e-12)


def test_regression_is_asymmetric_and_invariant() -> None:
    x, y = pair(80, 5, 12)
    value = linear_regression(x, y)
    assert abs(value - linear_regression(y, x)) > 0.05
    mix = rotation(12) * np.geomspace(1, 100, 12) @ rotation(12, 1)
    assert linear_regression(x, y @ mix + 4.0) == pytest.approx(value, abs=1e-12)
    assert linear_regression(-3.0 * x @ rotation(5) + 1.0, y) == pytest.approx(value, abs=1e-12)
    exact = y @ np.random.default_rng(1).standard_normal((12, 300)) + 2.0
    assert linear_regression(exact, y) == pytest.approx(1.0, abs=1e-13)
    assert linear_regression(orthonormal(80, 8)[:, :4], orthonormal(80, 8)[:, 4:]) == pytest.approx(0.0, abs=1e-28)


def test_constant_and_repeated_columns_of_the_predictor_change_nothing() -> None:
    x, y = pair(40, 6, 9)
    wider = np.concatenate([y, np.full((40, 1), 1e10), y[:, :3], y[:, :1] - y[:, 1:2]], axis=1)
    assert linear_regression(x, wider) == pytest.approx(linear_regression(x, y), abs=1e-12)
    constant = np.concatenate([x, np.full((40, 1), 1e10)], axis=1)
    assert nbs(constant, y) == pytest.approx(nbs(x, y), abs=1e-14)
    assert procrustes(constant, x, form="size-and-shape") < 1e-13


def test_a_predictor_that_spans_the_samples_warns() -> None:
    x, y = pair(10, 3, 30)
    with pytest.warns(DegenerateWarning, match="y has rank 9 on 10 samples.* as a predictor .* R² is 1") as caught:
        assert linear_regression(x, y) == pytest.approx(1.0, abs=1e-13)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert linear_regression(y, x) < 1.0, "a wide target is no reason to warn"


@pytest.mark.parametrize(
    "measure", [NBS(), Procrustes(), Procrustes(form="normalized"), Procrustes("size-and-shape"), LinearRegression()]
)
def test_measure_objects_in_a_matrix(measure: Any) -> None:
    x, y = pair(60, 7, 5)
    layers = {"a": x, "b": y, "dead": np.zeros((60, 4)), "c": x[:, :3].astype(np.float32)}
    matrix = similarity_matrix(layers, measure=measure)
    assert set(matrix.degenerate) == {("row", "dead"), ("column", "dead")}
    functions = {NBS: nbs, Procrustes: procrustes, LinearRegression: linear_regression}
    options = {k: getattr(measure, k) for k in measure.__dataclass_fields__}
    for row, column in [("a", "b"), ("b", "a"), ("a", "c"), ("c", "c")]:
        expected = functions[type(measure)](layers[row], layers[column], **options)
        assert matrix[row, column] == pytest.approx(expected, abs=1e-13)
    assert np.isnan(matrix.values[2]).all()
    assert np.isnan(matrix.values[:, 2]).all()


def test_bad_form() -> None:
    x, y = pair(20, 3, 3)
    with pytest.raises(ValueError, match='form must be "angular", "normalized" or "size-and-shape", not \'chord\''):
        procrustes(x, y, form="chord")  # type: ignore[arg-type]


@pytest.mark.parametrize(("n", "p"), [(40_000, 12), (60, 20_000)])
def test_large_sides_are_reduced_through_the_small_one(n: int, p: int) -> None:
    """No n × n or p × p array: the peak stays within a few float64 copies of one representation."""
    x, _ = pair(n, p, 1)
    x = x.astype(np.float32)
    y = (x[:, : p // 2] + 1.0).copy()
    tracemalloc.start()
    try:
        assert 0.5 < nbs(x, y) < 1
        assert procrustes(x, y) > 0
        assert quiet(linear_regression, y, x) == pytest.approx(1.0, abs=1e-12)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5 * n * p * 8
