"""The planner: the route it picks beside all others, over a grid of shapes, layers of equal and of unequal widths.

One protocol for every shape, whatever comes of it. First calls of every route check the answers; one that takes more
than three times the fastest in them is called again, and where the lesser time is still so much, it is left with that
and named in the record: one cold call puts none aside. The others take turns, the order reversed from round to round,
in so many rounds as those first calls say 0.6 s have room for, at least 5 and at most 51. What is judged, where the
tables are made, is the median of the route picked over the least median. Nothing is timed again, and none that misses
is left out.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain, product
from time import perf_counter
from typing import Any, get_args

import numpy as np
import pytest

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends.base import Block, RouteName
from simkit.backends.routes import plan_pair_sums
from simkit.metrics.cka import ForcedRoute, sums_of
from simkit.metrics.prepare import prepare

PROTOCOL = "medians of rounds whose number one rule sets from the first calls; none timed again; judged in the tables"
LONGEST = 1.5e11  # multiply-adds of a route that is called at all; beyond, another one is far cheaper
FAR = 3.0  # times the fastest in the least of the first calls: timed no further
SHAPE_SECONDS, FEWEST, MOST = 0.6, 5, 51  # of the rounds
SHORT = 0.05  # seconds: of a shorter route the first call is a warm-up, and the least of the next three counts
ROUTES: tuple[RouteName, ...] = get_args(RouteName)
DTYPES = ("float32", "float64")
# A few wide layers beside many narrow ones, or a network's from its first to its last.
UNEQUAL = (
    (2000, (*[64] * 40, *[2048] * 2)),
    (1000, (*[16] * 64, *[1024] * 2)),
    (3000, (*[1] * 128, 2048)),
    (2000, (*[1] * 512, *[4096] * 2)),
    (400, (*[1] * 256, 1000)),
    (3000, (3000, *[16] * 10)),
    (1000, (4096, 2048, 1024, 512, 256, 64, 10)),
)
SMALL_UNEQUAL = ((150, (200, 8, 8, 8)),)


def test_every_route_gives_the_same_answer_and_their_times_are_kept(
    full: bool, keep: Callable[[dict[str, Any]], None]
) -> None:
    """How near the route picked is to the best is recorded, and judged by requirements.py where the tables are made."""
    equal = product(
        DTYPES,
        (100, 400, 1000, 3000) if full else (70, 300),
        (16, 64, 256, 1024, 3000) if full else (8, 200),
        (1, 4, 10) if full else (1, 3),
    )
    unequal = product(DTYPES, UNEQUAL if full else SMALL_UNEQUAL)
    grid = chain(
        ((dtype, n, (p,) * layers) for dtype, n, p, layers in equal), ((dtype, *shape) for dtype, shape in unequal)
    )
    cells = [_cell(*shape, full=full) for shape in grid]
    worst = max(cell["ratio"] for cell in cells)
    keep({"kind": "routes", "key": "routes", "full": full, "protocol": PROTOCOL, "worst": worst, "cells": cells})


def test_the_rounds_are_decided_beforehand() -> None:
    """By the first calls alone: which routes go on, and how often."""
    assert rounds_of({"a": 1e-4, "b": 2e-4, "c": 4e-4}, "c") == ({"a", "b", "c"}, MOST)  # the one picked always does
    assert rounds_of({"a": 1e-2, "b": 1.9e-2, "c": 4e-2}, "a") == ({"a", "b"}, 20)
    assert rounds_of({"a": 2.0, "b": 3.0}, "b") == ({"a", "b"}, FEWEST)
    assert rounds_of({"a": 1.0, "b": 9.0}, "a") == ({"a"}, 0)  # all others are far


def test_one_slow_call_puts_no_route_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lesser of two counts, and who is not far after one is not called again."""
    again = {"a": 1.0, "b": 1.5, "c": 5.0}
    monkeypatch.setattr(f"{__name__}._seconds", again.pop)
    first = called_again({"a": 1.0, "b": 4.0, "c": 6.0}, {route: route for route in "abc"})
    assert first == {"a": 1.0, "b": 1.5, "c": 5.0}
    assert list(again) == ["a"]
    assert rounds_of(first, "a")[0] == {"a", "b"}


