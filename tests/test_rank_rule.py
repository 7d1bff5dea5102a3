"""Which directions the CCA family keeps: all that are real, none that rounding makes of dependent columns."""

from __future__ import annotations

import numpy as np
import pytest

from simkit.metrics.cca import cca


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_real_directions_of_long_data_are_kept(dtype: type) -> None:
    """Directions down to 1e-3 of the first (1e-2 in float16), on so many samples that n · eps(float32) is 0.007."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((60_000, 8)) * np.logspace(0, -3 if dtype == np.float32 else -2, 8)
    z = z @ np.linalg.qr(rng.standard_normal((8, 8)))[0]
    x = z.astype(dtype)
    y = (z @ (np.eye(8) + np.triu(rng.standard_normal((8, 8)), 1))).astype(np.float32)
    assert len(cca(x, y).correlations) == 8
    assert cca(x, y).mean == pytest.approx(1, abs=1e-5 if dtype == np.float32 else 2e-2)


@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("p", [3, 8, 40])
def test_dependent_columns_of_long_float64_data_are_not_kept(p: int, offset: float) -> None:
    """One repeated column, one sum of the others, or half the rank."""
    rng = np.random.default_rng(p)
    x = rng.standard_normal((60_000, p)) + offset
    repeated, summed = x.copy(), x.copy()
    repeated[:, -1], summed[:, -1] = x[:, 0], x[:, :-1].sum(axis=1)
    half = rng.standard_normal((60_000, p // 2 + 1)) @ rng.standard_normal((p // 2 + 1, p)) + offset
    y = rng.standard_normal((60_000, 50))
    ranks = [len(cca(side, y).correlations) for side in (x, repeated, summed, half)]
    assert ranks == [p, p - 1, p - 1, p // 2 + 1]


@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.float32])
@pytest.mark.parametrize("n", [1000, 100_000])
def test_dependent_columns_of_few_values_are_not_kept(n: int, dtype: type) -> None:
    """Rounding leaves up to 31 eps of the first singular value of them: equal values round alike."""
    rng = np.random.default_rng(n)
    y = rng.standard_normal((n, 20))
    for k in range(2, 10):
        label = rng.integers(0, k, n)
        assert len(cca(np.eye(k, dtype=dtype)[label], y).correlations) == k - 1
    one, other = rng.integers(0, 2, n), rng.integers(0, 3, n)
    signs = (2 * one - 1)[:, None] * np.array([1, -1])
    sums = np.stack([one, other, one + other, one], axis=1)
    assert [len(cca(x.astype(dtype), y).correlations) for x in (signs, sums)] == [1, 2]


def test_directions_of_long_float64_data_are_kept_to_a_condition_of_1e12() -> None:
    """n · eps would be 1.3e-11."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((60_000, 8))
    x = z * np.logspace(0, -12, 8) @ np.linalg.qr(rng.standard_normal((8, 8)))[0]
    found = cca(x, z).correlations
    assert len(found) == 8
    np.testing.assert_allclose(found, 1.0, rtol=0, atol=1e12 * 2.2e-16)


@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4])
@pytest.mark.parametrize("inner", [5, 300])
def test_directions_that_float32_products_make_are_not_kept(inner: int, offset: float) -> None:
    """Features that a float32 product makes out of five directions have rank five, at any offset."""
    rng = np.random.default_rng(1)
    five = rng.standard_normal((400, 5)) @ rng.standard_normal((5, inner))
    x = five.astype(np.float32) @ rng.standard_normal((inner, 64)).astype(np.float32) + np.float32(offset)
    y = rng.standard_normal((400, 30))
    assert len(cca(x.astype(np.float32), y).correlations) == 5


def test_half_types_use_the_rank_rule_of_float32() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((512, 20)).astype(np.float16)
    y = (x[:, :16] + rng.standard_normal((512, 16))).astype(np.float16)
    wider = [z.astype(np.float64) for z in (x, y)]
    np.testing.assert_allclose(cca(x, y).correlations, cca(*wider).correlations, rtol=0, atol=1e-13)
