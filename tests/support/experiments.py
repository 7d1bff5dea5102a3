"""Small experiments for tests: a config as text, its runs, and results without their timings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SMALL = """
[model]
name = "mlp"
hidden = [12, 8]
[data]
name = "digits"
[train]
epochs = 2
batch_size = 256
schedule = "cosine"
[prune]
methods = ["{method}"]
kind = "{kind}"
amounts = [0.5]
rounds = 2
{epochs}
retrain = {ways}
compensate = "{compensate}"
samples = 100
[compare]
samples = 100
[run]
out = "{out}"
threads = 1
"""
TIMINGS = {"latency", "seconds"}


def write_config(
    folder: Path,
    *,
    kind: str = "structured",
    method: str = "",
    retrain: str = "finetune",
    compensate: str = "none",
    more: str = "",
) -> Path:
    """A config in the folder, whose runs go into its ``runs``."""
    chosen = method or ("l1" if kind == "structured" else "magnitude")
    ways = f'["none", "{retrain}"]' if retrain == "reinit" else f'"{retrain}"'  # somebody must choose
    epochs = "" if retrain in ("none", "reinit", "rewind-init") else "epochs = 1"
    text = SMALL.format(kind=kind, method=chosen, ways=ways, epochs=epochs, compensate=compensate, out=folder / "runs")
    (folder / "config.toml").write_text(text + more, encoding="utf-8")
    return folder / "config.toml"


def results(out: Path) -> dict[str, dict[str, Any]]:
    """Every run's result without timings, by name."""
    return {file.parent.name: untimed(json.loads(file.read_text())) for file in sorted(out.glob("*/result.json"))}


def untimed(content: Any) -> Any:
    """Plain data without what a clock has measured."""
    if isinstance(content, dict):
        return {name: untimed(value) for name, value in content.items() if name not in TIMINGS}
    return [untimed(value) for value in content] if isinstance(content, list) else content


def epochs_noted(out: Path) -> dict[str, list[tuple[str, int]]]:
    """Run -> (stage, epoch) of every line of its metrics."""
    return {
        file.parent.name: [(entry["stage"], entry["epoch"]) for entry in map(json.loads, file.read_text().splitlines())]
        for file in sorted(out.glob("*/metrics.jsonl"))
    }
