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
from ..errors import TooLittleMemory
from ..kernels import CustomKernel, Kernel
from .base import (
    Block,
    ColumnStats,
    EliminationOrder,
    Estimator,
    PairSums,
    Precision,
    Route,
    RouteName,
    kernel_options,
    matrices_of,
)
from .routes import FLOAT64_COST, Workspace, count_multiply_adds, products_precision

NAME = "native_cuda"
OPS = ("column_stats", "row_norms", "distance_median", "pair_sums", "column_products", "eliminate")

WORKSPACE = 2**30  # bytes of panels in flight, where no memory is given: many tiles, for the last ones of a round wait
PARTS = 2**28  # bytes of the parts of cross-products, whatever the memory: they decide the last bits
TILES = {"float32": 128, "float64": 64}  # samples; see csrc/cuda
PIECE = 2048  # elements of a panel that one block of threads multiplies
CHUNK, BUSY = 1024, 528  # samples of a group are whole chunks; squares that keep a device busy


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
        length=block.length,
        **kernel_options(block.kernel),
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


def distance_median(block: Block, *, threads: int = 1) -> float:
    """See :func:`simkit.backends.reference.distance_median`."""
    return float(_cuda().distance_median(_bound(block, _place([block]))))


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
    """The cheaper exact route by counted multiply-adds; ``memory`` bounds the device's workspace, ``route`` forces.

    Raises:
        TooLittleMemory: the smallest workspace is larger than ``memory``. NotImplementedError: a tile of another size.
        ValueError: feature space is forced on a non-linear kernel.
    """
    blocks = [*rows, *(columns or ())]
    n, m = blocks[0].n, len(blocks)
    wanted, why = products_precision(blocks)
    products = products or wanted
    left, right = sum(block.p for block in rows), sum(block.p for block in columns or ())
    sample_cost, feature_cost = count_multiply_adds(rows, columns)
    linear = all(block.linear for block in blocks)
    if route is None:
        rate = FLOAT64_COST if products == "float64" else 1.0
        route = "feature" if linear and FLOAT64_COST * feature_cost < rate * sample_cost else "sample"
    if route == "feature":
        if not linear:
            raise ValueError("the feature-space route needs a linear kernel")
        products, cost = "float64", feature_cost
        reason = f"{cost:.3g} float64 multiply-adds against {sample_cost:.3g} {wanted} ones in sample space"
        space, most = _feature_space(n, m, left, right)
    else:
        cost = sample_cost
        reason = f"{products} products: {why}; feature space would take {feature_cost:.3g} multiply-adds in float64"
        space, most = _sample_space(n, m, products, linear=linear)
    size = TILES[products]
    if tile not in (None, size):
        raise NotImplementedError(f"{NAME} multiplies {products} in tiles of {size}, not {tile}")
    if memory is not None and space.total(1) > memory:
        work = f"comparing {m} layers of {n} samples on a device"
        raise TooLittleMemory(f"{memory} bytes", work, space.total(1))
    in_flight = space.workers(most, WORKSPACE if memory is None else memory)
    return Route(route, products, size, 1, cost, space.total(in_flight), reason)


def _sample_space(n: int, m: int, products: Precision, *, linear: bool) -> tuple[Workspace, int]:
    """Bytes shared and for each tile in flight, and the number of tiles."""
    size, item = TILES[products], 8 if products == "float64" else 4
    each = m * size * (size * item + 16) + -(-size * size // PIECE) * 8 * m * m
    strips = -(-n // size)
    of_rows = 2 + (products == "float64") + (not linear)  # sums, diagonals; means; norms
    return Workspace(8 * (of_rows * m * n + (2 + -(-n // PIECE)) * m * m), each), strips * (strips + 1) // 2


def _feature_space(n: int, m: int, left: int, right: int) -> tuple[Workspace, int]:
    """Bytes shared and for each square of cross-products in flight, and the number of squares."""
    size = TILES["float64"]
    a, b = -(-left // size), -(-right // size)
    squares = a * b if right else a * (a + 1) // 2
    square = 8 * size * size
    chunks = -(-n // CHUNK)
    groups = min(-(-BUSY // squares), max(1, PARTS // (squares * square)), chunks)
    return Workspace(64 * (left + right) + 16 * m * n + 8 * (4 + -(-n // PIECE)) * m * m, groups * square), squares


def pair_sums(
    rows: Sequence[Block], columns: Sequence[Block] | None, *, estimator: Estimator, route: Route
) -> PairSums:
    """See :func:`simkit.backends.reference.pair_sums`; ``route`` says how the sums are formed."""
    device = _place([*rows, *(columns or ())])
    values, own, raw = _cuda().pair_sums(
        rows=[_bound(block, device) for block in rows],
        columns=[_bound(block, device) for block in columns or ()],
        debiased=estimator == "debiased",
        sample_space=route.name == "sample",
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
