"""The product on tensor cores, piece by piece, as ``tests/native/cuda_tensor_programs.cpp`` offers it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import emulated_cuda
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
KEPT = 24  # bits that are kept below the leading one of the largest addend


def split(programs: Any, z: Array) -> tuple[Array, Array]:
    """(high, low) of float32 numbers, as they go to tensor cores."""
    parts = np.empty((len(z), 2), dtype=np.float32)
    emulated_cuda.run(programs, "split_floats", np.ascontiguousarray(z), ctypes.c_int64(len(z)), parts)
    return parts[:, 0], parts[:, 1]


def sum_of_eight(programs: Any, c: float, x: Sequence[float], y: Sequence[float]) -> float:
    """c + x·y as one mma.sync forms it."""
    sides = [np.array([*side, *([0.0] * (8 - len(side)))], dtype=np.float32) for side in (x, y)]
    total = np.empty(1, dtype=np.float32)
    emulated_cuda.run(programs, "sum_of_eight", ctypes.c_float(c), *sides, total)
    return float(total[0])


def sum_of_sixteen(programs: Any, c: float, x: Sequence[float], y: Sequence[float]) -> float:
    """The same of 16-bit numbers (``cuda_half_programs.cpp``)."""
    total = np.empty(1, dtype=np.float32)
    sides = [np.array(side, dtype=np.float32) for side in (x, y)]
    emulated_cuda.run(programs, "sum_of_sixteen", ctypes.c_float(c), *sides, total)
    return float(total[0])


def sum_in_fractions(c: float, x: Sequence[float], y: Sequence[float], at_once: int = 4) -> float:
    """The same in exact arithmetic, from the description alone: some at a time, cut at 24 bits, towards zero."""
    total = Fraction(c)
    for first in range(0, len(x), at_once):
        factors = list(zip(x[first : first + at_once], y[first : first + at_once], strict=True))
        most = max([_exponent(float(total)), *(_exponent(a) + _exponent(b) for a, b in factors)])
        unit = Fraction(2) ** (most - KEPT)
        units = int(total / unit) + sum(int(Fraction(a) * Fraction(b) / unit) for a, b in factors)
        total = _cut(units * unit)
    return float(total)


def _exponent(value: float) -> int:
    return max(int(np.frexp(value)[1]) - 1, -126) if value else -126


def _cut(value: Fraction) -> Fraction:
    """The nearest number of 24 bits on the way to zero."""
    if not value:
        return value
    unit = Fraction(2) ** (int(np.frexp(float(abs(value)))[1]) - KEPT)
    if abs(value) < unit * 2**23:  # float() rounded up to the next power of two
        unit /= 2
    return int(value / unit) * unit
