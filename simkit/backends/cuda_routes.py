"""The planner of a device: which exact route forms the all-pairs sums there, and the bytes it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import TypeVar

import numpy as np

from ..arrays import FloatArray
from ..errors import TooLittleMemory
from .base import Block, Cores, Precision, Route, RouteName, Split, UnitBlocks
from .cuda_cores import cores_for, cores_for_pairs, float64_cost, halves_in_words, panel_cost, products_in_words
from .mapped import Mapped
from .mixed import Counts, alone_in_words, among_wide, cheapest_split, check_route, wide_ones
from .routes import MIXED, Workspace, multiply_adds_of, products_precision

WORKSPACE = 2**30  # bytes of panels in flight, where no memory is given: many tiles, for the last ones of a round wait
PARTS = 2**28  # bytes of the parts of cross-products, whatever the memory: they decide the last bits
TILES = {"float32": 128, "float64": 64}  # samples; see csrc/cuda
PIECE = 2048  # elements of a panel that one block of threads multiplies
SHARE = 72  # bytes of what a square has of a pair of layers, its place and its sum
CHUNK, BUSY = 1024, 528  # samples of a group are whole chunks; squares that keep a device busy
SECOND_WALK = 2e9  # multiply-adds of float32 in the time that a dozen launches take, which a mixed route has to save


Count = TypeVar("Count", float, FloatArray)


@dataclass(frozen=True)
class _Table:
    """What a call asks for; nothing depends on the entries but what blocks know of their size and place."""

    rows: Sequence[Block]
    columns: Sequence[Block] | None
    products: Precision  # of sample space
    why: str
    cores: Cores | None
    tile: int | None

    @cached_property
    def blocks(self) -> list[Block]:
        return [*self.rows, *(self.columns or ())]

    @cached_property
    def widths(self) -> tuple[list[int], list[int] | None]:
        return [block.p for block in self.rows], None if self.columns is None else [block.p for block in self.columns]

    @cached_property
    def linear(self) -> bool:
        return all(block.linear for block in self.blocks)

    @property
    def units(self) -> bool:
        """Whether it is of the units of one layer with themselves."""
        return isinstance(self.rows, UnitBlocks) and self.columns is None

    @cached_property
    def counts(self) -> tuple[int, int]:
        """Multiply-adds in sample space, and in feature space."""
        return multiply_adds_of(self.blocks[0].n, *self.widths)

    @cached_property
    def costs(self) -> tuple[float, float]:
        """What a multiply-add costs in feature space, and of a panel, in those of layers in sample space."""
        cores = cores_for_pairs(self.rows, self.columns, self.products, self.cores)[0]
        each = 1.0 if self.products == "float64" else float64_cost(self.blocks, cores)
        return each, panel_cost(self.blocks, cores)

    def among(self, wide: Sequence[bool]) -> _Table:
        """The wide layers alone, in the precision of all."""
        rows, columns, _ = among_wide(wide, self.rows, self.columns)
        return replace(self, rows=rows, columns=columns)


@dataclass(frozen=True)
class _Room:
    """Bytes that a route may take, and that tiles in flight are worth."""

    most: int | None
    tiles: int

    def of(self, half: _Unbounded) -> Route:
        """The route with as many tiles in flight as there is room for."""
        room = self.tiles if self.most is None else min(self.most, self.tiles)
        return replace(half.route, bytes=half.space.total(half.space.workers(half.most, room)))


@dataclass(frozen=True)
class _Unbounded:
    """A route whose ``bytes`` are open: what it takes, and the tiles that may be in flight."""

    route: Route
    space: Workspace
    most: int


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
    tiles: int | None = None,
) -> Route:
    """The cheapest exact route by counted multiply-adds; ``memory`` bounds the device's workspace, ``route`` forces.

    Unless it is forced, the mixed route of :mod:`simkit.backends.mixed` is taken only where ``split`` allows it. Of
    ``memory`` tiles in flight take ``tiles`` bytes at most, or else all that there is.

    Raises:
        TooLittleMemory: the smallest workspace is larger than ``memory``. NotImplementedError: a tile of another size;
            tensor cores that the device does not have; products of halves that the layers do not allow, or in
            feature space; the mixed route for the units of a layer. ValueError: feature space or the mixed route is
            forced on a non-linear kernel, the latter on a single layer.
    """
    blocks = [*rows, *(columns or ())]
    linear = all(block.linear for block in blocks)
    check_route(route, len(blocks), linear=linear)
    if route not in (None, "sample") and cores == "half":
        raise NotImplementedError("feature space takes float64 products, not those of 16-bit numbers as they are")
    wanted, why = products_precision(blocks)
    table = _Table(rows, columns, products or wanted, why, cores, tile)
    if route == "mixed" and table.units:
        raise NotImplementedError("the units of a layer keep to one route on a device")
    room = _Room(memory, (WORKSPACE if memory is None else memory) if tiles is None else tiles)
    if route is None:
        return _cheapest(table, room, split)
    if route == "mixed":
        return _mixed_route(table, room, _split(table)[0])
    return _bounded(table, room, _feature_space(table) if route == "feature" else _sample_space(table))[0]


def _cheapest(table: _Table, room: _Room, split: bool) -> Route:
    if not table.linear or table.cores == "half":
        return _bounded(table, room, _sample_space(table))[0]
    sample_cost, feature_cost = table.counts
    feature, sample = _times(table, feature_cost, sample_cost, sum(block.p for block in table.blocks))
    least = min(feature, sample)
    # Forced tiles are those of one space; what does not last cannot be made shorter by a second walk.
    if split and least > SECOND_WALK and not table.units and len(table.blocks) > 1 and table.tile is None:
        wide, time = _split(table)
        if MIXED * time + SECOND_WALK < least:
            try:
                return _mixed_route(table, room, wide)
            except TooLittleMemory:  # which one of its halves alone may not need
                pass
    return _bounded(table, room, _feature_space(table) if feature < sample else _sample_space(table))[0]


def _times(table: _Table, feature: Count, sample: Count, width: Count) -> tuple[Count, Count]:
    """Multiply-adds of both spaces, of layers with so many columns in all, in those of sample space's products."""
    each, panel = table.costs
    panels = sample - table.blocks[0].n ** 2 * width / 2
    return each * feature, sample + (panel - 1.0) * panels


