"""The demo's findings as files and as text for people."""

from __future__ import annotations

import csv
import io
import json
import math
import platform
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from .charts import Panel, draw_accuracies
from .demo_runs import AMOUNT, METHODS, WIDTHS, DemoResult, Run, model_name
from .outputs import as_json, matrix_as_data
from .statistics import Interval, mean_interval
from .table import text_table

FORMAT = "simkit demo 1"
STAGES = {"accuracy_cut": "right after the cut", "accuracy_finetuned": "after fine-tuning"}


def is_ours(folder: Path) -> bool:
    """Whether an earlier demo wrote the results in this folder."""
    try:
        data = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and data.get("format") == FORMAT


def write_results(result: DemoResult, folder: Path) -> None:
    """Leave the two pictures, the table of runs as CSV, and everything as JSON in ``folder``."""
    result.heatmap.plot(folder / "heatmap.png")
    panels = [
        Panel(title, {METHODS[method][0]: result.values(method, field) for method in METHODS})
        for field, title in STAGES.items()
    ]
    n = result.options.seeds
    title = (
        f"Small CNN on {result.data.name}: {AMOUNT:.0%} of the channels of every hidden layer removed\n"
        f"mean and 95% confidence interval (Student's t, n = {n} seeds, cut at 0 and 100%); circles: single seeds"
    )
    draw_accuracies(folder / "pruning.png", title, panels, result.dense())
    (folder / "results.csv").write_text(_csv(result.runs), encoding="utf-8")
    (folder / "results.json").write_bytes(as_json(_as_data(result)))


def _csv(runs: tuple[Run, ...]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Run)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(run) for run in runs)
    return text.getvalue()


def _as_data(result: DemoResult) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "simkit": __version__,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "seconds": round(result.seconds, 2),
        "data": {
            "name": result.data.name,
            "train": len(result.data.train_x),
            "test": len(result.data.test_x),
        },
        "network": {"factory": "simkit.train.small_cnn", "widths": list(WIDTHS)},
        "options": {
            "seeds": result.options.seeds,
            "quick": result.options.quick,
            "threads": result.options.threads,
            "amount": AMOUNT,
            "training": asdict(result.options.dense_training(0)),
            "fine_tuning": asdict(result.options.fine_tuning(0)),
        },
        "dense": {
            "accuracy": _interval(mean_interval(result.dense())),
            "models": [f"models/{model_name(seed, 'dense')}" for seed in range(result.options.seeds)],
        },
        "methods": {
            method: {field: _interval(mean_interval(result.values(method, field))) for field in STAGES}
            for method in METHODS
        },
        "cka_minus": {
            other: {field: _interval(result.difference(other, field)) for field in STAGES}
            for other in METHODS
            if other != "cka"
        },
        "runs": [asdict(run) for run in result.runs],
        "heatmap": matrix_as_data(result.heatmap),
    }


def _interval(interval: Interval) -> dict[str, Any]:
    """JSON has no NaN: an end that is not known is None."""
    return {name: None if math.isnan(value) else value for name, value in asdict(interval).items()}


def summary(result: DemoResult) -> str:
    """The table of the demo, what it says about CKA damage, and where everything lies."""
    first, n = result.runs[0], result.options.seeds
    dense = ["dense", f"{first.params_before:,}", f"{first.macs_before:,}", _percent(result.dense()), ""]
    rows = [dense]
    for method, (title, _) in METHODS.items():
        run = next(run for run in result.runs if run.method == method)
        rows.append(
            [
                title,
                f"{run.params_after:,} ({run.params_after / run.params_before:.0%})",
                f"{run.macs_after:,} ({run.macs_after / run.macs_before:.0%})",
                *(_percent(result.values(method, field)) for field in STAGES),
            ]
        )
    return "\n".join(
        [
            f"{len(result.data.train_x):,} {result.data.name} to train on, {len(result.data.test_x):,} to test on; "
            f"{AMOUNT:.0%} of the channels of every hidden layer removed",
            "",
            text_table(["", "parameters", "MACs an image", *STAGES.values()], rows),
            "",
            f"test accuracy in %: mean ± half of the 95% confidence interval (Student's t, n = {n} seeds)",
            "",
            "the same, paired by seed, with the 95% confidence interval of the difference:",
            *_verdicts(result),
            "",
            _where(result),
        ]
    )


def _percent(values: list[float]) -> str:
    found = mean_interval([100.0 * value for value in values])
    return f"{found.mean:.2f} ± {found.half_width:.2f}"


def _verdicts(result: DemoResult) -> list[str]:
    """CKA damage against the other criteria, as differences on the same networks."""
    lines = []
    for other in METHODS:
        if other == "cka":
            continue
        for field, stage in STAGES.items():
            found = result.difference(other, field)
            said = {1: "better", -1: "worse", 0: "no difference shown"}[found.sign]
            lines.append(
                f"  CKA damage minus {METHODS[other][0]}, {stage}: {100 * found.mean:+.2f} points "
                f"[{100 * found.low:+.2f}, {100 * found.high:+.2f}]: {said}"
            )
    return lines


def _where(result: DemoResult) -> str:
    out = Path(result.options.out)
    return (
        f"{result.seconds:.0f} s. In {out}/: heatmap.png (layers of two networks), pruning.png, results.csv, "
        f"results.json, models/"
    )
