"""The CUDA op of nearest rows: views of device memory and small arrays of the host, handed to ``_cuda``."""

from __future__ import annotations

import numpy as np

from .cuda_device import array_on, cuda, place_of
from .nearest import NearestProblem, NearestRows

MOST = 128  # nearest rows; see csrc/ops/partners.hpp


def nearest_rows(problem: NearestProblem, k: int = 1, *, threads: int = 1) -> NearestRows:
    """See :func:`simkit.backends.reference.nearest_rows`.

    Raises:
        NotImplementedError: more than 128 of each row.
    """
    if k > MOST:
        raise NotImplementedError(f"native_cuda finds at most {MOST} nearest rows of each, not {k}")
    route = f"tiles of {problem.matrix.precision} products, near ties again in float64"
    if not len(problem.rows) or not len(problem.others):
        return NearestRows.none(len(problem.rows), k, route)
    r = problem.residues
    row, cosine, score = cuda().nearest_rows(
        x=array_on(problem.matrix, place_of([problem.matrix])),
        norms=np.ascontiguousarray(problem.norms),
        last=None if problem.last is None else np.ascontiguousarray(problem.last),
        residues=None if r is None else np.stack([r.sign, r.of_row, r.of_partner, r.slope, r.size]),
        same_sign=r is not None and r.same_sign,
        balance=problem.balance,
        rows=np.ascontiguousarray(problem.rows),
        others=np.ascontiguousarray(problem.others),
        k=k,
    )
    return NearestRows(row, cosine, score, route)