def test_routes_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every route in every round, whatever it takes, and the order turns round."""
    order: list[str] = []
    seconds = {"a": iter([1.0, 9.0, 1.0, 0.1, 1.0]), "b": iter([2.0, 2.0, 2.0, 2.0, 2.0])}

    def took(call: str) -> float:
        order.append(call)
        return next(seconds[call])

    monkeypatch.setattr(f"{__name__}._seconds", took)
    assert in_turns({"a": "a", "b": "b"}, 5) == {"a": [1.0, 9.0, 1.0, 0.1, 1.0], "b": [2.0] * 5}
    assert "".join(order) == "abbaabbaab"


def called_again(first: Mapping[str, float], calls: Mapping[str, Any]) -> dict[str, float]:
    """The least seconds of each route's first calls: those that seem far after one have another."""
    far = max(SHORT, FAR * min(first.values()))
    return {
        route: min(seconds, _seconds(calls[route])) if seconds > far else seconds for route, seconds in first.items()
    }


def rounds_of(first: Mapping[str, float], chosen: str) -> tuple[set[str], int]:
    """(the routes that are timed further, in how many rounds), from the seconds of their first calls."""
    near = {route for route, seconds in first.items() if seconds <= FAR * min(first.values())} | {chosen}
    if len(near) == 1:
        return near, 0
    return near, min(MOST, max(FEWEST, int(SHAPE_SECONDS / sum(first[route] for route in near))))


def in_turns(calls: Mapping[str, Any], rounds: int) -> dict[str, list[float]]:
    """The seconds of every call in every round."""
    times: dict[str, list[float]] = {route: [] for route in calls}
    for turn in range(rounds):
        for route in list(calls)[:: -1 if turn % 2 else 1]:
            times[route].append(_seconds(calls[route]))
    return times


def _seconds(call: Callable[[], object]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


def _cell(dtype: str, n: int, widths: Sequence[int], *, full: bool) -> dict[str, Any]:
    left, right = _blocks(dtype, n, widths, 0), _blocks(dtype, n, widths, 1)
    chosen = plan_pair_sums(left, right, threads=2).name
    costs = {route: cost for route in ROUTES if (cost := _cost(left, right, route)) is not None}
    called = [route for route in costs if costs[route] <= LONGEST or costs[route] == min(costs.values())]
    assert chosen in called, f"{n} samples of layers {widths} wide: {chosen} space is far from the best"
    calls: dict[str, Any] = {
        route: partial(sums_of, left, right, "debiased", ForcedRoute(route=route, threads=2)) for route in called
    }
    answers: dict[str, Any] = {}
    first: dict[str, float] = {}
    for route, call in calls.items():
        start = perf_counter()
        sums, _ = call()
        first[route] = perf_counter() - start
        answers[route] = sums.values / np.sqrt(np.outer(sums.self_rows, sums.self_columns))
        if first[route] < SHORT:  # less than what a first call of all may load
            first[route] = min(_seconds(call) for _ in range(3))
    reference, *others = answers.values()
    assert all(np.abs(other - reference).max() < (1e-6 if dtype == "float32" else 1e-9) for other in others)
    first = called_again(first, calls)
    near, rounds = rounds_of(first, chosen) if full else (set(calls), 1)
    times = in_turns({route: call for route, call in calls.items() if route in near}, rounds)
    typical = first | {route: statistics.median(values) for route, values in times.items() if values}
    return {
        "dtype": dtype,
        "n": n,
        "widths": list(widths),
        "chosen": chosen,
        "multiply_adds": costs,
        "rounds": rounds,
        "far": [route for route in calls if route not in near],
        "uncalled": [route for route in costs if route not in calls],
        "seconds": typical,
        "ratio": typical[chosen] / min(typical.values()),
    }


def _cost(left: Sequence[Block], right: Sequence[Block], route: RouteName) -> int | None:
    """The multiply-adds that the planner counts; None for a route that these layers do not have."""
    try:
        return plan_pair_sums(left, right, threads=2, route=route).multiply_adds
    except ValueError:
        return None


def _blocks(dtype: str, n: int, widths: Sequence[int], side: int) -> list[Block]:
    r = np.random.default_rng([n, len(widths), side])
    return [
        prepare(as_matrix(r.standard_normal((n, p)).astype(dtype), name=str(i)), sk.Linear())
        for i, p in enumerate(widths)
    ]
