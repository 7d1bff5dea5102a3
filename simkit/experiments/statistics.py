"""Means with confidence intervals over independent runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

ROUNDING = 1e-12  # of a mean


@dataclass(frozen=True)
class Interval:
    """A sample mean with the confidence interval of the true mean, both in the units of the values.

    ``low`` and ``high`` are NaN for a single value, which says nothing about spread.
    """

    mean: float
    low: float
    high: float
    n: int
    level: float

    @property
    def half_width(self) -> float:
        """Half the length of the interval: mean ± half_width."""
        return (self.high - self.low) / 2.0

    @property
    def spread(self) -> bool:
        """Whether the values differ by more than rounding; never for one."""
        return self.half_width > ROUNDING * max(1.0, abs(self.mean))

    @property
    def sign(self) -> int:
        """1 or -1 where the whole interval lies above or below 0, else 0; values without spread show nothing."""
        if not self.spread:
            return 0
        return int(self.low > 0.0) - int(self.high < 0.0)


def mean_interval(values: Sequence[float], *, level: float = 0.95) -> Interval:
    """Mean and two-sided confidence interval, ``mean ± t(n-1) s / √n`` with Student's t and the sample deviation s.

    Assumes values that are independent and about normally distributed.

    Raises:
        ValueError: no values, a value that is not finite, or a level outside (0, 1).

    Source: Student 1908.
    """
    from scipy.special import stdtrit

    if not 0.0 < level < 1.0:
        raise ValueError(f"level must lie in (0, 1), not {level!r}")
    if not values:
        raise ValueError(f"a mean needs at least one value, not {values!r}")
    odd = [value for value in values if not math.isfinite(value)]
    if odd:
        raise ValueError(f"a mean needs finite values, not {odd[0]!r}")
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, math.nan, math.nan, n, level)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(stdtrit(n - 1, 0.5 + level / 2.0)) * deviation / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n, level)
