"""When two filters count as near: distances, cosines, and the threshold that random filters calibrate.

Between unit vectors distance² = 2 - 2 cosine, so every threshold is a cosine and a squared distance at once. The
cosine of two random filters of d weights has cosine² ~ Beta(1/2, (d-1)/2), with either sign equally likely.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Norm: TypeAlias = Literal["distance", "cosine", "sqrt_fan_in"]
ThresholdLike: TypeAlias = float | Iterable[float] | npt.NDArray[np.floating] | None

NORMS = ("distance", "cosine", "sqrt_fan_in")
PROBABILITY = 0.01
_ROUNDING = 1e-14  # of a distance between unit vectors; 1e-12 of itself more
_COSINE_ROUNDING = 4e-15  # of a squared distance that a cosine stands for


def calibrated_cosine(fan_in: int, probability: float = PROBABILITY) -> float:
    """The cosine that two random filters of ``fan_in`` weights exceed with ``probability``, in [0, 1].

    It is 1 for a single weight: cosines are then -1 or 1, and no other value is exceeded so rarely.
    """
    if fan_in == 1:
        return 1.0
    from scipy.special import betaincinv

    return math.sqrt(float(betaincinv(0.5, (fan_in - 1) / 2, 1 - 2 * probability)))


def from_cosine(cosine: float, norm: Norm, fan_in: int) -> float:
    """A cosine as a threshold in the units of ``norm``."""
    if norm == "cosine":
        return cosine
    distance = math.sqrt(max(0.0, 2 - 2 * cosine))
    return distance / math.sqrt(fan_in) if norm == "sqrt_fan_in" else distance


def to_cosine(threshold: float, norm: Norm, fan_in: int) -> float:
    """The cosine from which on filters are adjacent; below -1 when every pair is."""
    if norm == "cosine":
        return threshold
    return 1 - 0.5 * _distance(threshold, norm, fan_in) ** 2


def to_squared(threshold: float, norm: Norm, fan_in: int) -> float:
    """The squared distance up to which filters are adjacent, rounded up so that pairs *at* the threshold are."""
    if norm == "cosine":
        distance, rounding = math.sqrt(max(0.0, 2 - 2 * threshold)), _COSINE_ROUNDING
    else:
        distance, rounding = _distance(threshold, norm, fan_in), 0.0
    return (distance * (1 + 1e-12) + _ROUNDING) ** 2 + rounding


def _distance(threshold: float, norm: Norm, fan_in: int) -> float:
    distance = threshold * math.sqrt(fan_in) if norm == "sqrt_fan_in" else threshold
    return min(distance, 1e9)  # beyond 2 every pair is adjacent; the square stays finite


def parse_thresholds(threshold: ThresholdLike, norm: Norm, fan_in: int) -> tuple[list[float], bool]:
    """(thresholds in the units of ``norm``, whether a sequence was given); None is the calibrated one.

    Raises:
        ValueError: an unknown norm, no thresholds, one that is not finite, a negative distance, or no cosine.
        TypeError: neither a number nor a sequence of numbers.
    """
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, not {norm!r}")
    if threshold is None:
        return [from_cosine(calibrated_cosine(fan_in), norm, fan_in)], False
    array: Any = threshold  # maybe a tensor, which is Iterable even where it has no dimension
    if getattr(array, "ndim", 1) == 0:
        threshold = array.item()
    elif getattr(array, "ndim", 1) > 1:
        raise TypeError(f"threshold has shape {tuple(array.shape)}: it must be a number or a sequence of numbers")
    if isinstance(threshold, Iterable) and not isinstance(threshold, str | bytes):
        values = [_checked(value, norm) for value in threshold]
        if not values:
            raise ValueError("threshold is an empty sequence: give at least one")
        return values, True
    return [_checked(threshold, norm)], False


def _checked(value: Any, norm: Norm) -> float:
    if isinstance(value, bool | np.bool_ | str | bytes) or not hasattr(value, "__float__"):
        raise TypeError(f"a threshold must be a number, not {value!r}")
    if getattr(value, "ndim", 0):
        raise TypeError(f"a threshold must be a number, not an array of shape {tuple(value.shape)}")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"a threshold must be finite, not {number!r}")
    if norm == "cosine" and not -1 <= number <= 1:
        raise ValueError(f"a cosine threshold must be from -1 to 1, not {number!r}")
    if norm != "cosine" and number < 0:
        raise ValueError(f"a {norm} threshold must not be negative, as {number!r} is")
    return number
