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
    Step,
)
from ..backends.choose import Choice, choose
from ..backends.damage_room import CandidateRoom
from ..kernels import CustomKernel, Polynomial
from .measure import Degenerate

TIE = 1e-12
NONE = np.array([-1])


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

    def scores(
        self, kept: npt.NDArray[np.int64], candidates: npt.NDArray[np.int64], level: float
    ) -> tuple[FloatArray, FloatArray]:
        """CKA(all units, kept without each candidate) and the mean of each one's kernel, given about that ``level``.

        -inf where the kernel left over is constant.
        """
        scores, means = self._scores(kept, candidates, level)
        dominating = candidates[self.spread[candidates] > self.spread[kept].sum() / 2]
        if len(dominating) and len(kept) > 1:  # at most one: taking it off the others would cancel
            place = np.flatnonzero(candidates == dominating[0])
            rest = kept[kept != dominating[0]]
            scores[place], means[place] = self._scores(rest, NONE, float(means[place[0]]))
        return scores, means

    def _scores(
        self, kept: npt.NDArray[np.int64], candidates: npt.NDArray[np.int64], level: float
    ) -> tuple[FloatArray, FloatArray]:
        n = self.problem.z.shape[1]
        at_once, threads = self.room.at_once, self.room.threads
        scores, means = [], []
        for start in range(0, len(candidates), at_once):
            some = candidates[start : start + at_once]
            sums = self.chosen.sums.function(self.problem, kept, some, level=level, rows=False, threads=threads)
            own, raw = _own(sums, n, self.problem.estimator)
            constant = ~(own > 8 * n * np.finfo(np.float64).eps * raw)
            with np.errstate(divide="ignore", invalid="ignore"):
                cka = sums.cross / np.sqrt(own * self.own)
            scores.append(np.where(constant, -math.inf, cka))
            means.append(level + sums.totals / _pairs(n, self.problem.estimator))
        return np.concatenate(scores), np.concatenate(means)


def kernel_damage(
    block: Block,
    columns: Sequence[npt.NDArray[np.int64]],
    estimator: Estimator,
    *,
    exact: bool,
    backend: str | None,
    threads: int,
    memory: int | None = None,
) -> tuple[KernelDamage, float]:
    """Make the units, each some columns of ``block``, ready to be left out; also the mean of their kernel.

    ``memory`` bounds the bytes of all that is held for them, here and while they are left out.

    Raises:
        Degenerate: a kernel that is the same for all pairs of samples.
        TooLittleMemory: a single candidate needs more. NotImplementedError: ``memory`` on a device.
    """
    # A polynomial kernel of raw rows is large and nearly constant where features are far from zero: float64 always.
    unscaled = isinstance(block.kernel, Polynomial | CustomKernel)
    double = exact or block.matrix.precision == "float64" or unscaled
    n, name = block.n, block.matrix.name
    chosen = Chosen.of(block, backend)
    room = chosen.sums.plan_candidates(block, len(columns), double=double, threads=threads, memory=memory)
    threads = room.threads
    features = chosen.features.function(block, np.concatenate(columns), double=double, threads=threads)
    offsets = np.concatenate([[0], np.cumsum([len(c) for c in columns])]).astype(np.int64)
    everything = np.arange(len(columns))
    problem = CandidateProblem(features.z, offsets, block.kernel, block.length, estimator, np.zeros(n), name=name)
    start = 0.0 if unscaled else 1.0  # the others are near it where features hardly vary
    first = chosen.sums.function(problem, everything, NONE, level=start, threads=threads).rows[0]
    first += start * (n - 1 if estimator == "debiased" else n)
    each, both = (n - 2, (n - 1) * (n - 2)) if estimator == "debiased" else (n, n * n)
    problem = replace(problem, centre=first / each, mean=float(first.sum()) / both)
    problem = replace(problem, packed=chosen.pack.function(problem, room=room.packed, threads=threads))
    level = float(first.sum()) / _pairs(n, estimator)
    whole = chosen.sums.function(problem, everything, NONE, level=level, rows=False, threads=threads)
    own, raw = _own(whole, n, estimator)
    if not own[0] > 8 * n * np.finfo(np.float64).eps * raw[0]:
        raise Degenerate(name, f"its {estimator} HSIC with itself is zero within rounding")
    spread = np.add.reduceat(features.sum_sq_dev, offsets[:-1])
    return KernelDamage(problem, float(own[0]), spread, chosen, room, name), level


def eliminate(
    damage: KernelDamage, level: float, *, greedy: bool, count: int, min_cka: float | None
) -> EliminationOrder:
    """Leave out one unit after the other: the one whose absence costs least, or by one ranking of first scores."""
    kept = np.arange(damage.units)
    order: list[int] = []
    cka: list[float] = []
    gap = math.inf
    ranking: list[int] = []
    if not greedy and damage.units > 1:
        ranking = _ranked(damage.scores(kept, kept, level)[0])
    while len(order) < count:
        if len(kept) == 1:
            if min_cka is None:
                order.append(int(kept[0]))
                cka.append(math.nan)
            break
        candidates = kept if greedy else np.array([ranking[len(order)]])
        scores, means = damage.scores(kept, candidates, level)
        pick = _first_best(scores)
        if min_cka is not None and not scores[pick] >= min_cka:
            break
        if greedy and math.isfinite(scores[pick]):
            gap = min(gap, float(abs(scores[pick] - np.delete(scores, pick).max())))
        order.append(int(candidates[pick]))
        cka.append(float(scores[pick]) if math.isfinite(scores[pick]) else math.nan)
        level = float(means[pick])
        kept = kept[kept != candidates[pick]]
    return EliminationOrder(np.array(order, dtype=np.int64), np.array(cka), gap)


def damage_steps(damage: KernelDamage, candidates: int) -> tuple[Step, ...]:
    """What ran: the pass over the pairs for so many candidates."""
    sums = damage.chosen.sums
    n = damage.problem.z.shape[1]
    reason = f"{sums.reason}; {damage.problem.z.dtype.name} kernels, {candidates} of them over {n * (n - 1) // 2} pairs"
    first = Step("candidate_sums", sums.backend, reason, "", candidates * n * (n - 1) // 2, damage.room.bytes)
    others = {"pack_centred": damage.chosen.pack} if damage.problem.packed is not None else {}
    others["unit_features"] = damage.chosen.features
    return (first, *(Step(op, choice.backend, choice.reason) for op, choice in others.items()))


def _pairs(n: int, estimator: Estimator) -> int:
    return n * (n - 1) if estimator == "debiased" else n * n


def _own(sums: CandidateSums, n: int, estimator: Estimator) -> tuple[FloatArray, FloatArray]:
    """(the centred sums of squares, what they were subtracted from)."""
    each, both = (n - 2, (n - 1) * (n - 2)) if estimator == "debiased" else (n, n * n)
    return sums.squares - 2 / each * sums.row_squares + sums.totals**2 / both, sums.squares


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
