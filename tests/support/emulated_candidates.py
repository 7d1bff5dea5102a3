"""``_cuda.Candidates`` without a device: the programs of ``tests/native/cuda_candidates_programs.cpp``."""

from __future__ import annotations

import ctypes
from functools import partial
from typing import Any

import emulated_cuda
import numpy as np
import numpy.typing as npt
from emulated_cuda import KERNELS, Array, Floats, address, run

Indices = npt.NDArray[np.int64]


class Units(ctypes.Structure):
    """A problem as ``cuda_candidates_programs.cpp`` declares it."""

    _fields_ = (
        ("z", ctypes.c_void_p),
        ("features", ctypes.c_int64),
        ("samples", ctypes.c_int64),
        ("wide", ctypes.c_int64),
        ("offsets", ctypes.c_void_p),
        ("units", ctypes.c_int64),
        ("kernel", ctypes.c_int),
        ("degree", ctypes.c_int),
        ("length", ctypes.c_double),
        ("coef0", ctypes.c_double),
        ("debiased", ctypes.c_int),
        ("order", ctypes.c_int),
        ("centre", ctypes.c_void_p),
        ("small_centre", ctypes.c_int64),
        ("at_once", ctypes.c_int64),
        ("packed", ctypes.c_int64),
        ("bytes", ctypes.c_int64),
    )


class FormedUnits:
    """As ``_cuda.Units``."""

    made = 0  # how many were: a layer is formed once for a search

    def __init__(
        self,
        programs: Any,
        order: int,
        *,
        x: Array,
        columns: Indices,
        shift: Floats | None,
        scale: float,
        unit: float,
        double: bool,
    ) -> None:
        FormedUnits.made += 1
        self.z = np.full((len(columns), x.shape[0]), np.nan, dtype=np.float64 if double else np.float32)
        matrix = x.matrix(np.zeros(x.shape[1]), None, scale)
        columns_of = columns, ctypes.c_int64(len(columns)), shift, ctypes.c_double(unit)
        run(programs, "form_units", ctypes.byref(matrix), *columns_of, int(double), order, self.z)


class Candidates:
    """As ``_cuda.Candidates``, with the programs and the order of the threads before the rest."""

    def __init__(
        self,
        programs: Any,
        order: int,
        *,
        units: FormedUnits,
        offsets: Indices,
        kernel: str,
        length: float,
        coef0: float,
        degree: int,
        debiased: bool,
        centre: Floats,
        small_centre: bool,
        at_once: int,
        packed: int,
        bytes: int,
    ) -> None:
        z = units.z
        self.programs, self.n = programs, z.shape[1]
        self.held = ctypes.c_void_p()
        problem = Units(
            *(address(z), *z.shape, int(z.dtype == np.float64), address(offsets), len(offsets) - 1),
            *(KERNELS.index(kernel), degree, length, coef0, int(debiased), order, address(centre), int(small_centre)),
            *(at_once, packed, bytes),
        )
        self.kept_alive = (z, centre)  # they are read when a result is asked for
        run(programs, "hold_candidates", ctypes.byref(problem), ctypes.byref(self.held))

    def sums(self, *, kept: Indices, candidates: Indices, levels: Floats, small: bool, rows: bool) -> tuple[Any, ...]:
        count = len(candidates)
        totals = np.full((4, count), np.nan)
        found = np.full((count, self.n), np.nan) if rows else None
        sizes = kept, ctypes.c_int64(len(kept)), candidates, ctypes.c_int64(count)
        run(
            self.programs, "candidate_sums", self.held, *sizes, levels, int(levels.ndim == 2), int(small), totals, found
        )
        return *totals, found

    @property
    def nbytes(self) -> int:
        self.programs.packed_bytes.restype = ctypes.c_int64
        return int(self.programs.packed_bytes(self.held))

    def __del__(self) -> None:
        if self.held:
            run(self.programs, "release_candidates", self.held)


def module(programs: Any, candidates: Any, order: int = 0) -> Any:
    """As ``_cuda``, with candidates."""
    found = emulated_cuda.module(programs, order)
    found.Units = partial(FormedUnits, candidates, order)
    found.Candidates = partial(Candidates, candidates, order)
    return found
