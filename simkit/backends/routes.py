"""The planner: counts multiply-adds and bytes of the exact routes and picks one, as data.

Sample space walks tiles of the n × n plane, feature space the cross-products of columns (mathematics: Kornblith et
al. 2019, equations 3 and 4). Neither stores an n × n or p × p matrix.

A third route, mixed, is not built: k narrow layers, p wide, by feature space among themselves and against the m wide
ones, w wide in all, which stay in sample space. With q = kp, and a multiply-add of feature space worth f (1; 2 beside
float32 ones),

    sample  n²(q + w)/2 + n²(k + m)²/4        feature  f n (q + w)²/2        mixed  f n (q²/2 + qw) + n²w/2 + n²m²/4

Sample space beats feature space on the wide layers only if w > n/f; then f n q w > n²q, twice what the products of the
narrow ones cost in sample space, and only their panels, n²k(k + 2m)/4, can pay for it: from about k = 2p on. Counted,
the best split saves at most 3% up to k = 2p, a fifth up to k = 8p, a tenth for layers and heads of common networks.
Beyond, it saves much: 1.5 times for 1200 attention heads of 64 beside 48 layers of 6400 (float64, n = 100,000), 4.9
times for 512 single neurons beside 4 layers of 4096 in one table (n = 5000). ``tests/test_mixed_route.py`` counts it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from ..errors import TooLittleMemory
from ..kernels import CustomKernel, as_integer
from .base import Block, Cores, Precision, Route, RouteName

TILES = (336, 288, 240, 208, 192, 144, 96, 48, 24, 16, 8)  # multiples of a sliver, or nearly
SHARED = 64  # from so many layers on all workers share one tile: panels are large, and layers enough to deal out
CHUNK = 256  # columns (sample space) packed at a time
ROWS = 512  # rows (feature space) packed at a time
WIDEST = 48  # rows of a packed sliver, at most
PILOT = 256  # rows that estimate the row means of a non-linear kernel
PACKING = 32  # what packing one strip of a tile costs, in multiply-adds per element
WORKERS = 2  # the tile is chosen for so many, whatever the threads: it moves the last bits of the answer
PANELS = 28 * 10**6  # bytes of panels and strips for each of so many workers, and
ROOM = 2**30  # of all workers, where no memory is given
SMALL_N = 64  # below this float64 products cost nothing and float32 ones lose digits to cancellation
FLOAT64_COST = 2.0  # a float64 multiply-add against a float32 one

# What a route takes, fitted to timings of both over a grid of shapes (benchmarks/test_routes.py checks them): its
# multiply-adds and, as so many more, sums over every element of every layer's Gram matrix, passes over every row and
# every entry, tiles, and the start of the team; the rate is that of its multiply-adds.
SAMPLE = {"float32": (75, 270, 14_000_000, 2.4), "float64": (34, 90, 8_600_000, 1.16)}  # element, entry, start, rate
FEATURE = (3700, 175, 13, 1_800_000)  # row, entry, pair of columns, start; rate 1
MOST_THREADS = 1024  # more are taken for this many


def default_threads() -> int:
    """The processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def check_threads(threads: int | None) -> int:
    """The number of threads, or the default; ValueError when it is not a positive integer."""
    if threads is None:
        return default_threads()
    count = as_integer(threads)
    if count is None or count < 1:
        raise ValueError(f"threads must be a positive integer, not {threads!r}")
    return min(count, MOST_THREADS)


def parse_memory(memory: int | float | str | None) -> int | None:
    """Bytes from a number or a text such as ``"64 MB"`` or ``"2 GiB"``; None stays None.

    Raises:
        ValueError: not an amount of bytes, or less than one.
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
        if isinstance(memory, bool) or not 1 <= value < float("inf"):
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
    if not all(block.linear for block in blocks):
        return "float64", "a non-linear kernel"
    return "float32", "float32 input"


@dataclass(frozen=True)
class Workspace:
    """Bytes that a route holds beyond the features: once, for every worker, and in sums of rows and of pairs."""

    shared: int
    each: int
    sums: int = 0

    def workers(self, threads: int, memory: int) -> int:
        """How many workers fit into ``memory``, at least one and at most ``threads``."""
        return max(1, min(threads, (memory - self.shared - self.sums) // self.each))

    def total(self, workers: int) -> int:
        """Bytes with so many workers."""
        return self.shared + self.sums + workers * self.each


def sample_workspace(
    m: int,
    n: int,
    p: int,
    tile: int,
    products: Precision,
    mapped_row_bytes: int,
    *,
    linear: bool = True,
    custom: bool = False,
) -> Workspace:
    """The sample-space engine's panels, packed strips, sums of rows, pages of mapped files; p of the widest layer.

    A custom kernel is given tiles of products and of distances.
    """
    item = 8 if products == "float64" else 4
    sums = _sums_bytes(m, n, products, linear=linear)
    each = 2 * custom * tile * tile * item + _strips_bytes(tile, p, item) + (8 + item) * m * m
    each += 2 * tile * mapped_row_bytes
    if not linear:  # before the walk, the tiles of one layer with the pilot's rows
        pilot = _strips_bytes(max(tile, PILOT), p, item) + (1 + 2 * custom) * tile * PILOT * item
        each = max(each, pilot)
    panel = m * tile * tile * item
    if m >= SHARED:
        return Workspace(panel, each + 16 * tile, sums)
    return Workspace(0, each + panel + 16 * m * tile, sums)


def count_multiply_adds(rows: Sequence[Block], columns: Sequence[Block] | None) -> tuple[int, int]:
    """What all-pairs sums of these blocks cost in sample space, panels included, and in feature space."""
    n, left, right = rows[0].n, sum(block.p for block in rows), sum(block.p for block in columns or ())
    if columns is None:
        return n * n * (left + len(rows) ** 2 // 2) // 2, n * left * left // 2
    own = sum(block.p**2 for block in (*rows, *columns)) // 2
    return n * n * (left + right + len(rows) * len(columns)) // 2, n * (left * right + own)


def _sums_bytes(m: int, n: int, products: Precision, *, linear: bool) -> int:
    """Sums of all rows and of all pairs; in float64 twice, with the rows' means, for they may be formed again."""
    again = 2 * m * n + 2 * m * m if products == "float64" else 0
    return 8 * (m * n + 3 * m * m + again + (0 if linear else m * n))  # what is not linear has norms of rows too


