"""The results of many runs, put together: every arm, amount and round with its mean and interval over seeds."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .run_directory import CONFIG, RESULT, read_result
from .statistics import Interval, mean_interval

QUANTITIES = ("accuracy", "parameters", "macs", "latency")
DENSE = "dense"
UNPRUNED = ("none", "none")


@dataclass(frozen=True)
class Cell:
    """One arm with one amount after one round: quantity -> value of every seed, in the order of ``seeds``.

    ``way`` is how it trains again and what makes up for removed units. ``similarity`` is by measure, then layer; a seed
    whose similarity is undefined is left out there.
    """

    arm: str
    way: tuple[str, str]
    control: bool
    amount: float
    round: int
    seeds: tuple[int, ...]
    values: Mapping[str, tuple[float, ...]]
    similarity: Mapping[str, Mapping[str, tuple[float, ...]]]

    def interval(self, quantity: str) -> Interval | None:
        """Mean and 95% confidence interval over seeds, or None where nothing was measured."""
        found = self.values[quantity]
        return mean_interval(found) if found else None


@dataclass(frozen=True)
class Difference:
    """Accuracy of ``first`` minus that of ``second`` after a round, paired by seed: by the network both began with."""

    first: str
    second: str
    amount: float
    round: int
    interval: Interval


@dataclass(frozen=True)
class Experiment:
    """All runs that differ in method, amount and seed only."""

    id: str
    title: str
    dense: Cell
    cells: tuple[Cell, ...]

    @property
    def arms(self) -> tuple[str, ...]:
        """Methods first, then controls, each in the order of their runs."""
        controls = {cell.arm: cell.control for cell in self.cells}
        return tuple(sorted(controls, key=lambda arm: controls[arm]))

    @property
    def amounts(self) -> tuple[float, ...]:
        """Ascending."""
        return tuple(sorted({cell.amount for cell in self.cells}))

    def rounds(self, arm: str, amount: float) -> list[Cell]:
        """The cells of one arm and amount, by round."""
        return sorted((c for c in self.cells if (c.arm, c.amount) == (arm, amount)), key=lambda c: c.round)

    def differences(self) -> list[Difference]:
        """Every method against its controls and the methods named after it, after every round, over shared seeds.

        Its controls are the random choice that goes the same way, and new weights.
        """
        found = []
        for amount in self.amounts:
            for first, second in self._pairs():
                others = {cell.round: cell for cell in self.rounds(second, amount)}
                for cell in self.rounds(first, amount):
                    values = _paired(cell, others.get(cell.round))
                    if values:
                        found.append(Difference(first, second, amount, cell.round, mean_interval(values)))
        return found

    def _pairs(self) -> Iterator[tuple[str, str]]:
        cells = {cell.arm: cell for cell in self.cells}
        for index, first in enumerate(self.arms):
            for second in self.arms[index + 1 :]:
                ours, theirs = cells[first], cells[second]
                belongs = not theirs.control or theirs.way[0] == "reinit" or theirs.way == ours.way
                if not ours.control and belongs:
                    yield first, second


def read_experiments(folder: str | os.PathLike[str]) -> tuple[list[Experiment], int]:
    """The experiments whose runs lie in the folder, by title, and the number of runs that are not done.

    Raises:
        ValueError: no folder, no run that is done, or a damaged result.
    """
    place = Path(folder)
    if not place.is_dir():
        raise ValueError(f"there is no folder {os.fspath(folder)!r}")
    runs = sorted(path.parent for path in place.glob(f"*/{CONFIG}"))
    results = [read_result(run / RESULT) for run in runs if (run / RESULT).is_file()]
    if not results:
        raise ValueError(f"{os.fspath(folder)!r} holds no finished run of simkit train or simkit prune")
    pruned = [result for result in results if result["kind"] == "prune"]
    used = {result["dense"]["run"] for result in pruned}
    alone = [result for result in results if result["kind"] == DENSE and result["name"] not in used]
    found = [*_grouped(pruned, _pruning), *_grouped(alone, _training)]
    return sorted(found, key=lambda one: (one.title, one.id)), len(runs) - len(results)


def _grouped(results: Sequence[dict[str, Any]], build: Any) -> list[Experiment]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(result["experiment"], []).append(result)
    return [build(identity, sorted(group, key=lambda one: one["seed"])) for identity, group in groups.items()]


def _training(identity: str, results: list[dict[str, Any]]) -> Experiment:
    return Experiment(
        identity, results[0]["title"], _cell(DENSE, UNPRUNED, False, 0.0, 0, [(r["seed"], r) for r in results]), ()
    )


def _pruning(identity: str, results: list[dict[str, Any]]) -> Experiment:
    dense = {result["seed"]: result["dense"] for result in results}
    results = _told_apart(results)
    # A run with new weights is a control until its way is asked for, and it is one run all the same.
    controls = {arm: all(r["control"] for r in results if r["arm"] == arm) for arm in {r["arm"] for r in results}}
    gathered: dict[tuple[str, tuple[str, str], bool, float, int], list[tuple[int, dict[str, Any]]]] = {}
    for result in results:
        way = (result["retrain"], result["compensate"])
        for record in result["rounds"]:
            key = (result["arm"], way, controls[result["arm"]], result["amount"], record["round"])
            gathered.setdefault(key, []).append((result["seed"], record))
    cells = tuple(_cell(*key, records) for key, records in gathered.items())
    return Experiment(identity, results[0]["title"], _cell(DENSE, UNPRUNED, False, 0.0, 0, list(dense.items())), cells)


def _told_apart(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results; arms with new weights under masks of several other arms are named after those."""
    sources: dict[str, set[str | None]] = {result["arm"]: set() for result in results}
    for result in results:
        sources[result["arm"]].add(result.get("chosen_by"))  # a version before this one did not say it
    return [
        {**result, "arm": f"{result['arm']} of {result.get('chosen_by') or 'an earlier version'}"}
        if len(sources[result["arm"]]) > 1
        else result
        for result in results
    ]


def _cell(
    arm: str,
    way: tuple[str, str],
    control: bool,
    amount: float,
    number: int,
    records: Sequence[tuple[int, Mapping[str, Any]]],
) -> Cell:
    measured = [record for _, record in records]
    similarity: dict[str, dict[str, tuple[float, ...]]] = {}
    for measure in _in_order(record.get("similarity", {}) for record in measured):
        layers = _in_order(record["similarity"][measure] for record in measured if "similarity" in record)
        similarity[measure] = {
            layer: tuple(
                float(record["similarity"][measure][layer])
                for record in measured
                if record["similarity"][measure].get(layer) is not None
            )
            for layer in layers
        }
    return Cell(
        arm=arm,
        way=way,
        control=control,
        amount=amount,
        round=number,
        seeds=tuple(seed for seed, _ in records),
        values={
            quantity: tuple(float(record[quantity]) for record in measured if record[quantity] is not None)
            for quantity in QUANTITIES
        },
        similarity=similarity,
    )


def _in_order(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))


def _paired(first: Cell, second: Cell | None) -> list[float]:
    if second is None:
        return []
    other = dict(zip(second.seeds, second.values["accuracy"], strict=True))
    pairs = zip(first.seeds, first.values["accuracy"], strict=True)
    return [value - other[seed] for seed, value in pairs if seed in other]
