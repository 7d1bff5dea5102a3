"""For each row of one set the best partner in another: cosine, and a residue term of low rank, without an [a, b] table.

    score_ij = λ (1 - cos(w_i, w_j)) + (1 - λ) minmax_j r_ij,    r_ij = ±_i ±_j |a_i + b_j + c_i d_j|

minmax over the admissible partners j of i: (r - min) / (max - min), and 0 where all are equal. One product of unit
rows for each block, in the precision of the weights; whatever it cannot tell from the best is scored again from the
rows themselves in float64, so the choice does not depend on blocks, threads or precision. Scores within 1e-12 tie,
and ties go to the lowest row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, Matrix
from ..backends.base import Block
from ..backends.choose import choose
from ..backends.routes import check_threads
from ..kernels import Linear

Indices = npt.NDArray[np.int64]
TIE = 1e-12
_ERROR = {"float32": 1e-4, "float64": 1e-11}  # a cosine from unit rows in this precision is right to this, and better
_ENTRIES = 2**20  # of a block of scores
_CHUNK = 2**15  # entries of rows that are widened at a time
_PLAIN = (1e-15, 1e15)  # norms whose reciprocals and squares every precision can hold


@dataclass(frozen=True)
class Residues:
    """The parts of r_ij for all rows ``[units]``: i is the row that looks for a partner, j the partner.

    ``same_sign``: only partners with ±_i = ±_j are admissible.
    """

    sign: FloatArray
    of_row: FloatArray  # a
    of_partner: FloatArray  # b
    slope: FloatArray  # c
    size: FloatArray  # d
    same_sign: bool

    def between(self, rows: Indices, partners: Indices) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
        """(r ``[rows, partners]``, NaN where it is undefined; which of them are admissible)."""
        with np.errstate(invalid="ignore", over="ignore"):
            r = np.abs(
                self.of_row[rows, None] + self.of_partner[partners] + self.slope[rows, None] * self.size[partners]
            )
        signs = self.sign[rows, None] * self.sign[partners]
        r *= signs
        return r, np.isfinite(r) & (signs > 0 if self.same_sign else signs != 0)


@dataclass(frozen=True)
class Partners:
    """The best partner of every row that looked for one."""

    partner: Indices  # [rows], -1 where none is admissible
    cosine: FloatArray  # [rows], NaN where there is no partner, as the score
    score: FloatArray  # [rows]


def row_norms(x: Matrix, largest: float) -> FloatArray:
    """Norms ``[n]`` of the rows of ``x``, float64, of squares that neither overflow nor vanish.

    ``largest`` is max |x|.
    """
    exponent = int(np.frexp(largest)[1])
    block = Block(x, Linear(), np.zeros(x.p), exponent)
    squares: FloatArray = choose("row_norms").function(block, threads=check_threads(None))
    norms = np.asarray(np.ldexp(np.sqrt(squares), exponent))
    small = np.flatnonzero(squares < 2.0**-900)
    for part in _strips(len(small), x.p, _CHUNK):
        values = _float64(x, small[part])
        own = np.frexp(np.abs(values).max(axis=1))[1]
        values = np.ldexp(values, -own[:, None])
        norms[small[part]] = np.ldexp(np.sqrt(np.einsum("ij,ij->i", values, values)), own)
    return norms


def best_partners(
    x: Matrix, norms: FloatArray, rows: Indices, others: Indices, *, residues: Residues | None, balance: float
) -> Partners:
    """The best of ``others`` for each of ``rows``, both ascending row numbers of ``x [n, p]`` with its ``norms``.

    A zero row has no direction, and neither finds nor is a partner. Without residues the score is 1 - cos.
    """
    partner = np.full(len(rows), -1, dtype=np.int64)
    cosine, score = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
    others = others[norms[others] > 0.0]
    looking = np.flatnonzero(norms[rows] > 0.0)
    if len(others) and len(looking):
        right = _unit_rows(x, norms, others)
        for part in _strips(len(looking), len(others)):
            where = looking[part]
            found = _best(x, norms, rows[where], others, right, residues, 1.0 if residues is None else balance)
            partner[where], cosine[where], score[where] = found
    return Partners(partner, cosine, score)


def _best(
    x: Matrix,
    norms: FloatArray,
    rows: Indices,
    others: Indices,
    right: npt.NDArray[np.floating],
    residues: Residues | None,
    balance: float,
) -> tuple[Indices, FloatArray, FloatArray]:
    products = _unit_rows(x, norms, rows) @ right.T
    scores = balance * (1.0 - products.astype(np.float64))
    if residues is not None:
        r, admissible = residues.between(rows, others)
        scores += (1.0 - balance) * _minmax(r, admissible)
        scores[~admissible] = np.inf
    best = scores.min(axis=1)
    near = scores <= best[:, None] + 2 * balance * _ERROR[x.precision] + TIE
    near[np.isinf(best)] = False
    i, j = np.nonzero(near)
    exact = _cosines(x, norms, rows[i], others[j])
    again = scores[i, j] - balance * (exact - products[i, j].astype(np.float64))
    partner = np.full(len(rows), -1, dtype=np.int64)
    cosine, score = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
    if len(i):
        found, starts = np.unique(i, return_index=True)
        least = np.minimum.reduceat(again, starts)
        tied = np.flatnonzero(again <= least[np.searchsorted(found, i)] + TIE)
        _, first = np.unique(i[tied], return_index=True)
        chosen = tied[first]
        partner[found], cosine[found], score[found] = others[j[chosen]], exact[chosen], again[chosen]
    return partner, cosine, score


def _minmax(r: FloatArray, admissible: npt.NDArray[np.bool_]) -> FloatArray:
    low = np.where(admissible, r, np.inf).min(axis=1, keepdims=True)
    high = np.where(admissible, r, -np.inf).max(axis=1, keepdims=True)
    spread = high - low
    flat = ~(spread > 0.0)  # all equal, or none admissible
    with np.errstate(invalid="ignore"):
        return np.where(flat, 0.0, (r - low) / np.where(flat, 1.0, spread))


def _unit_rows(x: Matrix, norms: FloatArray, rows: Indices) -> npt.NDArray[np.floating]:
    """``rows`` of ``x`` at unit length, in the precision that products are formed in."""
    if x.dtype == x.precision and _plain(norms[rows]):
        return np.asarray(x.values[rows] * (1.0 / norms[rows, None]).astype(x.precision))
    out = np.empty((len(rows), x.p), dtype=x.precision)
    for part in _strips(len(rows), x.p, _CHUNK):
        out[part] = _directions(x, norms, rows[part])
    return out


def _cosines(x: Matrix, norms: FloatArray, first: Indices, second: Indices) -> FloatArray:
    """Cosines of pairs of rows, float64; equal for equal rows wherever they stand."""
    plain = _plain(norms[first]) and _plain(norms[second])
    out = np.empty(len(first))
    for part in _strips(len(first), x.p, _CHUNK):
        if plain:
            out[part] = np.einsum("ij,ij->i", _float64(x, first[part]), _float64(x, second[part]))
        else:
            pair = _directions(x, norms, first[part]), _directions(x, norms, second[part])
            out[part] = np.einsum("ij,ij->i", *pair)
    return out / (norms[first] * norms[second]) if plain else out


def _directions(x: Matrix, norms: FloatArray, rows: Indices) -> FloatArray:
    """``rows`` of ``x`` divided by their norms, float64; by a power of two first, as a norm may be subnormal."""
    mantissa, exponents = np.frexp(norms[rows])
    return np.asarray(np.ldexp(_float64(x, rows), -exponents[:, None]) / mantissa[:, None])


def _float64(x: Matrix, rows: Indices) -> FloatArray:
    return Matrix(x.name, x.values[rows], x.dtype).float64()


def _plain(norms: FloatArray) -> bool:
    return bool(((norms > _PLAIN[0]) & (norms < _PLAIN[1])).all())


def _strips(count: int, width: int, entries: int | None = None) -> list[slice]:
    step = max(1, (_ENTRIES if entries is None else entries) // width)
    return [slice(start, start + step) for start in range(0, count, step)]
