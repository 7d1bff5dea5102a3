"""One pruning run: a method, an amount, a seed; its rounds, and what is measured after each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from .arms import Arm, arm_content, chooser, retraining
from .config import ExperimentConfig, PruneConfig
from .dense_runs import DenseRun, dense_content
from .measured import similarity
from .methods import METHODS
from .run_directory import RunDirectory, identity, read_round, write_round
from .workbench import Workbench

KEPT_OF_DENSE = ("accuracy", "loss", "parameters", "macs", "latency")


@dataclass(frozen=True, eq=False)
class PrunedRun:
    """What the rounds of one run need; ``source`` is the run whose choice of what to remove this one takes."""

    bench: Workbench
    options: PruneConfig
    arm: Arm
    amount: float
    dense: DenseRun
    directory: RunDirectory
    source: RunDirectory | None = None

    @property
    def seed(self) -> int:
        """Of the dense network, and of everything drawn here."""
        return self.dense.seed

    @property
    def score(self) -> Any:
        """The criterion."""
        return METHODS[self.options.kind][self.arm.method](self.seed, self.options.samples)

    def result(self, rounds: list[dict[str, Any]]) -> dict[str, Any]:
        """The content of ``result.json``."""
        source = chooser(self.options, self.arm)
        return {
            "kind": "prune",
            "experiment": experiment_identity(self.bench.config, self.options),
            "title": _title(self.bench.config, self.options),
            "seed": self.seed,
            "arm": self.arm.label,
            "method": self.arm.method,
            "control": self.arm.control,
            "retrain": self.arm.retrain,
            "compensate": self.arm.compensate,
            "chosen_by": None if source is None else source.label,
            "amount": self.amount,
            "dense": {"run": self.dense.directory.name, **{name: self.dense.result[name] for name in KEPT_OF_DENSE}},
            "rounds": rounds,
        }

    def chosen(self) -> dict[int, Path]:
        """Round -> the checkpoints' path, less its ending, of what the source removed; ValueError: it is not done."""
        assert self.source is not None
        done = self.source.result()
        if done is None:
            raise ValueError(f"it takes what the run {self.source.name} removes, which is not done")
        return {one["round"]: self.source.checkpoints / f"round-{one['round']}" for one in done["rounds"]}

    def training(self, number: int) -> Any:
        """The options of a round's training, or None."""
        return retraining(self.bench.config, self.arm, self.seed, number)

    def measured(self, number: int, model: nn.Module, measure: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The record of a round: read where it is there, else measured and written."""
        file = self.directory.training / f"round-{number}.json"
        if file.is_file():
            record = read_round(file)
        else:
            found = similarity(self.dense.model, model, self.bench, self.bench.config.compare)
            record = {"round": number, **measure(), "similarity": found}
            write_round(file, record)
        return record


def pruned_run(bench: Workbench, options: PruneConfig, arm: Arm, amount: float, dense: DenseRun) -> PrunedRun:
    """The run and its directory, which is not made yet."""
    source = chooser(options, arm)
    return PrunedRun(
        bench,
        options,
        arm,
        amount,
        dense,
        _directory(bench, options, arm, amount, dense),
        None if source is None else _directory(bench, options, source, amount, dense),
    )


def _directory(bench: Workbench, options: PruneConfig, arm: Arm, amount: float, dense: DenseRun) -> RunDirectory:
    content = {
        **dense_content(bench.config, dense.seed),
        "kind": "prune",
        "prune": arm_content(options, arm, amount),
        "compare": bench.config.compare.model_dump(),
    }
    return RunDirectory(bench.config.run.out, f"{arm.label}-{amount:g}-s{dense.seed}", content)


def experiment_identity(config: ExperimentConfig, options: PruneConfig) -> str:
    """What runs have in common whose results are put side by side: all but arm, amount and seed."""
    content = dense_content(config, 0)
    shared = options.model_dump(exclude={"methods", "amounts", "retrain", "compensate"})
    return identity({**content, "prune": shared, "compare": config.compare.model_dump()})


def _title(config: ExperimentConfig, options: PruneConfig) -> str:
    rounds = f"{options.rounds} round{'s' * (options.rounds > 1)}"
    return f"{config.model.name} on {config.data.name}, {options.kind} pruning in {rounds}"
