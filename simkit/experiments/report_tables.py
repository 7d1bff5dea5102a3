"""A report as text, as CSV and as plain data."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from .report_data import QUANTITIES, Cell, Difference, Experiment
from .statistics import Interval, mean_interval
from .table import text_table

FORMAT = "simkit report 1"
ENDS = ("mean", "low", "high")


def report_data(experiments: Sequence[Experiment], unfinished: int, figures: Sequence[str]) -> dict[str, Any]:
    """Everything, as JSON has it: no NaN, an end that one seed leaves unknown is None."""
    return {
        "format": FORMAT,
        "level": 0.95,
        "unfinished_runs": unfinished,
        "figures": list(figures),
        "experiments": [
            {
                "id": one.id,
                "title": one.title,
                "dense": _cell_data(one.dense),
                "cells": [_cell_data(cell) for cell in _ordered(one)],
                "comparisons": len(one.differences()),
                "corrected_for_comparisons": False,
                "differences": [
                    {**asdict(d), "interval": _ends(d.interval), "verdict": verdict(d)} for d in one.differences()
                ],
            }
            for one in experiments
        ],
    }


def cells_csv(experiments: Sequence[Experiment]) -> str:
    """One line per arm, amount and round; similarities are means over layers."""
    measures = sorted({measure for one in experiments for cell in one.cells for measure in cell.similarity})
    header = ["experiment", "title", "arm", "control", "amount", "round", "n"]
    header += [f"{quantity}_{end}" for quantity in QUANTITIES for end in ENDS] + [f"{m}_mean" for m in measures]
    lines: list[list[Any]] = [header]
    for one in experiments:
        for cell in (one.dense, *_ordered(one)):
            line: list[Any] = [one.id, one.title, cell.arm, cell.control, cell.amount, cell.round, len(cell.seeds)]
            for quantity in QUANTITIES:
                found = cell.interval(quantity)
                line += [""] * 3 if found is None else [_blank(getattr(found, end)) for end in ENDS]
            lines.append(line + [_blank(_mean_similarity(cell, measure)) for measure in measures])
    return _csv(lines)


def similarity_csv(experiments: Sequence[Experiment]) -> str:
    """One line per arm, amount, round, measure and layer."""
    lines: list[list[Any]] = [["experiment", "arm", "amount", "round", "measure", "layer", "n", *ENDS]]
    for one in experiments:
        for cell in _ordered(one):
            for measure, layers in cell.similarity.items():
                for layer, values in layers.items():
                    ends = [_blank(getattr(mean_interval(values), end)) for end in ENDS] if values else [""] * 3
                    lines.append([one.id, cell.arm, cell.amount, cell.round, measure, layer, len(values), *ends])
    return _csv(lines)


def report_text(experiments: Sequence[Experiment], unfinished: int) -> str:
    """Tables of every experiment, round by round, and what the seeds show of the differences."""
    parts = [_experiment_text(one) for one in experiments]
    if unfinished:
        parts.append(f"{unfinished} run{'s are' if unfinished > 1 else ' is'} not done: run the same command again")
    return "\n\n".join(parts)


def verdict(difference: Difference) -> str:
    """Whether the difference is significant, in a sentence."""
    found = difference.interval
    who = f"{difference.first} minus {difference.second}, amount {difference.amount:g}, round {difference.round}"
    points = f"{100 * found.mean:+.2f} points of accuracy"
    if found.n < 2:
        return f"{who}: {points} in one seed, which says nothing about significance"
    if not found.spread:
        return f"{who}: {points} in each of {found.n} seeds: no spread seen, which says nothing about significance"
    interval = f"[{100 * found.low:+.2f}, {100 * found.high:+.2f}]"
    said = "a significant difference" if found.sign else "no significant difference"
    return f"{who}: {points}, 95% interval {interval} over {found.n} seeds: {said}"


def _experiment_text(one: Experiment) -> str:
    header = ["amount", "arm", "round", "n", "accuracy (%)", "parameters", "MACs", "latency (ms)"]
    rows = [_row(one.dense), *(_row(cell) for cell in _ordered(one))]
    lines = [one.title, "", text_table(header, rows)]
    last = {(d.first, d.second, d.amount): d for d in one.differences()}
    if last:
        lines += ["", f"after the last round, paired by seed; {_counted(len(last))}:"]
        lines += [f"  {verdict(d)}" for d in last.values()]
    return "\n".join(lines)


def _counted(comparisons: int) -> str:
    """How far single verdicts can be trusted."""
    if comparisons == 1:
        return "1 comparison, at the 5% level"
    return f"{comparisons} comparisons, each at the 5% level by itself, uncorrected for their number"


def _row(cell: Cell) -> list[str]:
    accuracy, parameters, macs, latency = (cell.interval(quantity) for quantity in QUANTITIES)
    return [
        f"{cell.amount:g}" if cell.amount else "",
        f"{cell.arm}{' (control)' * cell.control}",
        str(cell.round) if cell.round else "",
        str(len(cell.seeds)),
        _plus_minus(accuracy, 100.0, 2),
        _plus_minus(parameters, 1.0, 0),
        _plus_minus(macs, 1.0, 0),
        _plus_minus(latency, 1000.0, 3),
    ]


def _plus_minus(found: Interval | None, unit: float, digits: int) -> str:
    if found is None:
        return "-"
    mean = f"{unit * found.mean:,.{digits}f}"
    half = unit * found.half_width
    return mean if math.isnan(half) or half == 0.0 else f"{mean} ± {half:,.{digits}f}"


def _ordered(one: Experiment) -> Iterator[Cell]:
    for amount in one.amounts:
        for arm in one.arms:
            yield from one.rounds(arm, amount)


def _cell_data(cell: Cell) -> dict[str, Any]:
    return {
        "arm": cell.arm,
        "retrain": cell.way[0],
        "compensate": cell.way[1],
        "control": cell.control,
        "amount": cell.amount,
        "round": cell.round,
        "seeds": list(cell.seeds),
        **{quantity: _ends(cell.interval(quantity)) for quantity in QUANTITIES},
        "similarity": {
            measure: {layer: _ends(mean_interval(values) if values else None) for layer, values in layers.items()}
            for measure, layers in cell.similarity.items()
        },
    }


def _ends(found: Interval | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {name: None if math.isnan(value) else value for name, value in asdict(found).items() if name != "level"}


def _mean_similarity(cell: Cell, measure: str) -> float:
    values = [mean_interval(found).mean for found in cell.similarity.get(measure, {}).values() if found]
    return math.fsum(values) / len(values) if values else math.nan


def _blank(value: float) -> Any:
    return "" if math.isnan(value) else value


def _csv(lines: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()
