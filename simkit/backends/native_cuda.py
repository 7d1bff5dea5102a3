"""The CUDA ops behind the op table: each function hands views of device memory to ``_cuda`` and wraps what comes back.

Arrays that lie on a device are read there, on their stream; those on the host, where this backend was asked for by
name, are copied to the current device for every op. Results are on the host, so every op waits for its own work.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from ..arrays import DeviceMatrix, FloatArray, Matrix
from .base import (
    Block,
    ColumnStats,
    EliminationOrder,
    Estimator,
    PairSums,
    Precision,
    Route,
    RouteName,
    matrices_of,
)
from .routes import products_precision

NAME = "native_cuda"
OPS = ("column_stats", "row_norms", "pair_sums", "column_products", "eliminate")

WORKSPACE = 2**28  # bytes of panels in flight, where no memory is given: enough tiles to keep a device busy
TILES = {"float32": 128, "float64": 64}  # samples; see csrc/cuda
LONG, LONGER = 10**14, 8  # multiply-adds of sample space (ten seconds), and what it may take more than feature space
PIECE = 2048  # elements of a panel that one block of threads multiplies


@cache
def _load() -> tuple[ModuleType | None, str]:
    try:
        from . import _cuda
    except ImportError as error:
        missing = "No module named" in str(error) or "cannot import name" in str(error)
        why = "SIMKIT_CUDA=OFF, or no nvcc was found" if missing else str(error)
        return None, f"this build has no CUDA code ({why})"
    return _cuda, ""


def _cuda() -> Any:
    return _load()[0]


@cache
def device_report() -> tuple[bool, list[str], str]:
    """(built with CUDA, the devices seen, why there are none)."""
    cuda, why = _load()
    return (False, [], why) if cuda is None else (True, *cuda.device_report())


def unsupported_reasons(op: str, inputs: Sequence[Matrix | Block] = ()) -> list[str]:
    """Why ``op`` cannot run here on ``inputs``; empty when it can."""
    if op not in OPS:
        return [f"there is no CUDA {op}"]
    _, devices, why = device_report()
    if not devices:
        return [why]
    return _no_pairs([x for x in inputs if isinstance(x, Block)]) if op == "pair_sums" else []


def _no_pairs(blocks: Sequence[Block]) -> list[str]:
    """Why the sums of these blocks are not formed in sample space."""
    kernels = dict.fromkeys(repr(block.kernel) for block in blocks if not block.linear)
    if kernels:
        return [f"there is no CUDA pair_sums for {kernel}" for kernel in kernels]
    if not blocks:
        return []
    p = sum(block.p for block in blocks)
    sample, feature = blocks[0].n ** 2 * p // 2, blocks[0].n * p * p // 2
    if sample < LONG or sample < LONGER * feature:
        return []
    return [f"there is no CUDA feature space, and sample space takes {sample:.3g} multiply-adds, not {feature:.3g}"]


def _place(inputs: Sequence[Matrix | Block]) -> int:
    """The device of the inputs, or the current one where all lie on the host."""
    devices = [matrix.device for matrix in matrices_of(inputs) if matrix.device is not None]
    return devices[0] if devices else int(_cuda().current_device())


def _array(matrix: Matrix, device: int) -> Any:
    if isinstance(matrix, DeviceMatrix):
        view = matrix.view
        return _cuda().Array(
            pointer=view.pointer,
            shape=view.shape,
            strides=view.strides,
            dtype=view.dtype,
            device=view.device,
            stream=view.stream,
        )
    return _cuda().Array.copied(x=np.ascontiguousarray(matrix.values), dtype=matrix.dtype, device=device)


def _bound(block: Block, device: int) -> Any:
    return _cuda().Block(
        x=_array(block.matrix, device),
        shift=np.ascontiguousarray(block.shift, dtype=np.float64),
        row_scale=block.row_scale,
        scale=math.ldexp(1.0, -block.exponent),
    )


def column_stats(matrix: Matrix, *, row_scale: FloatArray | None = None, threads: int = 1) -> ColumnStats:
    """See :func:`simkit.backends.reference.column_stats`."""
    mean, squares, max_abs, max_dev, nonfinite, row, column = _cuda().column_stats(
        x=_array(matrix, _place([matrix])), row_scale=row_scale
    )
    return ColumnStats(mean, squares, max_abs, max_dev, nonfinite, (row, column) if nonfinite else None)


def row_norms(block: Block, *, threads: int = 1) -> FloatArray:
    """See :func:`simkit.backends.reference.row_norms`."""
    norms: FloatArray = _cuda().row_norms(_bound(block, _place([block])))
    return norms


def plan_pair_sums(
    rows: Sequence[Block],
    columns: Sequence[Block] | None,
    *,
    memory: int | None = None,
    threads: int = 1,
    route: RouteName | None = None,
    products: Precision | None = None,
    tile: int | None = None,
    mapped_row_bytes: int = 0,
) -> Route:
    """The route of :func:`pair_sums`: sample space, in tiles of one size; ``memory`` bounds the panels in flight.

    Raises:
        ValueError: one tile's workspace is larger than ``memory``. NotImplementedError: feature space, another tile.
    """
    if route == "feature":
        raise NotImplementedError(f"{NAME} has no feature space")
    blocks = [*rows, *(columns or ())]
    n, m = blocks[0].n, len(blocks)
    wanted, why = products_precision(blocks)
    products = products or wanted
    size = TILES[products]
    if tile not in (None, size):
        raise NotImplementedError(f"{NAME} multiplies {products} in tiles of {size}, not {tile}")
    item = 8 if products == "float64" else 4
    each = m * size * (size * item + 16) + -(-size * size // PIECE) * 8 * m * m
    shared = 8 * (2 * m * n + (2 + -(-n // PIECE)) * m * m)
    if memory is not None and shared + each > memory:
        raise ValueError(
            f"memory={memory} bytes is too little: comparing {m} layers of {n} samples on a device "
            f"needs {shared + each}"
        )
    strips = -(-n // size)
    room = WORKSPACE if memory is None else memory
    taken = shared + max(1, min(strips * (strips + 1) // 2, (room - shared) // each)) * each
    pairs = m * m // 2 if columns is None else len(rows) * len(columns)
    multiply_adds = n * n * (sum(block.p for block in blocks) + pairs) // 2
    return Route("sample", products, size, 1, multiply_adds, taken, f"{products} products: {why}")


def pair_sums(
    rows: Sequence[Block], columns: Sequence[Block] | None, *, estimator: Estimator, route: Route
) -> PairSums:
    """See :func:`simkit.backends.reference.pair_sums`; ``route`` says how the sums are formed."""
    device = _place([*rows, *(columns or ())])
    values, own, raw = _cuda().pair_sums(
        rows=[_bound(block, device) for block in rows],
        columns=[_bound(block, device) for block in columns or ()],
        debiased=estimator == "debiased",
        double_products=route.products == "float64",
        bytes=route.bytes,
    )
    left = len(rows)
    if columns is None:
        return PairSums(values, own, own, raw, raw)
    return PairSums(values, own[:left], own[left:], raw[:left], raw[left:])


def column_products(block: Block, stats: ColumnStats, *, exact: bool = True, threads: int = 1) -> FloatArray:
    """See :func:`simkit.backends.reference.column_products`; float32 products unless ``exact``."""
    bound = _bound(block, _place([block]))
    products: FloatArray = _cuda().column_products(bound, stats.sum_sq_dev, exact=exact)
    return products


def eliminate(
    a: FloatArray, *, greedy: bool = True, count: int | None = None, min_cka: float | None = None
) -> EliminationOrder:
    """See :func:`simkit.backends.reference.eliminate`; ``a`` is symmetric, and copied to the current device."""
    order, cka, gap = _cuda().eliminate(
        np.ascontiguousarray(a),
        greedy=greedy,
        count=len(a) if count is None else count,
        min_cka=math.nan if min_cka is None else min_cka,
        device=_cuda().current_device(),
        stream=0,
    )
    return EliminationOrder(order, cka, gap)
