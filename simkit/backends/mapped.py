"""How much of mapped files is resident while some of their rows are worked on.

What is read of a mapped file counts as memory of the process until it is given back (``release_rows`` in
``csrc/core/pack.hpp``). A fault brings in the whole folio of the page cache around the byte that is read: up to 2 MiB.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..arrays import Matrix

FOLIO = 2**21  # as kFolio in csrc/core/pack.hpp
PASSING = 2**18, 4  # entries, or rows if they are longer, that a worker of a pass over one matrix reads at a time


@dataclass(frozen=True)
class Mapped:
    """What layers in mapped files have resident: ``row`` bytes from one row to the next, ``whole`` of a layer, at most.

    Rows of a layer that lies column by column touch every page of it: its ``row`` is all of it.
    """

    row: int
    whole: int

    def pages(self, rows: int, strips: int = 1) -> int:
        """Bytes resident of one layer while so many strips of ``rows`` are in use."""
        return min(self.whole, strips * (rows * self.row + 2 * FOLIO))


def mapped_of(matrices: Iterable[Matrix]) -> Mapped | None:
    """The widest row and the largest of the ``matrices`` that lie in mapped files; None where none does."""
    sizes = []
    for x in matrices:
        if x.mapped:
            down, across = (abs(stride) for stride in x.values.strides)
            whole = (x.n - 1) * down + (x.p - 1) * across + x.itemsize
            sizes.append((down if x.p == 1 or down > across else whole, whole))
    return Mapped(max(row for row, _ in sizes), max(whole for _, whole in sizes)) if sizes else None


def mapped_team(x: Matrix, threads: int, memory: int | None) -> int:
    """How many of ``threads`` may pass over ``x`` within ``memory``, at least one."""
    mapped = None if memory is None else mapped_of([x])
    if memory is None or mapped is None:
        return threads
    entries, rows = PASSING
    at_once = max(entries * x.itemsize, rows * mapped.row) + 2 * FOLIO
    return max(1, min(threads, memory // min(mapped.whole, at_once)))
