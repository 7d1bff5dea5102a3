"""Mean and scatter of a stream of rows: what least squares, and the CKA damage of columns, need of a layer.

    mean = Σ x / n        scatter = Σ (x - mean)(x - mean)ᵀ

Rows are summed around the mean of the first block, so that an offset costs no digits; blocks are of ``BLOCK`` rows
whatever the caller's batches are. States add, exactly re-based (Chan, Golub, LeVeque 1983). All float64.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray

BLOCK = 4096  # rows


@dataclass(frozen=True)
class Covariance:
    """Of ``n`` rows ``[n, p]``: ``mean [p]`` and ``scatter [p, p]``, not divided by n."""

    n: int
    mean: FloatArray
    scatter: FloatArray

    @property
    def p(self) -> int:
        """Number of columns."""
        return len(self.mean)

    def __add__(self, other: Covariance) -> Covariance:
        """Of the rows of both."""
        if self.p != other.p:
            raise ValueError(f"a covariance of {self.p} columns and one of {other.p} do not add")
        if not self.n or not other.n:
            return self if other.n == 0 else other
        n = self.n + other.n
        apart = other.mean - self.mean
        between = np.outer(apart, apart * (self.n * other.n / n))
        return Covariance(n, self.mean + apart * (other.n / n), self.scatter + other.scatter + between)


class CovarianceStream:
    """Collects rows of ``p`` columns; the result depends on their order alone, not on how they were batched."""

    def __init__(self, p: int) -> None:
        self._stage = np.empty((BLOCK, p))
        self._staged = 0
        self._sum = Covariance(0, np.zeros(p), np.zeros((p, p)))  # of the rows less the shift
        self._shift = np.zeros(p)

    @property
    def rows(self) -> int:
        """Rows seen."""
        return self._sum.n + self._staged

    def update(self, rows: npt.NDArray[np.floating]) -> None:
        """Add rows ``[k, p]``.

        Raises:
            ValueError: another number of columns; a value that is not finite.
        """
        if rows.ndim != 2 or rows.shape[1] != self._sum.p:
            raise ValueError(f"rows have shape {rows.shape}, not [k, {self._sum.p}]")
        at = 0
        while at < len(rows):
            take = min(BLOCK - self._staged, len(rows) - at)
            self._stage[self._staged : self._staged + take] = rows[at : at + take]
            self._staged += take
            at += take
            if self._staged == BLOCK:
                self._sum = self._sum + self._block()
                self._staged = 0

    def result(self) -> Covariance:
        """Of all rows so far."""
        found = self._sum + self._block() if self._staged else self._sum
        return replace(found, mean=found.mean + self._shift)

    def _block(self) -> Covariance:
        rows = self._stage[: self._staged]
        if not self._sum.n:
            self._shift = rows.mean(axis=0)
        z = rows - self._shift
        mean = z.mean(axis=0)
        if not np.isfinite(mean).all():
            raise ValueError(f"column {int(np.argmin(np.isfinite(mean)))} holds a value that is not finite")
        z -= mean
        slip = z.mean(axis=0)  # what rounding left of the mean
        scatter = z.T @ z
        scatter -= np.outer(slip, slip * len(rows))
        return Covariance(len(rows), mean + slip, scatter)
