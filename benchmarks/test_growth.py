"""How time and memory grow with the sizes: exponents fitted over four of them, beside those of the counted operations.

Each workload in every size it has: samples n, width p, layers L, units u. The multiply-adds of a plan, where it counts
them, must equal the closed form of the workload to the unit, at every size; ``test_counts.py`` counts both again. Sizes
that were moved, most after they had missed the bound, stand in ``requirements.py`` (``MOVED``), and beside the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import pytest

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends.base import Plan
from simkit.backends.choose import choose
from simkit.metrics.cka import ForcedRoute, sums_of
from simkit.metrics.prepare import prepare

from .machine import with_peak_memory
from .requirements import LEAST

WITHIN = 0.2
ROUNDS = 5
BATCH = 512


@dataclass(frozen=True)
class Kind:
    """A workload: its name, what makes the call that is timed, and the least multiply-adds of the exact answer."""

    name: str
    make: Callable[..., Callable[[], object]]
    count: Callable[..., int]


@dataclass(frozen=True)
class Series:
    """One size of a workload; ``at(size)``: the arguments of its functions.

    ``memory`` is the leading power of the extra memory: products are kept in panels of tiles, whose size is bounded.
    """

    kind: Kind
    variable: str
    sizes: Sequence[int]
    at: Callable[[int], tuple[int, ...]]
    memory: float

    @property
    def expected(self) -> float:
        """The exponent of the counted operations."""
        return fitted(self.sizes, [self.kind.count(*self.at(size)) for size in self.sizes])


def fitted(sizes: Sequence[int], values: Sequence[float]) -> float:
    """The exponent of the power that fits best, by least squares of logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def test_growth(full: bool, keep: Callable[[dict[str, Any]], None]) -> None:
    """At full size time is within 0.2 of the counted exponents and memory not above its own; counts are exact."""
    rows = [_measured(series, full=full) for series in series_of(full)]
    keep({"kind": "growth", "key": "growth", "full": full, "within": WITHIN, "rows": rows})
    assert all(row["plan_equal"] is not False for row in rows), rows
    assert {row["name"][:2] for row in rows if row["plan_equal"]} == {"W1", "W2", "W3", "W4"}
    if full:
        assert all(abs(row["exponent"] - row["expected"]) <= WITHIN for row in rows), rows
        assert all(row["memory"] is None or row["memory"] <= row["expected_memory"] + WITHIN for row in rows), rows


@pytest.mark.parametrize(
    ("name", "variable", "power"),
    [("W1", "n", 2), ("W1", "p", 1), ("W1", "L", 1), ("W2, the greedy order after", "u", 2), ("W3", "n", 2),
     ("W4", "filters", 2), ("W4", "weights", 1), ("W5", "n", 1), ("W5", "p", 2), ("W5", "L", 2)],
)  # fmt: skip
def test_counted_powers(name: str, variable: str, power: int) -> None:
    """The operations grow as they are asked to; panels and diagonals move an exponent by less than 0.03."""
    (series,) = (one for one in series_of(full=True) if one.kind.name.startswith(name) and one.variable == variable)
    assert series.expected == pytest.approx(power, abs=0.03)
    assert len(series.sizes) >= 4


def series_of(full: bool) -> list[Series]:
    """Every workload in each of its sizes."""

    def sizes(*values: int) -> Sequence[int]:
        return values if full else (64, 96, 144, 216)

    def fixed(value: int, small: int) -> int:
        return value if full else small

    def few(*values: int) -> Sequence[int]:
        return values if full else (4, 6, 8, 12)

    rows, tall, wide, deep = (1500, 10_240, 1024, 2000) if full else (96, 1024, 64, 96)
    units, area, narrow = (64, 64, 256) if full else (8, 64, 16)
    batches = [BATCH * k for k in ((40, 80, 160, 320) if full else (2, 3, 4, 5))]
    pairs = Kind("W1, all pairs in sample space", _pairs, _in_samples)
    columns = Kind("W2, the greedy order of columns", _columns, _upper)
    order = Kind("W2, the greedy order after its product", _order, lambda u: u * u)
    channels = Kind("W3, the order of channels", _channels, _in_samples)
    graph = Kind("W4, the graph of filters", _graph, _below)
    stream = Kind("W5, an exact stream", _stream, lambda n, p, m: _upper(n, m * p))
    return [
        Series(pairs, "n", sizes(1000, 1700, 3000, 5000), lambda n: (n, wide, 4), 0),
        Series(pairs, "p", sizes(1000, 2000, 4000, 8000), lambda p: (rows, p, 4), 0),
        Series(pairs, "L", few(4, 8, 16, 32), lambda m: (rows, wide, m), 1),
        Series(columns, "n", sizes(5000, 10_000, 20_000, 40_000), lambda n: (n, wide), 0),
        Series(columns, "p", sizes(700, 1000, 1500, 2200), lambda p: (tall, p), 2),
        # Units enough that no table of products fits a cache: across its edge the exponent is that of the memory.
        Series(order, "u", sizes(2800, 3800, 5200, 7000), lambda u: (u,), 1),
        Series(channels, "n", sizes(800, 1300, 2000, 3200), lambda n: (n, area, units), 0),
        Series(channels, "u", few(64, 96, 144, 216), lambda u: (rows, area, u), 1),
        Series(channels, "positions", sizes(144, 216, 324, 486), lambda a: (rows, a, units), 0),
        Series(graph, "filters", sizes(1500, 2200, 3300, 5000), lambda n: (n, wide), 2),
        Series(graph, "weights", sizes(1000, 2000, 4000, 8000), lambda d: (deep, d), 1),
        Series(stream, "n", batches, lambda n: (n, narrow, 2), 0),
        Series(stream, "p", sizes(700, 1050, 1600, 2400), lambda p: (tall, p, 2), 2),
        Series(stream, "L", few(5, 8, 12, 18), lambda m: (tall, narrow, m), 2),
    ]


