"""cca, svcca and pwcca against their definitions, golden values, invariances and constructed truths."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from simkit.arrays import as_matrix
from simkit.compare.matrix import similarity_matrix
from simkit.errors import DegenerateWarning
from simkit.metrics.basis import centred, left_singular, rank_of
from simkit.metrics.cca import R2CCA, MeanCCA, cca
from simkit.metrics.cka import cka
from simkit.metrics.pwcca import PWCCA, pwcca
from simkit.metrics.svcca import SVCCA, svcca

FUNCTIONS: dict[str, Callable[..., float]] = {
    "mean": lambda x, y: cca(x, y).mean,
    "r2": lambda x, y: cca(x, y).r2,
    "svcca": svcca,
    "pwcca": pwcca,
}


def golden() -> tuple[np.ndarray, np.ndarray]:
    r = np.random.RandomState(1337)
    x = r.randn(100, 10)
    return x, r.randn(100, 10) + x


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


def invertible(p: int, seed: int = 0) -> np.ndarray:
    r = np.random.default_rng(seed)
    a, b = (np.linalg.qr(r.standard_normal((p, p)))[0] for _ in range(2))
    return (a * np.geomspace(1.0, 50.0, p)) @ b


def brute_correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Canonical correlations as square roots of the eigenvalues of Sxy Syy⁻¹ Syx against Sxx (full-rank input)."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    sxy = x.T @ y
    values = scipy.linalg.eigh(sxy @ np.linalg.solve(y.T @ y, sxy.T), x.T @ x, eigvals_only=True)[::-1]
    return np.sqrt(np.maximum(values[: min(x.shape[1], y.shape[1])], 0.0))


def brute_pwcca(x: np.ndarray, y: np.ndarray) -> float:
    """Morcos 2018 through whitening matrices; the weights come from x."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)

    def whitening(z: np.ndarray) -> np.ndarray:
        values, vectors = np.linalg.eigh(z.T @ z)
        return (vectors / np.sqrt(values)) @ vectors.T

    wx, wy = whitening(x), whitening(y)
    a, rho, _ = np.linalg.svd(wx @ x.T @ y @ wy, full_matrices=False)
    variates = x @ wx @ a
    alpha = np.abs(variates.T @ x).sum(axis=1)
    return float((alpha * rho).sum() / alpha.sum())


def brute_truncation(x: np.ndarray, variance: float) -> np.ndarray:
    u, s, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    k, seen = 0, 0.0
    while seen < variance * (s**2).sum():
        seen += s[k] ** 2
        k += 1
    return u[:, :k] * s[:k]


def test_golden_values() -> None:
    x, y = golden()
    result = cca(x, y)
    assert f"{result.mean:.5f}" == "0.73101"
    assert f"{result.r2:.5f}" == "0.54540"
    assert f"{pwcca(x, y):.5f}" == "0.73467"


@pytest.mark.parametrize(("n", "p", "q"), [(30, 4, 7), (30, 7, 4), (64, 1, 5), (64, 1, 1), (200, 20, 20), (13, 6, 6)])
def test_equal_to_the_eigenproblem(n: int, p: int, q: int) -> None:
    x, y = pair(n, p, q)
    expected = brute_correlations(x, y)
    result = cca(x + 7.0, y - 3.0)
    assert result.correlations.shape == (min(p, q),)
    assert (np.diff(result.correlations) <= 0).all()
    np.testing.assert_allclose(result.correlations, expected, rtol=0, atol=1e-10)
    assert result.mean == pytest.approx(expected.mean(), abs=1e-10)
    assert result.r2 == pytest.approx((expected**2).mean(), abs=1e-10)


@pytest.mark.parametrize("variance", [0.5, 0.9, 0.99, 0.999])
@pytest.mark.parametrize(("p", "q"), [(12, 20), (20, 12), (1, 9)])
def test_svcca_is_cca_of_the_truncated_data(variance: float, p: int, q: int) -> None:
    x, y = pair(80, p, q)
    x, y = x * np.geomspace(1, 30, p), y * np.geomspace(1, 30, q)
    expected = brute_correlations(brute_truncation(x, variance), brute_truncation(y, variance)).mean()
    assert svcca(x, y, variance=variance) == pytest.approx(expected, abs=1e-10)


def test_svcca_with_all_variance_is_mean_cca() -> None:
    x, y = pair(50, 8, 11)
    x[:, 3] = 2 * x[:, 1] - x[:, 0]
    assert svcca(x, y, variance=1.0) == cca(x, y).mean
    x32 = x.astype(np.float32)
    assert svcca(x32, y, variance=1) == cca(x32, y).mean


