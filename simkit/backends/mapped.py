"""How much of mapped files is resident while some of their rows are worked on.

What is read of a mapped file counts as memory of the process until it is given back (``release_rows`` in
``csrc/core/pack.hpp``). A fault brings in the whole folio of the page cache around the byte that is read: up to 2 MiB.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import Matrix

FOLIO = 2**21  # as kFolio in csrc/core/pack.hpp, and PASSING as kPassing and kPassingRows
PASSING = 2**20, 8  # bytes, or rows if they are longer, that a worker of a pass over one matrix reads at a time
SUMS = 40  # bytes of sums and ranges of one column that such a worker holds, and that it adds them to


@dataclass(frozen=True)
class Mapped:
    """What layers in mapped files have resident.

    Attributes:
        layers: of each, the bytes from one row to the next, and of all of it. Rows of a layer that lies column by
            column touch every page: its row is all of it.
    """

    layers: tuple[tuple[int, int], ...]

    @property
    def row(self) -> int:
        """The bytes from one row to the next, at most."""
        return max(row for row, _ in self.layers)

    @property
    def whole(self) -> int:
        """The bytes of a layer of which every page is read and none given back, at most."""
        return max(whole for _, whole in self.layers) + 2 * FOLIO

    def pages(self, rows: int, strips: int = 1) -> int:
        """Bytes resident, at most, of one layer while so many strips of ``rows`` are in use."""
        return max(min(whole, strips * (rows * row + 2 * FOLIO)) for row, whole in self.layers)

    def passing(self, columns: int) -> int:
        """Bytes of a worker that passes over one layer of so many ``columns``, at most: its pages and its sums."""
        least, rows = PASSING
        return SUMS * columns + max(min(whole, max(least, rows * row) + 2 * FOLIO) for row, whole in self.layers)


def mapped_of(matrices: Iterable[Matrix]) -> Mapped | None:
    """The ``matrices`` that lie in mapped files; None where none does."""
    layers = []
    for x in matrices:
        if x.mapped:
            down, across = (abs(stride) for stride in x.values.strides)
            whole = (x.n - 1) * down + (x.p - 1) * across + x.itemsize
            layers.append((whole if x.p > 1 and across > down else down, whole))
    return Mapped(tuple(dict.fromkeys(layers))) if layers else None


def release(x: Matrix) -> None:
    """Tell the system that the file under ``x`` is not needed for now: a later read brings its pages back."""
    base: Any = x.values
    while not isinstance(base, np.memmap) or isinstance(base.base, np.memmap):
        base = base.base
    file: Any = base.base
    if hasattr(mmap, "MADV_DONTNEED"):
        file.madvise(mmap.MADV_DONTNEED)


def mapped_team(x: Matrix, threads: int, memory: int | None) -> int:
    """How many of ``threads`` may pass over ``x`` so that they stay within ``memory``, at least one."""
    mapped = None if memory is None else mapped_of([x])
    if memory is None or mapped is None:
        return threads
    return max(1, min(threads, (memory - SUMS * x.p) // mapped.passing(x.p)))
