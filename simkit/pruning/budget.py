"""How many units go from which layer: shares of units, parameters, multiply-adds or measured latency."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from torch import nn

from ..graph import Group, quiet_copy
from .apply import cut
from .latency import device_name, latency
from .layers import layer_plan
from .ledger import Ledger, macs_ledger, params_ledger, units_ledger
from .scores import Allocator, Ranking, Scope, Score, Subject

Budget = Literal["units", "params", "macs", "latency"]
TRIED = 32  # candidates among which the bisection for a latency chooses: 5 or 6 models are cut and timed


@dataclass(frozen=True)
class Request:
    """How much is to go, from where: the validated options of a plan."""

    amount: float | dict[str, float]
    scope: Scope
    budget: Budget
    round_to: int
    free: tuple[Group, ...]

    def share(self, name: str = "") -> float:
        """The share asked of one layer."""
        return self.amount.get(name, 0.0) if isinstance(self.amount, dict) else self.amount

    def rounded(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Counts that leave a multiple of ``round_to``, or the whole layer."""
        return {
            group.name: group.units
            - min(group.units, math.ceil((group.units - counts[group.name]) / self.round_to) * self.round_to)
            for group in self.free
        }


@dataclass(frozen=True)
class Decision:
    """Units to go by layer, the rankings they are the first of; where it was measured, latency before and after in
    seconds, and the device's name."""

    counts: dict[str, int]
    rankings: dict[str, Ranking]
    latencies: tuple[float, float, str] | None = None


def decide(request: Request, subject: Subject, score: Score) -> Decision:
    """The counts that meet the request.

    Raises:
        ValueError: a layer would lose all its units, nothing would go, or the budget is out of reach.
    """
    if request.scope == "layer" and request.budget == "units":
        decision = _shares(request, subject, score)
    else:
        wanted = {group.name: group.units - 1 for group in request.free}
        ranked = score.rank(subject, wanted)
        # The last unit of every layer is out of reach, so that no layer collapses.
        rankings = {name: _first(ranked[name], count) for name, count in wanted.items()}
        if request.budget == "latency":
            decision = _by_latency(request, subject, score, rankings)
        elif request.scope == "layer":
            decision = Decision(_uniform(request, _ledger(request, subject, rankings), rankings), rankings)
        else:
            decision = Decision(_over_layers(request, subject, score, rankings), rankings)
    if not any(decision.counts.values()):
        layers = ", ".join(f"{group.name!r} ({group.units} units)" for group in request.free)
        why = "".join(f"; {reason}" for reason in dict.fromkeys(_stops(decision.rankings)))
        raise ValueError(
            f"amount {request.amount} with round_to={request.round_to} removes nothing; open to removal: {layers}{why}"
        )
    return decision


def _shares(request: Request, subject: Subject, score: Score) -> Decision:
    """The same share of the units of every layer, or its own."""
    asked = {group.name: round(request.share(group.name) * group.units) for group in request.free}
    for group in request.free:
        if asked[group.name] == group.units:
            raise ValueError(
                f"amount {request.share(group.name)} removes all {group.units} units of layer {group.name!r}; "
                "at least one must stay"
            )
    counts = request.rounded(asked)
    rankings = score.rank(subject, {name: count for name, count in counts.items() if count})
    stopped = {name: min(count, len(rankings[name].order)) if count else 0 for name, count in counts.items()}
    return Decision(request.rounded(stopped), rankings)


def _first(ranking: Ranking, count: int) -> Ranking:
    return replace(ranking, order=ranking.order[:count], scores=ranking.scores[:count])


def _stops(rankings: Mapping[str, Ranking]) -> Iterator[str]:
    return (ranking.stopped for ranking in rankings.values() if ranking.stopped is not None)


def _ledger(request: Request, subject: Subject, rankings: Mapping[str, Ranking]) -> Ledger:
    orders = {name: ranking.order for name, ranking in rankings.items()}
    if request.budget == "units":
        return units_ledger(request.free, orders)
    if request.budget == "params":
        return params_ledger(subject.model, request.free, orders)
    return macs_ledger(subject.graph, orders)


def _uniform(request: Request, ledger: Ledger, rankings: Mapping[str, Ranking]) -> dict[str, int]:
    """The smallest share of the units, the same in every layer, that saves the share asked for."""
    shares = _candidates(request.free)
    target = request.share() * ledger.total

    def met(share: Fraction) -> bool:
        return target <= ledger.saved_by(_at(request, rankings, share))

    if target == 0:
        return dict.fromkeys(rankings, 0)
    index = bisect_left(shares, True, key=met)
    if index == len(shares):
        _require_stops(request, rankings, ledger.saved_by(_at(request, rankings, shares[-1])) / ledger.total)
    return _at(request, rankings, shares[min(index, len(shares) - 1)])


