"""Packed adjacency: a graph of n vertices as ``[n, words]`` uint64, bit j % 64 of word j // 64 of row i.

Several graphs of the same vertices are ``[graphs, n, words]``: an array on the host, or a :class:`DeviceBits`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

BitArray: TypeAlias = npt.NDArray[np.uint64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]

WORD = 64


@dataclass(frozen=True, eq=False)
class DeviceBits:
    """Packed graphs ``[graphs, n, words]`` on a CUDA device; ``values`` is a copy on the host, made when asked for."""

    held: Any  # `Bits` of the compiled module: the memory, and where it is
    name: str = "the adjacency"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled and deep-copied as the array on the host: another process may have no such device."""
        return np.asarray, (self.values,)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(graphs, n, words)."""
        graphs, n, words = self.held.shape
        return graphs, n, words

    @property
    def device(self) -> int | None:
        """The ordinal of the device."""
        return int(self.held.device)

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return 8 * math.prod(self.shape)

    @cached_property
    def values(self) -> BitArray:
        """The bits ``[graphs, n, words]`` on the host."""
        values: BitArray = self.held.fetch()
        return values


GraphBits: TypeAlias = BitArray | DeviceBits


def on_host(bits: GraphBits) -> BitArray:
    """The graphs ``[graphs, n, words]`` as an array on the host, copied from a device where they lie on one."""
    return bits.values if isinstance(bits, DeviceBits) else bits


def on_device(bits: GraphBits) -> Sequence[DeviceBits]:
    """The graphs as an input that a backend is chosen for, where they lie on a device."""
    return [bits] if isinstance(bits, DeviceBits) else []


def single(bits: GraphBits, graph: int) -> GraphBits:
    """One of the graphs ``[1, n, words]``, in the same memory."""
    if isinstance(bits, DeviceBits):
        return DeviceBits(bits.held.graph(graph), bits.name)
    return bits[graph : graph + 1]


def words_of(n: int) -> int:
    """Words in a row of a graph of n vertices."""
    return -(-n // WORD)


def pack(dense: BoolArray) -> BitArray:
    """``[..., n]`` booleans as ``[..., words]`` bits."""
    n = dense.shape[-1]
    octets = np.zeros((*dense.shape[:-1], 8 * words_of(n)), dtype=np.uint8)
    packed = np.packbits(dense, axis=-1, bitorder="little")
    octets[..., : packed.shape[-1]] = packed
    return octets.view("<u8").astype(np.uint64, copy=False)


def unpack(bits: BitArray, n: int) -> BoolArray:
    """``[..., words]`` bits as ``[..., n]`` booleans."""
    octets = np.ascontiguousarray(bits).astype("<u8", copy=False).view(np.uint8)
    return np.unpackbits(octets, axis=-1, count=n, bitorder="little").view(np.bool_)


def without_vertex(bits: BitArray, vertex: int) -> BitArray:
    """The graph without one vertex: its row left out, and the bits behind its column moved down by one."""
    n = len(bits)
    rows = np.delete(bits, vertex, axis=0)
    word, bit = divmod(vertex, WORD)
    behind = rows[:, word:].copy()
    moved = behind >> np.uint64(1)
    moved[:, :-1] |= behind[:, 1:] << np.uint64(WORD - 1)
    kept = np.uint64((1 << bit) - 1)
    moved[:, 0] = (behind[:, 0] & kept) | (moved[:, 0] & ~kept)
    rows[:, word:] = moved
    return np.ascontiguousarray(rows[:, : words_of(n - 1)])
