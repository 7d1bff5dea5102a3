"""For each row of one set the best partner in another: by cosine, and by a residue term of low rank.

    score_ij = λ (1 - cos(w_i, w_j)) + (1 - λ) minmax_j r_ij,    r_ij = ±_i ±_j |a_i + b_j + c_i d_j|

The op is ``nearest_rows``, whose choice depends on no block, thread, precision or device; here is what it needs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..arrays import FloatArray, Matrix
from ..backends.base import Block
from ..backends.choose import choose
from ..backends.nearest import Indices, NearestProblem, NearestRows, Residues
from ..backends.routes import check_threads
from ..kernels import Linear

_LEAST = -1000  # the power of two that brings any float64 within reach of a square
_REACH = 450  # powers of two below the largest entry whose squares are exact
_SMALL = 2.0 ** (-2 * _REACH)  # squares below it may have lost digits
_CHUNK = 2**15  # entries of rows that are widened at a time
_NARROW = ("float16", "bfloat16", "float32")  # whose values all lie within that reach of each other


@dataclass(frozen=True)
class Partners:
    """The best partner of every row that looked for one."""

    partner: Indices  # [rows], -1 where none is admissible
    cosine: FloatArray  # [rows], NaN where there is no partner, as the score
    score: FloatArray  # [rows]
    route: str  # what scores were formed by; empty where nobody looked


def row_norms(
    x: Matrix,
    largest: float,
    *,
    last: FloatArray | None = None,
    backend: str | None = None,
    threads: int | None = None,
    memory: int | None = None,
) -> FloatArray:
    """Norms ``[n]`` of the rows of ``x``, float64, of squares that neither overflow nor vanish.

    ``largest`` is max |x|; ``last [n]`` one more entry of every row; ``memory`` bounds what a pass takes. On the host
    only the small rows are read again.
    """
    norms_of, team = choose("row_norms", backend=backend, inputs=[x]).function, check_threads(threads)

    def squares(exponent: int) -> FloatArray:
        with np.errstate(over="ignore"):  # of larger rows, which are known already
            found: FloatArray = norms_of(Block(x, Linear(), np.zeros(x.p), exponent), threads=team, memory=memory)
        return found

    exponent = max(_LEAST, int(np.frexp(largest)[1]))
    norms = squares(exponent)
    again = exponent > _LEAST and x.dtype not in _NARROW and norms.min() < _SMALL
    small = norms < _SMALL if again else np.empty(0, dtype=np.bool_)  # of long layers a vector more would be a layer
    np.ldexp(np.sqrt(norms, out=norms), exponent, out=norms)
    while small.any() and exponent > _LEAST:
        if x.device is None:
            _rescale(x, np.flatnonzero(small), norms)
            break
        exponent = max(_LEAST, exponent - _REACH)
        found = squares(exponent)
        norms[small] = np.ldexp(np.sqrt(found[small]), exponent)
        small &= found < _SMALL
    return norms if last is None else np.hypot(norms, last)


def _rescale(x: Matrix, rows: Indices, norms: FloatArray) -> None:
    """Norms of ``rows``, each in units of its own largest entry."""
    step = max(1, _CHUNK // x.p)
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        values = Matrix(x.name, x.values[part], x.dtype).float64()
        own = np.frexp(np.abs(values).max(axis=1))[1]
        values = np.ldexp(values, -own[:, None])
        norms[part] = np.ldexp(np.sqrt(np.einsum("ij,ij->i", values, values)), own)


def best_partners(
    x: Matrix,
    norms: FloatArray,
    rows: Indices,
    others: Indices,
    *,
    last: FloatArray | None = None,
    residues: Residues | None,
    balance: float,
    backend: str | None = None,
) -> Partners:
    """The best of ``others`` for each of ``rows``, both ascending row numbers of ``x [n, p]`` with its ``norms``.

    A zero row has no direction, and neither finds nor is a partner. Without residues the score is 1 - cos. ``last [n]``
    is one more entry of every row, within ``norms`` already.
    """
    partner = np.full(len(rows), -1, dtype=np.int64)
    cosine, score = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
    others = others[norms[others] > 0.0]
    looking = np.flatnonzero(norms[rows] > 0.0)
    if not len(others) or not len(looking):
        return Partners(partner, cosine, score, "")
    balance = 1.0 if residues is None else balance
    problem = NearestProblem(x, norms, rows[looking], others, last, residues, balance)
    found: NearestRows = choose("nearest_rows", backend=backend, inputs=[x]).function(
        problem, threads=check_threads(None)
    )
    partner[looking], cosine[looking], score[looking] = found.row[:, 0], found.cosine[:, 0], found.score[:, 0]
    return Partners(partner, cosine, score, found.route)
