"""The rows of a matrix nearest to others of its rows: what ``nearest_rows`` takes and finds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, Matrix

Indices = npt.NDArray[np.int64]
TIE = 1e-12  # scores that are this close are equal


@dataclass(frozen=True)
class Residues:
    """r_ij = ±_i ±_j |a_i + b_j + c_i d_j|, for all rows ``[n]``: i is the row that looks, j the one it may find.

    Pairs whose r_ij is not finite, or whose signs are zero, are not admissible. ``same_sign``: nor are those whose
    signs differ.
    """

    sign: FloatArray  # -1, 0 or 1
    of_row: FloatArray  # a
    of_partner: FloatArray  # b
    slope: FloatArray  # c
    size: FloatArray  # d
    same_sign: bool

    def between(self, rows: Indices, others: Indices) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
        """(r ``[rows, others]``, NaN where it is undefined; which of them are admissible)."""
        with np.errstate(invalid="ignore", over="ignore"):
            r = np.abs(self.of_row[rows, None] + self.of_partner[others] + self.slope[rows, None] * self.size[others])
            signs = self.sign[rows, None] * self.sign[others]
            r *= signs
        return r, np.isfinite(r) & (signs > 0 if self.same_sign else signs != 0)


def minmax(r: FloatArray, admissible: npt.NDArray[np.bool_]) -> FloatArray:
    """Each row of ``r``, which is halved, rescaled to [0, 1] over what is admissible; 0 where that is all equal."""
    r *= 0.5  # so that no difference overflows
    low = np.where(admissible, r, np.inf).min(axis=1, keepdims=True)
    high = np.where(admissible, r, -np.inf).max(axis=1, keepdims=True)
    flat = ~(high > low)
    with np.errstate(invalid="ignore", over="ignore"):
        return np.where(flat, 0.0, (r - low) / np.where(flat, 1.0, high - low))


@dataclass(frozen=True)
class NearestProblem:
    """Rows of ``x [n, p]`` that look for the nearest of some others, by direction and by a residue of low rank:

        score_ij = λ (1 - cos(x_i, x_j)) + (1 - λ) minmax_j r_ij

    minmax over the admissible others j of i: (r - min) / (max - min), and 0 where all are equal. Without residues
    λ = 1 and all others are admissible. A row is never its own. Scores within :data:`TIE` are equal, and the lowest row
    comes first.
    """

    matrix: Matrix
    norms: FloatArray  # [n] of whole rows; positive for those of ``rows`` and ``others``
    rows: Indices  # ascending, as the others
    others: Indices
    last: FloatArray | None = None  # [n] one more entry of every row, as a bias is
    residues: Residues | None = None
    balance: float = 1.0  # λ in [0, 1]

    @property
    def depth(self) -> int:
        """Number of entries of a row."""
        return self.matrix.p + (self.last is not None)


@dataclass(frozen=True)
class NearestRows:
    """The k best of each row, best first: row numbers (-1 where there is none), cosines and scores (NaN)."""

    row: Indices  # [rows, k]
    cosine: FloatArray  # [rows, k]
    score: FloatArray  # [rows, k]
    route: str  # what scores were formed by

    @staticmethod
    def none(rows: int, k: int, route: str) -> NearestRows:
        """Nothing found yet."""
        nothing = np.full((rows, k), math.nan)
        return NearestRows(np.full((rows, k), -1, dtype=np.int64), nothing, nothing.copy(), route)
