"""The mixed route: the wide layers of a table among themselves in sample space, every other pair in feature space.

Of layers with T columns in all, let m be wide, w columns in all. A multiply-add of feature space, which is float64,
takes f times one of sample space. All pairs of the layers with themselves cost

    f n (T² - w²)/2 + n² w/2 + n² m²/4        (w = m = 0: feature space alone; all of them: sample space alone)

For a given m this is concave in w, so that the m widest layers, or the m narrowest, are best; and the narrowest do not
beat feature space alone unless w > n/f, where wider ones are better still. So wide means wider than the others, and
the splits to count are as many as the layers. Between the layers of two sides, w_r and w_c wide on each,

    f n (T_r T_c - w_r w_c + Σ_narrow p²/2) + n² (w_r + w_c + m_r m_c)/2

and by the same argument wide means wider than the others on the same side.

Sample space beats feature space on wide layers only if w > n/f; then narrow ones of q columns cost f n q w > n² q,
twice their products in sample space, and only their panels can pay for it: the route gains where layers are many and
narrow beside a few wide ones. Linear kernels only, in the whole table: feature space knows no others, and no pairs of a
linear one with another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray
from .base import RouteName

PLACES = 128  # of more layers on a side, in tables between two sides, every so many begin the wide ones

T = TypeVar("T")
Sums: TypeAlias = tuple[FloatArray, FloatArray, FloatArray]  # of pairs, of layers, what these were subtracted from
SumsOf: TypeAlias = Callable[[list[T], list[T] | None], Sums]


@dataclass(frozen=True)
class Counts:
    """What splits cost: multiply-adds of both halves, and what is wide; numbers or arrays of one shape."""

    feature: FloatArray
    sample: FloatArray
    layers: FloatArray  # that are wide
    width: FloatArray  # columns of these


Seconds: TypeAlias = Callable[[Counts], FloatArray]  # in any unit


def cheapest_split(
    n: int, rows: Sequence[int], columns: Sequence[int] | None, seconds: Seconds
) -> tuple[tuple[bool, ...], float]:
    """(which of the layers of these widths are wide: rows, then columns; what ``seconds`` says that it takes).

    At least one layer is wide and one is not.
    """
    if columns is None:
        order, taken = _wide_first(rows, np.arange(1, len(rows)))
        times = seconds(_within(n, sum(rows), taken))
        best = int(times.argmin())
        return _flags(order, best + 1), float(times[best])
    left, right = _places(len(rows)), _places(len(columns))
    (order, a), (other, b) = _wide_first(rows, left[:, None]), _wide_first(columns, right[None, :])
    times = seconds(_between(n, rows, columns, a, b))
    times[0, 0] = times[-1, -1] = np.inf  # these are sample space or feature space alone
    i, j = np.unravel_index(int(times.argmin()), times.shape)
    return _flags(order, int(left[i])) + _flags(other, int(right[j])), float(times[i, j])


@dataclass(frozen=True)
class Taken:
    """The widest layers of a side: how many, their columns and the squares of their widths."""

    layers: FloatArray
    width: FloatArray
    squares: FloatArray


def _within(n: int, total: int, wide: Taken) -> Counts:
    """What all pairs of layers with themselves cost, ``total`` columns wide in all."""
    feature = n * (float(total) ** 2 - wide.width**2) / 2
    return Counts(feature, _alone(n, wide), wide.layers, wide.width)


def _between(n: int, rows: Sequence[int], columns: Sequence[int], a: Taken, b: Taken) -> Counts:
    """What the pairs of rows with columns cost, and those of each layer with itself."""
    own = sum(float(p) ** 2 for p in (*rows, *columns)) - a.squares - b.squares
    feature = n * (float(sum(rows)) * sum(columns) - a.width * b.width + own / 2)
    both = Taken(a.layers + b.layers, a.width + b.width, a.squares + b.squares)
    across = n * n * (both.width + a.layers * b.layers) / 2
    # Wide layers on one side only meet one another, for the sake of their own sums.
    sample = np.where((a.layers > 0) & (b.layers > 0), across, _alone(n, both))
    return Counts(feature, sample, both.layers, both.width)


def wide_ones(wide: Sequence[bool], rows: Sequence[T], columns: Sequence[T] | None) -> tuple[list[T], list[T] | None]:
    """Those of the rows and those of the columns that are wide."""
    left = [x for x, far in zip(rows, wide, strict=False) if far]
    return left, None if columns is None else [x for x, far in zip(columns, wide[len(rows) :], strict=True) if far]


def among_wide(
    wide: Sequence[bool], rows: Sequence[T], columns: Sequence[T] | None
) -> tuple[list[T], list[T] | None, bool]:
    """(rows, columns, whether their pairs are asked for): the wide layers as a table of their own.

    Those of one side only are paired with themselves, for the sake of their own sums.
    """
    left, right = wide_ones(wide, rows, columns)
    if right is None or (left and right):
        return left, right, True
    return left or right, None, False


def alone_in_words(sample: int, feature: int) -> str:
    """What a mixed route is picked against, for a plan."""
    return f"against {feature:.3g} in feature space alone and {sample:.3g} in sample space alone"


def check_route(route: RouteName | None, layers: int, *, linear: bool) -> None:
    """Raise ValueError for a route that is forced where it cannot run."""
    if route in ("feature", "mixed") and not linear:
        raise ValueError(f"the {'feature-space' if route == 'feature' else route} route needs a linear kernel")
    if route == "mixed" and layers == 1:
        raise ValueError(f"the mixed route needs more than {layers} layer")


def mixed_sums(
    wide: Sequence[bool], rows: list[T], columns: list[T] | None, feature: SumsOf[T], sample: SumsOf[T]
) -> Sums:
    """The sums of all pairs: ``feature`` forms all but those of two wide layers, ``sample`` those."""
    values, own, raw = feature(rows, columns)
    flags = np.array(wide)
    left, right, wanted = among_wide(wide, rows, columns)
    pairs, own[flags], raw[flags] = sample(left, right)
    if wanted:
        values[np.ix_(flags[: len(rows)], flags[-len(values[0]) :])] = pairs
    return values, own, raw


def _alone(n: int, wide: Taken) -> FloatArray:
    return np.asarray(n * n * (wide.width / 2 + wide.layers**2 / 4))


def _places(count: int) -> npt.NDArray[np.int64]:
    """Numbers of wide layers on a side, from none to all."""
    return np.unique(np.linspace(0, count, min(count, PLACES) + 1).round().astype(np.int64))


def _wide_first(widths: Sequence[int], counts: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], Taken]:
    """(layers from the widest on, the first ``counts`` of them)."""
    p = np.array(widths, dtype=np.float64)
    order = np.argsort(-p, kind="stable")
    width, squares = (np.concatenate([[0.0], np.cumsum(values)])[counts] for values in (p[order], p[order] ** 2))
    return order, Taken(counts.astype(np.float64), width, squares)


def _flags(order: npt.NDArray[np.int64], count: int) -> tuple[bool, ...]:
    wide = np.zeros(len(order), dtype=bool)
    wide[order[:count]] = True
    return tuple(wide.tolist())
