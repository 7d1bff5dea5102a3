"""The planner of a device: which exact route forms the all-pairs sums there, and the bytes it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from ..arrays import FloatArray
from ..errors import TooLittleMemory
from .base import Block, Cores, Precision, Route, RouteName, Split, UnitBlocks
from .cuda_cores import cores_for, cores_for_pairs, float64_cost, halves_in_words, panel_cost, products_in_words
from .mapped import Mapped
from .mixed import Counts, among_wide, cheapest_split, wide_ones
from .routes import MIXED, Workspace, count_multiply_adds, multiply_adds_of, products_precision

WORKSPACE = 2**30  # bytes of panels in flight, where no memory is given: many tiles, for the last ones of a round wait
PARTS = 2**28  # bytes of the parts of cross-products, whatever the memory: they decide the last bits
TILES = {"float32": 128, "float64": 64}  # samples; see csrc/cuda
PIECE = 2048  # elements of a panel that one block of threads multiplies
CHUNK, BUSY = 1024, 528  # samples of a group are whole chunks; squares that keep a device busy
SECOND_WALK = 2e9  # multiply-adds of float32 in the time that a dozen launches take, which a mixed route has to save


Number = TypeVar("Number", float, FloatArray)


@dataclass(frozen=True)
class _Table:
    """What a call asks for; nothing depends on the entries but what blocks know of their size and place."""

    rows: Sequence[Block]
    columns: Sequence[Block] | None
    products: Precision | None
    cores: Cores | None
    tile: int | None
    memory: int | None

    @property
    def blocks(self) -> list[Block]:
        return [*self.rows, *(self.columns or ())]

    @property
    def widths(self) -> tuple[list[int], list[int] | None]:
        return [block.p for block in self.rows], None if self.columns is None else [block.p for block in self.columns]

    @property
    def linear(self) -> bool:
        return all(block.linear for block in self.blocks)

    @property
    def units(self) -> bool:
        """Whether it is of the units of one layer with themselves."""
        return isinstance(self.rows, UnitBlocks) and self.columns is None

    def among(self, wide: Sequence[bool]) -> _Table:
        """The wide layers alone."""
        rows, columns, _ = among_wide(wide, self.rows, self.columns)
        return replace(self, rows=rows, columns=columns)


@dataclass(frozen=True)
class _Unbounded:
    """A route whose ``bytes`` are open: what it takes, and the tiles that may be in flight."""

    route: Route
    space: Workspace
    most: int

    def within(self, memory: int | None) -> Route:
        """The route with as many tiles in flight as there is room for."""
        return replace(
            self.route, bytes=self.space.total(self.space.workers(self.most, WORKSPACE if memory is None else memory))
        )


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
    split: bool = True,
) -> Route:
    """The cheapest exact route by counted multiply-adds; ``memory`` bounds the device's workspace, ``route`` forces.

    Unless it is forced, the mixed route of :mod:`simkit.backends.mixed` is taken only where ``split`` allows it.

    Raises:
        TooLittleMemory: the smallest workspace is larger than ``memory``. NotImplementedError: a tile of another size;
            tensor cores that the device does not have; products of halves that the layers do not allow, or in
            feature space; the mixed route for the units of a layer. ValueError: feature space or the mixed route is
            forced on a non-linear kernel, the latter on a single layer.
    """
    table = _Table(rows, columns, products, cores, tile, memory)
    if route not in (None, "sample") and not table.linear:
        raise ValueError(f"the {'feature-space' if route == 'feature' else route} route needs a linear kernel")
    if route not in (None, "sample") and cores == "half":
        raise NotImplementedError("feature space takes float64 products, not those of 16-bit numbers as they are")
    if route is None:
        return _cheapest(table, split)
    if route == "mixed":
        return _mixed_route(table)
    return _bounded(table, _feature_space(table) if route == "feature" else _sample_space(table))[0]


def _cheapest(table: _Table, split: bool) -> Route:
    if not table.linear or table.cores == "half":
        return _bounded(table, _sample_space(table))[0]
    sample_cost, feature_cost = count_multiply_adds(table.rows, table.columns)
    feature, sample = _times(table, feature_cost, sample_cost, sum(block.p for block in table.blocks))
    if split and not table.units and len(table.blocks) > 1:
        wide, time = _split(table)
        if MIXED * time + SECOND_WALK < min(feature, sample):
            try:
                return _mixed_route(table, wide)
            except TooLittleMemory:  # which one of its halves alone may not need
                pass
    return _bounded(table, _feature_space(table) if feature < sample else _sample_space(table))[0]


def _times(table: _Table, feature: Number, sample: Number, width: Number) -> tuple[Number, Number]:
    """Multiply-adds of both spaces, of layers with so many columns in all, in those of sample space's products."""
    blocks = table.blocks
    products = table.products or products_precision(blocks)[0]
    cores = cores_for_pairs(table.rows, table.columns, products, table.cores)[0]
    each = 1.0 if products == "float64" else float64_cost(blocks, cores)
    panels = sample - blocks[0].n ** 2 * width / 2
    return each * feature, sample + (panel_cost(blocks, cores) - 1.0) * panels


