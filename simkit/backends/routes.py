"""The planner: counts multiply-adds and bytes of the exact routes and picks one, as data.

Sample space walks tiles of the n × n plane, feature space the cross-products of columns (mathematics: Kornblith et
al. 2019, equations 3 and 4). Neither stores an n × n or p × p matrix. The mixed route (:mod:`simkit.backends.mixed`)
forms the pairs of wide layers in sample space and all others in feature space: one table of 512 single neurons and 4
layers of 4096 (n = 5000) takes it a third of the multiply-adds of feature space, an eighth of those of sample space. It
is not picked for layers in mapped files, which two passes would read twice, nor for the units of one layer, whose sums
are subtracted from one another and so are formed in one way.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from ..arrays import FloatArray
from ..errors import TooLittleMemory
from ..kernels import CustomKernel, as_integer
from .base import Block, Cores, Precision, Route, RouteName, Split, UnitBlocks
from .mapped import SUMS, Mapped
from .mixed import Counts, alone_in_words, among_wide, cheapest_split, check_route, wide_ones
from .preparing import Preparing, preparing_of

Number: TypeAlias = float | FloatArray

TILES = (336, 288, 240, 208, 192, 144, 96, 48, 24, 16, 8)  # multiples of a sliver, or nearly
SHARED = 64  # from so many layers on all workers share one tile: panels are large, and layers enough to deal out
CHUNK = 256  # columns (sample space) or rows (feature space) multiplied at a time
ROWS = 128  # rows (feature space) on their way into packed strips
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
SAMPLE = {"float32": (75, 270, 14_000_000, 2.25), "float64": (34, 90, 8_600_000, 1.08)}  # element, entry, start, rate
FEATURE = (3700, 175, 13, 1_800_000)  # row, entry, pair of columns, start; rate 1
MIXED = 1.05  # times what the mixed route takes is less than what the others take, before it is picked
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
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        # An integer that float64 does not hold may have more digits than Python writes, or than one reads.
        given = "a number beyond 1.8e308" if isinstance(error, OverflowError) else repr(memory)
        raise ValueError(f'memory must be a number of bytes or a text such as "64 MB", not {given}') from None
    return int(value)


def products_precision(blocks: Sequence[Block]) -> tuple[Precision, str]:
    """The precision that products are formed in, and why."""
    if any(block.matrix.precision == "float64" for block in blocks):
        return "float64", "float64 input"
    if blocks[0].n < SMALL_N:
        return "float64", f"fewer than {SMALL_N} samples"
    if not all(block.linear for block in blocks):
        return "float64", "a non-linear kernel"
    return "float32", "no float64 input"


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
    mapped: Mapped | None,
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
    once = 0
    if mapped is not None:
        each = max(each + mapped.pages(tile, 2), mapped.passing(p) + SUMS * p)  # the statistics come before
        once = 0 if linear else min(n, PILOT) * min(p * item, mapped.row)  # the pilot's rows, held
    if not linear:  # before the walk, the tiles of one layer with the pilot's rows
        pilot = _strips_bytes(max(tile, PILOT), p, item) + (1 + 2 * custom) * tile * PILOT * item
        each = max(each, pilot)
    panel = m * tile * tile * item
    if m >= SHARED:
        return Workspace(once + panel, each + 16 * tile, sums)
    return Workspace(once, each + panel + 16 * m * tile, sums)


def count_multiply_adds(rows: Sequence[Block], columns: Sequence[Block] | None) -> tuple[int, int]:
    """What all-pairs sums of these blocks cost in sample space, panels included, and in feature space."""
    return multiply_adds_of(rows[0].n, _widths(rows), None if columns is None else _widths(columns))


def _widths(blocks: Sequence[Block]) -> tuple[int, ...]:
    return tuple(block.p for block in blocks)


def multiply_adds_of(n: int, rows: Sequence[int], columns: Sequence[int] | None) -> tuple[int, int]:
    """The same of layers of these widths; rows that are none are in no pair."""
    left, right = sum(rows), sum(columns or ())
    if columns is None:
        return n * n * (left + len(rows) ** 2 // 2) // 2, n * left * left // 2
    own = sum(p**2 for p in (*rows, *columns)) // 2
    return n * n * (left + right + len(rows) * len(columns)) // 2, n * (left * right + own)


def _sums_bytes(m: int, n: int, products: Precision, *, linear: bool) -> int:
    """Sums of all rows and of all pairs; in float64 twice, with the rows' means, for they may be formed again."""
    again = 2 * m * n + 2 * m * m if products == "float64" else 0
    return 8 * (m * n + 3 * m * m + again + (0 if linear else m * n))  # what is not linear has norms of rows too


