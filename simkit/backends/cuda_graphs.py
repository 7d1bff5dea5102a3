"""Graphs of filters on a device. Packed adjacency stays there, from ``adjacency`` to ``components`` and ``cover``."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, Matrix
from . import bits as packed
from .base import Adjacency, CoverSearch
from .cuda_device import array_on, cuda, place_of


def adjacency(matrix: Matrix, squared: FloatArray, *, threads: int = 1) -> Adjacency:
    """See :func:`simkit.backends.reference.adjacency`; the bits are a :class:`~simkit.backends.bits.DeviceBits`."""
    finite, nearest, farthest, zeros, held = cuda().adjacency(
        x=array_on(matrix, place_of([matrix])), squared=[float(limit) for limit in squared]
    )
    route = f"{matrix.precision} products, near a threshold float64 differences"
    return Adjacency(packed.DeviceBits(held), finite, nearest, farthest, zeros, route)


def components(bits: packed.GraphBits, *, threads: int = 1) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """See :func:`simkit.backends.reference.components`."""
    labels, edges = cuda().components(_held(bits))
    return labels, edges


def cover(bits: packed.GraphBits, *, threads: int = 1) -> list[CoverSearch]:
    """See :func:`simkit.backends.reference.cover`."""
    return [CoverSearch(*found) for found in cuda().cover(_held(bits))]


def _held(bits: packed.GraphBits) -> Any:
    """The graphs as the compiled module holds them: where they lie, or copied to the current device."""
    if isinstance(bits, packed.DeviceBits):
        return bits.held
    return cuda().Bits.copied(bits=np.ascontiguousarray(bits), device=cuda().current_device())