def _candidates(groups: Sequence[Group]) -> list[Fraction]:
    """The shares at which some layer loses one unit more, ascending."""
    sizes = {group.units for group in groups}
    return sorted({Fraction(2 * count - 1, 2 * size) for size in sizes for count in range(1, size)})


def _at(request: Request, rankings: Mapping[str, Ranking], share: Fraction) -> dict[str, int]:
    """A share of every layer's units, halves up, as far as the ranking goes."""
    return request.rounded(
        {
            group.name: min(math.floor(share * group.units + Fraction(1, 2)), len(rankings[group.name].order))
            for group in request.free
        }
    )


def _over_layers(request: Request, subject: Subject, score: Score, rankings: Mapping[str, Ranking]) -> dict[str, int]:
    """One unit after another from the layer whose turn it is, until the share asked for is saved."""
    ledger = _ledger(request, subject, rankings)
    whole = request.budget == "units"
    target = round(request.share() * ledger.total) if whole else request.share() * ledger.total
    counts = dict.fromkeys(rankings, 0)
    if target == 0:
        return counts
    for name in _turns(subject, score, rankings, ledger):
        counts[name] += 1
        if ledger.saved >= target and (whole or ledger.saved_by(request.rounded(counts)) >= target):
            return request.rounded(counts)
    if whole and not any(_stops(rankings)):
        raise ValueError(
            f"amount {request.amount} removes {target} of {ledger.total} units, but every layer must keep one"
        )
    _require_stops(request, rankings, ledger.saved_by(request.rounded(counts)) / ledger.total)
    return request.rounded(counts)


def _turns(subject: Subject, score: Score, rankings: Mapping[str, Ranking], ledger: Ledger) -> Iterator[str]:
    """Layers in the order in which they lose units: the criterion's own, or that of the lowest score of all."""
    if isinstance(score, Allocator):
        turns = score.allocate(subject, rankings, ledger.cost)
    else:
        queue = sorted(
            (value, place, rank, name)
            for place, (name, ranking) in enumerate(rankings.items())
            for rank, value in enumerate(ranking.scores)
        )
        turns = (name for _, _, _, name in queue)
    for name in turns:
        ledger.take(name)
        yield name


def _require_stops(request: Request, rankings: Mapping[str, Ranking], reached: float) -> None:
    """ValueError for a budget out of reach, unless it is the criterion that lets no more go, as the plan then says."""
    if not any(_stops(rankings)):
        raise ValueError(
            f"amount {request.amount} of the {request.budget} is out of reach: the most that can go is {reached:.3g}, "
            f"as every layer keeps {request.round_to} of its units"
        )


def _by_latency(request: Request, subject: Subject, score: Score, rankings: dict[str, Ranking]) -> Decision:
    """The first candidate whose cut model, timed, is fast enough."""
    model = quiet_copy(subject.model)
    before = latency(model, subject.example_inputs)
    candidates = _thinned(_nested(request, subject, score, rankings))
    times: dict[int, float] = {}

    def met(index: int) -> bool:
        times[index] = latency(_cut(request, model, rankings, candidates[index]), subject.example_inputs)
        return times[index] <= (1.0 - request.share()) * before

    if request.share() == 0.0:
        return Decision(dict.fromkeys(rankings, 0), rankings)
    index = bisect_left(range(len(candidates)), True, key=met)
    if index == len(candidates):
        index -= 1
        _require_stops(request, rankings, 1.0 - times[index] / before)
    return Decision(candidates[index], rankings, (before, times[index], device_name(subject.example_inputs)))


def _nested(request: Request, subject: Subject, score: Score, rankings: Mapping[str, Ranking]) -> list[dict[str, int]]:
    """Counts that grow from one to the next: uniform shares, or along the order over all layers."""
    if request.scope == "layer":
        found = [_at(request, rankings, share) for share in _candidates(request.free)]
    else:
        counts, found = dict.fromkeys(rankings, 0), []
        for name in _turns(subject, score, rankings, _ledger(request, subject, rankings)):
            counts[name] += 1
            found.append(request.rounded(counts))
    return [counts for counts in found if any(counts.values())] or [dict.fromkeys(rankings, 0)]


def _thinned(candidates: list[dict[str, int]]) -> list[dict[str, int]]:
    """At most ``TRIED``, evenly spaced, the last among them."""
    count = min(TRIED, len(candidates))
    return [candidates[(place + 1) * len(candidates) // count - 1] for place in range(count)]


def _cut(request: Request, model: nn.Module, rankings: Mapping[str, Ranking], counts: Mapping[str, int]) -> nn.Module:
    layers = [
        layer_plan(group, ranking.order[:count], ranking.scores[:count], "a candidate")
        for group in request.free
        if (count := counts[group.name]) and (ranking := rankings[group.name])
    ]
    return cut(quiet_copy(model), layers)