def _strips_bytes(tile: int, p: int, item: int) -> int:
    """Two packed strips of a tile."""
    return 2 * (-(-tile // WIDEST) * WIDEST) * min(CHUNK, p) * item


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
    cores: Cores | None = None,
) -> Route:
    """Pick the cheapest exact route for all-pairs sums; ``route``, ``products`` and ``tile`` force a choice.

    Nothing but the number of workers depends on ``threads``, so that the answer does not.

    Raises:
        TooLittleMemory: the smallest workspace is larger than ``memory``. NotImplementedError: tensor cores.
    """
    if cores == "tensor":
        raise NotImplementedError("products on tensor cores need a CUDA device, not a processor")
    blocks = [*rows, *(columns or ())]
    n, m = blocks[0].n, len(blocks)
    wanted, why = products_precision(blocks)
    products = products or wanted
    linear = all(block.linear for block in blocks)
    widths = [block.p for block in blocks]
    sample_cost, feature_cost = count_multiply_adds(rows, columns)
    width = tile or feature_tile(sum(widths))
    space = Workspace(8 * sum(widths) + 40 * m * m, 8 * (2 * ROWS * width + width * width + 512 * m + 2 * m * m))
    cheaper = linear and (memory is None or space.total(1) <= memory)
    if cheaper and route is None:
        cheaper = _feature_time(n, widths, feature_cost) < _sample_time(n, widths, sample_cost, products)
    chosen: RouteName = route or ("feature" if cheaper else "sample")
    if chosen == "feature":
        if not linear:
            raise ValueError("the feature-space route needs a linear kernel")
        workers = space.workers(min(threads, _square(sum(widths), width)), ROOM if memory is None else memory)
        reason = f"{feature_cost:.3g} float64 multiply-adds against {sample_cost:.3g} {products} ones in sample space"
        return Route("feature", "float64", width, workers, feature_cost, space.total(workers), reason)
    custom = any(isinstance(block.kernel, CustomKernel) for block in blocks)
    space_of = partial(
        sample_workspace,
        m=m,
        n=n,
        p=max(widths),
        products=products,
        mapped_row_bytes=mapped_row_bytes,
        linear=linear,
        custom=custom,
    )
    size = tile or sample_tile(n, space_of, memory, shared=m >= SHARED)
    space = space_of(tile=size)
    if memory is not None and tile is None and space.total(1) > memory:
        raise TooLittleMemory(f"{memory} bytes", f"comparing {m} layers of {n} samples", space.total(1))
    shared = m >= SHARED
    workers = space.workers(min(threads, m if shared else _square(n, size)), ROOM if memory is None else memory)
    reason = f"{products} products: {why}; feature space would take {feature_cost:.3g} multiply-adds in float64"
    return Route("sample", products, size, workers, sample_cost, space.total(workers), reason, shared)


def _sample_time(n: int, widths: Sequence[int], multiply_adds: int, products: Precision) -> float:
    element, entry, start, rate = SAMPLE[products]
    return (multiply_adds + n * n * len(widths) * element / 2 + n * sum(widths) * entry + start) / rate


def _feature_time(n: int, widths: Sequence[int], multiply_adds: int) -> float:
    row, entry, pair, start = FEATURE
    return multiply_adds + n * (len(widths) * row + sum(widths) * entry) + sum(widths) ** 2 * pair + start


def sample_tile(n: int, space_of: Callable[..., Workspace], memory: int | None, *, shared: bool) -> int:
    """Rows of a sample-space tile: the cheapest of those whose workspace fits, for two workers or else for one."""

    def fits(tile: int, workers: int) -> bool:
        space = space_of(tile=tile)
        return space.total(workers) <= (workers * PANELS + space.sums if memory is None else memory)

    for workers in (WORKERS, 1):
        fitting = [tile for tile in TILES if fits(tile, workers)]
        if fitting:
            return min(fitting, key=lambda tile: _tile_time(n, tile, shared=shared))
    return TILES[-1]


def _tile_time(n: int, tile: int, *, shared: bool) -> float:
    """Multiply-adds per feature that the slower of two workers does, packing counted as such."""
    full, rest = divmod(n, tile)
    diagonal = full * tile**2 + rest**2
    work = (n * n - diagonal) / 2 + diagonal * (1 + WIDEST / min(n, tile)) / 2
    last = 0.0 if shared else min(n, tile) ** 2 / 2  # one of them waits for the other's last tile
    return (work / WORKERS + last) * (1 + PACKING / tile)


def _square(size: int, width: int) -> int:
    """Tiles of the upper triangle of a square: more workers than tiles would have nothing to do."""
    strips = -(-size // width)
    return strips * (strips + 1) // 2


def feature_tile(total: int) -> int:
    """Width of a feature-space tile: at least about 36 of them, 32 to 256 columns wide."""
    return max(32, min(256, -(-total // 8 // 32) * 32))
