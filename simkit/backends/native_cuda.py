"""The CUDA ops behind the op table: each function hands views of device memory to ``_cuda`` and wraps what comes back.

Arrays that lie on a device are read there, on their stream; those on the host, where this backend was asked for by
name, are copied to the current device for every op. Results are on the host, so every op waits for its own work.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..arrays import FloatArray, Matrix
from ..kernels import CustomKernel, Kernel
from . import cuda_routes
from .base import Block, ColumnStats, Cores, EliminationOrder, Estimator, PairSums, Precision, Route
from .cuda_cores import cores_for, products_in_words
from .cuda_device import array_on, block_on, cuda, device_report, place_of

OPS = ("column_stats", "row_norms", "distance_median", "pair_sums", "column_products", "eliminate")
plan_pair_sums = cuda_routes.plan_pair_sums


def unsupported_reasons(op: str, inputs: Sequence[Matrix | Block] = (), kernel: Kernel | None = None) -> list[str]:
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
    device = place_of([*rows, *(columns or ())])
    values, own, raw = cuda().pair_sums(
        rows=[block_on(block, device) for block in rows],
        columns=[block_on(block, device) for block in columns or ()],
        debiased=estimator == "debiased",
        sample_space=route.name == "sample",
        double_products=route.products == "float64",
        tensor=route.cores == "tensor",
        bytes=route.bytes,
    )
    left = len(rows)
    if columns is None:
        return PairSums(values, own, own, raw, raw)
    return PairSums(values, own[:left], own[left:], raw[:left], raw[left:])


def column_products(
    block: Block, stats: ColumnStats, *, exact: bool = True, threads: int = 1, cores: Cores | None = None
) -> FloatArray:
    """See :func:`simkit.backends.reference.column_products`; float32 products unless ``exact``, ``cores`` forces."""
    bound, tensor = block_on(block, place_of([block])), cores_for([block], cores) == "tensor"
    products: FloatArray = cuda().column_products(bound, stats.sum_sq_dev, exact=exact, tensor=tensor)
    return products


def words_of_columns(products: Precision, inputs: Sequence[Matrix | Block]) -> str:
    """What products of columns of ``inputs`` are here, for a plan."""
    return products_in_words(products, cores_for(inputs), " of columns")


def eliminate(
    a: FloatArray, *, greedy: bool = True, count: int | None = None, min_cka: float | None = None
) -> EliminationOrder:
    """See :func:`simkit.backends.reference.eliminate`; ``a`` is symmetric, and copied to the current device."""
    order, cka, gap = cuda().eliminate(
        np.ascontiguousarray(a),
        greedy=greedy,
        count=len(a) if count is None else count,
        min_cka=math.nan if min_cka is None else min_cka,
        device=cuda().current_device(),
        stream=0,
    )
    return EliminationOrder(order, cka, gap)
