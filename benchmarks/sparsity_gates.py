"""Which way of retraining, and which score at initialisation, keeps the accuracy: LeNet-300-100 on Fashion-MNIST.

    python benchmarks/sparsity_gates.py run OUT.jsonl     appends a line per arm and seed; resumable
    python benchmarks/sparsity_gates.py report OUT.jsonl  writes docs/sparsity.md; ends with 1 where a gate fails

Iterative: global magnitude over the hidden layers, 36% of the survivors removed a round, five rounds to 10.7% kept,
eight epochs a round. At initialisation: 2% of the hidden weights kept, eight epochs. Half an hour on one core.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from simkit import pruning as P
from simkit import train
from simkit.errors import LayerCollapseWarning
from simkit.experiments.statistics import mean_interval
from simkit.files import write_atomically

DOCS = Path(__file__).resolve().parent.parent / "docs"
SEEDS = (0, 1, 2)
ROUNDS, REMOVED, KEPT_AT_START = 5, 0.36, 0.02
OPTIONS = train.TrainOptions(epochs=8, lr=0.1, momentum=0.0, schedule="step", step_epochs=6)
OUTPUT = "5"  # the last layer, which stays whole
ITERATIVE: dict[str, Callable[[int], tuple[Any, Any]]] = {
    "LR rewind": lambda seed: (P.Magnitude(), P.RewindLR()),
    "rewind to initialisation": lambda seed: (P.Magnitude(), P.RewindWeights(0)),
    "fine-tune": lambda seed: (P.Magnitude(), P.FineTune()),
    "random masks, LR rewind": lambda seed: (P.Random(seed), P.RewindLR()),
    "reinitialised": lambda seed: (P.Magnitude(), P.Reinit(seed)),
}
AT_START: dict[str, Callable[[int], Any]] = {
    "SynFlow": lambda seed: P.SynFlow(),
    "SNIP": lambda seed: P.SNIP(),
    "GraSP": lambda seed: P.GraSP(),
    "random": lambda seed: P.Random(seed),
    "magnitude": lambda seed: P.Magnitude(),
}
GATES = (  # (kind, better, worse)
    *(("iterative", "LR rewind", other) for other in ITERATIVE if other != "LR rewind"),
    ("iterative", "rewind to initialisation", "fine-tune"),
    ("at initialisation", "SynFlow", "SNIP"),
    ("at initialisation", "SNIP", "random"),
    ("at initialisation", "random", "magnitude"),
)


def lenet(seed: int) -> nn.Module:
    """LeNet-300-100."""
    torch.manual_seed(seed)
    sizes = [784, 300, 100, 10]
    layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    return nn.Sequential(nn.Flatten(), layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


def run(out: Path) -> None:
    """Compute what the file lacks."""
    data = train.fashion_mnist()
    done = {tuple(json.loads(line)["key"]) for line in out.read_text().splitlines()} if out.exists() else set()
    for seed in SEEDS:
        trained = lenet(seed)
        iterative = [name for name in ITERATIVE if ("iterative", name, seed) not in done]
        if iterative:
            train.fit(trained, data.train, replace(OPTIONS, seed=seed))
            _append(out, ("dense", "dense", seed), train.evaluate(trained, data.test).accuracy)
        for name in iterative:
            _append(out, ("iterative", name, seed), _iterative(ITERATIVE[name](seed), trained, seed, data))
        for name, score in AT_START.items():
            if ("at initialisation", name, seed) not in done:
                _append(out, ("at initialisation", name, seed), *_at_start(score(seed), seed, data))


def _append(out: Path, key: tuple[str, str, int], accuracy: float, collapsed: bool = False) -> None:
    line = {"key": key, "accuracy": accuracy, "collapsed": collapsed}
    with out.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(line, flush=True)


def _iterative(arm: tuple[Any, Any], trained: nn.Module, seed: int, data: train.Dataset) -> float:
    score, retrain = arm

    def again(model: nn.Module, stage: P.Stage) -> float:
        options = replace(OPTIONS, seed=seed + 1000 * stage.number)
        if stage.first_step is None:  # on at the rate with which training ends
            options = replace(options, lr=OPTIONS.rate(OPTIONS.epochs - 1, 1.0), schedule="constant")
        train.fit(model, data.train, options)
        return train.evaluate(model, data.test).accuracy

    amount = 1.0 - (1.0 - REMOVED) ** ROUNDS
    found = P.rounds(
        lenet(seed), train=again, score=score, amount=amount, rounds=ROUNDS, retrain=retrain, keep=[OUTPUT],
        dense=trained, seed=seed,
    )  # fmt: skip
    return float([one.result for one in found][-1])


def _at_start(score: Any, seed: int, data: train.Dataset) -> tuple[float, bool]:
    model = lenet(seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        chosen = P.masks(model, score=score, amount=1.0 - KEPT_AT_START, data=_few(data), keep=[OUTPUT])
    with P.Sparsifier(model, chosen):
        train.fit(model, data.train, replace(OPTIONS, seed=seed))
    collapsed = any(issubclass(one.category, LayerCollapseWarning) for one in caught)
    return train.evaluate(model, data.test).accuracy, collapsed


def _few(data: train.Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Ten times as many samples as classes for each class, as SNIP takes."""
    return data.train_x[:1000], data.train_y[:1000]