def _split(table: _Table) -> tuple[tuple[bool, ...], float]:
    """(which layers are wide, the time of the halves)."""

    def time(counts: Counts) -> FloatArray:
        return np.add(*_times(table, counts.feature, counts.sample, counts.width))

    return cheapest_split(table.blocks[0].n, *table.widths, time)


def _feature_space(table: _Table, wide: Sequence[bool] = ()) -> _Unbounded:
    """Of pairs of two ``wide`` layers none."""
    blocks, (rows, columns) = table.blocks, table.widths
    cores = cores_for(blocks, table.cores)
    sample_cost, cost = table.counts
    if wide:
        cost -= multiply_adds_of(blocks[0].n, *wide_ones(wide, rows, columns))[1]
    against = f"{sample_cost:.3g} {products_precision(blocks)[0]} ones in sample space"
    reason = f"{cost:.3g} float64 multiply-adds against {against}"
    if cores == "tensor":
        reason = f"{products_in_words('float64', cores)}; {reason}"
    size = feature_size(blocks[0].n, rows, columns or (), wide)
    space, most = size.space, size.squares
    if table.units:  # their cross-products are all there before the sums
        space, most = Workspace(space.shared + 8 * sum(rows) ** 2, most * size.parts), 1
    route = Route("feature", "float64", TILES["float64"], 1, cost, 0, reason, cores=cores)
    return _Unbounded(route, space, most)


def _products_in_words(table: _Table) -> tuple[Cores, str, str]:
    """Of sample space: what forms them, what they are, and why 16-bit layers are not multiplied as they are."""
    cores, against = cores_for_pairs(table.rows, table.columns, table.products, table.cores)
    words = halves_in_words(table.blocks) if cores == "half" else products_in_words(table.products, cores)
    return cores, words, against


def _sample_space(table: _Table) -> _Unbounded:
    blocks, products = table.blocks, table.products
    cores, words, against = _products_in_words(table)
    cost, feature_cost = table.counts
    if cores != "half":
        words = f"{words}: {table.why}"
    reason = f"{words}{against and '; '}{against}; feature space would take {feature_cost:.3g} multiply-adds in float64"
    space, most = sample_space(blocks[0].n, len(blocks), products, linear=table.linear, halves=cores == "half")
    return _Unbounded(Route("sample", products, TILES[products], 1, cost, 0, reason, cores=cores), space, most)


