"""What layers hold once they are prepared, and what preparing them takes before: bytes on the host.

Layers are prepared one after another: while one is, those before it hold what they keep until the answer is there.
The sums of its columns are as long as its rows, and of a wide layer of few samples more than any walk over tiles takes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..arrays import Matrix
from ..errors import TooLittleMemory
from ..kernels import Cosine, CustomKernel, Kernel
from .mapped import SUMS, mapped_of

PIECE = 2**18  # elements that a worker takes at a time, as kElements in csrc/cpu/columns.cpp, and
ROWS = 4  # rows of them at least


@dataclass(frozen=True)
class Pass:
    """The pass over one layer: bytes that it leaves held, that it takes beside its workers, and for each of them."""

    held: int
    once: int
    each: int
    pieces: int = 1  # of work: more workers than these never begin

    def team(self, threads: int, memory: int | None) -> int:
        """How many of ``threads`` may work so that all stays within ``memory``, at least one."""
        team = threads if memory is None else min(threads, (memory - self.once) // self.each)
        return max(1, team)

    def total(self, team: int) -> int:
        """Bytes with so many workers, what it leaves held among them."""
        return self.once + min(team, self.pieces) * self.each


@dataclass(frozen=True)
class Preparing:
    """Bytes that all layers hold once they are prepared, and the passes over them, each kind once."""

    held: int
    passes: tuple[Pass, ...]

    @property
    def least(self) -> int:
        """Bytes at most until all are prepared, with one worker."""
        return max((self.held - own.held + own.total(1) for own in self.passes), default=self.held)

    def taken(self, threads: int, memory: int | None) -> int:
        """The same with the workers that ``memory`` has room for."""
        most = self.held
        for own in self.passes:
            others = self.held - own.held
            most = max(most, others + own.total(own.team(threads, None if memory is None else memory - others)))
        return most


def pass_over(x: Matrix, kernel: Kernel, *, in_memory: bool = False) -> Pass:
    """What preparing ``x`` for ``kernel`` takes: sums of columns, whose means stay, and scales of Cosine's rows.

    The median of distances keeps to what it is given by itself. ``in_memory``: no pages of a file count.
    """
    each = SUMS * x.p if in_memory else _of_worker(x)
    scales = 8 * x.n if isinstance(kernel, Cosine) else 0
    rows = max(ROWS, PIECE // x.p)
    shift = 8 * x.p * (2 if isinstance(kernel, CustomKernel) else 1)  # the engine holds zeros in place of one
    return Pass(shift + scales, SUMS * x.p + scales, each, -(-x.n // rows))


def preparing_of(layers: Iterable[tuple[Matrix, Kernel]], *, in_memory: bool = False) -> Preparing:
    """What preparing these layers takes, one after another."""
    passes = [pass_over(x, kernel, in_memory=in_memory) for x, kernel in layers]
    return Preparing(sum(own.held for own in passes), tuple(dict.fromkeys(passes)))


def check_pass(x: Matrix, kernel: Kernel, memory: int) -> None:
    """Raise TooLittleMemory where ``memory`` does not hold what preparing ``x`` takes with one worker."""
    needed = pass_over(x, kernel).total(1)
    if needed > memory:
        raise TooLittleMemory(f"{memory} bytes", f"preparing {x.name} [{x.n}, {x.p}]", needed)


def stats_team(x: Matrix, threads: int, memory: int | None) -> int:
    """How many of ``threads`` may form the statistics of the columns of ``x`` within ``memory``, at least one."""
    if memory is None:
        return threads
    return Pass(0, SUMS * x.p, _of_worker(x)).team(threads, memory)


def _of_worker(x: Matrix) -> int:
    """Bytes of a worker that sums columns, and of the pages that it holds of a mapped file."""
    mapped = mapped_of([x])
    return SUMS * x.p if mapped is None else mapped.passing(x.p)
