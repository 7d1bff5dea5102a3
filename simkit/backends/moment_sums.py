"""The moments of a stream of rows, as the ops on them take and keep them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, Matrix

Float32Array: TypeAlias = npt.NDArray[np.float32]
NARROW = 12  # columns of a layer whose products are always float64, as in csrc/ops/moments.hpp
PROBES = 4  # vectors of signs of a layer, as there


@dataclass(frozen=True)
class SideSums:
    """Moments of one side's layers laid side by side, layer l being columns offsets[l]:offsets[l+1].

    With z = (x - shift) · scale (powers of two) and a_i = |z_i|² per layer. ``gram`` holds the upper triangles of
    zᵀz per layer; it is empty where :attr:`MomentSums.cross` holds them.

    With float32 products (``signs`` is not None) the diagonals of zᵀz are float64 sums of squares all the same, and
    ``rounded`` sums the squares of entries that were rounded, of any shift. ``probes`` sums z in float64 under h = z·g
    for every vector g of the layer's signs: what zᵀz g would be without rounding. It is None where
    :attr:`MomentSums.probes` has them.
    """

    offsets: tuple[int, ...]
    shift: FloatArray  # [p]
    scale: FloatArray  # [p]
    sum_z: FloatArray  # [p]
    sum_az: FloatArray  # [p]  Σ a z, a of the column's own layer
    sum_a: FloatArray  # [layers]
    sum_aa: FloatArray  # [layers]
    gram: tuple[FloatArray, ...]  # per layer [p_l, p_l]
    rounded: FloatArray | None = None  # [p]
    signs: FloatArray | None = None  # [PROBES, p] ±1
    probes: FloatArray | None = None  # [PROBES, p]

    @property
    def spans(self) -> list[slice]:
        """The columns of each layer."""
        return [slice(start, end) for start, end in pairwise(self.offsets)]


@dataclass(frozen=True)
class MomentRows:
    """Rows of one side in the units of its sums: ``z [rows, p]`` and ``a [rows, layers]``, a_i = |z_i|² per layer.

    z is float64, or float32, which asks for float32 products; a is the float64 sum of the squares of z as it is.
    """

    z: npt.NDArray[Any]
    a: FloatArray


@dataclass(frozen=True)
class MomentUnits:
    """Raw layers ``[rows, p_l]`` of one side, the sums in whose units they are wanted, and where to write z.

    Float64 ``z [rows, p]`` may be the layers' own memory; float32 z is rounded once, from float64.
    """

    layers: Sequence[Matrix]
    side: SideSums
    z: npt.NDArray[Any]


@dataclass(frozen=True)
class MomentSums:
    """Float64 moments from which the HSIC of every pair of layers follows; ``right`` None: left with itself.

    Where :class:`HeldMoments` hold the sums that are not of norms alone, those are empty here.
    """

    left: SideSums
    right: SideSums | None
    cross: FloatArray  # [p_left, p_right]; alone [p, p], upper triangle
    sum_ab: FloatArray  # [layers_left, layers_right]
    sum_ay: FloatArray  # [layers_left, p_right]
    sum_bx: FloatArray  # [layers_right, p_left]; unused alone
    probes: FloatArray | None = None  # [layers_right, PROBES, p_left] x under y·g; alone up to y's own columns

    def add_norms(self, left: FloatArray, right: FloatArray | None) -> None:
        """Add rows to the sums of norms a alone, in place: Σa, Σa² and Σab of ``a [rows, layers]`` of both sides."""
        for side, a in ((self.left, left), (self.right, right)):
            if side is not None and a is not None:
                side.sum_a[...] += a.sum(axis=0)
                side.sum_aa[...] += (a * a).sum(axis=0)
        self.sum_ab[...] += np.einsum("ri,rj->ij", left, left if right is None else right)


class HeldMoments(Protocol):
    """The moments of one stream in a backend's own memory, from batch to batch, with rows that wait there.

    The sums of norms alone stay with the caller: the host needs them to tell which rows stand out. Layers are those of
    both sides, one after another; what is one for each side comes as a list.
    """

    backend: str
    device: int
    room: int  # blocks of rows at a time
    products: str  # what they are, for a plan

    def load(self, sums: MomentSums) -> MomentSums:
        """Take units and sums; returns them without those that are held here."""

    def whole(self, sums: MomentSums) -> MomentSums:
        """The same with a copy of the sums that are held here."""

    def keep(self, layers: Sequence[Matrix], first: int, count: int, at: int) -> None:
        """Put raw rows ``first:first + count`` of a batch to row ``at`` of the stage."""

    def set_stage(self, rows: Sequence[FloatArray]) -> None:
        """Put rows ``[count, p]`` of the host to the front of the stage."""

    def stage(self, count: int) -> list[FloatArray]:
        """The first rows of the stage ``[count, p]``."""

    def rows(self, layers: Sequence[Matrix], first: int, count: int, *, staged: bool) -> list[tuple[FloatArray, ...]]:
        """Bring the stage, where it is full, and rows of a batch to the units of the sums, to be added.

        For each side the norms a and the largest |z|, both ``[512 · staged + count, layers]``.
        """

    def take(self, rows: npt.NDArray[np.int64]) -> list[FloatArray]:
        """z ``[rows, p]`` of those rows, which are zeros from then on."""

    def rows_in(self, units: Sequence[MomentUnits]) -> list[MomentRows]:
        """Rows of the host in units of the host, where z is written, while no sums are held here."""

    def add(self, first: int, count: int) -> None:
        """Add the rows ``first:first + count`` to the sums that are held here."""

    def add_rows(self, left: MomentRows, right: MomentRows | None) -> None:
        """Add rows of the host to the sums that are held here."""