def _split(table: _Table) -> tuple[tuple[bool, ...], float]:
    """(which layers are wide, the time of the halves)."""

    def time(counts: Counts) -> FloatArray:
        return np.add(*_times(table, counts.feature, counts.sample, counts.width))

    return cheapest_split(table.blocks[0].n, *table.widths, time)


def _feature_space(table: _Table, wide: Sequence[bool] = ()) -> _Unbounded:
    """Of pairs of two ``wide`` layers none."""
    blocks = table.blocks
    cores = cores_for(blocks, table.cores)
    sample_cost, cost = count_multiply_adds(table.rows, table.columns)
    rows, columns = table.widths
    if wide:
        cost -= multiply_adds_of(blocks[0].n, *wide_ones(wide, rows, columns))[1]
    against = f"{sample_cost:.3g} {products_precision(blocks)[0]} ones in sample space"
    reason = f"{cost:.3g} float64 multiply-adds against {against}"
    if cores == "tensor":
        reason = f"{products_in_words('float64', cores)}; {reason}"
    space, most = feature_space(blocks[0].n, rows, columns or (), wide)
    if table.units:  # their cross-products are all there before the sums
        space, most = Workspace(space.shared + 8 * sum(rows) ** 2, most * space.each), 1
    route = Route("feature", "float64", TILES["float64"], 1, cost, 0, reason, cores=cores)
    return _Unbounded(route, space, most)


def _sample_space(table: _Table) -> _Unbounded:
    blocks = table.blocks
    wanted, why = products_precision(blocks)
    products = table.products or wanted
    cores, against = cores_for_pairs(table.rows, table.columns, products, table.cores)
    cost, feature_cost = count_multiply_adds(table.rows, table.columns)
    words = halves_in_words(blocks) if cores == "half" else f"{products_in_words(products, cores)}: {why}"
    reason = f"{words}{against and '; '}{against}; feature space would take {feature_cost:.3g} multiply-adds in float64"
    space, most = sample_space(blocks[0].n, len(blocks), products, linear=table.linear, halves=cores == "half")
    return _Unbounded(Route("sample", products, TILES[products], 1, cost, 0, reason, cores=cores), space, most)


def _mixed_route(table: _Table, wide: tuple[bool, ...] = ()) -> Route:
    blocks = table.blocks
    if table.units:
        raise NotImplementedError("the units of a layer keep to one route on a device")
    if len(blocks) == 1:
        raise ValueError(f"the mixed route needs more than {len(blocks)} layer")
    wide = wide or _split(table)[0]
    among = table.among(wide)
    sample, feature = _bounded(table, _sample_space(among), _feature_space(table, wide))
    halves = sample.cores == "half"
    words = halves_in_words(among.blocks) if halves else products_in_words(sample.products, sample.cores)
    sample_cost, feature_cost = count_multiply_adds(table.rows, table.columns)
    alone = f"against {feature_cost:.3g} in feature space alone and {sample_cost:.3g} in sample space alone"
    counts = f"{feature.multiply_adds:.3g} float64 multiply-adds and {sample.multiply_adds:.3g} of {words}"
    cost = feature.multiply_adds + sample.multiply_adds
    taken = max(feature.bytes, sample.bytes)  # one after the other
    split = Split(wide, feature, sample)
    return replace(sample, name="mixed", multiply_adds=cost, bytes=taken, reason=f"{counts}, {alone}", split=split)


