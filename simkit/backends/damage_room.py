"""How much greedy damage takes beyond the features, and how it is kept within ``memory=``: decided before it begins.

No bit of an order's CKA depends on this: candidates in batches, by any team, with the kernel of all units held or
formed again, give the same sums, and so do products of columns by any team.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import TooLittleMemory
from ..kernels import CustomKernel
from .base import Block
from .mapped import mapped_of
from .routes import WIDEST, Workspace
from .unit_features import strip_of

TILE, STRIP = 256, 8  # samples of a tile and rows of it at a time, as in csrc/cpu/candidate_pass.hpp
STRIPS = 6  # that a worker holds; a custom kernel's holds two more
PASS = 4  # what one candidate costs a pair of samples, in features
ROWS = 2**26  # bytes of row sums at a time: candidates beyond them wait
PACKED = 2**30  # bytes of half the kernel of all units: above, it is formed again for every batch of candidates
VECTORS = 12  # of the length of the samples, and as many of that of the features
LEVELS = 4  # more as long as the samples: what the rows of a kernel are about, before and after, and in the type of z
REFERENCE = 12  # n x n matrices that the reference holds at once
COLUMNS, DEPTH, GROUP = 528, 256, 1024  # columns of a tile of products; rows packed at a time; of a group (columns.cpp)


@dataclass(frozen=True)
class CandidateRoom:
    """What a search under a non-linear kernel may hold."""

    threads: int
    at_once: int  # candidates of a call
    apart: int  # the same where each has levels of its own, and its row sums come back
    # Bytes that half the kernel of all units may take; it is formed again for every call where it takes more.
    packed: int
    bytes: int  # of workspace, at most
    workspace: int | None = None  # the part of them that a device's candidates have in flight; None: its own choice
    note: str = ""  # for the plan


@dataclass(frozen=True)
class ProductsRoom:
    """What products of columns, and the order that they give, may hold."""

    threads: int
    bytes: int  # of workspace, at most
    note: str = ""  # for the plan


@dataclass(frozen=True)
class _Candidates:
    """A search: u units of a layer [n, p] whose rows are of ``item`` bytes."""

    n: int
    p: int
    u: int
    item: int
    custom: bool
    pages: int  # resident of a mapped file

    @property
    def tiles(self) -> int:
        """Of samples, below the diagonal and on it."""
        strips = -(-self.n // TILE)
        return strips * (strips + 1) // 2

    @property
    def half_kernel(self) -> int:
        """Bytes of the kernel of all units, whole tiles on its diagonal."""
        full, rest = divmod(self.n, TILE)
        return (full * (full + 1) // 2 * TILE * TILE + rest * self.n) * self.item

    @property
    def forming(self) -> int:
        """Bytes beside the units' rows while these are formed."""
        return 4 * 8 * self.n * min(self.p, strip_of(self.n))

    @property
    def held(self) -> int:
        """Bytes of the units' rows, and of what is as long as one of them or as there are features."""
        return self.pages + self.n * self.p * self.item + 8 * (VECTORS * (self.n + self.p) + LEVELS * self.n)

    def calls(self, at_once: int, *, packed: bool) -> Workspace:
        """What calls of so many candidates take beside what is held."""
        strips = (STRIPS + 2 * self.custom) * STRIP * TILE * self.item + 16 * self.p
        sums = at_once * (TILE * (self.item + 8) + 2 * self.item + 16)
        return Workspace(self.half_kernel if packed else 0, strips + sums, 8 * self.n * at_once)

    def bytes(self, at_once: int, threads: int, *, packed: bool) -> int:
        """Of workspace in all, at most."""
        return self.held + max(self.forming, self.calls(at_once, packed=packed).total(threads))

    def at_once(self, threads: int, memory: int, *, packed: bool) -> int:
        """The most candidates of a call that fit, 0 where none does."""
        left = memory - self.bytes(0, threads, packed=packed)
        if left < 0:
            return 0
        one, none = (self.calls(count, packed=packed).total(threads) for count in (1, 0))
        spare = max(0, self.forming - none)  # the units' rows are there by then
        return (left + spare) // (one - none)

    def time(self, room: CandidateRoom) -> float:
        """Of one step of a search, in multiply-adds of a worker for each pair of samples."""
        calls = -(-self.u // room.at_once)
        return (calls * self.p * (1 if room.packed else 2) + self.u * PASS) / room.threads


def _search_of(block: Block, units: int, *, double: bool) -> _Candidates:
    mapped = mapped_of([block.matrix])
    pages = 0 if mapped is None else mapped.whole
    return _Candidates(block.n, block.p, units, 8 if double else 4, isinstance(block.kernel, CustomKernel), pages)


def leaving_out(block: Block, units: int) -> str:
    return f"leaving out the {units} units of {block.matrix.name} [{block.n}, {block.p}]"


def ordering(block: Block) -> str:
    """The work, for who has too little memory for it."""
    return f"ordering the {block.p} columns of {block.matrix.name} by their products"


def plan_candidates(
    block: Block, widths: Sequence[int], *, double: bool, threads: int, memory: int | None
) -> CandidateRoom:
    """The team, the candidates of a call and whether the kernel of all units, of these widths, stays within ``memory``.

    Raises:
        TooLittleMemory: a single candidate does not fit.
    """
    units = len(widths)
    search = _search_of(block, units, double=double)
    most = max(1, min(units, ROWS // (8 * search.n)))
    team = min(threads, search.tiles)
    if memory is None:
        packs = search.n * search.n // 2 * search.item <= PACKED
        return CandidateRoom(team, most, apart_at_once(search.n, most), PACKED, search.bytes(most, team, packed=packs))
    rooms = []
    for workers in range(1, team + 1):
        for packs in (True, False):
            count = min(most, search.at_once(workers, memory, packed=packs))
            if count:
                half = search.half_kernel if packs else 0
                needed = search.bytes(count, workers, packed=packs)
                rooms.append(CandidateRoom(workers, count, max(1, count // 4), half, needed))
    if not rooms:
        raise TooLittleMemory(f"{memory} bytes", leaving_out(block, units), search.bytes(1, 1, packed=False))
    return min(rooms, key=search.time)


def plan_products(block: Block, *, double: bool, threads: int, memory: int | None) -> ProductsRoom:
    """The team of the products of all columns and of the order that they give.

    Raises:
        TooLittleMemory: a single worker does not fit.
    """
    n, p = block.n, block.p
    side, item, strips = -(-min(COLUMNS, p) // WIDEST) * WIDEST, 8 if double else 4, -(-p // COLUMNS)
    each = (min(DEPTH, n) * side * min(strips, 2) + side * side) * item
    mapped = mapped_of([block.matrix])
    if mapped is not None:
        each += mapped.pages(min(n, GROUP))
    space = Workspace(8 * p * p + 8 * p * 2 * VECTORS, each)
    team = min(threads, strips * (strips + 1) // 2 * -(-n // GROUP))
    if memory is not None:
        if space.total(1) > memory:
            raise TooLittleMemory(f"{memory} bytes", ordering(block), space.total(1))
        team = space.workers(team, memory)
    return ProductsRoom(team, space.total(team))


def reference_candidates(
    block: Block, widths: Sequence[int], *, double: bool, threads: int, memory: int | None
) -> CandidateRoom:
    """What :func:`plan_candidates` says of the reference, whose calls are shorter where there is little room.

    Raises:
        TooLittleMemory: more than ``memory``.
    """
    units = len(widths)
    search = _search_of(block, units, double=double)
    n, p = search.n, search.p
    # A candidate's rows of z, in float64 where they are not, and as pdist turns them; its row sums besides.
    copies = n * p * (search.item + 8 * (search.item < 8) + 8)
    most, row_sums = max(1, min(units, ROWS // (8 * n))), 8 * n
    held = search.held
    once = REFERENCE * 8 * n * n + copies
    least = held + max(search.forming, once + row_sums)
    if memory is not None and least > memory:
        raise TooLittleMemory(f"{memory} bytes", f"{leaving_out(block, units)} by the reference", least)
    at_once = most if memory is None else min(most, (memory - held - once) // row_sums)
    taken = held + max(search.forming, once + at_once * row_sums)
    return CandidateRoom(threads, at_once, max(1, at_once // 4), PACKED, taken)


def reference_products(block: Block, *, double: bool, threads: int, memory: int | None) -> ProductsRoom:
    """What :func:`plan_products` says of the reference, which takes what it takes.

    Raises:
        TooLittleMemory: more than ``memory``.
    """
    n, p = block.n, block.p
    taken = 8 * (3 * (n * p + p * p) + 2 * VECTORS * p)
    if memory is not None and taken > memory:
        raise TooLittleMemory(f"{memory} bytes", f"{ordering(block)} by the reference", taken)
    return ProductsRoom(threads, taken)


def apart_at_once(n: int, most: int) -> int:
    """Candidates whose levels are held beside their row sums, and copied: four times the bytes of these."""
    return max(1, min(most, ROWS // (32 * n)))
