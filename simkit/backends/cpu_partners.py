"""The nearest rows on a processor: NumPy's products of unit rows, block by block, without an [a, b] table.

One product for each block, in the precision of the matrix; whatever it cannot tell from the best is scored again from
the rows themselves in float64, so the choice does not depend on blocks, threads or precision.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, Matrix
from .nearest import (
    TIE,
    Indices,
    NearestProblem,
    NearestRows,
    minmax,
)

_ERROR = {"float32": 1e-4, "float64": 1e-11}  # a cosine from unit rows in this precision is right to this, and better
_LONG = 2**18  # entries of a row up to which that holds for any order of the sum that a product takes
_ENTRIES = 2**20  # of a block of scores
_CHUNK = 2**15  # entries of rows that are widened at a time
_PLAIN = (1e-15, 1e15)  # norms whose reciprocals and squares every precision can hold


def nearest_rows(problem: NearestProblem, k: int) -> NearestRows:
    """See :func:`simkit.backends.reference.nearest_rows`."""
    route = f"blocks of NumPy's products in {problem.matrix.precision}, near ties again in float64"
    found = NearestRows.none(len(problem.rows), k, route)
    if len(problem.rows) and len(problem.others):
        right = _unit_rows(problem, problem.others)
        for part in _strips(len(problem.rows), len(problem.others)):
            here = NearestRows(found.row[part], found.cosine[part], found.score[part], route)
            _search(problem, problem.rows[part], right, here)
    return found


def _search(problem: NearestProblem, rows: Indices, right: npt.NDArray[np.floating], found: NearestRows) -> None:
    """The nearest of ``rows``, written to ``found``; ``right``: the others at unit length."""
    others, balance, k = problem.others, problem.balance, found.row.shape[1]
    products = _unit_rows(problem, rows) @ right.T
    scores = balance * (1.0 - products.astype(np.float64))
    if problem.residues is not None:
        r, admissible = problem.residues.between(rows, others)
        _exclude_own(admissible, rows, others, False)
        scores += (1.0 - balance) * minmax(problem.residues, rows, others, r, admissible)
        scores[~admissible] = np.inf
    else:
        _exclude_own(scores, rows, others, np.inf)
    last = scores.min(axis=1) if k == 1 else np.partition(scores, min(k, len(others)) - 1)[:, min(k, len(others)) - 1]
    near = scores <= last[:, None] + 2 * balance * _error(problem) + TIE
    if np.isinf(last).any():  # fewer than k are admissible
        near &= np.isfinite(scores)
    i, j = np.nonzero(near)
    if len(i):
        exact = _cosines(problem, rows[i], others[j])
        again = scores[i, j] - balance * (exact - products[i, j].astype(np.float64))
        _choose(i, others[j], exact, again, found)


def _exclude_own(table: npt.NDArray[np.generic], rows: Indices, others: Indices, value: float) -> None:
    """No row finds itself."""
    place = np.minimum(np.searchsorted(others, rows), len(others) - 1)
    own = np.flatnonzero(others[place] == rows)
    table[own, place[own]] = value


def _choose(i: Indices, other: Indices, cosine: FloatArray, score: FloatArray, found: NearestRows) -> None:
    """Of pairs in the order of their rows ``i``: the best of each, k times; ``score`` is used up."""
    who, starts, group = np.unique(i, return_index=True, return_inverse=True)
    for nth in range(found.row.shape[1]):
        least = np.minimum.reduceat(score, starts)
        tied = np.flatnonzero(score <= least[group] + TIE)
        _, first = np.unique(group[tied], return_index=True)  # every row has one
        some = least < np.inf
        chosen, to = tied[first][some], who[some]
        found.row[to, nth], found.cosine[to, nth], found.score[to, nth] = other[chosen], cosine[chosen], score[chosen]
        score[chosen] = np.inf


def _error(problem: NearestProblem) -> float:
    return _ERROR[problem.matrix.precision] * max(1.0, problem.depth / _LONG)


def _unit_rows(problem: NearestProblem, rows: Indices) -> npt.NDArray[np.floating]:
    """``rows`` at unit length, in the precision that products are formed in."""
    x, norms = problem.matrix, problem.norms[rows]
    if x.dtype == x.precision and _plain(norms):
        inverse = 1.0 / norms[:, None]
        unit = x.values[rows] * inverse.astype(x.precision)
        if problem.last is None:
            return np.asarray(unit)
        return np.concatenate([unit, problem.last[rows, None] * inverse], axis=1, dtype=x.precision)
    out = np.empty((len(rows), problem.depth), dtype=x.precision)
    for part in _strips(len(rows), problem.depth, _CHUNK):
        out[part] = _directions(problem, rows[part])
    return out


def _cosines(problem: NearestProblem, first: Indices, second: Indices) -> FloatArray:
    """Cosines of pairs of rows, float64; equal for equal rows wherever they stand."""
    norms = problem.norms[first], problem.norms[second]
    plain = _plain(norms[0]) and _plain(norms[1])
    out = np.empty(len(first))
    for part in _strips(len(first), problem.depth, _CHUNK):
        read = _float64 if plain else _directions
        out[part] = np.einsum("ij,ij->i", read(problem, first[part]), read(problem, second[part]))
    return out / (norms[0] * norms[1]) if plain else out


def _directions(problem: NearestProblem, rows: Indices) -> FloatArray:
    """``rows`` divided by their norms, float64; by a power of two first, as a norm may be subnormal."""
    mantissa, exponents = np.frexp(problem.norms[rows])
    return np.asarray(np.ldexp(_float64(problem, rows), -exponents[:, None]) / mantissa[:, None])


def _float64(problem: NearestProblem, rows: Indices) -> FloatArray:
    x = problem.matrix
    values = Matrix(x.name, x.values[rows], x.dtype).float64()
    return values if problem.last is None else np.concatenate([values, problem.last[rows, None]], axis=1)


def _plain(norms: FloatArray) -> bool:
    return bool(((norms > _PLAIN[0]) & (norms < _PLAIN[1])).all())


def _strips(count: int, width: int, entries: int | None = None) -> list[slice]:
    step = max(1, (_ENTRIES if entries is None else entries) // width)
    return [slice(start, start + step) for start in range(0, count, step)]