def _in_samples(n: int, p: int, layers: int) -> int:
    """Half of every Gram matrix, and half of the products of all with one another over half of their entries."""
    return n * n * (layers * p + layers * layers // 2) // 2


def _upper(n: int, p: int) -> int:
    return n * p * (p + 1) // 2


def _below(n: int, p: int) -> int:
    return n * (n - 1) // 2 * p


def _measured(series: Series, *, full: bool) -> dict[str, Any]:
    calls = [series.kind.make(*series.at(size)) for size in series.sizes]
    calls[0]()  # what the first call of all loads is no size's memory
    extra, equal = [], []
    for size, call in zip(series.sizes, calls, strict=True):
        answer, taken = with_peak_memory(call) if full else (call(), None)  # small sizes take less than is seen
        extra.append(taken)
        counted = planned(answer)
        equal.append(None if counted is None else counted == series.kind.count(*series.at(size)))
    best = [float("inf")] * len(calls)
    for _ in range(ROUNDS if full else 1):  # each size in turn: others on the machine slow some rounds, seldom all
        for i, call in enumerate(calls):
            start = perf_counter()
            call()
            best[i] = min(best[i], perf_counter() - start)
    known = [max(LEAST, taken) for taken in extra if taken is not None]
    return {
        "name": series.kind.name,
        "variable": series.variable,
        "sizes": list(series.sizes),
        "expected": series.expected,
        "exponent": fitted(series.sizes, best),
        "plan_equal": None if None in equal else all(equal),
        "expected_memory": series.memory,
        "memory": fitted(series.sizes, known) if len(known) == len(calls) else None,
        "seconds": best,
        "extra_bytes": extra,
    }


def planned(answer: Any) -> int | None:
    """The multiply-adds of the answer's plan, where it has one that counts."""
    plan = answer[1] if isinstance(answer, tuple) else getattr(answer, "plan", None)
    return sum(step.multiply_adds for step in plan.steps) if isinstance(plan, Plan) else None


def _normal(seed: Sequence[int], n: int, p: int) -> Any:
    return np.random.default_rng(seed).standard_normal((n, p), dtype=np.float32)


def _pairs(n: int, p: int, layers: int) -> Callable[[], object]:
    blocks = [prepare(as_matrix(_normal([n, p, i], n, p), name=str(i)), sk.Linear()) for i in range(layers)]
    return lambda: sums_of(blocks, None, "debiased", ForcedRoute(route="sample"))


def _columns(n: int, p: int) -> Callable[[], object]:
    x = _normal([n, p], n, p)
    return lambda: sk.greedy_cka(x)


def _order(u: int) -> Callable[[], object]:
    z = np.random.default_rng(u).standard_normal((256, u))
    products = np.square(z.T @ z)
    function = choose("eliminate").function
    return lambda: function([products], greedy=True)


def _channels(n: int, positions: int, units: int) -> Callable[[], object]:
    x = _normal([n, units, positions], n, units * positions)
    return lambda: sk.greedy_cka(x, units=units)


def _graph(filters: int, fan_in: int) -> Callable[[], object]:
    weight = _normal([filters, fan_in], filters, fan_in)
    return lambda: sk.filter_graph(weight)


def _stream(n: int, width: int, layers: int) -> Callable[[], object]:
    batch = {str(i): _normal([n, width, i], BATCH, width) for i in range(layers)}

    def run() -> object:
        stream = sk.StreamingCKA()
        for _ in range(0, n, BATCH):
            stream.update(batch)
        return stream

    return run
