"""The fast routes of the CCA family: which one runs, and that each gives what QR and SVD give, on any input."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from simkit.arrays import as_matrix
from simkit.errors import DegenerateWarning
from simkit.metrics import basis, cholesky
from simkit.metrics.cca import R2CCA, MeanCCA, cca
from simkit.metrics.linear_regression import linear_regression
from simkit.metrics.nbs import nbs
from simkit.metrics.pwcca import pwcca
from simkit.metrics.svcca import SVCCA, svcca

N, P = 1500, 48
MEASURES: dict[str, Callable[[Any, Any], Any]] = {
    "correlations": lambda x, y: cca(x, y).correlations,
    "mean": lambda x, y: cca(x, y).mean,
    "r2": lambda x, y: cca(x, y).r2,
    "pwcca": pwcca,
    "svcca": svcca,
    "svcca, all variance": lambda x, y: svcca(x, y, variance=1.0),
    "nbs": nbs,
    "regression": linear_regression,
}


def conditioned(condition: float, seed: int, n: int = N, p: int = P) -> np.ndarray:
    """Features of a given condition that share directions between seeds."""
    shared = np.random.default_rng(99).standard_normal((n, p))
    r = np.random.default_rng(seed)
    q = np.linalg.qr(0.7 * shared + r.standard_normal((n, p)))[0]
    return q * np.geomspace(1, 1 / condition, p) @ np.linalg.qr(r.standard_normal((p, p)))[0]


def by_qr(function: Callable[[Any, Any], Any], x: Any, y: Any) -> Any:
    """What the Householder route gives."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cholesky, "FEWEST_FEATURES", 10**9)
        patch.setattr(basis, "_BY_GRAM", 10**9)
        return function(x, y)


def route(x: Any, y: Any) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateWarning)
        return cca(x, y).plan.steps[0].route


def agree(x: np.ndarray, y: np.ndarray, tolerance: float) -> None:
    for name, function in MEASURES.items():
        np.testing.assert_allclose(function(x, y), by_qr(function, x, y), rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("condition", [1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e12])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_every_condition_agrees_with_qr(condition: float, offset: float) -> None:
    """Each correlation moves by about eps times the condition, whichever route ran."""
    x, y = (conditioned(condition, seed) + offset * (condition < 1e4) for seed in (1, 2))
    ran = route(x, y)
    expected = "one Cholesky" if condition < 50 else "two Cholesky" if condition <= 1e8 else "QR and SVD"
    assert ran.startswith(expected) or condition == 1e2, ran
    agree(x, y, max(2e-12, 20 * 2.2e-16 * condition) if condition <= 1e8 else 1e-12)


def test_one_pass_at_large_sizes_keeps_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cholesky, "ONE_PASS_PRODUCTS", 0)
    x, y = conditioned(3e3, 1), conditioned(3e3, 2)
    assert route(x, y).startswith("one Cholesky")
    agree(x, y, 1e-9)
    for name in ("mean", "r2", "pwcca", "regression"):
        assert MEASURES[name](x, y) == pytest.approx(by_qr(MEASURES[name], x, y), abs=1e-10), name


def test_scaled_features_cost_no_condition() -> None:
    x, y = conditioned(5.0, 1) * np.geomspace(1, 1e-9, P), conditioned(5.0, 2) * np.geomspace(1e3, 1e-5, P)
    assert route(x, y).startswith("one Cholesky")
    agree(x, y, 1e-12)


def hazard(name: str) -> np.ndarray:
    x = conditioned(10.0, 1)
    r = np.random.default_rng(3)
    cases = {
        "duplicate": np.concatenate([x, x[:, 5:9]], axis=1),
        "constant": np.concatenate([x[:, :7], np.full((N, 1), 0.1), x[:, 7:]], axis=1),
        "dead": np.concatenate([x, np.zeros((N, 2))], axis=1),
        "dependent": np.concatenate([x, x @ r.standard_normal((P, 3))], axis=1),
        "nearly dependent": np.concatenate([x, x[:, :1] + 1e-13 * r.standard_normal((N, 1))], axis=1),
        "nearly dependent, but real": np.concatenate([x, x[:, :1] + 1e-6 * r.standard_normal((N, 1))], axis=1),
        "one rank": np.outer(r.standard_normal(N), r.standard_normal(P)),
        "one vanishing feature": np.concatenate([x, 1e-200 * r.standard_normal((N, 1))], axis=1),
        "huge": x * 1e250,
        "relu": np.maximum(x + 0.01, 0),
        "one row": np.concatenate([1e4 * x[:1], x[1:]]),
        "far": x / np.abs(x).max() + 1e12,
    }
    return cases[name]


