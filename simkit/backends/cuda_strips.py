"""Host arrays that a device does not take whole: sent in strips of rows, within a bound of its memory.

The planner says how many rows stay and how many pass; csrc/cuda/strips.hpp and strip_*.hpp move them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..arrays import FloatArray, Matrix
from ..errors import TooLittleMemory
from . import cuda_routes
from .base import Block, Cores, Precision, Route, RouteName, UnitBlocks
from .cuda_cores import cores_for
from .cuda_device import SHARE_IN_WORDS, bound_block, bytes_of, cuda, may_stay, release, room_on
from .cuda_routes import CHUNK, TILES, WORKSPACE, feature_size, group_samples, sample_space, triangle
from .mapped import Mapped
from .routes import PILOT

PASSING = 2**26  # bytes of rows that pass at a time: long enough to copy, and little pinned memory
PART, BAND = 512, 32  # rows and columns of a part of column sums
ROWS = 8  # whose norms a block of threads forms
COLUMN = 48  # bytes of such a part
PADDING = 256  # bytes by which a layer's rows in a strip may be longer
SHARES = 128  # sums of a column that wait from strip to strip
COLLECTED = 2**15  # distances that are collected at once, at least
DISTANCES = 2**27  # bytes for tiles of distances, where there is room, and as many for what is collected of them
DISTANCE_TILE = 8 * 64 * 64 + 64  # bytes of one in flight


@dataclass(frozen=True)
class Strips:
    """Rows that stay on the device and that pass at a time, workspace beside them, threads that bring rows."""

    resident: int = 0
    passing: int = 0
    bytes: int = 0
    threads: int = 1

    def options(self) -> dict[str, int]:
        """As the compiled module takes them."""
        return {
            "resident": self.resident,
            "passing": self.passing,
            "bytes": self.bytes,
            "threads": self.threads,
        }


@dataclass(frozen=True)
class HostRoute(Route):
    """A route of blocks on the host. ``bytes`` is all that it takes on the device; without strips they are copied."""

    workspace: int = 0
    strips: Strips | None = None


def column_strips(matrix: Matrix, device: int, memory: int | None, threads: int) -> Strips | None:
    """The strips in which sums of columns read a host matrix; None: its copy on the device is read.

    Raises:
        TooLittleMemory: strips of the fewest columns take more than there is room for.
    """
    if may_stay(matrix, device, memory):
        return None
    room = _beside_copies(matrix, device, memory)
    item, p = matrix.itemsize, matrix.p
    # Of a column two strips of a part, that part's sums and those of all so far, the origin; of a row two weights.
    of_column, of_rows = 2 * PART * item + 2 * COLUMN + 8, 16 * PART + 4 * PADDING
    least = of_rows + min(BAND, p) * of_column
    _check_least(least, room, memory, f"the statistics of {matrix.name}")
    columns = min(p, max(BAND, (room - of_rows) // of_column))
    parts = 1
    if columns == p:
        parts = max(1, min(PASSING // (p * item), room // (of_rows + p * of_column) * PART) // PART)
    return Strips(passing=parts * PART, bytes=columns * 2 * PART * item, threads=threads)


def row_strips(matrix: Matrix, device: int, memory: int | None, threads: int) -> Strips | None:
    """The strips in which sums of rows read a host matrix; None: its copy on the device is read.

    Raises:
        TooLittleMemory: the smallest strips take more than there is room for.
    """
    if may_stay(matrix, device, memory):
        return None
    row, fixed = matrix.p * matrix.itemsize, 8 * (matrix.n + matrix.p) + 4 * PADDING
    room, least = _beside_copies(matrix, device, memory), fixed + 2 * ROWS * row
    _check_least(least, room, memory, f"the row norms of {matrix.name}")
    spare = room - fixed
    return Strips(passing=max(ROWS, min(PASSING // row, spare // (2 * row))) // ROWS * ROWS, threads=threads)


def median_strips(matrix: Matrix, device: int, memory: int | None, threads: int) -> Strips | None:
    """The strips in which distances are formed of a host matrix; None: its copy on the device is read.

    Raises:
        TooLittleMemory: the smallest strips take more than there is room for.
    """
    n, row, width = matrix.n, matrix.p * matrix.itemsize, TILES["float64"]
    tiles = triangle(-(-n // width))
    whole = 8 * n + 16 * tiles + min(tiles * DISTANCE_TILE, 2 * DISTANCES) + min(4 * n * n, 8 * 2**20)
    if may_stay(matrix, device, memory) and (memory is None or whole <= memory // 2):
        return None
    # Norms, shifts; what is collected, beside a tile in flight and the counts.
    fixed = 8 * n + 12 * matrix.p + 4 * PADDING + 8 * COLLECTED + DISTANCE_TILE + 2**14
    size = _TriangleSize(n, width, row, fixed, 2 * DISTANCE_TILE, 0)
    room = _beside_copies(matrix, device, memory)
    least = size.needed(1, 1, 0)
    _check_least(least, room, memory, f"the distances of {matrix.name}'s rows")
    resident, passing, in_flight = size.fitting(room, min(tiles, DISTANCES // DISTANCE_TILE))
    return Strips(resident * width, passing * width, in_flight * 2 * DISTANCE_TILE, threads)


def _beside_copies(matrix: Matrix, device: int, memory: int | None) -> int:
    """The room of a pass: what is free has lost the copies that stay, and of ``memory`` they may take half."""
    return room_on(device, None, [matrix]) if memory is None else memory // 2


def _check_least(least: int, room: int, memory: int | None, work: str) -> None:
    """Refuse a pass of which the smallest strips take more than its room."""
    if least > room:
        needed = least if memory is None else 2 * least
        raise TooLittleMemory(room_in_words(room if memory is None else memory, memory), f"{work} on a device", needed)


def room_in_words(room: int, memory: int | None) -> str:
    """A bound on what a device holds, for an error: ``memory``, or what is free."""
    return f"{room} bytes" if memory is not None else f"{room} bytes, {SHARE_IN_WORDS},"


def array_on_host(matrix: Matrix, device: int) -> Any:
    """A host matrix as the ops take it that send it in strips."""
    return cuda().Array.on_host(x=matrix.values, dtype=matrix.dtype, device=device)


def column_stats(matrix: Matrix, row_scale: FloatArray | None, device: int, strips: Strips) -> tuple[Any, ...]:
    """The statistics of columns as the compiled module returns them."""
    x = array_on_host(matrix, device)
    found: tuple[Any, ...] = cuda().column_stats_in_strips(x=x, row_scale=row_scale, **strips.options())
    return found


def row_norms(block: Block, device: int, strips: Strips) -> FloatArray:
    """Squared norms of the rows."""
    bound = bound_block(block, array_on_host(block.matrix, device))
    norms: FloatArray = cuda().row_norms_in_strips(bound, **strips.options())
    return norms


def distance_median(block: Block, device: int, strips: Strips) -> float:
    """The median of all squared distances of the rows of a block without row weights."""
    bound = bound_block(block, array_on_host(block.matrix, device))
    return float(cuda().distance_median_in_strips(bound, **strips.options()))


def pair_sums(
    rows: Sequence[Block], columns: Sequence[Block], device: int, debiased: bool, route: Route, strips: Strips
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """All-pairs sums as the compiled module returns them."""
    whole = [rows.whole] if isinstance(rows, UnitBlocks) else rows
    release((block.matrix for block in (*whole, *columns)), device)
    found: tuple[FloatArray, FloatArray, FloatArray] = cuda().pair_sums_in_strips(
        rows=[bound_block(block, array_on_host(block.matrix, device)) for block in rows],
        columns=[bound_block(block, array_on_host(block.matrix, device)) for block in columns],
        debiased=debiased,
        sample_space=route.name == "sample",
        double_products=route.products == "float64",
        tensor=route.cores == "tensor",
        **strips.options(),
    )
    return found


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
    """As :func:`simkit.backends.cuda_routes.plan_pair_sums`; blocks on the host are copied, or go in strips.

    Then ``memory`` bounds all that is on the device, or else a share of what is free does. The sums of units with
    themselves stay there where their layer is copied whole; in strips they are pairs like others. No strips are mixed.

    Raises:
        TooLittleMemory: the smallest strips take more. Others as there.
    """

    def planned(room: int | None, cores: Cores | None = cores, **how: Any) -> Route:
        return cuda_routes.plan_pair_sums(
            rows, columns, memory=room, route=route, products=products, tile=tile, cores=cores, **how
        )

    units = rows if columns is None and isinstance(rows, UnitBlocks) else None
    blocks = [*rows, *(columns or ())]
    if any(block.matrix.device is not None for block in blocks):
        return planned(memory)
    matrices = {id(m): m for m in ([b.matrix for b in blocks] if units is None else [units.whole.matrix])}.values()
    features = sum(map(bytes_of, matrices))
    room = room_on(int(cuda().current_device()), memory, matrices)
    most = room - features
    try:
        return _whole(planned(most, tiles=WORKSPACE if memory is None else most), features)
    except TooLittleMemory as error:
        work, workspace = error.work, error.needed
    said = room_in_words(room, memory)
    if cores == "half":
        raise NotImplementedError("layers that go to a device in strips are multiplied in float32, not as they are")
    refusal = TooLittleMemory(said, work, features + workspace)
    if route == "mixed":  # whose layers are copied whole
        raise refusal from None
    found = planned(None, split=False)
    if found.cores == "half":
        found = planned(None, cores_for(blocks), split=False)
        found = replace(found, reason=f"{found.reason}; in strips no layer is multiplied as it is")
    plan = _sample_strips if found.name == "sample" else _feature_strips
    return plan(found, rows, columns or (), room, threads, refusal)


def _whole(found: Route, features: int) -> HostRoute:
    return _as_host(found, None, features + found.bytes, f"{found.reason}; copied to the device", found.bytes)


def _as_host(found: Route, strips: Strips | None, total: int, reason: str, workspace: int = 0) -> HostRoute:
    fields = {**vars(found), "bytes": total, "reason": reason}
    return HostRoute(**fields, workspace=workspace, strips=strips)


def _row_bytes(blocks: Sequence[Block]) -> int:
    return sum(block.p * block.matrix.itemsize for block in blocks)


@dataclass(frozen=True)
class _TriangleSize:
    """Bytes of pairs of rows in strips: the more rows stay, the fewer times the others pass."""

    n: int
    width: int  # samples of a tile
    row: int
    fixed: int
    each: int  # of workspace for a tile in flight
    curved: int  # bytes of those columns of a row that pass once before, beside their pilots

    @property
    def high(self) -> int:
        return -(-self.n // self.width)

    def needed(self, resident: int, passing: int, tiles: int) -> int:
        """Rows in tiles; what passes before makes room for the others."""
        places = max(resident * passing, resident * (resident + 1) // 2)
        walk = (resident + 2 * passing) * self.width * self.row + tiles * self.each + 16 * places
        return self.fixed + max(walk, (min(self.n, PILOT) + 2 * passing * self.width) * self.curved)

    def fitting(self, room: int, most: int, least: int = 0) -> tuple[int, int, int]:
        """Tiles that stay, that pass and that are in flight: those that stay get what the others leave."""
        spare = max(0, room - self.needed(1, 1, least))
        tiles = least + min(spare // 4, WORKSPACE) // self.each
        passing = 1 + min(spare // 8, PASSING) // (self.width * self.row)
        resident = _largest(self.high, lambda tall: self.needed(tall, min(passing, tall), min(tiles, most)) <= room)
        return resident, min(passing, resident), min(tiles, most)


def _sample_strips(
    found: Route, rows: Sequence[Block], columns: Sequence[Block], room: int, threads: int, refusal: TooLittleMemory
) -> HostRoute:
    blocks = [*rows, *columns]
    curved = [block for block in blocks if not block.linear]
    n, m, width = blocks[0].n, len(blocks), found.tile
    space, most = sample_space(n, m, found.products, linear=not curved)
    fixed = space.shared + sum(12 * b.p + 8 * n * (b.row_scale is not None) for b in blocks)
    fixed += m * (3 * PADDING + 512) + 16 * (m + 1) ** 2 + PADDING
    size = _TriangleSize(n, width, _row_bytes(blocks), fixed, space.each, _row_bytes(curved))
    smallest = size.needed(1, 1, 1)
    if smallest > room:
        raise _refused(refusal, smallest)
    resident, passing, tiles = size.fitting(room, most, 1)
    crossed = sum(n - first for first in range(0, n, resident * width)) / n
    strips = Strips(resident * width, passing * width, space.total(tiles), threads)
    reason = f"{found.reason}; {min(n, resident * width)} samples stay while others pass, {crossed:.3g} copies of each"
    if curved:
        reason += "; those of non-linear kernels pass once before, for norms and means"
    return _as_host(found, strips, size.needed(resident, passing, tiles), reason)


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number from 1 to ``most`` that fits, where smaller ones fit too and 1 does."""
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _feature_strips(
    found: Route, rows: Sequence[Block], columns: Sequence[Block], room: int, threads: int, refusal: TooLittleMemory
) -> HostRoute:
    """All rows pass once for each batch of squares: as few batches as there is room for, then long strips."""
    blocks = [*rows, *columns]
    n, m, p = blocks[0].n, len(blocks), sum(block.p for block in blocks)
    row = _row_bytes(blocks) + 8 * sum(block.row_scale is not None for block in blocks)
    width = TILES["float64"]
    square = 8 * width * width
    size = feature_size(n, [block.p for block in rows], [block.p for block in columns])
    squares = size.squares
    fixed = size.space.shared + p * (2 * COLUMN + 20 + 8 * SHARES) + 4 * PADDING * m
    fixed += 36 * (math.isqrt(2 * squares) + m + 1) ** 2
    passing = rows_of_squares(n, row, room - fixed, squares, square, CHUNK)
    if passing is None:
        raise _refused(refusal, fixed + 2 * CHUNK * row + 2 * square)
    strips = Strips(0, passing.rows, passing.bytes, threads)
    total = fixed + 2 * passing.rows * row + passing.bytes
    return _as_host(found, strips, total, f"{found.reason}; {passing.in_words(n)}")