def test_svcca_keeps_the_smallest_number_of_directions() -> None:
    q = orthonormal(40, 4)
    x = q * np.sqrt([0.6, 0.3, 0.0901, 0.0099])  # cumulative shares 0.6, 0.9, 0.9901, 1
    prepared = [SVCCA(variance).prepare(as_matrix(x)).rank for variance in (0.59, 0.61, 0.9001, 0.99, 0.991)]
    assert prepared == [1, 2, 3, 3, 4]
    assert SVCCA(0.99).prepare(as_matrix(x * 1e-3)).rank == 3, "shares, not absolute variance"


@pytest.mark.parametrize(("p", "q"), [(5, 8), (8, 5), (6, 6), (1, 4)])
def test_pwcca_equal_to_whitening(p: int, q: int) -> None:
    x, y = pair(60, p, q)
    from_x, from_y = brute_pwcca(x, y), brute_pwcca(y, x)
    assert pwcca(x, y, weights="x") == pytest.approx(from_x, abs=1e-10)
    assert pwcca(x, y, weights="y") == pytest.approx(from_y, abs=1e-10)
    assert pwcca(x, y) == pytest.approx(from_x if p <= q else from_y, abs=1e-10)
    assert pwcca(x, y, weights="x") == pytest.approx(pwcca(y, x, weights="y"), abs=1e-13)


def test_pwcca_is_shift_invariant_and_weighs_by_features() -> None:
    x, y = pair(90, 6, 9)
    value = pwcca(x, y, weights="x")
    assert pwcca(x + 1e4, y - 50.0, weights="x") == pytest.approx(value, abs=1e-10)
    assert pwcca(x, y @ invertible(9), weights="x") == pytest.approx(value, abs=1e-12)
    assert pwcca(x * 1e-20, y * 1e6, weights="x") == pytest.approx(value, abs=1e-12)
    assert abs(pwcca(x * np.geomspace(1, 100, 6), y, weights="x") - value) > 1e-3, "weights follow the features' scale"


def test_mean_cca_is_invariant_to_any_invertible_map() -> None:
    x, y = pair(150, 9, 14)
    moved = cca(x @ invertible(9) + 3.0, y @ invertible(14, 1) - 8.0)
    np.testing.assert_allclose(moved.correlations, cca(x, y).correlations, rtol=0, atol=1e-12)


def test_svcca_is_invariant_to_orthogonal_maps_only() -> None:
    x, y = pair(150, 9, 14)
    rotation = np.linalg.qr(invertible(9))[0]
    value = svcca(x, y, variance=0.8)
    assert svcca(-7.0 * x @ rotation + 2.0, y, variance=0.8) == pytest.approx(value, abs=1e-12)
    assert abs(svcca(x @ invertible(9), y, variance=0.8) - value) > 1e-3


def test_r2_is_biased_linear_cka_of_the_orthonormal_bases() -> None:
    x, y = pair(70, 5, 12)
    a, b = (centred(as_matrix(z)) for z in (x, y))
    (u, s), (v, t) = (left_singular(c.z) for c in (a, b))
    assert rank_of(s, as_matrix(x), a.noise) == 5
    assert rank_of(t, as_matrix(y), b.noise) == 12
    assert cca(x, y).r2 == pytest.approx(cka(u, v, estimator="biased") * np.sqrt(5 * 12) / 5, abs=1e-12)


def quiet(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateWarning)
        return function(*args, **options)


def plain_basis(x: np.ndarray) -> np.ndarray:
    z = x - x.mean(axis=0)
    u, s, _ = np.linalg.svd(z, full_matrices=False)
    keep = min(int((s > max(z.shape) * np.finfo(float).eps * s[0]).sum()), len(z) - 1)
    return u[:, :keep]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    n=st.integers(2, 40),
    p=st.integers(1, 60),
    q=st.integers(1, 60),
    repeats=st.integers(0, 3),
    seed=st.integers(0, 10**6),
)
def test_any_shape_against_a_plain_svd(n: int, p: int, q: int, repeats: int, seed: int) -> None:
    x, y = pair(n, p, q, seed)
    x = np.concatenate([x, x[:, :repeats]], axis=1)
    expected = np.linalg.svd(plain_basis(x).T @ plain_basis(y), compute_uv=False)
    result = quiet(cca, x, y)
    assert len(result.correlations) == len(expected)
    np.testing.assert_allclose(result.correlations, expected, rtol=0, atol=1e-9)
    for name, function in FUNCTIONS.items():
        value = quiet(function, x, y)
        assert -1e-12 < value < 1 + 1e-12, name
        if name != "pwcca":
            assert quiet(function, y, x) == pytest.approx(value, abs=1e-12), name
        assert quiet(function, x, x) == pytest.approx(1.0, abs=1e-12), name