def _bounded(table: _Table, *halves: _Unbounded) -> list[Route]:
    """What runs one after the other, within the memory; the first has the tile that is asked for."""
    n, m, route = table.blocks[0].n, len(table.blocks), halves[0].route
    if table.tile not in (None, route.tile):
        raise NotImplementedError(f"native_cuda multiplies {route.products} in tiles of {route.tile}, not {table.tile}")
    least = max(half.space.total(1) for half in halves)
    if table.memory is not None and least > table.memory:
        work = f"comparing {m} layers of {n} samples on a device{' by the mixed route' if len(halves) > 1 else ''}"
        raise TooLittleMemory(f"{table.memory} bytes", work, least)
    return [half.within(table.memory) for half in halves]


def squares_above(p: int, width: int) -> int:
    """Squares of the products of p columns that lie on the diagonal and above it."""
    return triangle(-(-p // width))


def triangle(count: int) -> int:
    """Pairs of so many things, each with itself among them."""
    return count * (count + 1) // 2


def squares_formed(rows: Sequence[int], columns: Sequence[int], wide: Sequence[bool] = ()) -> int:
    """Squares of cross-products of layers of these widths that csrc/cuda/feature.hpp lists: none of wide ones alone."""
    width = TILES["float64"]
    flags = [*wide] or [False] * (len(rows) + len(columns))
    left, far_left = _strips(rows, flags)
    if not columns:
        return triangle(left) - triangle(far_left)
    right, far_right = _strips(columns, flags[len(rows) :])
    own = sum(squares_above(p, width) for p, far in zip((*rows, *columns), flags, strict=True) if not far)
    return left * right - far_left * far_right + own


def _strips(widths: Sequence[int], wide: Sequence[bool]) -> tuple[int, int]:
    """(strips of the columns of these layers side by side, those of wide layers alone)."""
    width = TILES["float64"]
    last = near = 0  # the end of the last strip that a narrow layer has a column in, and how many such there are
    begin = 0
    for p, far in zip(widths, wide, strict=False):
        if not far:
            first, end = max(last, begin // width), -(-(begin + p) // width)
            near, last = near + end - first, end
        begin += p
    strips = -(-begin // width)
    return strips, strips - near


def group_samples(n: int, squares: int, square: int) -> int:
    """Samples of a group, as csrc/cuda/columns.hpp has them."""
    chunks = -(-n // CHUNK)
    wanted = min(-(-BUSY // squares), max(1, PARTS // (squares * square)))
    return -(-chunks // min(wanted, chunks)) * CHUNK


def sample_space(n: int, m: int, products: Precision, *, linear: bool, halves: bool = False) -> tuple[Workspace, int]:
    """Bytes shared and for each tile in flight, and the number of tiles."""
    size, item = TILES[products], 8 if products == "float64" else 4
    each = m * size * (size * item + 16) + -(-size * size // PIECE) * 8 * m * m
    of_rows = 2 + (products == "float64" or halves) + (not linear)  # sums, diagonals; means; norms
    return Workspace(8 * (of_rows * m * n + (2 + -(-n // PIECE)) * m * m), each), triangle(-(-n // size))


def feature_space(
    n: int, rows: Sequence[int], columns: Sequence[int], wide: Sequence[bool] = ()
) -> tuple[Workspace, int]:
    """Bytes shared and for each square of cross-products in flight, and the number of squares."""
    m, square = len(rows) + len(columns), 8 * TILES["float64"] ** 2
    squares = squares_formed(rows, columns, wide)
    groups = -(-n // group_samples(n, squares, square))
    shared = 64 * (sum(rows) + sum(columns)) + 16 * m * n + 8 * (4 + -(-n // PIECE)) * m * m
    return Workspace(shared, groups * square), squares
