"""How time grows with the sizes: exponents fitted over four of them, beside those of the counted operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends.choose import choose
from simkit.metrics.cka import ForcedRoute, sums_of
from simkit.metrics.prepare import prepare

WITHIN = 0.2
ROUNDS = 7


@dataclass(frozen=True)
class Series:
    """One size of one workload: ``make(size)`` prepares, what it returns is timed."""

    name: str
    variable: str
    expected: float
    sizes: Sequence[int]
    make: Callable[[int], Callable[[], object]]


def test_growth(full: bool, keep: Callable[[dict[str, Any]], None]) -> None:
    """Each exponent is within 0.2 of the counted one, at full size."""
    scale = 1 if full else 16
    rows = [_fitted(series, rounds=ROUNDS if full else 1) for series in _series(scale)]
    keep({"kind": "growth", "key": "growth", "full": full, "within": WITHIN, "rows": rows})
    if full:
        assert all(abs(row["exponent"] - row["expected"]) <= WITHIN for row in rows), rows


def _series(scale: int) -> list[Series]:
    def sizes(*values: int) -> list[int]:
        return [max(8, value // scale) for value in values]

    wide = max(8, 1024 // scale)
    rows = max(64, 1500 // scale)
    # Units enough that no table of products fits a cache: across its edge the exponent is that of the memory.
    return [
        Series("W1, all pairs in sample space", "n", 2, sizes(1000, 1700, 3000, 5000), lambda n: _pairs(n, wide)),
        Series("W1, all pairs in sample space", "p", 1, sizes(1000, 2000, 4000, 8000), lambda p: _pairs(rows, p)),
        Series("W2, the greedy order after its product", "u", 2, sizes(2800, 3800, 5200, 7000), _order),
        Series("W3, channels of 64 positions", "n", 2, sizes(800, 1300, 2000, 3200), lambda n: _channels(n, scale)),
        Series("W4, the graph of filters", "filters", 2, sizes(1500, 2200, 3300, 5000), lambda n: _graph(n, wide)),
        Series("W5, an exact stream", "n", 1, sizes(20_000, 40_000, 80_000, 160_000), lambda n: _stream(n, scale)),
    ]


def _fitted(series: Series, *, rounds: int) -> dict[str, Any]:
    calls = [series.make(size) for size in series.sizes]
    best = [float("inf")] * len(calls)
    for call in calls:
        call()
    for _ in range(rounds):  # each size once a round: who else uses the machine slows some rounds, and seldom all
        for i, call in enumerate(calls):
            start = perf_counter()
            call()
            best[i] = min(best[i], perf_counter() - start)
    exponent = float(np.polyfit(np.log(series.sizes), np.log(best), 1)[0])
    return {
        "name": series.name,
        "variable": series.variable,
        "sizes": list(series.sizes),
        "expected": series.expected,
        "exponent": exponent,
    }


def _pairs(n: int, p: int) -> Callable[[], object]:
    r = np.random.default_rng([n, p])
    blocks = [
        prepare(as_matrix(r.standard_normal((n, p), dtype=np.float32), name=str(i)), sk.Linear()) for i in range(4)
    ]
    return lambda: sums_of(blocks, None, "debiased", ForcedRoute(route="sample"))


def _order(u: int) -> Callable[[], object]:
    z = np.random.default_rng(u).standard_normal((2 * u, u))
    products = np.square(z.T @ z)
    function = choose("eliminate").function
    return lambda: function([products], greedy=True)


def _channels(n: int, scale: int) -> Callable[[], object]:
    units = max(4, 64 // scale)
    x = np.random.default_rng(n).standard_normal((n, units * 64), dtype=np.float32)
    return lambda: sk.greedy_cka(x, units=units)


def _graph(filters: int, fan_in: int) -> Callable[[], object]:
    weight = np.random.default_rng(filters).standard_normal((filters, fan_in), dtype=np.float32)
    return lambda: sk.filter_graph(weight)


def _stream(n: int, scale: int) -> Callable[[], object]:
    r = np.random.default_rng(n)
    width = max(8, 256 // scale)
    batch = {str(i): r.standard_normal((512, width), dtype=np.float32) for i in range(2)}

    def run() -> object:
        stream = sk.StreamingCKA()
        for _ in range(0, n, 512):
            stream.update(batch)
        return stream

    return run
