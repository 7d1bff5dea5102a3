"""The CUDA ops behind the op table: each function hands views of device memory to ``_cuda`` and wraps what comes back.

Arrays that lie on a device are read there, on their stream; those on the host, where this backend was asked for by
name, are copied to the current device for every op. Results are on the host, but for those of which another op is made
(``cuda_greedy``), so every op waits for its own work.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..arrays import FloatArray, Matrix
from ..kernels import CustomKernel, Kernel
from . import cuda_greedy, cuda_routes
from .base import Block, ColumnStats, Estimator, Input, PairSums, Route, UnitBlocks
from .cuda_device import array_on, block_on, cuda, device_report, place_of

OPS = ("column_stats", "row_norms", "distance_median", "pair_sums", "column_products", "gather_columns", "eliminate")
plan_pair_sums = cuda_routes.plan_pair_sums
column_products, gather_columns = cuda_greedy.column_products, cuda_greedy.gather_columns
eliminate = cuda_greedy.eliminate


def unsupported_reasons(op: str, inputs: Sequence[Input] = (), kernel: Kernel | None = None) -> list[str]:
    """Why ``op`` cannot run here on ``inputs``; empty when it can."""
    if op not in OPS:
        return [f"there is no CUDA {op}"]
    _, devices, why = device_report()
    if not devices:
        return [why]
    kernels = dict.fromkeys(
        repr(x.kernel) for x in inputs if isinstance(x, Block) and isinstance(x.kernel, CustomKernel)
    )
    return [f"there is no CUDA {op} for {name}" for name in kernels] if op == "pair_sums" else []


def column_stats(matrix: Matrix, *, row_scale: FloatArray | None = None, threads: int = 1) -> ColumnStats:
    """See :func:`simkit.backends.reference.column_stats`."""
    mean, squares, max_abs, max_dev, nonfinite, row, column = cuda().column_stats(
        x=array_on(matrix, place_of([matrix])), row_scale=row_scale
    )
    return ColumnStats(mean, squares, max_abs, max_dev, nonfinite, (row, column) if nonfinite else None)


def row_norms(block: Block, *, threads: int = 1) -> FloatArray:
    """See :func:`simkit.backends.reference.row_norms`."""
    norms: FloatArray = cuda().row_norms(block_on(block, place_of([block])))
    return norms


def distance_median(block: Block, *, threads: int = 1) -> float:
    """See :func:`simkit.backends.reference.distance_median`."""
    return float(cuda().distance_median(block_on(block, place_of([block]))))


def pair_sums(
    rows: Sequence[Block], columns: Sequence[Block] | None, *, estimator: Estimator, route: Route
) -> PairSums:
    """See :func:`simkit.backends.reference.pair_sums`; ``route`` says how the sums are formed."""
    if isinstance(rows, UnitBlocks) and columns is None:
        return cuda_greedy.unit_sums(rows, estimator, route)
    device = place_of([*rows, *(columns or ())])
    values, own, raw = cuda().pair_sums(
        rows=[block_on(block, device) for block in rows],
        columns=[block_on(block, device) for block in columns or ()],
        debiased=estimator == "debiased",
        sample_space=route.name == "sample",
        double_products=route.products == "float64",
        bytes=route.bytes,
    )
    left = len(rows)
    if columns is None:
        return PairSums(values, own, own, raw, raw)
    return PairSums(values, own[:left], own[left:], raw[:left], raw[left:])
