"""What ``_cuda`` has for greedy orders, over the emulator: matrices that stay on the device are the host's here."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import emulated_cuda
import numpy as np
import numpy.typing as npt
from emulated_cuda import Array, Block, Floats, run

IN_REGISTERS = 8192


def square(a: Floats) -> Array:
    """A matrix ``[u, u]`` on the device."""
    return Array.copied(x=np.ascontiguousarray(a, dtype=np.float64), dtype="float64", device=0)


def column_products(
    programs: Any,
    order: int,
    block: Block,
    sum_sq_dev: Floats,
    *,
    exact: bool,
    tensor: bool,
    squared: bool,
    bytes: int,
) -> Array:
    g = np.full((block.x.shape[1],) * 2, np.nan)
    how = int(exact), int(tensor), int(squared), ctypes.c_int64(bytes), order
    run(programs, "column_products", ctypes.byref(block.matrix), sum_sq_dev, *how, g)
    return square(g)


def gather_columns(programs: Any, order: int, x: Array, index: npt.NDArray[np.int64]) -> Array:
    kinds = {"bfloat16": np.dtype(np.uint16)}
    out = np.empty((x.shape[0], len(index)), dtype=kinds.get(x.dtype) or np.dtype(x.dtype))
    matrix = x.matrix(np.zeros(x.shape[1]))
    run(programs, "gather_columns", ctypes.byref(matrix), index, ctypes.c_int64(len(index)), order, out)
    return Array.copied(x=out, dtype=x.dtype, device=x.device)


def unit_sums(
    programs: Any,
    order: int,
    block: Block,
    offsets: npt.NDArray[np.int64],
    *,
    debiased: bool,
    sample_space: bool,
    double_products: bool,
    tensor: bool,
    bytes: int,
) -> tuple[Array, Floats, Floats]:
    u = len(offsets) - 1
    values, own, raw = np.full((u, u), np.nan), np.empty(u), np.empty(u)
    how = int(debiased), int(sample_space), int(double_products), int(tensor), ctypes.c_int64(bytes), order
    run(programs, "unit_sums", ctypes.byref(block.matrix), offsets, ctypes.c_int64(u), *how, values, own, raw)
    return square(values), own, raw


def total(programs: Any, order: int, a: Array) -> float:
    found = np.empty(1)
    run(programs, "total", ctypes.c_void_p(a.pointer), ctypes.c_int64(a.shape[0]), order, found)
    return float(found[0])


def eliminate(
    programs: Any,
    order: int,
    matrices: Sequence[Array],
    *,
    greedy: bool,
    counts: Sequence[int],
    min_cka: float,
    in_registers: int = IN_REGISTERS,
) -> list[tuple[npt.NDArray[np.int64], Floats, float, bool]]:
    many = len(matrices)
    addresses = np.array([a.pointer for a in matrices], dtype=np.uint64)
    units = np.array([a.shape[0] for a in matrices], dtype=np.int64)
    most = np.array(counts, dtype=np.int64)
    removed, gaps, lost = np.empty(many, np.int64), np.empty(many), np.empty(many, np.int64)
    found, cka = np.full(most.sum(), -1), np.full(most.sum(), np.nan)
    options = int(greedy), ctypes.c_double(min_cka), ctypes.c_int64(in_registers), order
    run(programs, "eliminate", ctypes.c_int64(many), addresses, units, most, *options, removed, found, cka, gaps, lost)
    starts = np.cumsum(most) - most
    return [
        (found[start : start + end], cka[start : start + end], float(gap), bool(gone))
        for start, end, gap, gone in zip(starts, removed, gaps, lost, strict=True)
    ]


class Module(SimpleNamespace):
    """As ``_cuda``; ``fetched()`` counts the bytes that came from the device."""


def module(programs: Any, greedy_programs: Any, order: int = 0, capability: tuple[int, int] = (7, 5)) -> Any:
    """The module of ``emulated_cuda``, and with it what greedy orders need."""
    copied = [0]

    def host(a: Array) -> Floats:
        held: Floats = a.held.copy()
        copied[0] += held.nbytes
        return held

    def fetched() -> int:
        counters = [library.fetched_bytes for library in (programs, greedy_programs)]
        for counter in counters:
            counter.restype = ctypes.c_int64
        return copied[0] + sum(counter() for counter in counters)

    functions = (column_products, gather_columns, unit_sums, total, eliminate)
    bound = {function.__name__: partial(function, greedy_programs, order) for function in functions}
    base = vars(emulated_cuda.module(programs, order, capability))
    return Module(**base, **bound, host=host, fetched=fetched)