def test_single_features_give_the_absolute_pearson_correlation() -> None:
    x, y = pair(33, 1, 1)
    expected = abs(np.corrcoef(x[:, 0], y[:, 0])[0, 1])
    for name, function in FUNCTIONS.items():
        assert function(x, y) == pytest.approx(expected**2 if name == "r2" else expected, abs=1e-14), name


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_constant_and_repeated_columns_change_nothing(dtype: type) -> None:
    x, y = (z.astype(dtype) for z in pair(40, 6, 9))
    expected = cca(x, y).correlations
    for offset in (0.0, 0.1, 1e10):
        constant = np.full((40, 1), offset, dtype)
        wider = np.concatenate([x[:, :2], constant, x[:, 2:], x[:, 3:5]], axis=1)
        np.testing.assert_allclose(cca(wider, y).correlations, expected, rtol=0, atol=1e-12)
        assert svcca(np.concatenate([x, constant], axis=1), y) == pytest.approx(svcca(x, y), abs=1e-12)
        assert pwcca(np.concatenate([x, constant], axis=1), y) == pytest.approx(pwcca(x, y), abs=1e-12)


def test_rank_deficient_wide_input_keeps_its_rank() -> None:
    x, y = pair(50, 6, 4)
    wide = x @ np.random.default_rng(3).standard_normal((6, 300))
    result = cca(wide, y)
    np.testing.assert_allclose(result.correlations, cca(x, y).correlations, rtol=0, atol=1e-12)
    assert "x keeps 6 of 50 directions, y 4 of 4" in result.plan.explain()
    assert result.backend == "numpy"


def test_pwcca_of_wide_input_of_low_rank_weighs_its_own_features() -> None:
    x, y = pair(50, 6, 400)
    wide = y[:, :5] @ np.random.default_rng(4).standard_normal((5, 400))
    u, s, vt = np.linalg.svd(wide - wide.mean(axis=0), full_matrices=False)
    a, rho, _ = np.linalg.svd(u[:, :5].T @ plain_basis(x), full_matrices=False)
    alpha = np.abs(a.T @ (s[:5, None] * vt[:5])).sum(axis=1)
    assert pwcca(wide, x, weights="x") == pytest.approx(float(alpha @ rho / alpha.sum()), abs=1e-11)


def test_centred_data_never_keep_n_directions() -> None:
    assert rank_of(np.ones(3), as_matrix(np.eye(3)), 0.0) == 2
    assert rank_of(np.array([1.0, 1e-20]), as_matrix(np.eye(4)[:, :2]), 0.0) == 1


@pytest.mark.parametrize("shape", ["tall", "wide"])
def test_known_correlations_of_ill_conditioned_data(shape: str) -> None:
    """ρ is set by construction: Y's basis is cos·Qx + sin·Q⊥. Mixing at condition c costs c·eps in each correlation.

    Scaling single columns costs nothing, because Householder QR is stable column by column.
    """
    n, k = 400, 8
    q = orthonormal(n, 2 * k)
    rho = np.linspace(1.0, 0.2, k)
    bx, by = q[:, :k], q[:, :k] * rho + q[:, k:] * np.sqrt(1 - rho**2)
    scales = np.geomspace(1.0, 1e-8, k)
    np.testing.assert_allclose(cca(bx * scales, by * scales[::-1]).correlations, rho, rtol=0, atol=1e-13)
    r = np.random.default_rng(5)
    width = k if shape == "tall" else 1000
    mixings = [
        np.linalg.qr(r.standard_normal((k, k)))[0] * scales @ np.linalg.qr(r.standard_normal((width, k)))[0].T
        for _ in range(2)
    ]
    result = cca(bx @ mixings[0], by @ mixings[1]).correlations
    np.testing.assert_allclose(result, rho, rtol=0, atol=1e8 * 2.2e-16 * 5)
    assert pwcca(bx * scales, by) == pytest.approx((rho * scales).sum() / scales.sum(), abs=1e-13)


