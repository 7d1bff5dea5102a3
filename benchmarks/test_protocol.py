"""What the protocol makes of a contestant's times: only what grows with the workload is scaled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .machine import Rate
from .protocol import Contestant, Sampler, Workload, record

WORKLOAD = Workload(
    key="W0",
    title="twice a number",
    sizes={},
    inputs=[3.0],
    error=lambda answer: abs(answer - 6.0),
    tolerance=0.0,
    precision="float32",
    multiply_adds=100,
    bytes=0,
)


@pytest.fixture
def taking(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], Callable[[float], float]]:
    """(a factor, seconds) -> a function that multiplies by it and takes so long, on a clock of its own."""
    now = [0.0]
    monkeypatch.setattr(f"{__package__}.protocol.perf_counter", lambda: now[0])
    monkeypatch.setattr(f"{__package__}.protocol.rate_now", lambda *_: Rate(100.0, 100.0, 1.0))

    def function(factor: float, seconds: float) -> Callable[[float], float]:
        def call(value: float) -> float:
            now[0] += seconds
            return factor * value

        return call

    return function


def test_what_is_done_once_is_not_scaled(taking: Any) -> None:
    """0.5 s and 0.25 s once, 2 s ten times; without either, all ten times; the answer passes through all three."""
    rivals = [
        Contestant("both", taking(4, 2.0), scale=10, prepare=taking(0.25, 0.5), finish=taking(2, 0.25)),
        Contestant("call", taking(2, 2.0), scale=10),
        Contestant("once", taking(4, 3.0), scale=5, prepare=taking(0.5, 1.0), once=True),
        Contestant("whole", taking(2, 1.0), prepare=taking(1, 1.0)),
    ]
    sampler = Sampler(WORKLOAD, Contestant("simkit", taking(2, 1.0)), rivals, side=1)
    for _ in range(3):
        (inputs,), _ = sampler.before()
        sampler.timed(inputs)
        sampler.after(inputs)
    rows = {row["name"]: row for row in record(sampler, [], full=False, threads=1)["contestants"]}
    assert {name: row["seconds"] for name, row in rows.items()} == {
        "simkit": 1.0, "both": 20.75, "call": 20.0, "once": 16.0, "whole": 2.0,
    }  # fmt: skip
    assert {name: row["unscaled_seconds"] for name, row in rows.items() if "scaled_by" in row} == {
        "both": 0.75, "call": 0.0, "once": 1.0,
    }  # fmt: skip
    assert rows["both"]["scaled_by"] == 10
    assert rows["both"]["ratio_to_simkit"] == pytest.approx(20.75)
    assert all(row["error"] == 0.0 for row in rows.values())
    assert rows["once"]["samples"] == 1


def test_what_fails_in_preparation_is_a_failure(taking: Any) -> None:
    """As in the call: the rival's row says so."""

    def fails(_: float) -> float:
        raise MemoryError("no space")

    rival = Contestant("rival", taking(2, 1.0), scale=2, prepare=fails)
    sampler = Sampler(WORKLOAD, Contestant("simkit", taking(2, 1.0)), [rival], side=1)
    assert record(sampler, [], full=False, threads=1)["contestants"][1]["failure"] == "MemoryError: no space"
