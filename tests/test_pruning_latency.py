"""Latency by a clock that the models themselves advance: what counts, in which order, and what a plan says of it."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from simkit import pruning as P

measured = importlib.import_module("simkit.pruning.latency")  # the package has a function of that name
pytestmark = pytest.mark.usefixtures("one_thread")


UNIT = 2.0**-10  # sums of it are exact


class Clock:
    """Time that passes only when a model runs; who ran when."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ran: list[int] = []

    def perf_counter(self) -> float:
        return self.now


CLOCK = Clock()


class Slow(nn.Module):
    """About a millisecond for every hidden unit; ``extra`` seconds by the number of the pass."""

    extra: tuple[float, ...] = ()

    def __init__(self, units: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, units), nn.Linear(units, 3)
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(self.first(x).relu())
        units = self.first.weight.shape[0]
        CLOCK.ran.append(units)
        CLOCK.now += UNIT * units + (self.extra[self.passes] if self.passes < len(self.extra) else 0.0)
        self.passes += 1
        return y  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    CLOCK.now, CLOCK.ran = 0.0, []
    monkeypatch.setattr(measured, "time", CLOCK)
    return CLOCK


X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("extra", "more"),
    [
        ((), 0.0),
        ((5.0, 5.0, 5.0), 0.0),  # warm-up does not count
        ((0, 0, 0, 5.0, 0, 5.0), 0.0),  # outliers do not move the median
        ((0, 0, 0, 1.0, 1.0, 1.0, 1.0), 1.0),  # most of the passes do
    ],
)
def test_the_median_of_the_passes_after_the_warm_up(extra: tuple[float, ...], more: float) -> None:
    model = Slow(8)
    model.extra = extra
    assert P.latency(model, X) == 8 * UNIT + more
    assert len(CLOCK.ran) == 10
    assert model.passes == 0  # a copy runs


def test_models_take_turns() -> None:
    first, second = measured.latencies([Slow(8), Slow(5)], X, passes=5)
    assert (first, second) == (8 * UNIT, 5 * UNIT)
    assert CLOCK.ran == [8, 5] * 8


def test_a_plan_is_told_both_latencies_and_the_device() -> None:
    model = Slow(10)
    plan = P.plan(model, X, score=P.L1(), amount=0.3)
    assert (plan.latency_before, plan.latency_after, plan.latency_device) == (None, None, None)
    assert "latency" not in plan.explain()
    timed = P.with_latency(model, plan, X)
    assert (timed.latency_before, timed.latency_after) == (10 * UNIT, 7 * UNIT)
    assert timed.latency_device == "cpu, 1 thread"
    assert "latency 9.77 -> 6.84 ms (-30.0%) on cpu, 1 thread" in timed.explain()
    assert P.PruningPlan.from_json(timed.to_json()) == timed
    assert plan.latency_before is None
    assert timed.removed == plan.removed


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_budget_in_latency_is_met_by_the_models_own_time(scope: Any) -> None:
    plan = P.plan(Slow(24), X, score=P.Random(), amount=0.375, budget="latency", scope=scope)
    assert len(plan["first"].removed) == 9
    assert (plan.latency_before, plan.latency_after) == (24 * UNIT, 15 * UNIT)
    assert plan.latency_device == "cpu, 1 thread"
    with pytest.raises(ValueError, match=r"^amount 0.99 of the latency is out of reach: the most that can go is 0.958"):
        P.plan(Slow(24), X, score=P.Random(), amount=0.99, budget="latency", scope=scope)


def test_the_device_is_that_of_the_inputs() -> None:
    assert measured.device_name((X, 3)) == "cpu, 1 thread"
    assert measured.device_name((3,)) == "cpu, 1 thread"
    torch.set_num_threads(2)
    try:
        assert measured.device_name(X) == "cpu, 2 threads"
    finally:
        torch.set_num_threads(1)


def test_bad_passes() -> None:
    model = Slow(4)
    plan = P.plan(model, X, score=P.L1())
    for passes in (4, 5.5, True):
        with pytest.raises(ValueError, match=f"^passes must be an integer of at least 5, not {passes}$"):
            P.with_latency(model, plan, X, passes=passes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the plan expects size 4 in dimension 0"):
        P.with_latency(Slow(5), plan, X)
