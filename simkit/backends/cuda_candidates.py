"""Candidates on a device: a layer's units are formed there once, and left out of a kernel as often as a search asks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import TooLittleMemory
from ..kernels import Polynomial
from .base import (
    Block,
    CandidateProblem,
    CandidateSums,
    Levels,
    UnitFeatures,
    kernel_options,
)
from .cuda_device import array_on, bytes_of, cuda, place_of, room_on
from .cuda_routes import triangle
from .cuda_strips import room_in_words
from .damage_room import PACKED, PASS, ROWS, CandidateRoom, apart_at_once, leaving_out
from .unit_features import kernel_unit

TILE = 64  # samples of a tile of pairs
PART, PILOTS = 512, 255  # samples of a part of column sums, and those whose medians are taken
WORKSPACE = 2**32  # bytes at most of distances and row sums in flight: what 512 units of 10,000 samples take


@dataclass(frozen=True)
class DeviceFeatures:
    """z ``[p, n]`` on a device."""

    units: Any
    shape: tuple[int, int]
    dtype: np.dtype[Any]


def unit_features(block: Block, columns: npt.NDArray[np.int64], *, double: bool, threads: int = 1) -> UnitFeatures:
    """See :func:`simkit.backends.reference.unit_features`; distances are about the medians of a few hundred samples."""
    array = array_on(block.matrix, place_of([block]))
    scale, unit = math.ldexp(1.0, -block.exponent), kernel_unit(block)
    units = cuda().Units(
        x=array,
        columns=np.ascontiguousarray(columns, dtype=np.int64),
        shift=np.ascontiguousarray(block.shift[columns]) if isinstance(block.kernel, Polynomial) else None,
        scale=scale,
        unit=unit,
        double=double,
    )
    stats = cuda().column_stats(x=array, row_scale=np.full(block.n, scale))  # raw squares may overflow, or vanish
    squares = np.asarray(stats[1])[columns] / unit / unit
    dtype = np.dtype(np.float64 if double else np.float32)
    return UnitFeatures(DeviceFeatures(units, (len(columns), block.n), dtype), squares)


@dataclass(frozen=True)
class _Search:
    """A search on a device: units of these widths of a layer [n, p] there, rows in numbers of ``item`` bytes."""

    n: int
    p: int
    item: int
    units: int
    widest: int

    @property
    def strips(self) -> int:
        """Of samples."""
        return -(-self.n // TILE)

    @property
    def tiles(self) -> int:
        """Of pairs of samples, on the diagonal and above it."""
        return triangle(self.strips)

    @property
    def tile(self) -> int:
        """Bytes of one."""
        return TILE * TILE * self.item

    @property
    def candidate(self) -> int:
        """Bytes of the workspace that one takes, as CandidateSizes counts them (csrc/cuda/candidates.hpp)."""
        return self.n * (self.strips * self.item + 8) + self.strips * TILE * self.item + 16 * self.tiles

    @property
    def forming(self) -> int:
        """Bytes beside the units while these are formed: the medians' samples, or parts of column sums."""
        parts = 48 * (-(-self.n // PART) + 1) + 8
        return max(self.p * (8 * PILOTS + 12), self.p * parts + 8 * self.n)

    @property
    def held(self) -> int:
        """Bytes beside the units, the kernel and the workspace: the centre, tiles' places, lists, totals."""
        lists = 4 * (self.p + 10) + self.units * (4 + 32 * self.widest)
        return 8 * self.n + 16 * self.tiles + lists + 32 * self.units

    def each(self, *, packed: bool) -> int:
        """Bytes of a tile in flight."""
        return self.tile if packed else 2 * self.tile

    def in_flight(self, workspace: int, *, packed: bool) -> tuple[int, int]:
        """(tiles, candidates) at once, as CandidateSizes has them."""
        each = self.each(packed=packed)
        group = min(self.tiles, max(1, min(workspace // 2, workspace - self.candidate) // each))
        return group, max(1, min(self.units, (workspace - group * each) // self.candidate))

    def time(self, workspace: int, *, packed: bool) -> float:
        """Of one step of a search, in multiply-adds for each pair of samples: forming tiles, then candidates."""
        group, at_once = self.in_flight(workspace, packed=packed)
        formed = 1 if group == self.tiles else -(-self.units // at_once)
        return formed * self.p * (1 if packed else 2) + self.units * PASS

    def in_words(self, workspace: int, *, packed: bool) -> str:
        """For a plan."""
        group, at_once = self.in_flight(workspace, packed=packed)
        kernel = "the kernel of all units is held" if packed else "the kernel of all units is formed again and again"
        return f"{kernel}; {group} of {self.tiles} tiles of pairs, {at_once} of {self.units} candidates at once"


def plan_candidates(
    block: Block, widths: Sequence[int], *, double: bool, threads: int, memory: int | None
) -> CandidateRoom:
    """What :func:`simkit.backends.damage_room.plan_candidates` says of a device, the copy of a host layer included.

    ``memory`` bounds it, or else a share of what is free does.

    Raises:
        TooLittleMemory: one tile of pairs and a single candidate do not fit.
    """
    n, units, matrix = block.n, len(widths), block.matrix
    search = _Search(n, block.p, 8 if double else 4, units, max(widths))
    most = max(1, min(units, ROWS // (8 * n)))
    on_host = matrix.device is None
    layer = n * block.p * search.item + (bytes_of(matrix) if on_host else 0)
    kernel = search.tiles * search.tile
    bound = room_on(place_of([block]), memory, [matrix])

    def room(packed: bool, workspace: int) -> CandidateRoom:
        taken = layer + max(search.forming, search.held + kernel * packed + workspace)
        note = f"{search.in_words(workspace, packed=packed)}{'; copied to the device' if on_host else ''}"
        return CandidateRoom(threads, most, apart_at_once(n, most), kernel * packed, taken, workspace, note)

    rooms = []
    for packs in (True, False):
        left = bound - layer - search.held - kernel * packs
        if left < search.each(packed=packs) + search.candidate or bound < layer + search.forming:
            continue
        if memory is None and packs and kernel > PACKED:
            continue
        wanted = 2 * search.tiles * search.each(packed=packs) + units * search.candidate
        rooms.append(room(packs, min(left, wanted, WORKSPACE if memory is None else left)))
    if not rooms:
        least = room(False, search.each(packed=False) + search.candidate).bytes
        raise TooLittleMemory(room_in_words(bound, memory), f"{leaving_out(block, units)} on a device", least)
    return min(rooms, key=lambda found: search.time(found.workspace or 0, packed=found.packed > 0))


def candidate_sums(
    problem: CandidateProblem,
    kept: npt.NDArray[np.int64],
    candidates: npt.NDArray[np.int64],
    *,
    levels: Levels | None = None,
    rows: bool = True,
    threads: int = 1,
) -> CandidateSums:
    """See :func:`simkit.backends.reference.candidate_sums`; only totals come back where no ``rows`` are asked for."""
    levels = levels or Levels(np.zeros(problem.z.shape[1]))
    held = hold(problem, len(candidates), 0) if problem.packed is None else problem.packed
    return CandidateSums(
        *held.sums(
            kept=np.ascontiguousarray(kept, dtype=np.int64),
            candidates=np.ascontiguousarray(candidates, dtype=np.int64),
            levels=np.ascontiguousarray(levels.values),
            small=levels.small,
            rows=rows,
        )
    )


def pack_centred(problem: CandidateProblem, *, room: int, threads: int = 1) -> Any:
    """What many ``candidate_sums`` need on the device: workspace and, where it takes no more than ``room`` bytes, L."""
    return hold(problem, len(problem.offsets) - 1, room)


def hold(problem: CandidateProblem, at_once: int, room: int) -> Any:
    """What candidates, at most ``at_once`` of them at a time, need on the device; L in ``room`` bytes."""
    return cuda().Candidates(
        units=problem.z.units,
        offsets=np.ascontiguousarray(problem.offsets, dtype=np.int64),
        length=problem.length,
        debiased=problem.estimator == "debiased",
        centre=np.zeros(problem.z.shape[1]) if problem.centre is None else np.ascontiguousarray(problem.centre),
        small_centre=problem.small_centre,
        at_once=at_once,
        packed=room,
        bytes=WORKSPACE if problem.workspace is None else problem.workspace,
        **kernel_options(problem.kernel),
    )
