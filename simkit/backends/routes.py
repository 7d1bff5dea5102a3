"""The planner: counts multiply-adds and bytes of the exact routes and picks one, as data.

Sample space walks tiles of the n × n plane, feature space the cross-products of columns (mathematics: Kornblith et
al. 2019, equations 3 and 4). Neither stores an n × n or p × p matrix.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from ..kernels import Cosine, Linear
from .base import Block, Precision, Route, RouteName

TILES = (256, 192, 128, 96, 64, 48, 32, 24, 16, 8)
CHUNK = 512  # columns (sample space) or rows (feature space) packed at a time
SMALL_N = 64  # below this float64 products cost nothing and float32 ones lose digits to cancellation
FLOAT64_COST = 2.0  # a float64 multiply-add against a float32 one
MOST_THREADS = 1024  # more are taken for this many


def default_threads() -> int:
    """The processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def check_threads(threads: int | None) -> int:
    """The number of threads, or the default; ValueError when it is not a positive integer."""
    if threads is None:
        return default_threads()
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise ValueError(f"threads must be a positive integer, not {threads!r}")
    return min(threads, MOST_THREADS)


def parse_memory(memory: int | float | str | None) -> int | None:
    """Bytes from a number or a text such as ``"64 MB"`` or ``"2 GiB"``; None stays None.

    Raises:
        ValueError: not a positive amount of bytes.
    """
    if memory is None:
        return None
    units = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    value: float
    try:
        if isinstance(memory, str):
            text = memory.strip().upper()
            number = text.rstrip("KMGIB ")
            value = float(number) * units[text[len(number) :].strip()]
        else:
            value = float(memory)
        if isinstance(memory, bool) or not 0 < value < float("inf"):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise ValueError(f'memory must be a number of bytes or a text such as "64 MB", not {memory!r}') from None
    return int(value)


def products_precision(blocks: Sequence[Block]) -> tuple[Precision, str]:
    """The precision that products are formed in, and why."""
    if any(block.matrix.precision == "float64" for block in blocks):
        return "float64", "float64 input"
    if blocks[0].n < SMALL_N:
        return "float64", f"fewer than {SMALL_N} samples"
    if not all(isinstance(block.kernel, Linear | Cosine) for block in blocks):
        return "float64", "a non-linear kernel"
    return "float32", "float32 input"


def workspace(m: int, tile: int, threads: int, products: Precision, n: int, mapped_row_bytes: int) -> int:
    """Bytes the sample-space engine holds: panels and packed strips per thread, row sums, mapped pages in use."""
    item = 8 if products == "float64" else 4
    chunk_gram = m * m * (8 + item)
    per_thread = m * tile * tile * item + 2 * tile * CHUNK * item + chunk_gram + 2 * tile * mapped_row_bytes
    return threads * per_thread + 8 * m * n + 24 * m * m


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
    """Pick the cheapest exact route for all-pairs sums; ``route``, ``products`` and ``tile`` force a choice.

    Raises:
        ValueError: the smallest workspace is larger than ``memory``.
    """
    blocks = [*rows, *(columns or ())]
    n, m = blocks[0].n, len(blocks)
    wanted, why = products_precision(blocks)
    products = products or wanted
    linear = all(isinstance(block.kernel, Linear | Cosine) for block in blocks)
    widths = [block.p for block in blocks]
    left = sum(block.p for block in rows)
    right = sum(block.p for block in columns or ())
    sample_cost = n * n * sum(widths) // 2 + n * n * (m * m // 2 if columns is None else len(rows) * len(columns)) // 2
    own = sum(p * p for p in widths) // 2
    feature_cost = n * left * left // 2 if columns is None else n * (left * right + own)
    width = tile or feature_tile(left + right)
    held = (
        min(threads, _square(left + right, width)) * 8 * (2 * CHUNK * width + width * width) + 16 * m * n + 24 * m * m
    )
    penalty = FLOAT64_COST if products == "float32" else 1.0
    cheaper = linear and feature_cost * penalty < sample_cost and (memory is None or held <= memory)
    chosen: RouteName = route or ("feature" if cheaper else "sample")
    if chosen == "feature":
        if not linear:
            raise ValueError("the feature-space route needs a linear kernel")
        reason = f"{feature_cost:.3g} float64 multiply-adds against {sample_cost:.3g} {products} ones in sample space"
        return Route("feature", "float64", width, threads, feature_cost, held, reason)
    return _sample_route(m, n, products, why, sample_cost, feature_cost, memory, threads, tile, mapped_row_bytes)


def _square(size: int, width: int) -> int:
    """Tiles of the upper triangle of a square: more workers than tiles would have nothing to do."""
    strips = -(-size // width)
    return strips * (strips + 1) // 2


def feature_tile(total: int) -> int:
    """Width of a feature-space tile: at least about 36 of them, 32 to 256 columns wide."""
    return max(32, min(256, -(-total // 8 // 32) * 32))


def _sample_route(
    m: int,
    n: int,
    products: Precision,
    why: str,
    sample_cost: int,
    feature_cost: int,
    memory: int | None,
    threads: int,
    tile: int | None,
    mapped_row_bytes: int,
) -> Route:
    reason = f"{products} products: {why}; feature space would take {feature_cost:.3g} multiply-adds in float64"
    for width in (tile,) if tile else TILES:
        workers = min(threads, _square(n, width))
        needed = workspace(m, width, workers, products, n, mapped_row_bytes)
        if tile or (memory is None and needed < 2**30) or (memory is not None and needed <= memory):
            return Route("sample", products, width, workers, sample_cost, needed, reason)
    if threads > 1:
        return _sample_route(
            m, n, products, why, sample_cost, feature_cost, memory, threads // 2, tile, mapped_row_bytes
        )
    if memory is None:
        return Route("sample", products, TILES[-1], threads, sample_cost, needed, reason)
    raise ValueError(f"memory={memory} bytes is too little: comparing {m} layers of {n} samples needs {needed}")
