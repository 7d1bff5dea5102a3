"""Products of a layer's columns on a device: of the layer there, of its whole copy, or of its rows in strips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import TooLittleMemory
from .base import Block, ColumnStats, Cores, Input, Precision
from .cuda_cores import cores_for, products_in_words
from .cuda_device import block_on, bound_block, bytes_of, cuda, place_of, release, room_on
from .cuda_greedy import DeviceSquare
from .cuda_routes import CHUNK, TILES, WORKSPACE, group_samples, squares_above
from .cuda_strips import PADDING, Strips, array_on_host, room_in_words, rows_of_squares
from .damage_room import ProductsRoom, ordering

SHORT = 256  # samples of a chunk of float32 sums, where cores are plain
STRIP, GROUP = 128, 256  # columns and rows of which a block of threads forms sums


@dataclass(frozen=True)
class DeviceProducts(ProductsRoom):
    """What they take there: ``bytes`` is all of it, copies of the layer included; ``workspace`` that of the parts."""

    workspace: int = WORKSPACE
    strips: Strips | None = None


def plan_products(
    block: Block, *, double: bool, threads: int, memory: int | None, cores: Cores | None = None
) -> DeviceProducts:
    """Whether a layer on the host is copied whole or passes in strips, and the bytes that its order takes on a device.

    ``memory`` bounds them, or else a share of what is free does.

    Raises:
        TooLittleMemory: the products and the smallest workspace take more. NotImplementedError: ``cores`` forces tensor
            cores that the device does not have.
    """
    matrix, n, p = block.matrix, block.n, block.p
    on_host = matrix.device is None
    width = TILES["float64" if double else "float32"]
    square, squares = 8 * width * width, squares_above(p, width)
    parts = -(-n // group_samples(n, squares, square)) * square  # of one square, all groups
    weights = 8 * n * (block.row_scale is not None)
    # The products; squares' places and four vectors of columns, or the search, which comes later.
    held = 8 * p * p + max(16 * squares + 28 * p + 4 * PADDING, _search_bytes(p))
    copied = held + weights + (bytes_of(matrix) if on_host else 0)
    bounded = on_host or memory is not None
    room = room_on(place_of([block]), memory, [matrix]) if bounded else copied + squares * parts
    if copied + parts <= room:
        workspace = min(room - copied, WORKSPACE, squares * parts)
        return DeviceProducts(threads, copied + workspace, "copied to the device" if on_host else "", workspace)
    said, work = room_in_words(room, memory), f"{ordering(block)} on a device"
    if not on_host:
        raise TooLittleMemory(said, work, copied + parts)
    chunk = SHORT if not double and cores_for([block], cores) == "plain" else CHUNK
    row = p * matrix.itemsize + 8 * (block.row_scale is not None)
    passing = rows_of_squares(n, row, room - held, squares, square, chunk)
    if passing is None:
        raise TooLittleMemory(said, work, min(copied + parts, held + 2 * chunk * row + 2 * square))
    total = held + 2 * passing.rows * row + passing.bytes
    return DeviceProducts(threads, total, passing.in_words(n), strips=Strips(0, passing.rows, passing.bytes, threads))


def _search_bytes(u: int) -> int:
    """Of a greedy order beside its matrix [u, u], as KeptSums and EliminationRun hold them (csrc/cuda)."""
    strips, groups = -(-u // STRIP), -(-u // GROUP)
    return 8 * u * groups + 12 * strips * groups + 57 * u + PADDING


def column_products(
    block: Block,
    stats: ColumnStats,
    *,
    exact: bool = True,
    squared: bool = False,
    room: ProductsRoom | None = None,
    cores: Cores | None = None,
) -> DeviceSquare:
    """See :func:`simkit.backends.reference.column_products`; float32 products unless ``exact``; they stay there.

    Raises:
        NotImplementedError: ``cores`` forces tensor cores that the device does not have.
    """
    device, matrix = place_of([block]), block.matrix
    how = {"exact": exact, "tensor": cores_for([block], cores) == "tensor", "squared": squared}
    found = room if isinstance(room, DeviceProducts) else DeviceProducts(1, 0)
    if found.strips is None:
        products = cuda().column_products(block_on(block, device), stats.sum_sq_dev, bytes=found.workspace, **how)
    else:
        release([matrix], device)
        bound = bound_block(block, array_on_host(matrix, device))
        products = cuda().column_products_in_strips(bound, stats.sum_sq_dev, **how, **found.strips.options())
    return DeviceSquare(matrix.name, device, block.p, products)


def words_of_columns(products: Precision, inputs: Sequence[Input]) -> str:
    """What products of columns of ``inputs`` are here, for a plan."""
    return products_in_words(products, cores_for(inputs), " of columns")
