"""Packed adjacency: a graph of n vertices as ``[n, words]`` uint64, bit j % 64 of word j // 64 of row i."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

BitArray: TypeAlias = npt.NDArray[np.uint64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]

WORD = 64


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
