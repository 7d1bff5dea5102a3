"""How much of a network is left after every round, as frozen data.

A schedule is ``kept(number, rounds, amount)``: the share of all open weights that stays after round ``number`` of
``rounds`` (1 the first), where ``amount`` of them is to be gone in the end. None decides which weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ...kernels import as_integer, as_number


@runtime_checkable
class Schedule(Protocol):
    """The share that stays, round by round."""

    def kept(self, number: int, rounds: int, amount: float) -> float:
        """What stays after round ``number`` of ``rounds``: 1 - amount after the last."""


@dataclass(frozen=True)
class OneShot:
    """Everything in the first round, so there can be only one."""

    def kept(self, number: int, rounds: int, amount: float) -> float:
        """1 - amount."""
        if rounds != 1:
            raise ValueError(f"OneShot() prunes in one round, not {rounds}")
        return 1.0 - amount


@dataclass(frozen=True)
class LinearSteps:
    """The same number of weights every round."""

    def kept(self, number: int, rounds: int, amount: float) -> float:
        """1 - amount · r/R."""
        return 1.0 - amount * (number / rounds)


@dataclass(frozen=True)
class Cubic:
    """Ever fewer weights a round.

    Source: Zhu & Gupta, "To prune, or not to prune" (2017), from a dense network.
    """

    def kept(self, number: int, rounds: int, amount: float) -> float:
        """1 - amount + amount · (1 - r/R)³."""
        return 1.0 - amount * (1.0 - (1.0 - number / rounds) ** 3)


@dataclass(frozen=True)
class Exponential:
    """The same share of what is left every round, so that the last round ends at the amount."""

    def kept(self, number: int, rounds: int, amount: float) -> float:
        """(1 - amount)^(r/R)."""
        return float((1.0 - amount) ** (number / rounds))


@dataclass(frozen=True)
class Iterative:
    """A given share of what is left goes every round: 20% in the lottery-ticket papers.

    The last round removes less, so as to end at the amount; an ``amount`` of None is what the rounds reach.

    Source: Frankle & Carbin, "The Lottery Ticket Hypothesis" (2019).
    """

    share: float = 0.2

    def __post_init__(self) -> None:
        if not 0.0 < as_number(self.share) < 1.0:
            raise ValueError(f"share must lie between 0 and 1, both excluded, not {self.share!r}")

    def kept(self, number: int, rounds: int, amount: float) -> float:
        """(1 - share)^r, at least 1 - amount; ValueError where the rounds do not reach the amount."""
        reached = 1.0 - (1.0 - self.share) ** rounds
        if reached < amount - 1e-9:
            raise ValueError(f"{rounds} rounds of {self!r} remove {reached:.4g}, which does not reach amount={amount}")
        return 1.0 - amount if number == rounds else max(float((1.0 - self.share) ** number), 1.0 - amount)


@dataclass(frozen=True)
class Shares:
    """The shares that are gone after each round, as listed; they rise to the amount."""

    gone: tuple[float, ...]

    def kept(self, number: int, rounds: int, amount: float) -> float:
        """1 - the share of this round."""
        rising = all(first < second for first, second in zip((0.0, *self.gone), self.gone, strict=False))
        if len(self.gone) != rounds or not rising or self.gone[-1] != amount:
            raise ValueError(f"schedule must rise to {amount} in {rounds} rounds, not {list(self.gone)}")
        return 1.0 - self.gone[number - 1]


NAMED: dict[str, Schedule] = {
    "exponential": Exponential(),
    "linear": LinearSteps(),
    "cubic": Cubic(),
    "one-shot": OneShot(),
    "iterative": Iterative(),
}
"""Schedules by name."""


def amounts(schedule: Schedule | str | Sequence[float], rounds: int, amount: float | None) -> tuple[float, ...]:
    """The share that is gone after every round; the last is ``amount`` itself.

    Args:
        schedule: one of this file, its name, or the shares themselves.
        rounds: how many.
        amount: the share that is gone in the end, above 0 and below 1; None with :class:`Iterative` or listed shares.

    Raises:
        ValueError: an impossible number, or a schedule that does not fit the rounds. TypeError: no schedule.
    """
    count = as_integer(rounds)
    if count is None or count < 1:
        raise ValueError(f"rounds must be an integer of at least 1, not {rounds!r}")
    rule = _rule(schedule)
    target = _reached(rule, count) if amount is None else as_number(amount)
    if amount is None and math.isnan(target):
        raise ValueError(f"{rule!r} needs amount=, the share that is gone in the end")
    if not 0.0 < target < 1.0:
        raise ValueError(
            f"amount must lie between 0 and 1, both excluded, not {target if amount is None else amount!r}"
        )
    kept = [rule.kept(number, count, target) for number in range(1, count + 1)]
    gone = rule.gone if isinstance(rule, Shares) else (*(1.0 - share for share in kept[:-1]), float(target))
    for number, (first, second) in enumerate(zip((0.0, *gone), gone, strict=False), 1):
        if not first < second:
            raise ValueError(f"{rule!r} removes nothing in round {number} of {count}: {second:.4g} is gone already")
    return gone


def _reached(rule: Schedule, rounds: int) -> float:
    """What a schedule removes of its own accord; NaN where it needs an amount."""
    if isinstance(rule, Iterative):
        return 1.0 - (1.0 - rule.share) ** rounds
    return rule.gone[-1] if isinstance(rule, Shares) and rule.gone else math.nan


def _rule(schedule: Schedule | str | Sequence[float]) -> Schedule:
    if isinstance(schedule, str):
        if schedule not in NAMED:
            raise ValueError(f"schedule must be one of {', '.join(NAMED)}, a schedule or shares, not {schedule!r}")
        return NAMED[schedule]
    if isinstance(schedule, Schedule) and not isinstance(schedule, type):
        return schedule
    if not isinstance(schedule, Sequence):
        raise TypeError(f"schedule must be a schedule such as Exponential(), a name or shares, not {schedule!r}")
    if not schedule:
        raise ValueError(f"schedule must list a share for every round, not {schedule!r}")
    return Shares(tuple(as_number(share) for share in schedule))
