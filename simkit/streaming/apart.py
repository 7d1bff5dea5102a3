"""Rows kept apart from a stream's sums: those that would drown the others in rounding.

One row of a thousand times the usual norm adds 1e12 to sums whose differences decide the debiased HSIC. So the few
largest rows are kept as they are, and meet the sums only when a result is formed (:mod:`.finish`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray
from ..backends.moment_sums import MomentRows, MomentSums

LIMIT = 16  # rows kept apart
OUTLYING = 1e4  # times the usual squared norm in any layer


@dataclass(frozen=True)
class Apart:
    """Whole rows in the units of the sums, both sides; ``right`` None: the left side with itself."""

    left: MomentRows
    right: MomentRows | None

    @property
    def count(self) -> int:
        """How many."""
        return len(self.left.z)

    @property
    def norms(self) -> tuple[FloatArray, FloatArray | None]:
        """The squared norms a of both sides."""
        return self.left.a, None if self.right is None else self.right.a

    def take(self, rows: npt.NDArray[np.bool_]) -> Apart:
        """The rows where the mask is true, copied."""
        right = None if self.right is None else MomentRows(self.right.z[rows], self.right.a[rows])
        return Apart(MomentRows(self.left.z[rows], self.left.a[rows]), right)

    def join(self, other: Apart) -> Apart:
        """These rows and then the other's."""
        right = None
        if self.right is not None and other.right is not None:
            right = _stack(self.right, other.right)
        return Apart(_stack(self.left, other.left), right)


def none_apart(left: int, layers: int, right: int | None, others: int) -> Apart:
    """No rows, of the given widths and numbers of layers."""
    return Apart(
        MomentRows(np.empty((0, left)), np.empty((0, layers))),
        None if right is None else MomentRows(np.empty((0, right)), np.empty((0, others))),
    )


def outlying(left: FloatArray, right: FloatArray | None, sums: MomentSums, n: int) -> npt.NDArray[np.bool_]:
    """Which of a block's rows to keep apart: at most LIMIT in each layer, far beyond the rest and the n rows before.

    ``left`` and ``right`` are the norms ``a [rows, layers]`` of both sides.
    """
    found = _outlying(left, sums.left.sum_a, n)
    if right is not None and sums.right is not None:
        found |= _outlying(right, sums.right.sum_a, n)
    return found


def may_outlie(a: FloatArray, largest: FloatArray, sum_a: FloatArray, n: int) -> bool:
    """Whether a row of ``a [rows, layers]`` may be outlying; false where the ``largest [layers]`` are not.

    ``sum_a [layers]`` is the sum over the n rows before.
    """
    return bool((largest * n > OUTLYING * sum_a).any()) and bool(_outlying(a, sum_a, n).any())


def largest(rows: Apart, sums: MomentSums, n: int, count: int) -> npt.NDArray[np.bool_]:
    """The ``count`` rows that stand out most in any layer."""
    size = _beyond_usual(rows.left.a, sums.left.sum_a / max(n, 1))
    if rows.right is not None and sums.right is not None:
        size = np.maximum(size, _beyond_usual(rows.right.a, sums.right.sum_a / max(n, 1)))
    chosen = np.zeros(rows.count, dtype=bool)
    chosen[np.argsort(-size, kind="stable")[:count]] = True
    return chosen


def _outlying(a: FloatArray, sum_a: FloatArray, n: int) -> npt.NDArray[np.bool_]:
    before = sum_a / max(n, 1)
    if len(a) <= LIMIT:
        return np.asarray((a > OUTLYING * before).any(axis=1))
    if not (a.max(axis=0) > OUTLYING * before).any():
        return np.zeros(len(a), dtype=bool)
    ordered = np.sort(a, axis=0)
    usual = np.maximum(ordered[:-LIMIT].mean(axis=0), before)
    return np.asarray((a > np.maximum(OUTLYING * usual, ordered[-LIMIT - 1])).any(axis=1))


def _beyond_usual(a: FloatArray, usual: FloatArray) -> FloatArray:
    """log2 of how often a row's squared norm is the usual one, in its layer of most; no quotient overflows."""
    with np.errstate(divide="ignore"):
        return np.asarray((np.log2(a) - np.log2(np.maximum(usual, np.finfo(np.float64).tiny))).max(axis=1))


def _stack(first: MomentRows, second: MomentRows) -> MomentRows:
    return MomentRows(np.concatenate([first.z, second.z]), np.concatenate([first.a, second.a]))