@pytest.mark.parametrize(
    ("name", "fast"),
    [
        ("duplicate", False),
        ("constant", False),
        ("dead", False),
        ("dependent", False),
        ("nearly dependent", False),
        ("nearly dependent, but real", True),
        ("one rank", False),
        ("one vanishing feature", None),
        ("huge", True),
        ("relu", True),
        ("one row", True),
        ("far", None),
    ],
)
def test_hazards_agree_with_qr(name: str, fast: bool | None) -> None:
    x, y = hazard(name), conditioned(20.0, 2)
    assert fast is None or fast != route(x, y).startswith("QR and SVD"), route(x, y)
    agree(x, y, 1e-9 if name.startswith("nearly") else 1e-10)
    agree(y, x, 1e-9 if name.startswith("nearly") else 1e-10)


@pytest.mark.parametrize("exponent", [-510, -101, -100, -99, 99, 100, 101, 510])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_powers_of_two_change_nothing(exponent: int, offset: float) -> None:
    """Centred as they are within 2^100 of 1, scaled beyond."""
    x, y = conditioned(300.0, 1) + offset, conditioned(300.0, 2)
    scaled = np.ldexp(x, exponent)
    for name, function in MEASURES.items():
        want = function(x, y)
        for found in (function(scaled, y), function(scaled, np.ldexp(y, -exponent))):
            np.testing.assert_allclose(found, want, rtol=0, atol=2e-11, err_msg=name)


@pytest.mark.parametrize("exponent", [-510, -100, 0, 100, 510])
def test_means_of_columns_far_from_zero_are_taken_out(exponent: int) -> None:
    x = np.ldexp(np.random.default_rng(0).standard_normal((3000, 9)) + 1e12, exponent)
    z, _ = basis.centred_only(as_matrix(x))
    assert (np.abs(z.mean(axis=0)) <= 1e-14 * z.std(axis=0)).all()


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int8])
def test_noise_of_entries_depends_on_no_route(dtype: type) -> None:
    """The rows' squares come from the entries where they can, from the centred ones elsewhere."""
    r = np.random.default_rng(0)
    x = (r.standard_normal((400, 30)) * 20 + 7).astype(dtype)
    plain = basis.centred(as_matrix(x))
    with_constant = basis.centred(as_matrix(np.concatenate([x, np.full((400, 1), 5, dtype)], axis=1)))
    scaled = basis.centred(as_matrix(np.ldexp(x.astype(np.float64), 300)))
    assert with_constant.noise == pytest.approx(plain.noise, rel=1e-12)
    if dtype == np.float64:
        assert np.ldexp(scaled.noise, scaled.exponent - 300) == pytest.approx(plain.noise, rel=1e-12)


@pytest.mark.parametrize("smallest", [1e-2, 1e-4, 1e-5, 1e-6, 1e-7, 1e-9])
def test_float32_directions_near_its_noise_are_left_to_the_svd(smallest: float) -> None:
    """The rank rule of float32 input decides as it always did: the fast routes keep all directions or none."""
    r = np.random.default_rng(0)
    z = r.standard_normal((N, P)) * np.geomspace(1, smallest, P) @ np.linalg.qr(r.standard_normal((P, P)))[0]
    x, y = z.astype(np.float32), conditioned(20.0, 2)
    assert smallest in (1e-5, 1e-6) or (smallest >= 1e-4) != route(x, y).startswith("QR and SVD")
    assert len(cca(x, y).correlations) == len(by_qr(MEASURES["correlations"], x, y))
    agree(x, y, 1e-9)


def test_shapes_where_gram_matrices_do_not_pay() -> None:
    for n, p in [(90, 48), (1500, 20), (100, 33)]:
        x, y = conditioned(5.0, 1, n, p), conditioned(5.0, 2, n, p)
        assert route(x, y) == "QR and SVD, then SVD"
        assert "small or wide" in cca(x, y).plan.explain()


def test_plan_says_what_ran_and_why() -> None:
    x, y = conditioned(10.0, 1), conditioned(1e6, 2)
    plan = cca(x, y).plan
    assert plan.steps[0].route == "one Cholesky pass for x, two Cholesky passes for y, then SVD"
    assert "x: condition about 1e+01, orthonormal to" in plan.explain()
    assert "y: condition about" in plan.explain()
    assert "x keeps 48 of 48 directions, y 48 of 48" in plan.explain()


@pytest.mark.parametrize("measure", [MeanCCA(), R2CCA(), SVCCA(0.9)])
def test_self_similarity_is_one_by_every_route(measure: Any) -> None:
    for condition in (10.0, 1e6, 1e12):
        x = measure.prepare(as_matrix(conditioned(condition, 1)))
        assert measure.score(x, x) == pytest.approx(1.0, abs=1e-12)


