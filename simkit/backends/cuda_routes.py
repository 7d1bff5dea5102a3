"""The planner of a device: which exact route forms the all-pairs sums there, and the bytes it takes.

Sample space or feature space: the mixed route of :mod:`simkit.backends.mixed` is a processor's alone so far.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import TooLittleMemory
from .base import Block, Cores, Precision, Route, RouteName, UnitBlocks
from .cuda_cores import cores_for, cores_for_pairs, float64_cost, halves_in_words, panel_cost, products_in_words
from .mapped import Mapped
from .routes import Workspace, count_multiply_adds, products_precision

WORKSPACE = 2**30  # bytes of panels in flight, where no memory is given: many tiles, for the last ones of a round wait
PARTS = 2**28  # bytes of the parts of cross-products, whatever the memory: they decide the last bits
TILES = {"float32": 128, "float64": 64}  # samples; see csrc/cuda
PIECE = 2048  # elements of a panel that one block of threads multiplies
CHUNK, BUSY = 1024, 528  # samples of a group are whole chunks; squares that keep a device busy


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
    """The cheaper exact route by counted multiply-adds; ``memory`` bounds the device's workspace, ``route`` forces.

    Raises:
        TooLittleMemory: the smallest workspace is larger than ``memory``. NotImplementedError: a tile of another size;
            tensor cores that the device does not have; products of halves that the layers do not allow, or in
            feature space; the mixed route. ValueError: feature space is forced on a non-linear kernel.
    """
    if route == "mixed":
        raise NotImplementedError("native_cuda has the sample-space and the feature-space route, not the mixed one")
    blocks = [*rows, *(columns or ())]
    n, m = blocks[0].n, len(blocks)
    wanted, why = products_precision(blocks)
    products = products or wanted
    left, right = sum(block.p for block in rows), sum(block.p for block in columns or ())
    sample_cost, feature_cost = count_multiply_adds(rows, columns)
    linear = all(block.linear for block in blocks)
    if route is None:
        likely = cores_for_pairs(rows, columns, products, cores)[0]
        each = 1.0 if products == "float64" else float64_cost(blocks, likely)
        panels = sample_cost - n * n * (left + right) // 2
        sample_time = sample_cost + (panel_cost(blocks, likely) - 1.0) * panels
        route = "feature" if linear and cores != "half" and each * feature_cost < sample_time else "sample"
    if route == "feature":
        if not linear:
            raise ValueError("the feature-space route needs a linear kernel")
        if cores == "half":
            raise NotImplementedError("feature space takes float64 products, not those of 16-bit numbers as they are")
        cores = cores_for(blocks, cores)
        products, cost = "float64", feature_cost
        reason = f"{cost:.3g} float64 multiply-adds against {sample_cost:.3g} {wanted} ones in sample space"
        if cores == "tensor":
            reason = f"{products_in_words(products, cores)}; {reason}"
        space, most = feature_space(n, m, left, right)
        if isinstance(rows, UnitBlocks) and columns is None:  # their cross-products are all there before the sums
            space, most = Workspace(space.shared + 8 * left * left, most * space.each), 1
    else:
        cost = sample_cost
        cores, against = cores_for_pairs(rows, columns, products, cores)
        words = halves_in_words(blocks) if cores == "half" else f"{products_in_words(products, cores)}: {why}"
        reason = (
            f"{words}{against and '; '}{against}; feature space would take {feature_cost:.3g} multiply-adds in float64"
        )
        space, most = sample_space(n, m, products, linear=linear, halves=cores == "half")
    size = TILES[products]
    if tile not in (None, size):
        raise NotImplementedError(f"native_cuda multiplies {products} in tiles of {size}, not {tile}")
    if memory is not None and space.total(1) > memory:
        work = f"comparing {m} layers of {n} samples on a device"
        raise TooLittleMemory(f"{memory} bytes", work, space.total(1))
    in_flight = space.workers(most, WORKSPACE if memory is None else memory)
    return Route(route, products, size, 1, cost, space.total(in_flight), reason, cores=cores)


def squares_above(p: int, width: int) -> int:
    """Squares of the products of p columns that lie on the diagonal and above it."""
    return -(-p // width) * (-(-p // width) + 1) // 2


def group_samples(n: int, squares: int, square: int) -> int:
    """Samples of a group, as csrc/cuda/columns.hpp has them."""
    chunks = -(-n // CHUNK)
    wanted = min(-(-BUSY // squares), max(1, PARTS // (squares * square)))
    return -(-chunks // min(wanted, chunks)) * CHUNK


def sample_space(n: int, m: int, products: Precision, *, linear: bool, halves: bool = False) -> tuple[Workspace, int]:
    """Bytes shared and for each tile in flight, and the number of tiles."""
    size, item = TILES[products], 8 if products == "float64" else 4
    each = m * size * (size * item + 16) + -(-size * size // PIECE) * 8 * m * m
    strips = -(-n // size)
    of_rows = 2 + (products == "float64" or halves) + (not linear)  # sums, diagonals; means; norms
    return Workspace(8 * (of_rows * m * n + (2 + -(-n // PIECE)) * m * m), each), strips * (strips + 1) // 2


def feature_space(n: int, m: int, left: int, right: int) -> tuple[Workspace, int]:
    """Bytes shared and for each square of cross-products in flight, and the number of squares."""
    size = TILES["float64"]
    a, b = -(-left // size), -(-right // size)
    squares = a * b if right else a * (a + 1) // 2
    square = 8 * size * size
    chunks = -(-n // CHUNK)
    groups = min(-(-BUSY // squares), max(1, PARTS // (squares * square)), chunks)
    return Workspace(64 * (left + right) + 16 * m * n + 8 * (4 + -(-n // PIECE)) * m * m, groups * square), squares
