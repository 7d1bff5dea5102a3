"""Matrices that go to the device in strips, without a device: the module ``_cuda`` over the emulator's two queues."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import emulated_cuda
import emulated_greedy
import numpy as np
import numpy.typing as npt
from emulated_cuda import Floats, Matrix, run

PACES = ("late", "copies", "work", "chance")  # which queue runs ahead
PLENTY = 2**40


class Terms(ctypes.Structure):
    """What a machine has and is told, as ``cuda_strips_programs.cpp`` declares it, and what came of it."""

    _fields_ = (
        ("order", ctypes.c_int),
        ("pace", ctypes.c_int),
        ("memory", ctypes.c_int64),
        ("pauses", ctypes.c_int64),
        ("resident", ctypes.c_int64),
        ("passing", ctypes.c_int64),
        ("bytes", ctypes.c_int64),
        ("threads", ctypes.c_int),
        ("machines", ctypes.c_int64),
        ("most", ctypes.c_int64),
        ("copied", ctypes.c_int64),
    )


@dataclass
class Emulated:
    """A device of so much memory, in one thread order and at one pace; ``ran`` holds the terms of every op."""

    programs: Any
    order: int = 0
    pace: str = "late"
    memory: int = PLENTY
    pauses: int = -1
    ran: list[Any] = field(default_factory=list)

    def _terms(self, strips: dict[str, int]) -> Any:
        self.ran.append(Terms(self.order, PACES.index(self.pace), self.memory, self.pauses, **strips))
        return ctypes.byref(self.ran[-1])

    def column_stats(self, *, x: Any, row_scale: Floats | None, **strips: int) -> tuple[Any, ...]:
        p = x.shape[1]
        mean, squares, most, bad = np.empty(p), np.empty(p), np.empty(2), np.empty(3, dtype=np.int64)
        matrix = x.matrix(np.zeros(p), row_scale)
        run(self.programs, "column_stats", ctypes.byref(matrix), self._terms(strips), mean, squares, most, bad)
        return mean, squares, *most.tolist(), *bad.tolist()

    def row_norms(self, block: Any, **strips: int) -> Floats:
        norms = np.empty(block.x.shape[0])
        run(self.programs, "row_norms", ctypes.byref(block.matrix), self._terms(strips), norms)
        return norms

    def distance_median(self, block: Any, **strips: int) -> float:
        median = np.empty(1)
        run(self.programs, "distance_median", ctypes.byref(block.matrix), self._terms(strips), median)
        return float(median[0])

    def column_products(
        self, block: Any, sum_sq_dev: Floats, *, exact: bool, tensor: bool, squared: bool, **strips: int
    ) -> emulated_cuda.Array:
        g = np.full((block.x.shape[1],) * 2, np.nan)
        how = int(exact), int(tensor), int(squared)
        run(self.programs, "column_products", ctypes.byref(block.matrix), sum_sq_dev, *how, self._terms(strips), g)
        return emulated_greedy.square(g)

    def pair_sums(
        self,
        *,
        rows: Sequence[Any],
        columns: Sequence[Any],
        debiased: bool,
        sample_space: bool,
        double_products: bool,
        tensor: bool,
        **strips: int,
    ) -> tuple[Floats, Floats, Floats]:
        m, left = len(rows) + len(columns), len(rows)
        values, own, raw = np.empty((left, len(columns) or left)), np.empty(m), np.empty(m)
        table = (Matrix * m)(*(block.matrix for block in (*rows, *columns)))
        sizes = ctypes.c_int64(m), ctypes.c_int64(left)
        how = int(debiased), int(sample_space), int(double_products), int(tensor)
        run(self.programs, "pair_sums", table, *sizes, *how, self._terms(strips), values, own, raw)
        return values, own, raw


class StripArray(emulated_cuda.Array):
    """As ``_cuda.Array``, with those that stay on the host."""

    uploads: ClassVar[list[int]] = []  # bytes of every copy of a whole matrix

    @staticmethod
    def copied(*, x: npt.NDArray[Any], dtype: str, device: int) -> emulated_cuda.Array:
        StripArray.uploads.append(x.nbytes)
        return emulated_cuda.Array.copied(x=x, dtype=dtype, device=device)

    @staticmethod
    def on_host(*, x: npt.NDArray[Any], dtype: str, device: int) -> emulated_cuda.Array:
        return emulated_cuda.Array.copied(x=x, dtype=dtype, device=device)


def module(programs: Any, emulated: Emulated, capability: tuple[int, int] = (7, 5)) -> Any:
    """As ``_cuda``; whole matrices on the emulator of ``cuda_programs``, strips on ``emulated``."""
    found = emulated_cuda.module(programs, emulated.order, capability)
    StripArray.uploads.clear()
    found.Array = StripArray
    found.memory_info = lambda device: (emulated.memory, emulated.memory)
    for name in ("column_stats", "column_products", "row_norms", "distance_median", "pair_sums"):
        setattr(found, f"{name}_in_strips", partial(getattr(emulated, name)))
    return found