@dataclass(frozen=True)
class SquareRows:
    """Rows of a strip whose products are added to squares, and how often all rows pass; bytes of the squares."""

    rows: int
    passes: int
    bytes: int

    def in_words(self, n: int) -> str:
        """For a plan."""
        return f"{min(n, self.rows)} samples pass at a time, {self.passes} times all of them"


def rows_of_squares(n: int, row: int, room: int, squares: int, square: int, chunk: int) -> SquareRows | None:
    """As few passes of n rows as two strips and the squares have room for, then long strips; None: not even one chunk.

    Squares are formed of whole groups of rows, or of whole chunks of one, each with one more for the sum so far.
    """
    group = group_samples(n, squares, square)

    def sized(wanted: int) -> Iterator[tuple[int, int, int]]:
        """(passes, -rows, bytes) where rows of a strip, about so many, leave room."""
        step = chunk if wanted < group else group
        strip = min(max(1, wanted // step), -(-n // step)) * step
        each = (max(1, strip // group) + 1) * square
        batch = min(squares, (room - 2 * strip * row) // each)
        if batch > 0:
            yield -(-squares // batch), -strip, batch * each

    options = [option for part in (1, 4, 16, PASSING) for option in sized(PASSING // part // row)]
    if not options:
        return None
    passes, rows, taken = min(options)
    return SquareRows(-rows, passes, taken)


def _refused(refusal: TooLittleMemory, needed: int) -> TooLittleMemory:
    """The refusal of a whole copy and of strips, of which the smallest take ``needed`` bytes."""
    return TooLittleMemory(refusal.memory, refusal.work, min(refusal.needed, needed))
