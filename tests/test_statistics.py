"""Confidence intervals: those of SciPy, and as often right as they claim."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from simkit.experiments.statistics import mean_interval


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("n", [2, 3, 10])
def test_intervals_are_students(n: int, level: float) -> None:
    values = np.random.default_rng(n).normal(50.0, 3.0, n)
    found = mean_interval(values.tolist(), level=level)
    low, high = stats.t.interval(level, n - 1, values.mean(), stats.sem(values))
    assert (found.mean, found.low, found.high) == pytest.approx((values.mean(), low, high), rel=1e-12)
    assert found.half_width == pytest.approx((high - low) / 2)
    assert (found.n, found.level) == (n, level)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    draw = np.random.default_rng(0).normal(1.0, 2.0, (4000, 3))
    found = [mean_interval(values) for values in draw.tolist()]
    share = np.mean([interval.low <= 1.0 <= interval.high for interval in found])
    assert share == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 4000))


def test_sign_of_an_interval() -> None:
    assert mean_interval([1.0, 1.1, 1.2]).sign == 1
    assert mean_interval([-1.0, -1.1, -1.2]).sign == -1
    assert mean_interval([-1.0, 1.0]).sign == 0
    assert mean_interval([0.0, 0.0]).sign == 0
    assert mean_interval([0.9 - 0.8, 0.7 - 0.6]).sign == 0  # equal but for rounding: no spread, no evidence
    assert mean_interval([3.0]).sign == 0  # one value has no interval
    assert math.isnan(mean_interval([3.0]).half_width)


@pytest.mark.parametrize(
    ("values", "level", "sentence"),
    [
        ([], 0.95, r"a mean needs at least one value, not \[\]"),
        ([1.0, math.nan], 0.95, r"a mean needs finite values, not nan"),
        ([1.0, 2.0], 1.0, r"level must lie in \(0, 1\), not 1\.0"),
    ],
)
def test_intervals_of_nothing(values: list[float], level: float, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        mean_interval(values, level=level)