@pytest.mark.parametrize(("n", "p", "q"), [(10, 9, 2), (10, 2, 9), (10, 10, 10), (10, 500, 3), (2, 1, 1), (2, 3, 2)])
def test_a_side_that_spans_the_samples_warns_once(n: int, p: int, q: int) -> None:
    x, y = pair(n, p, q)
    names = {(True, True): "x and y have", (True, False): "x has", (False, True): "y has"}[p >= n - 1, q >= n - 1]
    for name, function in FUNCTIONS.items():
        with pytest.warns(DegenerateWarning, match=f"{names} rank {n - 1} on {n} samples") as caught:
            value = function(x, y) if name != "svcca" else svcca(x, y, variance=1.0)
        assert len(caught) == 1
        assert caught[0].filename == __file__, "the caller is blamed"
        assert value == pytest.approx(1.0, abs=1e-13)


def test_no_warning_one_direction_short_of_the_samples() -> None:
    x, y = pair(10, 8, 3)
    assert cca(x, y).mean < 1.0


@pytest.mark.parametrize("measure", [MeanCCA(), R2CCA(), SVCCA(), SVCCA(variance=0.8), PWCCA(), PWCCA(weights="y")])
def test_measure_objects_in_a_matrix(measure: Any) -> None:
    x, y = pair(60, 7, 5)
    layers = {"a": x, "b": y, "dead": np.zeros((60, 4)), "c": x[:, :3].astype(np.float32)}
    matrix = similarity_matrix(layers, measure=measure)
    assert matrix.degenerate == {
        (side, "dead"): "every feature is constant over the samples" for side in ("row", "column")
    }
    functions = {MeanCCA: FUNCTIONS["mean"], R2CCA: FUNCTIONS["r2"], SVCCA: svcca, PWCCA: pwcca}
    options = {k: getattr(measure, k) for k in measure.__dataclass_fields__}
    for row, column in [("a", "b"), ("b", "a"), ("a", "c"), ("c", "c")]:
        expected = functions[type(measure)](layers[row], layers[column], **options)
        assert matrix[row, column] == pytest.approx(expected, abs=1e-13)
    assert np.isnan(matrix["dead", "a"])
    assert np.isnan(matrix["a", "dead"])


def test_a_matrix_warns_once_per_spanning_layer_and_names_it() -> None:
    x, y = pair(12, 40, 3)
    with pytest.warns(DegenerateWarning) as caught:
        similarity_matrix({"wide": x, "narrow": y}, measure=MeanCCA())
    assert [str(w.message).split(" on ")[0] for w in caught] == ["wide has rank 11"]


@pytest.mark.parametrize("variance", [0.0, -1.0, 1.01, float("nan"), 99])
def test_bad_variance(variance: float) -> None:
    x, y = pair(20, 3, 3)
    with pytest.raises(ValueError, match=rf"variance must lie in \(0, 1\], not {variance}"):
        svcca(x, y, variance=variance)


@pytest.mark.parametrize("variance", ["0.9", True, None, [0.9], 1j, np.array([0.5]), np.bool_(True)])
def test_a_variance_that_is_no_number(variance: Any) -> None:
    x, y = pair(20, 3, 3)
    sentence = re.escape(f"variance must be a number in (0, 1], not {variance!r}")
    with pytest.raises(TypeError, match=f"^{sentence}$"):
        svcca(x, y, variance=variance)
    with pytest.raises(TypeError, match=f"^{sentence}$"):
        SVCCA(variance)


@pytest.mark.parametrize("variance", [1, np.float32(0.5), np.int64(1), Fraction(1, 2)])
def test_a_variance_of_any_real_type(variance: Any) -> None:
    x, y = pair(20, 3, 3)
    assert svcca(x, y, variance=variance) == svcca(x, y, variance=float(variance))


def test_bad_weights() -> None:
    x, y = pair(20, 3, 3)
    with pytest.raises(ValueError, match='weights must be "smaller", "x" or "y", not \'larger\''):
        pwcca(x, y, weights="larger")  # type: ignore[arg-type]


def test_divide_and_conquer_that_does_not_converge_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = pair(30, 4, 6)
    expected = {name: function(x, y) for name, function in FUNCTIONS.items()}
    svd = scipy.linalg.svd

    def stubborn(a: np.ndarray, **options: Any) -> Any:
        if options.get("lapack_driver", "gesdd") == "gesdd":
            raise np.linalg.LinAlgError("SVD did not converge")
        return svd(a, **options)

    def fails(a: np.ndarray, **options: Any) -> Any:
        raise np.linalg.LinAlgError("SVD did not converge")

    monkeypatch.setattr(scipy.linalg, "svd", stubborn)
    monkeypatch.setattr(scipy.linalg, "svdvals", fails)
    for name, function in FUNCTIONS.items():
        assert function(x, y) == pytest.approx(expected[name], abs=1e-13)
