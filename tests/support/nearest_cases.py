"""Problems of nearest rows, and agreement with the reference; for the tests of every backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from tolerance import assert_close

from simkit.arrays import as_matrix
from simkit.backends import reference
from simkit.backends.nearest import NearestProblem, NearestRows, Residues
from simkit.metrics.partners import row_norms

Array = npt.NDArray[Any]
Find = Callable[[NearestProblem, int], NearestRows]


def rows_of(n: int, p: int, seed: int = 0) -> Array:
    """Rows that share a few directions, as trained filters do."""
    r = np.random.default_rng([seed, n, p])
    shared = r.standard_normal((max(2, n // 4), p))
    return r.standard_normal((n, len(shared))) ** 3 @ shared + r.standard_normal((n, p))


def residues_of(n: int, *, same_sign: bool, seed: int = 0) -> Residues:
    """Of any size; some rows have no sign, and some no finite residue."""
    r = np.random.default_rng([seed, n])
    sign = np.sign(r.standard_normal(n))
    of_row, of_partner, slope, size = r.standard_normal((4, n)) * 10.0 ** r.integers(-3, 4, (4, n))
    if n > 9:
        sign[3], slope[5], size[7] = 0.0, np.nan, np.inf
    return Residues(sign, of_row, of_partner, slope, size, same_sign)


def problem_of(
    x: Any,
    a: int | None = None,
    *,
    residues: Residues | None = None,
    balance: float = 0.85,
    last: Array | None = None,
    place: Callable[[Array], Any] = lambda x: x,
) -> NearestProblem:
    """The first ``a`` rows look among the others; None: all rows among all."""
    host = as_matrix(x)
    norms = row_norms(host, float(np.abs(host.float64()).max()), last=last, backend="reference")
    every = np.arange(host.n)
    rows, others = (every, every) if a is None else (every[:a], every[a:])
    rows, others = rows[norms[rows] > 0], others[norms[others] > 0]
    return NearestProblem(as_matrix(place(x)), norms, rows, others, last, residues, balance if residues else 1.0)


def on_host(problem: NearestProblem, x: Any) -> NearestProblem:
    """The same problem of the array ``x`` on the host."""
    return NearestProblem(
        as_matrix(x), problem.norms, problem.rows, problem.others, problem.last, problem.residues, problem.balance
    )


def agree(got: NearestRows, want: NearestRows, p: int) -> None:
    """The same rows; cosines and scores within the table's tolerance."""
    assert got.row.tolist() == want.row.tolist()
    for name in ("cosine", "score"):
        assert_close(getattr(got, name), getattr(want, name), "partners", "float64", *got.row.shape[:1], p)


def check(find: Find, x: Any, k: int = 1, a: int | None = None, **options: Any) -> NearestRows:
    """``find`` on a problem of ``x``, which agrees with the reference."""
    problem = problem_of(x, a, **options)
    got = find(problem, k)
    agree(got, reference.nearest_rows(on_host(problem, x), k), problem.depth)
    return got


def same_bits(first: NearestRows, other: NearestRows) -> bool:
    """Whether both hold the same bytes."""
    return all(getattr(first, name).tobytes() == getattr(other, name).tobytes() for name in ("row", "cosine", "score"))


def hazards() -> Iterator[tuple[str, Array, int]]:
    """(name, rows, k): values and coincidences that products alone do not survive."""
    x = rows_of(90, 20)
    yield "tiny", x * 1e-200, 3
    yield "huge", x * 1e200, 3
    yield "subnormal", x * 1e-308, 1
    yield "narrow and tiny", (x * 1e-38).astype(np.float32), 2
    yield "narrow and huge", (x * 1e30).astype(np.float32), 2
    yield "of every size", x * 10.0 ** np.linspace(-290, 290, 90)[:, None], 3
    yield "far from zero", (x + 1e3).astype(np.float32), 4
    yield "equal rows", np.repeat(x[:3], 60, axis=0).astype(np.float32), 5
    yield "nearly equal rows", np.repeat(x[:2], 70, axis=0) * (1 + 1e-9 * rows_of(140, 20)), 2
    yield "one entry", np.sign(x[:, :1]) * np.abs(x[:, :1]) ** 3, 3
    yield "zero rows", np.where(np.arange(90)[:, None] % 7 == 3, 0.0, x), 2
    yield "constant columns", np.concatenate([x, np.full((90, 3), 7.0)], axis=1).astype(np.float32), 2
