"""How a workload is measured: answers first, then samples between two measurements of the machine's rate.

A sample's limit is the workload's minimal multiply-adds divided by the rate of matrix products around that very sample
(or its minimal bytes by the copy bandwidth, whichever is longer), so a shared machine that slows down slows both.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from .machine import Rate, rate_now, with_peak_memory


@dataclass(frozen=True)
class Workload:
    """What is computed, on which inputs, and what it costs at least.

    Attributes:
        key, title, sizes: for the record.
        inputs: equivalent input sets that the samples rotate among; together larger than the cache.
        error: of an answer on ``inputs[0]``, against the float64 reference.
        tolerance: the largest error simkit may have.
        precision: of the products that the limit counts.
        multiply_adds, bytes: the least that any algorithm for the exact answer needs.
    """

    key: str
    title: str
    sizes: dict[str, object]
    inputs: Sequence[Any]
    error: Callable[[Any], float]
    tolerance: float
    precision: str
    multiply_adds: int
    bytes: int


@dataclass(frozen=True)
class Contestant:
    """One way to compute a workload.

    Attributes:
        call: input set, or what ``prepare`` returned -> answer, or what ``finish`` takes.
        error: of its answer, where it differs from the workload's.
        scale: how often the whole workload does what ``call`` does: the time of ``call`` alone is multiplied.
        prepare, finish: what the whole workload does once, before and after; its time is added as it is.
        once: it takes so long that the verified call is its only sample.
        note: what a reader must know.
    """

    name: str
    call: Callable[[Any], Any]
    error: Callable[[Any], float] | None = None
    scale: float = 1.0
    prepare: Callable[[Any], Any] | None = None
    finish: Callable[[Any], Any] | None = None
    once: bool = False
    note: str = ""


@dataclass(frozen=True)
class Missing:
    """A rival that does not run here."""

    name: str
    reason: str


@dataclass
class Verified:
    """What the first, checked call of a contestant gave."""

    contestant: Contestant
    error: float | None = None
    extra_bytes: int | None = None
    failure: str = ""
    ratios: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    unscaled: list[float] = field(default_factory=list)  # of those seconds, what is done once


class Sampler:
    """Times every contestant in every round, each between two measurements of the rate."""

    def __init__(self, workload: Workload, simkit: Contestant, rivals: Sequence[Contestant], side: int) -> None:
        self.workload = workload
        self._side = side
        self._rate = self._measure_rate()
        self._round = 0
        self._last = (0.0, 0.0)
        self._own = simkit
        self.simkit = self._verify(simkit)
        self.rivals = [self._verify(rival) for rival in rivals]
        if self.simkit.error is None or not self.simkit.error <= workload.tolerance:
            raise AssertionError(f"{workload.key}: simkit's error is {self.simkit.error} > {workload.tolerance}")

    def before(self) -> tuple[tuple[Any], dict[str, Any]]:
        """The rivals' samples of this round, then the arguments of simkit's call."""
        inputs = self.workload.inputs[self._round % len(self.workload.inputs)]
        self._round += 1
        for rival in self.rivals:
            if not rival.failure and not rival.contestant.once:
                self._time(rival, inputs)
                self._close(rival)
        return (inputs,), {}

    def timed(self, inputs: Any) -> Any:
        """Simkit's call."""
        return self._time(self.simkit, inputs)

    def after(self, _inputs: Any) -> None:
        """The rate after simkit's call, which closes its sample."""
        self._close(self.simkit)

    def forget(self) -> None:
        """Drop the samples of the warm-up."""
        for entry in (self.simkit, *self.rivals):
            if not entry.contestant.once:
                entry.ratios.clear()
                entry.seconds.clear()
                entry.unscaled.clear()

    def _time(self, entry: Verified, inputs: Any) -> Any:
        own = entry.contestant
        start = perf_counter()
        prepared = own.prepare(inputs) if own.prepare else inputs
        ready = perf_counter()
        answer = own.call(prepared)
        called = perf_counter()
        if own.finish:
            answer = own.finish(answer)
        unscaled = (ready - start) + (perf_counter() - called) if own.prepare or own.finish else 0.0
        self._last = (unscaled + own.scale * (called - ready), unscaled)
        return answer

    def _close(self, entry: Verified) -> None:
        before, self._rate = self._rate, self._measure_rate()
        whole, unscaled = self._last
        entry.seconds.append(whole)
        entry.unscaled.append(unscaled)
        entry.ratios.append(whole / limit(self.workload, before, self._rate))

    def _verify(self, contestant: Contestant) -> Verified:
        entry = Verified(contestant)
        try:
            answer, extra = with_peak_memory(lambda: self._time(entry, self.workload.inputs[0]))
        except Exception as failure:
            if contestant is self._own:
                raise
            entry.failure = f"{type(failure).__name__}: {failure}".splitlines()[0]
            return entry
        entry.extra_bytes = extra
        entry.error = (contestant.error or self.workload.error)(answer)
        if contestant.once:
            self._close(entry)
        return entry

    def _measure_rate(self) -> Rate:
        return rate_now(self._side, (self.workload.precision,))


def limit(workload: Workload, before: Rate, after: Rate) -> float:
    """The least seconds the workload can take at the mean of two rates."""
    rate = (getattr(before, workload.precision) + getattr(after, workload.precision)) / 2
    copied = (before.copied + after.copied) / 2
    return max(workload.multiply_adds / rate, workload.bytes / copied)


def record(sampler: Sampler, missing: Sequence[Missing], *, full: bool, threads: int) -> dict[str, Any]:
    """The measurement as plain data for the JSON file."""
    workload = sampler.workload
    base = statistics.median(sampler.simkit.ratios) if sampler.simkit.ratios else math.nan
    rows = [_row(entry, base) for entry in (sampler.simkit, *sampler.rivals)]
    rows += [{"name": rival.name, "missing": rival.reason} for rival in missing]
    return {
        "kind": "workload",
        "key": workload.key,
        "title": workload.title,
        "sizes": workload.sizes,
        "full": full,
        "threads": threads,
        "input_sets": len(workload.inputs),
        "limit": {
            "precision": workload.precision,
            "multiply_adds": workload.multiply_adds,
            "bytes": workload.bytes,
        },
        "contestants": rows,
        "notes": [],
    }


def _row(entry: Verified, base: float) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": entry.contestant.name,
        "error": finite(entry.error),
        "extra_bytes": entry.extra_bytes,
    }
    if entry.contestant.note:
        row["note"] = entry.contestant.note
    if entry.failure:
        row["failure"] = entry.failure
    if entry.ratios:
        ratio = statistics.median(entry.ratios)
        row |= {
            "samples": len(entry.ratios),
            "seconds": statistics.median(entry.seconds),
            "ratio_to_limit": ratio,
            "ratio_spread": [min(entry.ratios), max(entry.ratios)],
            "ratio_to_simkit": ratio / base,
        }
        if entry.contestant.scale != 1.0:
            row |= {"scaled_by": entry.contestant.scale, "unscaled_seconds": statistics.median(entry.unscaled)}
    return row


def finite(value: float | None) -> float | str | None:
    """JSON has no NaN and no infinity: they become text."""
    return value if value is None or math.isfinite(value) else str(value)