def test_bases_are_orthonormal_and_span_the_features() -> None:
    for condition in (10.0, 1e4, 1e7):
        z = conditioned(condition, 1)
        z -= z.mean(axis=0)
        found = cholesky.whiten(z, 1e-16)
        assert isinstance(found, cholesky.Whitened)
        q = found.vectors @ found.mixing
        assert np.abs(q.T @ q - np.eye(P)).max() < 3e-13
        np.testing.assert_allclose(q @ found.loadings, z, rtol=0, atol=1e-15 * condition)


def test_svcca_cut_at_a_tie_is_left_to_the_svd() -> None:
    """64 equal shares: whether 48 of them are 75% is for rounding to say, and the SVD's rounding says it."""
    r = np.random.default_rng(0)
    z = r.standard_normal((1024, 64))
    x = np.linalg.qr(z - z.mean(axis=0))[0]
    y = conditioned(3.0, 2, 1024, 64)
    matrix = SVCCA(0.75).prepare(as_matrix(x))
    assert matrix.route == "QR and SVD"
    assert svcca(x, y, variance=0.75) == pytest.approx(by_qr(lambda a, b: svcca(a, b, variance=0.75), x, y), abs=1e-13)


@pytest.mark.parametrize("variance", [0.3, 0.8, 0.99, 0.999999])
@pytest.mark.parametrize("condition", [30.0, 1e6, 1e14])
def test_svcca_by_eigenvectors_at_any_condition(variance: float, condition: float) -> None:
    x, y = conditioned(condition, 1), conditioned(condition, 2)
    prepared = SVCCA(variance).prepare(as_matrix(x))
    assert prepared.route == "eigenvectors of the Gram matrix" or variance > 0.99
    value = svcca(x, y, variance=variance)
    assert value == pytest.approx(by_qr(lambda a, b: svcca(a, b, variance=variance), x, y), abs=1e-10)


@pytest.mark.parametrize("shape", [(130, 130), (300, 129), (129, 300)])
@pytest.mark.parametrize("condition", [1.0, 1e3, 1e5, 1e9, np.inf])
def test_singular_values_by_gram_matrices(shape: tuple[int, int], condition: float) -> None:
    r = np.random.default_rng(0)
    k = min(shape)
    u, v = (np.linalg.qr(r.standard_normal((m, k)))[0] for m in shape)
    s = np.ones(k) if condition == 1.0 else np.geomspace(1, 1 / condition if condition < np.inf else 0.5, k)
    if condition == np.inf:
        s[k // 2 :] = 0.0
    a = u * s @ v.T
    np.testing.assert_allclose(basis.singular_values(a), s, rtol=0, atol=1e-12)
    assert basis.nuclear_norm(a) == pytest.approx(s.sum(), rel=1e-12 if condition != 1e3 else 1e-11)


@pytest.mark.parametrize("offset", [0.0, 0.8, 1.2, 1e3, 1e9])
@pytest.mark.parametrize("layout", ["C", "F", "strided"])
def test_nbs_of_large_features_as_they_lie(offset: float, layout: str) -> None:
    """Means are taken out of the product where that loses nothing, and out of the features elsewhere."""
    n, p = 2**14, 64
    r = np.random.default_rng(0)
    x, y = (r.standard_normal((n, p)) @ r.standard_normal((p, p)) / 8 + r.standard_normal((n, 1)) for _ in range(2))
    xc, yc = (z - z.mean(axis=0) for z in (x, y))
    expected = np.linalg.norm(xc.T @ yc, "nuc") / np.linalg.norm(xc) / np.linalg.norm(yc)
    x = x + offset
    if layout == "strided":
        x = np.repeat(x, 2, axis=0)[::2]
    x = np.asfortranarray(x) if layout == "F" else x
    before = x.copy()
    assert nbs(x, y) == pytest.approx(expected, abs=max(1e-13, 1e-15 * offset))
    assert nbs(y, x) == pytest.approx(expected, abs=max(1e-13, 1e-15 * offset))
    assert nbs(x, y + 3.0) == pytest.approx(expected, abs=max(1e-13, 1e-15 * offset))
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("condition", [30.0, 1e3, 1e6, 1e10])
@pytest.mark.parametrize(("offset", "layout"), [(0.0, "C"), (0.5, "C"), (0.5, "F"), (0.5, "strided"), (30.0, "C")])
def test_bases_of_large_features_as_they_lie(
    monkeypatch: pytest.MonkeyPatch, condition: float, offset: float, layout: str
) -> None:
    """Near their mean they are not copied for one pass, are left as they are, and give what centred ones give."""
    monkeypatch.setattr(basis, "_LARGE", 2**16)
    x, y = (conditioned(c, seed) for seed, c in ((1, condition), (2, 30.0)))
    x, y = (z - z.mean(axis=0) + offset * z.std(axis=0) for z in (x, y))
    if layout == "strided":
        x = np.repeat(x, 2, axis=0)[::2]
    x = np.asfortranarray(x) if layout == "F" else x
    before = x.copy()
    tolerance = max(1e-11, 20 * 2.2e-16 * condition)
    for name in ("correlations", "mean", "r2", "pwcca"):
        for pair in ((x, y), (y, x), (x, y + 3.0), (x, x)):
            found, expected = MEASURES[name](*pair), by_qr(MEASURES[name], *pair)
            np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance, err_msg=name)
    np.testing.assert_array_equal(x, before)
    found_basis = basis.basis_of(as_matrix(x))
    shared = np.shares_memory(found_basis.vectors, x)
    assert shared == (found_basis.mean is not None)
    if found_basis.route == "one Cholesky pass":
        assert shared == (layout != "strided" and offset < 1)
    assert not shared or condition < 1e4


