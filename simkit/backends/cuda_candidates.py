"""Candidates on a device: a layer's units are formed there once, and left out of a kernel as often as a search asks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..kernels import Polynomial
from .base import (
    Block,
    CandidateProblem,
    CandidateSums,
    Levels,
    UnitFeatures,
    kernel_options,
)
from .cuda_device import array_on, cuda, place_of
from .unit_features import kernel_unit

WORKSPACE = 2**32  # bytes at most of distances and row sums in flight: what 512 units of 10,000 samples take


@dataclass(frozen=True)
class DeviceFeatures:
    """z ``[p, n]`` on a device."""

    units: Any
    shape: tuple[int, int]
    dtype: np.dtype[Any]


def unit_features(block: Block, columns: npt.NDArray[np.int64], *, double: bool, threads: int = 1) -> UnitFeatures:
    """See :func:`simkit.backends.reference.unit_features`; distances are about the medians of a few hundred samples."""
    array = array_on(block.matrix, place_of([block]))
    scale, unit = math.ldexp(1.0, -block.exponent), kernel_unit(block)
    units = cuda().Units(
        x=array,
        columns=np.ascontiguousarray(columns, dtype=np.int64),
        shift=np.ascontiguousarray(block.shift[columns]) if isinstance(block.kernel, Polynomial) else None,
        scale=scale,
        unit=unit,
        double=double,
    )
    stats = cuda().column_stats(x=array, row_scale=np.full(block.n, scale))  # raw squares may overflow, or vanish
    squares = np.asarray(stats[1])[columns] / unit / unit
    dtype = np.dtype(np.float64 if double else np.float32)
    return UnitFeatures(DeviceFeatures(units, (len(columns), block.n), dtype), squares)


def candidate_sums(
    problem: CandidateProblem,
    kept: npt.NDArray[np.int64],
    candidates: npt.NDArray[np.int64],
    *,
    levels: Levels | None = None,
    rows: bool = True,
    threads: int = 1,
) -> CandidateSums:
    """See :func:`simkit.backends.reference.candidate_sums`; only totals come back where no ``rows`` are asked for."""
    levels = levels or Levels(np.zeros(problem.z.shape[1]))
    held = hold(problem, len(candidates), 0) if problem.packed is None else problem.packed
    return CandidateSums(
        *held.sums(
            kept=np.ascontiguousarray(kept, dtype=np.int64),
            candidates=np.ascontiguousarray(candidates, dtype=np.int64),
            levels=np.ascontiguousarray(levels.values),
            small=levels.small,
            rows=rows,
        )
    )


def pack_centred(problem: CandidateProblem, *, room: int, threads: int = 1) -> Any:
    """What many ``candidate_sums`` need on the device: workspace and, where it takes no more than ``room`` bytes, L."""
    return hold(problem, len(problem.offsets) - 1, room)


def hold(problem: CandidateProblem, at_once: int, room: int, workspace: int = WORKSPACE) -> Any:
    """What candidates, at most ``at_once`` of them at a time, need on the device; L in ``room`` bytes."""
    return cuda().Candidates(
        units=problem.z.units,
        offsets=np.ascontiguousarray(problem.offsets, dtype=np.int64),
        length=problem.length,
        debiased=problem.estimator == "debiased",
        centre=np.zeros(problem.z.shape[1]) if problem.centre is None else np.ascontiguousarray(problem.centre),
        small_centre=problem.small_centre,
        at_once=at_once,
        packed=room,
        bytes=workspace,
        **kernel_options(problem.kernel),
    )