def _strips_bytes(tile: int, p: int, item: int) -> int:
    """Two packed strips of a tile."""
    return 2 * (-(-tile // WIDEST) * WIDEST) * min(CHUNK, p) * item


@dataclass(frozen=True)
class _Table:
    """What a plan is made for: layers of these widths, and what it must keep to."""

    n: int
    rows: tuple[int, ...]
    columns: tuple[int, ...] | None
    products: Precision
    why: str  # these products
    linear: bool
    custom: bool
    memory: int | None
    threads: int
    tile: int | None
    mapped: Mapped | None
    preparing: Preparing

    @property
    def widths(self) -> tuple[int, ...]:
        return (*self.rows, *(self.columns or ()))

    @property
    def room(self) -> int:
        """Bytes for the engine's workspace: what the prepared layers hold is taken from ``memory``."""
        if self.memory is not None:
            return self.memory - self.preparing.held
        return ROOM - (0 if self.mapped is None else 8 * sum(self.widths))

    @property
    def held(self) -> int:
        """Bytes that one half of a mixed route leaves to the other: the sums of pairs and of layers."""
        return 8 * len(self.rows) * len(self.columns or self.rows) + 16 * len(self.widths)

    def among(self, wide: Sequence[bool]) -> _Table:
        """The wide layers, in the memory that the sums of all leave."""
        rows, columns, _ = among_wide(wide, self.rows, self.columns)
        return replace(
            self,
            rows=tuple(rows),
            columns=None if columns is None else tuple(columns),
            memory=None if self.memory is None else self.memory - self.held,
            preparing=replace(self.preparing, passes=()),  # all layers hold what they keep, and no pass is left
        )

    def needed(self, *spaces: Workspace) -> int:
        """Bytes of the largest of them with one worker, beside what prepared layers hold, or of preparing them."""
        return max(self.preparing.least, *(self.preparing.held + space.total(1) for space in spaces))

    def taken(self, space: Workspace, workers: int) -> int:
        """Bytes at most with so many workers, and with those that prepare the layers."""
        return max(self.preparing.taken(self.threads, self.memory), self.preparing.held + space.total(workers))

    def fits(self, *spaces: Workspace) -> bool:
        """Whether each of them does, with one worker."""
        return self.memory is None or self.needed(*spaces) <= self.memory

    def sample_space(self, tile: int) -> Workspace:
        m, p = len(self.widths), max(self.widths)
        kernel = {"linear": self.linear, "custom": self.custom}
        return sample_workspace(m, self.n, p, tile, self.products, self.mapped, **kernel)

    @property
    def feature_width(self) -> int:
        return self.tile or feature_tile(sum(self.widths))

    @property
    def feature_space(self) -> Workspace:
        m, width = len(self.widths), self.feature_width
        each = _strips_bytes(width, CHUNK, 8) + 8 * (ROWS * width + width * width + 512 * m + 2 * m * m)
        if self.mapped is not None:
            p = max(self.widths)
            each = max(each + self.mapped.pages(CHUNK), self.mapped.passing(p) + SUMS * p)
        each = max(each, 8 * max(self.widths))  # a worker's sums of a layer's columns, which come afterwards
        return Workspace(8 * sum(self.widths) + 40 * m * m, each)


def plan_pair_sums(
    rows: Sequence[Block],
    columns: Sequence[Block] | None,
    *,
    memory: int | None = None,
    threads: int = 1,
    route: RouteName | None = None,
    products: Precision | None = None,
    tile: int | None = None,
    mapped: Mapped | None = None,
    cores: Cores | None = None,
) -> Route:
    """Pick the cheapest exact route for all-pairs sums; ``route``, ``products`` and ``tile`` force a choice.

    Nothing but the number of workers depends on ``threads``, so that the answer does not.

    Raises:
        TooLittleMemory: the smallest workspace is larger than ``memory``. NotImplementedError: tensor cores.
        ValueError: feature space or the mixed route is forced on a non-linear kernel, the latter on a single layer.
    """
    if cores in ("tensor", "half"):
        raise NotImplementedError("products on tensor cores need a CUDA device, not a processor")
    blocks = [*rows, *(columns or ())]
    layers = [rows.whole] if isinstance(rows, UnitBlocks) else blocks
    wanted, why = products_precision(blocks)
    table = _Table(
        n=blocks[0].n,
        rows=_widths(rows),
        columns=None if columns is None else _widths(columns),
        products=products or wanted,
        why=why,
        linear=all(block.linear for block in blocks),
        custom=any(isinstance(block.kernel, CustomKernel) for block in blocks),
        memory=memory,
        threads=threads,
        tile=tile,
        mapped=mapped,
        preparing=preparing_of(((block.matrix, block.kernel) for block in layers), in_memory=mapped is None),
    )
    check_route(route, len(blocks), linear=table.linear)
    if route is None:
        return _cheapest(table, units=isinstance(rows, UnitBlocks))
    if route == "sample":
        return _sample_route(table)
    if route == "feature":
        return _feature_route(table)
    return _mixed_route(table, _split(table)[0])


def _cheapest(table: _Table, *, units: bool) -> Route:
    if not table.linear:
        return _sample_route(table)
    if not table.fits(table.feature_space):
        try:
            return _sample_route(table)
        except TooLittleMemory as error:
            needed = min(error.needed, table.needed(table.feature_space))
            raise TooLittleMemory(error.memory, error.work, needed) from None
    m, total = len(table.widths), sum(table.widths)
    sample_cost, feature_cost = multiply_adds_of(table.n, table.rows, table.columns)
    route, least = _feature_route, float(_feature_time(table.n, m, total, total**2, feature_cost))
    sample = float(_sample_time(table.n, m, total, sample_cost, table.products))
    if sample <= least and table.fits(table.sample_space(TILES[-1])):
        route, least = _sample_route, sample
    starts = FEATURE[-1] + SAMPLE[table.products][2] / SAMPLE[table.products][3]
    if m > 1 and least > MIXED * starts and not (units or table.mapped):
        wide, time = _split(table)
        if MIXED * time < least and table.fits(*_mixed_spaces(table, wide)):
            return _mixed_route(table, wide)
    return route(table)


def _feature_route(table: _Table) -> Route:
    space, width = table.feature_space, table.feature_width
    sample_cost, cost = multiply_adds_of(table.n, table.rows, table.columns)
    workers = space.workers(min(table.threads, _square(sum(table.widths), width)), table.room)
    reason = f"{cost:.3g} float64 multiply-adds against {sample_cost:.3g} {table.products} ones in sample space"
    return Route("feature", "float64", width, workers, cost, table.taken(space, workers), reason)


def _sample_route(table: _Table) -> Route:
    n, m = table.n, len(table.widths)
    cost, feature_cost = multiply_adds_of(n, table.rows, table.columns)
    shared = m >= SHARED
    size = table.tile or _sample_tile(table, shared=shared)
    space = table.sample_space(size)
    if table.tile is None and not table.fits(space):
        raise TooLittleMemory(f"{table.memory} bytes", f"comparing {m} layers of {n} samples", table.needed(space))
    workers = space.workers(min(table.threads, m if shared else _square(n, size)), table.room)
    words = f"{table.products} products: {table.why}"
    reason = f"{words}; feature space would take {feature_cost:.3g} multiply-adds in float64"
    return Route("sample", table.products, size, workers, cost, table.taken(space, workers), reason, shared)


def _mixed_route(table: _Table, wide: tuple[bool, ...]) -> Route:
    n, m = table.n, len(table.widths)
    spaces = _mixed_spaces(table, wide)
    if table.tile is None and not table.fits(*spaces):
        work = f"comparing {m} layers of {n} samples by the mixed route"
        raise TooLittleMemory(f"{table.memory} bytes", work, table.needed(*spaces))
    sample = _sample_route(table.among(wide))
    narrow = sum(p for p, far in zip(table.widths, wide, strict=True) if not far)
    strips, others = -(-narrow // table.feature_width), -(-sum(table.widths) // table.feature_width)
    workers = table.feature_space.workers(min(table.threads, strips * others), table.room)
    sample_cost, feature_cost = multiply_adds_of(n, table.rows, table.columns)
    cost = feature_cost - multiply_adds_of(n, *wide_ones(wide, table.rows, table.columns))[1]
    space = table.taken(table.feature_space, workers)
    feature = replace(_feature_route(table), threads=workers, multiply_adds=cost, bytes=space)
    return Route(
        "mixed",
        table.products,
        sample.tile,
        sample.threads,
        cost + sample.multiply_adds,
        max(feature.bytes, table.held + sample.bytes),
        f"{cost:.3g} float64 multiply-adds and {sample.multiply_adds:.3g} {table.products} ones, "
        f"{alone_in_words(sample_cost, feature_cost)}",
        sample.shared,
        split=Split(wide, feature, sample),
    )


def _mixed_spaces(table: _Table, wide: Sequence[bool]) -> tuple[Workspace, Workspace]:
    """What the halves of a mixed route take at least, one after the other."""
    least = table.among(wide).sample_space(TILES[-1])
    return table.feature_space, replace(least, shared=least.shared + table.held)


def _split(table: _Table) -> tuple[tuple[bool, ...], float]:
    m, total = len(table.widths), sum(table.widths)

    def time(counts: Counts) -> FloatArray:
        rest = total**2 - counts.width**2
        return np.asarray(
            _feature_time(table.n, m, total, rest, counts.feature)
            + _sample_time(table.n, counts.layers, counts.width, counts.sample, table.products)
        )

    return cheapest_split(table.n, table.rows, table.columns, time)


def _sample_time(n: int, layers: Number, width: Number, multiply_adds: Number, products: Precision) -> Number:
    element, entry, start, rate = SAMPLE[products]
    return (multiply_adds + n * n * layers * element / 2 + n * width * entry + start) / rate


def _feature_time(n: int, layers: Number, width: Number, pairs: Number, multiply_adds: Number) -> Number:
    row, entry, pair, start = FEATURE
    return multiply_adds + n * (layers * row + width * entry) + pairs * pair + start


def _sample_tile(table: _Table, *, shared: bool) -> int:
    """Rows of a sample-space tile: the cheapest of those whose workspace fits, for two workers or else for one."""
    unmapped = replace(table, mapped=None)
    least = table.sample_space(TILES[-1])

    def fits(tile: int, workers: int) -> bool:
        space = table.sample_space(tile)
        if table.memory is not None:
            return space.total(workers) <= table.room
        # Panels and strips are worth no more; pages only in so far as large tiles have more of them than small ones.
        own = unmapped.sample_space(tile)
        return own.total(workers) <= workers * PANELS + own.sums and (
            table.mapped is None or space.total(workers) <= ROOM + least.total(workers)
        )

    for workers in (WORKERS, 1):
        fitting = [tile for tile in TILES if fits(tile, workers)]
        if fitting:
            return min(fitting, key=lambda tile: _tile_time(table.n, tile, shared=shared))
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
