"""Greedy CKA damage under a kernel that is not linear.

HSIC is not additive over units here, so every candidate's kernel is evaluated: O(n²) each, fused with the centred sums
that CKA needs (:mod:`csrc/ops/candidates.hpp`). The bandwidth stays that of the original activations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray
from ..backends.base import (
    Block,
    CandidateProblem,
    CandidateSums,
    EliminationOrder,
    Estimator,
    Levels,
    Step,
    UnitFeatures,
)
from ..backends.choose import Choice, choose
from ..backends.damage_room import CandidateRoom
from ..kernels import CustomKernel, Laplacian, Polynomial
from .measure import Degenerate

TIE = 1e-12
NONE = np.array([-1])
# Centred sums are formed again, about the rows of the candidate's own kernel, where centring leaves less than this
# share of them: sums are off by their rounding over the share, and are to be by less than 1e-6 or 1e-12.
SHARE = {"float32": 1 / 4, "float64": 2.0**-10}
ROUNDS = 3  # of that: each leaves of the rows what rounding does
STALE = 0.5  # share below which the levels that the next step begins with are formed again
WIDE = 16.0  # mean exponent of 2 above which kernels take float64: an exponent of q rounds to q 2^-24, and 2^-q with it


@dataclass(frozen=True)
class Chosen:
    """Who runs the three ops of candidates."""

    sums: Choice  # candidate_sums
    pack: Choice  # pack_centred
    features: Choice  # unit_features

    @staticmethod
    def of(block: Block, backend: str | None) -> Chosen:
        """For the units of ``block``."""

        def chosen(op: str) -> Choice:
            return choose(op, backend=backend, inputs=[block], kernel=block.kernel)

        return Chosen(sums=chosen("candidate_sums"), pack=chosen("pack_centred"), features=chosen("unit_features"))


@dataclass(frozen=True)
class Scores:
    """Of candidates ``[candidates]``."""

    cka: FloatArray  # -inf where the kernel left over is constant
    shift: FloatArray  # from the levels to half the mean of each one's kernel
    share: FloatArray  # what centring left of its sums


@dataclass(frozen=True)
class KernelDamage:
    """A layer whose units can be left out: everything that stays the same while they are."""

    problem: CandidateProblem
    own: float  # <L, L>
    spread: FloatArray  # [units] sum of squared deviations of each unit's features
    chosen: Chosen
    room: CandidateRoom
    name: str

    @property
    def units(self) -> int:
        """How many."""
        return len(self.problem.offsets) - 1

    def moved(self, levels: Levels, by: FloatArray | float) -> Levels:
        """So far; of f - 1 where the mean of f is 1/2 or more and f a kernel of distances, which is at most 1."""
        values = levels.values + by
        if isinstance(self.problem.kernel, Polynomial | CustomKernel):
            return Levels(values)
        one = 0.0 if levels.small else 0.5
        small = float(values.mean()) + one < 0.25
        return Levels(values + (one - (0.0 if small else 0.5)), small)

    def scores(self, kept: npt.NDArray[np.int64], candidates: npt.NDArray[np.int64], levels: Levels) -> Scores:
        """CKA(all units, kept without each candidate)."""
        found = self._scores(kept, candidates, levels)
        dominating = candidates[self.spread[candidates] > self.spread[kept].sum() / 2]
        if len(dominating) and len(kept) > 1:  # at most one: taking it off the others would cancel
            place = np.flatnonzero(candidates == dominating[0])
            rest = kept[kept != dominating[0]]
            apart = self._scores(rest, NONE, self.moved(levels, float(found.shift[place[0]])))
            found.cka[place], found.share[place] = apart.cka, 0.0
        return found

    def settled(self, kept: npt.NDArray[np.int64], levels: Levels) -> Levels:
        """Levels that the rows of the kernel of the kept units are about."""
        for _ in range(ROUNDS):
            sums = self.sums(kept, NONE, levels, rows=True)
            assert sums.rows is not None
            own, raw = self._own(sums)
            before, levels = levels, self.moved(levels, self._effects(sums.rows[0]))
            if levels.small > before.small:  # of a small f, f - 1 tells what rounding does
                levels = Levels(np.zeros_like(levels.values))
            elif own[0] >= raw[0] / 2:
                break
        return levels

    def sums(
        self, kept: npt.NDArray[np.int64], candidates: npt.NDArray[np.int64], levels: Levels, *, rows: bool
    ) -> CandidateSums:
        """The op."""
        found: CandidateSums = self.chosen.sums.function(
            self.problem,
            kept,
            candidates,
            levels=levels,
            rows=rows,
            threads=self.room.threads,
        )
        return found

    def own_of(self, sums: CandidateSums, levels: Levels) -> tuple[FloatArray, FloatArray]:
        """(centred sums of squares, NaN where the kernel is constant within rounding; their share of the raw ones)."""
        own, raw = self._own(sums)
        n = self.problem.z.shape[1]
        squares, total = (levels.values**2).sum(axis=-1), levels.values.sum(axis=-1)
        pairs = n - 2 if self.problem.estimator == "debiased" else n
        size = 2 * (pairs * squares + total**2)  # what the levels add up to: K rounds to its size before they are off
        rounding = (8 * np.finfo(self.problem.z.dtype).eps) ** 2 * size
        constant = ~(own > np.maximum(8 * n * np.finfo(np.float64).eps * raw, rounding))
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(constant, math.nan, own), own / raw

    def _scores(self, kept: npt.NDArray[np.int64], candidates: npt.NDArray[np.int64], levels: Levels) -> Scores:
        at_once = self.room.at_once
        parts = []
        for start in range(0, len(candidates), at_once):
            some = candidates[start : start + at_once]
            sums = self.sums(kept, some, levels, rows=False)
            own, share = self.own_of(sums, levels)
            cka = self._cka(sums, own)
            crowded = np.flatnonzero(share < SHARE[self.problem.z.dtype.name])
            for first in range(0, len(crowded), self.room.apart):
                few = crowded[first : first + self.room.apart]
                cka[few] = self._apart(kept, some[few], levels)
            parts.append((cka, sums.totals / self._pairs / 2, share))
        return Scores(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def _apart(self, kept: npt.NDArray[np.int64], some: npt.NDArray[np.int64], levels: Levels) -> FloatArray:
        """CKA of candidates, each kernel about its own rows."""
        cka = np.empty(len(some))
        waiting, values = np.arange(len(some)), np.repeat(levels.values[None], len(some), axis=0)
        for _ in range(ROUNDS):
            about = Levels(values, levels.small)
            sums = self.sums(kept, some[waiting], about, rows=True)
            own, share = self.own_of(sums, about)
            cka[waiting] = self._cka(sums, own)
            crowded = share < SHARE[self.problem.z.dtype.name]  # each by itself: who else waits changes no bit
            if not crowded.any():
                break
            assert sums.rows is not None
            waiting, values = waiting[crowded], values[crowded] + self._effects(sums.rows[crowded])
        return cka

    def _cka(self, sums: CandidateSums, own: FloatArray) -> FloatArray:
        cka = sums.cross / np.sqrt(own * self.own)
        return np.where(np.isnan(own), -math.inf, cka)

    @property
    def _centring(self) -> tuple[int, int]:
        """What sums over a row and over all pairs are divided by."""
        n = self.problem.z.shape[1]
        return (n - 2, (n - 1) * (n - 2)) if self.problem.estimator == "debiased" else (n, n * n)

    @property
    def _pairs(self) -> int:
        n = int(self.problem.z.shape[1])
        return n * (n - 1 if self.problem.estimator == "debiased" else n)

    def _own(self, sums: CandidateSums) -> tuple[FloatArray, FloatArray]:
        """(the centred sums of squares, what they were subtracted from)."""
        each, both = self._centring
        return sums.squares - 2 / each * sums.row_squares + sums.totals**2 / both, sums.squares

    def _effects(self, rows: FloatArray) -> FloatArray:
        """a ``[..., n]`` of the a_i + a_j that centring takes off, from the sums of rows."""
        each, both = self._centring
        return np.asarray(rows / each - rows.sum(axis=-1, keepdims=True) / (2 * both))


def check_candidates(
    block: Block, widths: Sequence[int], *, exact: bool, backend: str | None, threads: int, memory: int
) -> None:
    """Raise TooLittleMemory where a single candidate of a layer that is yet to be prepared would need more."""
    planner, double = Chosen.of(block, backend).sums, _in_float64(block, exact=exact)
    planner.plan_candidates(block, widths, double=double, threads=threads, memory=memory)


def _in_float64(block: Block, *, exact: bool) -> bool:
    """A polynomial kernel of raw rows is large and nearly constant where features are far from zero."""
    return exact or block.matrix.precision == "float64" or isinstance(block.kernel, Polynomial | CustomKernel)


def kernel_damage(
    block: Block,
    columns: Sequence[npt.NDArray[np.int64]],
    estimator: Estimator,
    *,
    exact: bool,
    backend: str | None,
    threads: int,
    memory: int | None = None,
) -> tuple[KernelDamage, Levels]:
    """Make the units, each some columns of ``block``, ready to be left out; also the levels of their kernel.

    ``memory`` bounds the bytes of all that is held for them, here and while they are left out.

    Raises:
        Degenerate: a kernel that is the same for all pairs of samples.
        TooLittleMemory: a single candidate needs more.
    """
    n, name = block.n, block.matrix.name
    double = _in_float64(block, exact=exact)
    chosen = Chosen.of(block, backend)
    widths = [len(own) for own in columns]

    def formed(double: bool) -> tuple[CandidateRoom, UnitFeatures]:
        room = chosen.sums.plan_candidates(block, widths, double=double, threads=threads, memory=memory)
        return room, chosen.features.function(block, np.concatenate(columns), double=double, threads=room.threads)

    room, features = formed(double)
    if not double and 2 * features.sum_sq_dev.sum() / (n - 1) > WIDE ** (1 + isinstance(block.kernel, Laplacian)):
        del room, features
        room, features = formed(double=True)
    offsets = np.concatenate([[0], np.cumsum(widths)]).astype(np.int64)
    everything = np.arange(len(columns))
    problem = CandidateProblem(
        features.z, offsets, block.kernel, block.length, estimator, workspace=room.workspace, name=name
    )
    spread = np.add.reduceat(features.sum_sq_dev, offsets[:-1])
    damage = KernelDamage(problem, math.nan, spread, chosen, room, name)
    levels = damage.settled(everything, Levels(np.zeros(n), small=isinstance(block.kernel, Polynomial | CustomKernel)))
    problem = replace(problem, centre=levels.values, small_centre=levels.small)
    problem = replace(problem, packed=chosen.pack.function(problem, room=room.packed, threads=room.threads))
    damage = replace(damage, problem=problem)
    own, _ = damage.own_of(damage.sums(everything, NONE, levels, rows=False), levels)
    if math.isnan(own[0]):
        raise Degenerate(name, f"its {estimator} HSIC with itself is zero within rounding")
    return replace(damage, own=float(own[0])), levels


def eliminate(
    damage: KernelDamage, levels: Levels, *, greedy: bool, count: int, min_cka: float | None
) -> EliminationOrder:
    """Leave out one unit after the other: the one whose absence costs least, or by one ranking of first scores."""
    kept = np.arange(damage.units)
    order: list[int] = []
    cka: list[float] = []
    gap = math.inf
    ranking: list[int] = []
    if not greedy and damage.units > 1:
        ranking = _ranked(damage.scores(kept, kept, levels).cka)
    while len(order) < count:
        if len(kept) == 1:
            if min_cka is None:
                order.append(int(kept[0]))
                cka.append(math.nan)
            break
        candidates = kept if greedy else np.array([ranking[len(order)]])
        found = damage.scores(kept, candidates, levels)
        scores = found.cka
        pick = _first_best(scores)
        if min_cka is not None and not scores[pick] >= min_cka:
            break
        if greedy and math.isfinite(scores[pick]):
            gap = min(gap, float(abs(scores[pick] - np.delete(scores, pick).max())))
        order.append(int(candidates[pick]))
        cka.append(float(scores[pick]) if math.isfinite(scores[pick]) else math.nan)
        kept = kept[kept != candidates[pick]]
        levels = damage.moved(levels, float(found.shift[pick]))
        if not found.share[pick] >= STALE:
            levels = damage.settled(kept, levels)
    return EliminationOrder(np.array(order, dtype=np.int64), np.array(cka), gap)


def damage_steps(damage: KernelDamage, candidates: int) -> tuple[Step, ...]:
    """What ran: the pass over the pairs for so many candidates."""
    sums = damage.chosen.sums
    n = damage.problem.z.shape[1]
    kernels = f"{damage.problem.z.dtype.name} kernels, {candidates} of them over {n * (n - 1) // 2} pairs"
    reason = "; ".join(filter(None, (sums.reason, kernels, damage.room.note)))
    first = Step("candidate_sums", sums.backend, reason, "", candidates * n * (n - 1) // 2, damage.room.bytes)
    others = {"pack_centred": damage.chosen.pack} if damage.problem.packed is not None else {}
    others["unit_features"] = damage.chosen.features
    return (first, *(Step(op, choice.backend, choice.reason) for op, choice in others.items()))


def _first_best(scores: FloatArray) -> int:
    best = scores.max()
    return int(np.argmax((scores >= best - TIE) | (scores == best)))


def _ranked(scores: FloatArray) -> list[int]:
    """Units by falling score, ties to the lowest index."""
    left, out = scores.copy(), []
    units = np.arange(len(scores))
    while len(units):
        pick = _first_best(left)
        out.append(int(units[pick]))
        left, units = np.delete(left, pick), np.delete(units, pick)
    return out
