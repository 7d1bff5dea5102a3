"""The yardsticks themselves: the comparison fails when it must, and the oracles agree with definitions spelled out."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import get_args

import numpy as np
import oracles
import pytest
from tolerance import EPS, TABLE, Op, assert_close, tolerance, worst_error

DEMANDS = {
    ("cka", "float32"): 1e-6,
    ("cka", "float64"): 1e-10,
    ("greedy", "float64"): 1e-9,
    ("stream", "float32"): 1e-9,
}


@pytest.mark.parametrize("op", get_args(Op))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_entry_is_positive_and_within_its_demand(op: Op, dtype: str) -> None:
    for n in (4, 63, 64, 4000, 10**6):
        for p in (1, 512, 20_000):
            assert 0 < tolerance(op, dtype, n, p) <= TABLE[op, dtype].demand


@pytest.mark.parametrize(("key", "demand"), DEMANDS.items())
def test_demands_are_the_promised_ones(key: tuple[Op, str], demand: float) -> None:
    assert TABLE[key].demand <= demand


def test_longer_sums_may_err_more() -> None:
    assert tolerance("cka", "float64", 100, 1) < tolerance("cka", "float64", 100, 400)
    assert tolerance("products", "float64", 100, 1) < tolerance("products", "float64", 10_000, 1)


def test_half_types_are_judged_as_float32() -> None:
    for half in ("float16", "bfloat16", np.float16):
        assert tolerance("cka", half, 10, 10) == tolerance("cka", np.float32, 10, 10) == 8 * EPS["float32"]


def test_unknown_operations_and_types_have_no_tolerance() -> None:
    with pytest.raises(KeyError):
        tolerance("guess", "float64", 1, 1)  # type: ignore[arg-type]
    with pytest.raises(KeyError):
        tolerance("cka", "int64", 1, 1)


def test_the_comparison_passes_below_and_fails_above() -> None:
    allowed = tolerance("cka", "float32", 64, 8)
    reference = np.array([0.25, -0.5])
    assert assert_close(reference + 0.9 * allowed, reference, "cka", "float32", 64, 8) == pytest.approx(0.9 * allowed)
    with pytest.raises(AssertionError, match=r"cka, float32, n=64, p=8: off by 1\.05e-06, allowed 9\.54e-07"):
        assert_close(reference + np.array([0, 1.1 * allowed]), reference, "cka", "float32", 64, 8)
    with pytest.raises(AssertionError, match="off by"):
        assert_close(reference - np.array([1.1 * allowed, 0]), reference, "cka", "float32", 64, 8)


@pytest.mark.parametrize(
    ("actual", "reference"),
    [
        (math.nan, 1.0),
        (1.0, math.nan),
        (math.inf, math.inf),
        (math.inf, 1.0),
        ([1.0, 1.0], [1.0]),
        ([[1.0]], [1.0]),
        ([1.0, math.nan], [math.nan, 1.0]),
    ],
)
def test_what_is_not_comparable_fails(actual: object, reference: object) -> None:
    assert worst_error(actual, reference) == math.inf  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="off by inf"):
        assert_close(actual, reference, "cka", "float32", 4, 1)  # type: ignore[arg-type]


def test_nan_meets_nan_and_scale_divides() -> None:
    assert worst_error([math.nan, 2.0], [math.nan, 2.5], scale=[1.0, 5.0]) == pytest.approx(0.1)


def _exact_hsic(x: list[list[int]], y: list[list[int]], estimator: str) -> Fraction:
    """HSIC in rational arithmetic, from Gram matrices of raw integers."""
    n = len(x)
    k = [[Fraction(sum(a * b for a, b in zip(u, v, strict=True))) for v in x] for u in x]
    m = [[Fraction(sum(a * b for a, b in zip(u, v, strict=True))) for v in y] for u in y]
    places = range(n)
    if estimator == "biased":
        h = [[Fraction(int(i == j)) - Fraction(1, n) for j in places] for i in places]

        def times(a: list[list[Fraction]], b: list[list[Fraction]]) -> list[list[Fraction]]:
            return [[sum((a[i][q] * b[q][j] for q in places), Fraction()) for j in places] for i in places]

        product = times(times(k, h), times(m, h))
        return sum((product[i][i] for i in places), Fraction()) / (n - 1) ** 2
    for i in places:
        k[i][i] = m[i][i] = Fraction(0)
    trace = sum((k[i][j] * m[j][i] for i in places for j in places), Fraction())
    rows_k, rows_m = [sum(row) for row in k], [sum(row) for row in m]
    both = sum(rows_k) * sum(rows_m) / ((n - 1) * (n - 2))
    mixed = Fraction(2, n - 2) * sum(a * b for a, b in zip(rows_k, rows_m, strict=True))
    return (trace + both - mixed) / (n * (n - 3))


@pytest.mark.parametrize("estimator", ["biased", "debiased"])
@pytest.mark.parametrize("n", [4, 5, 9])
def test_the_oracle_is_exact_arithmetic(estimator: str, n: int) -> None:
    rng = np.random.default_rng(n)
    x, y = rng.integers(-9, 10, (n, 3)), rng.integers(-9, 10, (n, 2))
    exact = {
        (a, b): float(_exact_hsic(u.tolist(), v.tolist(), estimator))
        for a, u in (("x", x), ("y", y))
        for b, v in (("x", x), ("y", y))
    }
    scale = math.sqrt(exact["x", "x"] * exact["y", "y"])
    for offset in (0, 10**6):
        got = oracles.hsic(x + offset, y - offset, estimator=estimator)
        assert got == pytest.approx(exact["x", "y"], abs=1e-13 * scale)
        assert oracles.cka(x + offset, y, estimator=estimator) == pytest.approx(exact["x", "y"] / scale, abs=1e-13)


def test_the_oracle_is_songs_formula_as_printed() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((30, 7)), rng.standard_normal((30, 40))
    assert oracles.hsic(x, y, estimator="debiased") == pytest.approx(oracles.debiased_sum(x, y), rel=1e-12)


def test_the_oracles_kernels_are_their_formulas() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((9, 4))
    d2 = np.array([[((a - b) ** 2).sum() for b in x] for a in x])
    m = float(np.median(d2))
    assert np.allclose(oracles.rbf(0.5)(x), np.exp(-d2 / (2 * 0.25 * m)), rtol=1e-13)
    assert np.allclose(oracles.laplacian(0.3)(x), np.exp(-np.sqrt(d2) / (0.3 * math.sqrt(m))), rtol=1e-13)
    polynomial = oracles.double_centred((x @ x.T / 4 + 1) ** 3)
    assert np.allclose(oracles.polynomial(3, None, 1.0)(x), polynomial, rtol=1e-12)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    assert np.allclose(oracles.double_centred(unit @ unit.T), oracles.cosine(x), rtol=1e-12)


@pytest.mark.parametrize("estimator", ["biased", "debiased"])
def test_the_greedy_oracle_evaluates_cka_of_kept_columns(estimator: str) -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((20, 5))
    units = [np.array([0, 3]), np.array([1]), np.array([2, 4])]
    found = oracles.greedy_by_evaluation(x, units, estimator=estimator)
    kept = [0, 1, 2]
    for pick, value, scores in zip(found.order[:-1], found.cka[:-1], found.scores[:-1], strict=True):
        for k, score in scores.items():
            rest = np.concatenate([units[i] for i in kept if i != k])
            assert score == pytest.approx(oracles.cka(x, x[:, rest], estimator=estimator), abs=1e-12)
        assert value == scores[pick] == max(scores.values())
        kept.remove(pick)
    assert math.isnan(found.cka[-1])


def test_the_battery_has_its_known_values() -> None:
    for case in oracles.hazard_battery():
        for estimator, known in (("debiased", case.debiased), ("biased", case.biased)):
            if known is not None:
                assert round(oracles.cka(case.x, case.y, estimator=estimator), 6) == known, case.name