def _mixed_route(table: _Table, room: _Room, wide: tuple[bool, ...]) -> Route:
    among = table.among(wide)
    sample, feature = _bounded(table, room, _sample_space(among), _feature_space(table, wide))
    _, words, against = _products_in_words(among)
    counts = f"{feature.multiply_adds:.3g} float64 multiply-adds and {sample.multiply_adds:.3g} of {words}"
    reason = f"{counts}{against and '; '}{against}, {alone_in_words(*table.counts)}"
    cost = feature.multiply_adds + sample.multiply_adds
    taken = max(feature.bytes, sample.bytes)  # one after the other
    split = Split(wide, feature, sample)
    return replace(sample, name="mixed", multiply_adds=cost, bytes=taken, reason=reason, split=split)


def _bounded(table: _Table, room: _Room, *halves: _Unbounded) -> list[Route]:
    """What runs one after the other, within the room; the first has the tile that is asked for."""
    n, m, route = table.blocks[0].n, len(table.blocks), halves[0].route
    if table.tile not in (None, route.tile):
        raise NotImplementedError(f"native_cuda multiplies {route.products} in tiles of {route.tile}, not {table.tile}")
    least = max(half.space.total(1) for half in halves)
    if room.most is not None and least > room.most:
        work = f"comparing {m} layers of {n} samples on a device{' by the mixed route' if len(halves) > 1 else ''}"
        raise TooLittleMemory(f"{room.most} bytes", work, least)
    return [room.of(half) for half in halves]


def squares_above(p: int, width: int) -> int:
    """Squares of the products of p columns that lie on the diagonal and above it."""
    return triangle(-(-p // width))


def triangle(count: int) -> int:
    """Pairs of so many things, each with itself among them."""
    return count * (count + 1) // 2


@dataclass(frozen=True)
class _Strips:
    """Of the columns of layers side by side: strips, those of wide layers alone, layers in one of them at most."""

    count: int
    far: int
    layers: int


def _strips(widths: Sequence[int], wide: Sequence[bool]) -> _Strips:
    width = TILES["float64"]
    ends = list(accumulate(widths))
    places = [(begin // width, (end - 1) // width) for begin, end in pairwise((0, *ends))]  # first and last strips
    near, after = 0, 0  # strips that a narrow layer has a column in, and the one after the last of them
    most = earliest = 0
    for number, (first, last) in enumerate(places):
        if not wide[number]:
            near, after = near + last + 1 - max(after, first), last + 1
        while places[earliest][1] < first:
            earliest += 1
        most = max(most, number - earliest + 1)
    count = -(-ends[-1] // width)
    return _Strips(count, count - near, most)


@dataclass(frozen=True)
class FeatureSize:
    """Bytes of feature space, the squares of cross-products that csrc/cuda/feature.hpp lists, and those of the parts
    of one of them."""

    space: Workspace
    squares: int
    parts: int


def feature_size(n: int, rows: Sequence[int], columns: Sequence[int], wide: Sequence[bool] = ()) -> FeatureSize:
    """Of layers of these widths; squares of wide ones alone are not formed."""
    width, m = TILES["float64"], len(rows) + len(columns)
    square = 8 * width * width
    flags = [*wide] or [False] * m
    left = _strips(rows, flags)
    if columns:
        right = _strips(columns, flags[len(rows) :])
        own = sum(squares_above(p, width) for p, far in zip((*rows, *columns), flags, strict=True) if not far)
        squares, shares = left.count * right.count - left.far * right.far + own, left.layers * right.layers
    else:
        squares, shares = triangle(left.count) - triangle(left.far), left.layers**2
    parts = -(-n // group_samples(n, squares, square)) * square
    shared = 64 * (sum(rows) + sum(columns)) + 16 * squares + 16 * m * n + 8 * (4 + -(-n // PIECE)) * m * m
    return FeatureSize(Workspace(shared, parts + SHARE * shares), squares, parts)


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
