"""The CUDA ops behind the op table: each function hands views of device memory to ``_cuda`` and wraps what comes back.

Arrays that lie on a device are read there, on their stream; those on the host, where this backend was asked for by
name, are copied to the current device once, or sent there in strips of rows where ``memory`` or the device leaves no
room (:mod:`simkit.backends.cuda_strips`). Results are on the host, so every op waits for its own work; packed graphs,
what ``pack_centred`` returns, the matrices of greedy orders and the moments of a stream stay on the device for the ops
that follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ..arrays import FloatArray, Matrix
from ..kernels import CustomKernel, Kernel
from . import cuda_greedy, cuda_strips
from .base import OPS as ALL_OPS
from .base import Block, ColumnStats, Estimator, Input, PairSums, Route, UnitBlocks
from .cuda_candidates import (  # noqa: F401 - ops of the table, and a planner
    candidate_sums,
    pack_centred,
    plan_candidates,
    unit_features,
)
from .cuda_device import array_on, block_on, cuda, device_report, free_memory, place_of  # noqa: F401 - of a device
from .cuda_graphs import adjacency, components, cover  # noqa: F401
from .cuda_greedy import eliminate, gather_columns  # noqa: F401
from .cuda_moments import hold_moments, largest_entries, moments_add, moments_rows  # noqa: F401
from .cuda_partners import nearest_rows  # noqa: F401
from .cuda_products import column_products, plan_products, words_of_columns  # noqa: F401
from .mixed import Sums, mixed_sums

OPS = ALL_OPS
plan_pair_sums = cuda_strips.plan_pair_sums


def unsupported_reasons(op: str, inputs: Sequence[Input] = (), kernel: Kernel | None = None) -> list[str]:
    """Why ``op`` cannot run here on ``inputs``; empty when it can."""
    if op not in OPS:
        return [f"there is no CUDA {op}"]
    _, devices, why = device_report()
    if not devices:
        return [why]
    if isinstance(kernel, CustomKernel) and op in ("unit_features", "candidate_sums", "pack_centred"):
        return [f"there is no CUDA {op} of {kernel!r}"]
    kernels = dict.fromkeys(
        repr(x.kernel) for x in inputs if isinstance(x, Block) and isinstance(x.kernel, CustomKernel)
    )
    return [f"there is no CUDA {op} for {name}" for name in kernels] if op == "pair_sums" else []


def column_stats(
    matrix: Matrix, *, row_scale: FloatArray | None = None, threads: int = 1, memory: int | None = None
) -> ColumnStats:
    """See :func:`simkit.backends.reference.column_stats`; ``memory`` bounds what an array on the host takes there.

    Raises:
        TooLittleMemory: the smallest strips take more.
    """
    device = place_of([matrix])
    strips = None if matrix.device is not None else cuda_strips.column_strips(matrix, device, memory, threads)
    found = (
        cuda().column_stats(x=array_on(matrix, device), row_scale=row_scale)
        if strips is None
        else cuda_strips.column_stats(matrix, row_scale, device, strips)
    )
    mean, squares, max_abs, max_dev, nonfinite, row, column = found
    return ColumnStats(mean, squares, max_abs, max_dev, nonfinite, (row, column) if nonfinite else None)


def row_norms(block: Block, *, threads: int = 1, memory: int | None = None) -> FloatArray:
    """See :func:`simkit.backends.reference.row_norms`; ``memory`` and errors as in :func:`column_stats`."""
    device = place_of([block])
    on_host = block.matrix.device is None
    strips = cuda_strips.row_strips(block.matrix, device, memory, threads) if on_host else None
    if strips is not None:
        return cuda_strips.row_norms(block, device, strips)
    norms: FloatArray = cuda().row_norms(block_on(block, device))
    return norms


def distance_median(block: Block, *, threads: int = 1, memory: int | None = None) -> float:
    """See :func:`simkit.backends.reference.distance_median`; ``memory`` and errors as in :func:`column_stats`."""
    device = place_of([block])
    on_host = block.matrix.device is None and block.row_scale is None
    strips = cuda_strips.median_strips(block.matrix, device, memory, threads) if on_host else None
    if strips is not None:
        return cuda_strips.distance_median(block, device, strips)
    return float(cuda().distance_median(block_on(block, device)))


def pair_sums(
    rows: Sequence[Block], columns: Sequence[Block] | None, *, estimator: Estimator, route: Route
) -> PairSums:
    """See :func:`simkit.backends.reference.pair_sums`; ``route`` says how the sums are formed."""
    on_host = route if isinstance(route, cuda_strips.HostRoute) else None
    workspace = route.bytes if on_host is None else on_host.workspace
    strips = None if on_host is None else on_host.strips
    if isinstance(rows, UnitBlocks) and columns is None and strips is None:
        return cuda_greedy.unit_sums(rows, estimator, route, workspace)
    device = place_of([*rows, *(columns or ())])
    debiased = estimator == "debiased"
    if strips is not None:
        values, own, raw = cuda_strips.pair_sums(rows, columns or (), device, debiased, route, strips)
    else:
        there = [block_on(block, device) for block in rows]
        others = None if columns is None else [block_on(block, device) for block in columns]
        split = route.split
        if split is None:
            values, own, raw = _pair_sums(there, others, debiased, route, workspace)
        else:
            feature = partial(_pair_sums, debiased=debiased, route=split.feature, workspace=split.feature.bytes)
            sample = partial(_pair_sums, debiased=debiased, route=split.sample, workspace=split.sample.bytes)
            values, own, raw = mixed_sums(split.wide, there, others, partial(feature, apart=split.wide), sample)
    left = len(rows)
    if columns is None:
        return PairSums(values, own, own, raw, raw)
    return PairSums(values, own[:left], own[left:], raw[:left], raw[left:])


def _pair_sums(
    rows: list[Any], columns: list[Any] | None, debiased: bool, route: Route, workspace: int, apart: Sequence[bool] = ()
) -> Sums:
    """As the compiled module returns them, of blocks that are bound; of pairs of two ``apart`` zero."""
    sums: Sums = cuda().pair_sums(
        rows=rows,
        columns=columns or [],
        debiased=debiased,
        sample_space=route.name == "sample",
        double_products=route.products == "float64",
        tensor=route.cores != "plain",
        halves=route.cores == "half",
        bytes=workspace,
        apart=list(apart),
    )
    return sums
