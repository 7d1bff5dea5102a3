"""The graph ops of ``_cuda`` over the emulator of ``tests/native``; packed bits count how often they are fetched."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import emulated_cuda
import numpy as np
import numpy.typing as npt
from emulated_cuda import run

from simkit.backends.bits import words_of

BitArray = npt.NDArray[np.uint64]
GUARD = 8  # words around the bits, which no program may touch


class Bits:
    """As ``_cuda.Bits``."""

    fetches = 0  # of all of them

    def __init__(self, held: BitArray, whole: BitArray | None = None) -> None:
        self.held, self.whole, self.device = held, whole, 0

    @staticmethod
    def empty(graphs: int, n: int) -> Bits:
        words = graphs * n * words_of(n)
        whole = np.full(words + 2 * GUARD, 2**64 - 1, dtype=np.uint64)
        return Bits(whole[GUARD : GUARD + words].reshape(graphs, n, words_of(n)), whole)

    @staticmethod
    def copied(*, bits: BitArray, device: int) -> Bits:
        return Bits(bits.copy())

    @property
    def shape(self) -> tuple[int, ...]:
        return self.held.shape

    def graph(self, at: int) -> Bits:
        return Bits(self.held[at : at + 1])

    def fetch(self) -> BitArray:
        Bits.fetches += 1
        return self.held.copy()


def adjacency(
    programs: Any, order: int, *, x: emulated_cuda.Array, squared: Sequence[float]
) -> tuple[bool, float, float, npt.NDArray[np.int64], Bits]:
    n = x.shape[0]
    bits, extremes, found = Bits.empty(len(squared), n), np.empty(2), np.empty(2, dtype=np.int64)
    zeros, matrix = np.empty(n, dtype=np.int64), x.matrix()
    sizes = np.array(squared, dtype=np.float64), ctypes.c_int64(len(squared)), order
    run(programs, "adjacency", ctypes.byref(matrix), *sizes, bits.held, extremes, found, zeros)
    assert bits.whole is not None
    assert (bits.whole[:GUARD] == 2**64 - 1).all()
    assert (bits.whole[-GUARD:] == 2**64 - 1).all()
    return bool(found[0]), float(extremes[0]), float(extremes[1]), zeros[: found[1]], bits


def components(programs: Any, order: int, bits: Bits) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    graphs, n, _ = bits.shape
    labels, edges = np.full((graphs, n), -1, dtype=np.int64), np.full(graphs, -1, dtype=np.int64)
    run(programs, "components", bits.held, ctypes.c_int64(graphs), ctypes.c_int64(n), order, labels, edges)
    return labels, edges


def cover(programs: Any, order: int, bits: Bits) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], float]]:
    graphs, n, _ = bits.shape
    centres, packing = np.full((2, graphs, n), -1, dtype=np.int64)
    sizes, dual = np.empty((graphs, 2), dtype=np.int64), np.empty(graphs)
    counts = ctypes.c_int64(graphs), ctypes.c_int64(n)
    run(programs, "cover", bits.held, *counts, order, centres, packing, sizes, dual)
    return [(c[:a], p[:b], float(y)) for c, p, (a, b), y in zip(centres, packing, sizes, dual, strict=True)]


def module(programs: Any, order: int = 0, **others: Any) -> Any:
    """As ``_cuda``, with the threads of a block in this order; ``others``: what is not about graphs."""
    bound = {op.__name__: partial(op, programs, order) for op in (adjacency, components, cover)}
    return SimpleNamespace(Array=emulated_cuda.Array, Bits=Bits, current_device=lambda: 0, **others, **bound)
