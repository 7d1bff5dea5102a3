"""The planner: the route it picks beside the other one, over a grid of shapes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from time import perf_counter
from typing import Any

import numpy as np

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends.base import Block, RouteName
from simkit.backends.routes import plan_pair_sums
from simkit.metrics.cka import ForcedRoute, sums_of
from simkit.metrics.prepare import prepare

REQUIRED = 1.2  # times the best route
LONGEST = 1.5e11  # multiply-adds of a route that is still timed; beyond, the other one is far cheaper
ROUTES: tuple[RouteName, ...] = ("sample", "feature")


def test_the_route_picked_is_near_the_best(full: bool, keep: Callable[[dict[str, Any]], None]) -> None:
    """Both routes agree, and at full size the one picked takes at most 1.2 times the other's time."""
    grid = product(
        ("float32", "float64"),
        (100, 400, 1000, 3000) if full else (70, 300),
        (16, 64, 256, 1024, 3000) if full else (8, 200),
        (1, 4, 10) if full else (1, 3),
    )
    cells = [_cell(*shape, rounds=7 if full else 1) for shape in grid]
    worst = max(cell["ratio"] for cell in cells)
    misses = [cell for cell in cells if cell["ratio"] > REQUIRED]
    keep({"kind": "routes", "key": "routes", "full": full, "worst": worst, "required": REQUIRED, "cells": cells})
    if full:
        assert len(misses) <= len(cells) // 50, misses


def _cell(dtype: str, n: int, p: int, layers: int, *, rounds: int) -> dict[str, Any]:
    left, right = _blocks(dtype, n, p, layers, 0), _blocks(dtype, n, p, layers, 1)
    chosen = plan_pair_sums(left, right, threads=2).name
    costs = {"sample": n * n * p * layers, "feature": n * (p * layers) ** 2}
    timed = [route for route in ROUTES if costs[route] <= LONGEST or costs[route] == min(costs.values())]
    times: dict[str, list[float]] = {route: [] for route in timed}
    answers = {}
    for _ in range(rounds if min(costs.values()) < 1e9 else min(rounds, 3)):
        for route in timed:
            start = perf_counter()
            sums, _ = sums_of(left, right, "debiased", ForcedRoute(route=route, threads=2))
            times[route].append(perf_counter() - start)
            answers[route] = sums.values / np.sqrt(np.outer(sums.self_rows, sums.self_columns))
    if len(answers) == 2:
        assert np.abs(answers["sample"] - answers["feature"]).max() < (1e-6 if dtype == "float32" else 1e-9)
    best = {route: min(values) for route, values in times.items()}
    assert chosen in best, f"{n} samples of {layers} layers {p} wide: {chosen} space is far from the best"
    return {
        "dtype": dtype,
        "n": n,
        "p": p,
        "layers": layers,
        "chosen": chosen,
        "seconds": best,
        "ratio": best[chosen] / min(best.values()),
    }


def _blocks(dtype: str, n: int, p: int, layers: int, side: int) -> list[Block]:
    r = np.random.default_rng([n, p, layers, side])
    return [
        prepare(as_matrix(r.standard_normal((n, p)).astype(dtype), name=str(i)), sk.Linear()) for i in range(layers)
    ]
