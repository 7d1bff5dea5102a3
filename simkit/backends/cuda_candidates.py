"""Candidates on a device: a layer's units are sent there once, and left out of a kernel as often as a search asks."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..kernels import Polynomial
from .base import CandidateProblem, CandidateSums, kernel_options
from .cuda_device import cuda

WORKSPACE = 2**30  # bytes of distances and of row sums in flight, beside the units and L


def candidate_sums(
    problem: CandidateProblem,
    kept: npt.NDArray[np.int64],
    candidates: npt.NDArray[np.int64],
    *,
    level: float = 0.0,
    rows: bool = True,
    threads: int = 1,
) -> CandidateSums:
    """See :func:`simkit.backends.reference.candidate_sums`; only totals come back where no ``rows`` are asked for."""
    held = _held(problem, len(candidates), 0) if problem.packed is None else problem.packed
    return CandidateSums(
        *held.sums(
            kept=np.ascontiguousarray(kept, dtype=np.int64),
            candidates=np.ascontiguousarray(candidates, dtype=np.int64),
            level=level,
            rows=rows,
        )
    )


def pack_centred(problem: CandidateProblem, *, room: int, threads: int = 1) -> Any:
    """The problem on its device for many ``candidate_sums``: z, workspace and, in ``room`` bytes, L."""
    return _held(problem, len(problem.offsets) - 1, room)


def _held(problem: CandidateProblem, at_once: int, room: int) -> Any:
    z = problem.z
    if isinstance(problem.kernel, Polynomial):  # it is large and nearly constant far from zero: float64 always
        z = z.astype(np.float64)
    return cuda().Candidates(
        z=np.ascontiguousarray(z),
        offsets=np.ascontiguousarray(problem.offsets, dtype=np.int64),
        length=problem.length,
        debiased=problem.estimator == "debiased",
        centre=np.ascontiguousarray(problem.centre, dtype=np.float64),
        mean=problem.mean,
        at_once=at_once,
        packed=room,
        bytes=WORKSPACE,
        device=int(cuda().current_device()) if problem.device is None else problem.device,
        **kernel_options(problem.kernel),
    )