def report(out: Path) -> int:
    """The table; 1 where a gate fails."""
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    failed = [gate for gate in GATES if not _mean(lines, *gate[:2]) > _mean(lines, gate[0], gate[2])]
    text = ["# Sparsity: retraining, and scores at initialisation", "", *_header(lines), "", *_table(lines), ""]
    text += ["Gates, by means over seeds:", ""]
    text += [
        f"* {kind}: {better} above {worse}: {_difference(lines, kind, better, worse)}" for kind, better, worse in GATES
    ]
    DOCS.mkdir(exist_ok=True)
    write_atomically(DOCS / "sparsity.md", ("\n".join(text) + "\n").encode())
    for kind, better, worse in failed:
        print(f"{kind}: {better} is not above {worse}", file=sys.stderr)
    return 1 if failed else 0


def _header(lines: Sequence[dict[str, Any]]) -> list[str]:
    dense = _cell([line["accuracy"] for line in lines if line["key"][0] == "dense"])
    return [
        "Generated by `benchmarks/sparsity_gates.py report`. LeNet-300-100 on Fashion-MNIST, SGD (no momentum, batches"
        f" of {OPTIONS.batch_size}), lr {OPTIONS.lr}, a tenth of it from epoch {OPTIONS.step_epochs} of"
        f" {OPTIONS.epochs}; {len(SEEDS)} seeds; dense {dense}. Test accuracy in per cent: mean, half the 95% interval"
        " (Student t).",
        "",
        f"Iterative: {REMOVED:.0%} of the surviving hidden weights go in each of {ROUNDS} rounds,"
        f" {(1 - REMOVED) ** ROUNDS:.1%} are kept; every round trains for {OPTIONS.epochs} epochs, so fine-tuning"
        " sees as many, at the last rate. At initialisation:"
        f" {KEPT_AT_START:.0%} are kept, then {OPTIONS.epochs} epochs. The output layer stays whole.",
    ]


def _table(lines: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "| | | accuracy | |"
    yield "|---|---|---:|---|"
    for kind, name in [*product(["iterative"], ITERATIVE), *product(["at initialisation"], AT_START)]:
        found = [line for line in lines if line["key"][:2] == [kind, name]]
        if found:
            collapsed = sum(line["collapsed"] for line in found)
            note = f"a layer collapsed, with a warning, in {collapsed} of {len(found)}" if collapsed else ""
            yield f"| {kind} | {name} | {_cell([line['accuracy'] for line in found])} | {note} |"


def _mean(lines: Sequence[dict[str, Any]], kind: str, name: str) -> float:
    found = [line["accuracy"] for line in lines if line["key"][:2] == [kind, name]]
    return math.fsum(found) / len(found) if found else math.nan


def _difference(lines: Sequence[dict[str, Any]], kind: str, better: str, worse: str) -> str:
    by_seed = {
        name: {line["key"][2]: line["accuracy"] for line in lines if line["key"][:2] == [kind, name]}
        for name in (better, worse)
    }
    seeds = sorted(by_seed[better].keys() & by_seed[worse].keys())
    return _cell([by_seed[better][seed] - by_seed[worse][seed] for seed in seeds]) if seeds else "not run"


def _cell(values: Sequence[float]) -> str:
    found = mean_interval([100 * value for value in values])
    return f"{found.mean:.1f}" if math.isnan(found.low) else f"{found.mean:.1f} ± {found.half_width:.1f}"


def main() -> int:
    """Run or report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("run", "report"))
    parser.add_argument("out", type=Path)
    chosen = parser.parse_args()
    if chosen.command == "run":
        run(chosen.out)
        return 0
    return report(chosen.out)


if __name__ == "__main__":
    sys.exit(main())
