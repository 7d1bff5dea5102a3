"""The rows of a matrix nearest to others of its rows: what ``nearest_rows`` takes and finds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, Matrix

Indices = npt.NDArray[np.int64]
TIE = 1e-12  # scores that are this close are equal
FLAT = 32 * float(np.finfo(np.float64).eps)
"""Residues are equal that differ by no more than this share of the terms that they are sums of.

From γ, β, μ, σ and two norms to a term there are some 14 roundings of eps / 2, and two more to the sum: a difference of
two residues is off by up to 16 eps of the terms. And by four times what a norm is off by, which is a few eps: of the
sum of its squares, and of weights that were rounded when they were brought to one length. That is 16 eps more.
"""


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

    def terms(self, rows: Indices, others: Indices) -> FloatArray:
        """Half of what the terms of r ``[rows, others]`` sum up to, each by its size; so that none overflows."""
        with np.errstate(invalid="ignore", over="ignore"):
            product = 0.5 * np.abs(self.slope[rows, None] * self.size[others])
        return np.asarray(np.abs(0.5 * self.of_row[rows, None]) + np.abs(0.5 * self.of_partner[others]) + product)

    def largest_terms(self, rows: Indices, others: Indices) -> FloatArray:
        """No less than the terms of each row ``[rows]``, at the price of no table."""
        with np.errstate(invalid="ignore", over="ignore"):
            product = 0.5 * np.abs(self.slope[rows] * np.abs(self.size[others]).max())
            return np.asarray(np.abs(0.5 * self.of_row[rows]) + np.abs(0.5 * self.of_partner[others]).max() + product)


def minmax(
    residues: Residues, rows: Indices, others: Indices, r: FloatArray, admissible: npt.NDArray[np.bool_]
) -> FloatArray:
    """Each row of ``r``, which is halved, rescaled to [0, 1] over what is admissible; 0 where that is all equal."""
    r *= 0.5  # so that no difference overflows
    low = np.where(admissible, r, np.inf).min(axis=1, keepdims=True)
    high = np.where(admissible, r, -np.inf).max(axis=1, keepdims=True)
    flat = ~(high - low > FLAT * residues.largest_terms(rows, others)[:, None])
    doubtful = np.flatnonzero(flat)
    if len(doubtful):
        terms = np.where(admissible[doubtful], residues.terms(rows[doubtful], others), 0.0).max(axis=1)
        flat[doubtful] = ~(high[doubtful] - low[doubtful] > FLAT * terms[:, None])
    with np.errstate(invalid="ignore", over="ignore"):
        return np.where(flat, 0.0, (r - low) / np.where(flat, 1.0, high - low))


@dataclass(frozen=True)
class NearestProblem:
    """Rows of ``x [n, p]`` that look for the nearest of some others, by direction and by a residue of low rank:

        score_ij = λ (1 - cos(x_i, x_j)) + (1 - λ) minmax_j r_ij

    minmax over the admissible others j of i: (r - min) / (max - min), and 0 where all are equal, to :data:`FLAT`.
    Without residues λ = 1 and all others are admissible. A row is never its own. Scores within :data:`TIE` are equal,
    and the lowest row comes first.
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
