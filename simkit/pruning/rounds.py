"""Prune and retrain, round by round: every round plans on the model that the round before has left."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from ..graph import ChannelGraph
from ..kernels import as_integer, as_number
from .apply import apply
from .compensation import Compensation
from .decisions import PruningPlan
from .plan import DEFAULT_SCORE, kept_layers, plan
from .probe import trace
from .scores import Score

Schedule = Literal["exponential", "linear", "cubic"]


_SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "exponential": lambda amount, part: 1.0 - (1.0 - amount) ** part,
    "linear": lambda amount, part: amount * part,
    "cubic": lambda amount, part: amount * (1.0 - (1.0 - part) ** 3),
}


@dataclass(frozen=True, eq=False)
class Round:
    """One round: ``number`` from 1, the share of the first model's units that is gone in every layer, the plan, the
    model after cutting and retraining, and what ``retrain`` returned."""

    number: int
    share: float
    plan: PruningPlan
    model: nn.Module
    retrained: Any


def shares(amount: float, rounds: int, schedule: Schedule | Sequence[float] = "exponential") -> tuple[float, ...]:
    """The share of the first model that is gone after every round, up to ``amount``.

    ``"exponential"`` removes the same share of what is left every round, 1 - (1 - amount)^(r/R); ``"linear"`` the same
    number of units, amount · r/R; ``"cubic"`` ever fewer, amount · (1 - (1 - r/R)³) (Zhu & Gupta 2017). A sequence
    gives the shares themselves.

    Raises:
        ValueError: ``amount`` outside (0, 1); ``rounds`` below 1; an unknown schedule; a sequence that does not rise,
            is not as long as the rounds, or does not end at ``amount``.
    """
    count = as_integer(rounds)
    if count is None or count < 1:
        raise ValueError(f"rounds must be an integer of at least 1, not {rounds!r}")
    if not 0.0 < as_number(amount) < 1.0:
        raise ValueError(f"amount must lie between 0 and 1, both excluded, not {amount!r}")
    done = [r / count for r in range(1, count + 1)]
    if isinstance(schedule, str):
        if schedule not in _SCHEDULES:
            raise ValueError(f"schedule must be {', '.join(map(repr, _SCHEDULES))} or a sequence, not {schedule!r}")
        return tuple(_SCHEDULES[schedule](amount, part) for part in done)
    listed = tuple(float(value) for value in schedule)
    rising = all(first < second for first, second in zip((0.0, *listed), listed, strict=False))
    if len(listed) != count or not rising or listed[-1] != amount:
        raise ValueError(f"schedule must rise to {amount} in {count} rounds, not {list(listed)}")
    return listed


def structured_rounds(
    model: nn.Module,
    example_inputs: Any,
    *,
    retrain: Callable[[nn.Module, int], Any] | None = None,
    amount: float = 0.5,
    rounds: int = 5,
    schedule: Schedule | Sequence[float] = "exponential",
    score: Score = DEFAULT_SCORE,
    data: object = None,
    keep: Collection[str] = (),
    compensate: Compensation | None = None,
    verify: bool = True,
    recalibrate: object = None,
) -> Iterator[Round]:
    """Cut every layer down to ``1 - amount`` of its units in several rounds, and retrain after each.

    After round r, a layer of n units has lost exactly ``round(share_r · n)`` of them (see :func:`shares`), at most
    n - 1. A round whose share takes no whole unit of any layer is left out, and nothing is retrained. Scores,
    representations and repairs are those of the model as the round before has left it.

    Args:
        model: as for :func:`plan`; it is not changed.
        example_inputs: a tensor, or a tuple of tensors, that the model runs on.
        retrain: called with the cut model and the number of the round; trains it in place. None only cuts.
        amount: the share of every layer's units that is gone at the end.
        rounds: how many.
        schedule: how much of it is gone after every round.
        score: the criterion, of every round.
        data: what the criterion and the compensation run the model on.
        keep: names of layers whose units all stay.
        compensate: as for :func:`plan`.
        verify: as for :func:`apply`.
        recalibrate: as for :func:`apply`, after every cut, before retraining.

    Raises:
        ValueError: as :func:`plan` and :func:`shares`; the criterion's layers do not compare by share.
    """
    wanted = shares(amount, rounds, schedule)
    graph = trace(model, example_inputs)
    kept = kept_layers(graph, keep)
    before = {group.name: group.units for group in graph.prunable if group.name not in kept}
    return _rounds(
        model, example_inputs, wanted, before, retrain=retrain, score=score, data=data,
        compensate=compensate, verify=verify, recalibrate=recalibrate,
    )  # fmt: skip


def _rounds(
    model: nn.Module,
    example_inputs: Any,
    wanted: Sequence[float],
    before: dict[str, int],
    *,
    retrain: Callable[[nn.Module, int], Any] | None,
    verify: bool,
    recalibrate: object,
    **options: Any,
) -> Iterator[Round]:
    current = model
    for number, share in enumerate(wanted, 1):
        amounts = amounts_of_round(trace(current, example_inputs), share, before)
        if not amounts:
            continue  # so small a step takes no whole unit of any layer
        decided = plan(current, example_inputs, amount=amounts, **options)
        current = apply(current, decided, example_inputs, verify=verify, recalibrate=recalibrate)
        retrained = None if retrain is None else retrain(current, number)
        yield Round(number, share, decided, current, retrained)


def amounts_of_round(graph: ChannelGraph, share: float, before: Mapping[str, int]) -> dict[str, float]:
    """The share of what each layer still has that leaves ``1 - share`` of the units it had ``before`` all rounds.

    Layers that stay as they are, or are not in ``before``, are left out.
    """
    found: dict[str, float] = {}
    for group in graph.prunable:
        if group.name not in before:
            continue
        target = max(1, before[group.name] - round(share * before[group.name]))
        if target < group.units:
            found[group.name] = (group.units - target) / group.units
    return found