@pytest.mark.parametrize("weakest", [1e-8, 1e-11])  # two Cholesky passes; QR
@pytest.mark.parametrize("name", ["correlations", "mean", "r2", "pwcca", "svcca, all variance"])
def test_a_mean_that_is_kept_does_not_meet_the_rounding_of_a_weak_basis(
    monkeypatch: pytest.MonkeyPatch, name: str, weakest: float
) -> None:
    """The columns of Q sum to zero only to eps times its condition, and a mean of x would bring that in at first order.

    What x is shifted by changes no digit, whether it lies near its mean or is centred first.
    """
    monkeypatch.setattr(basis, "_LARGE", 2**16)
    n, p, q = 4096, 256, 96
    r = np.random.default_rng(0)
    shared = r.standard_normal((n, 1))
    x = shared + 2.5e-3 * r.standard_normal((n, p))
    x -= x.mean(axis=0)
    mean = np.where(np.arange(p) % 2, 0.9, -0.9) * x.std(axis=0)
    weak = np.linalg.qr(r.standard_normal((n, q)) + 0.3 * shared)[0] * np.geomspace(1, weakest, q)
    y = weak @ np.linalg.qr(r.standard_normal((q, q)))[0]
    monkeypatch.setattr(cholesky, "ONE_PASS_PRODUCTS", 0)
    assert basis.basis_of(as_matrix(x + mean)).mean is not None
    assert basis.basis_of(as_matrix(x + 1.5 * mean)).mean is None
    expected = "two Cholesky passes" if weakest == 1e-8 else "QR and SVD"
    assert basis.basis_of(as_matrix(y)).route == expected
    for pair in ((x + mean, y), (y, x + mean)):
        far = tuple(z if z is y else x + 1.5 * mean for z in pair)
        np.testing.assert_allclose(MEASURES[name](*pair), MEASURES[name](*far), rtol=0, atol=1e-9)


@pytest.mark.parametrize("condition", [30.0, 1e5, 3e7, 1e10])
def test_sampled_rows_for_the_first_pass(condition: float) -> None:
    """Long features: the first factor comes from some rows; outlying rows that it misses cost a pass, no digits."""
    n, p = 2**13, 40
    x, y = conditioned(condition, 1, n, p), conditioned(30.0, 2, n, p)
    assert cholesky._sample(n, p) is not None
    agree(x, y, max(1e-11, 20 * 2.2e-16 * condition))
    outlying = x.copy()
    outlying[[17, 4000]] *= 1e5
    agree(outlying, y, max(1e-10, 20 * 2.2e-16 * condition * 1e2))
    repeated = np.concatenate([x, x[:, :2]], axis=1)
    assert route(repeated, y).startswith("QR and SVD")
    agree(repeated, y, max(1e-11, 20 * 2.2e-16 * condition))


def test_a_direction_that_only_rows_outside_the_sample_have() -> None:
    n, p = 2**13, 40
    x, y = conditioned(30.0, 1, n, p), conditioned(30.0, 2, n, p)
    outside = np.setdiff1d(np.arange(n), cholesky._sample(n, p + 1))
    lone = np.zeros((n, 1))
    lone[outside[:5]] = 1.0
    x = np.concatenate([x, lone], axis=1)
    assert not route(x, y).startswith("QR and SVD")
    agree(x, y, 1e-11)
