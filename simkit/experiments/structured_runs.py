"""Cutting units in rounds: plan, apply, train again, measure; a run that was killed goes on where it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from .. import pruning as P
from ..errors import NothingPruned, first_line
from ..files import write_atomically
from ..graph import ChannelGraph
from ..pruning.plan import kept_layers
from ..pruning.rounds import amounts_of_round
from ..pruning.sparse.retrain import reinitialised
from ..train import evaluate
from .arms import rewound_epoch
from .dense_runs import weights_at
from .measured import performance
from .methods import SUPERVISED
from .pruned_run import PrunedRun
from .run_directory import REMEDY, Metrics
from .workbench import derived_seed

COMPENSATIONS = {"none": None, "merge": P.Merge(), "least-squares": P.LeastSquares()}


def structured_run(run: PrunedRun) -> dict[str, Any]:
    """Carry the run out, or the rest of it; its result.

    Raises:
        NothingPruned: the amount is less than a unit of any layer. ValueError: as :func:`simkit.pruning.plan`.
    """
    with run.directory.open() as metrics:
        rounds = _Rounds(run, metrics)
        for number, share in enumerate(P.shares(run.amount, run.options.rounds, run.options.schedule), 1):
            rounds.next(number, share)
        if not rounds.records:
            raise NothingPruned(f"amount {run.amount} removes not one unit of any layer")
        return run.directory.finish(run.result(rounds.records))


class _Rounds:
    """The network as the rounds so far have left it."""

    def __init__(self, run: PrunedRun, metrics: Metrics) -> None:
        self.run = run
        self.metrics = metrics
        self.records: list[dict[str, Any]] = []
        self.chosen = None if run.source is None else run.chosen()
        initial = run.options.start == "initial"
        self.current = weights_at(run.bench, run.dense, 0) if initial else run.dense.model
        graph = P.trace(self.current, run.bench.example)
        kept = kept_layers(graph, run.options.keep)
        self.before = {group.name: group.units for group in graph.prunable if group.name not in kept}
        self.rewound: nn.Module | None = None
        epoch = rewound_epoch(run.bench.config, run.arm)
        if epoch is not None:
            self.rewound = weights_at(run.bench, run.dense, epoch)

    def next(self, number: int, share: float) -> None:
        """Cut, train, measure; or read what a finished round has left."""
        run, place = self.run, self.run.directory.checkpoints
        plan = self._plan(number, share)
        if plan is None:
            return  # so small a step takes no whole unit
        if self.rewound is not None:
            self.rewound = P.apply(self.rewound, _without_repairs(plan), run.bench.example, verify=False)
        trained = place / f"round-{number}.safetensors"
        if (run.directory.training / f"round-{number}.json").is_file():
            self.current = P.load(trained, lambda: run.bench.network(run.seed))
            self.records.append(run.measured(number, self.current, dict))
            return
        cut = P.apply(self.current, plan, run.bench.example)
        accuracy = evaluate(cut, run.bench.data.test).accuracy
        self._train(number, cut)
        P.save(cut, trained)
        self.current = cut
        units = {layer.name: layer.units - len(layer.removed) for layer in plan.layers}
        sizes = {layer.name: layer.units for layer in plan.frozen if layer.name in self.before}
        self.records.append(
            run.measured(
                number,
                cut,
                lambda: {
                    "share": share,
                    "accuracy_before_training": accuracy,
                    **performance(cut, run.bench),
                    "units": {name: {**units, **sizes}[name] for name in self.before},
                },
            )
        )

    def _amount(self, graph: ChannelGraph, share: float) -> Any:
        """What the plan is asked for: shares by layer, or one of all units, of those that are left."""
        if self._scope() == "layer":
            return amounts_of_round(graph, share, self.before)
        total = sum(self.before.values())
        left = sum(group.units for group in graph.prunable if group.name in self.before)
        more = round(share * total) - (total - left)
        return more / left if more > 0 else 0.0

    def _scope(self) -> Any:
        scopes = self.run.score.scopes
        return self.run.options.scope or ("layer" if "layer" in scopes else scopes[0])

    def _plan(self, number: int, share: float) -> P.PruningPlan | None:
        """The plan of the round: the source's, or as it was made if it was made before."""
        run = self.run
        if self.chosen is not None:
            there = self.chosen.get(number)
            return None if there is None else _without_repairs(_read_plan(there.with_suffix(".plan.json")))
        amount = self._amount(P.trace(self.current, run.bench.example), share)
        if not amount:
            return None
        file: Path = run.directory.checkpoints / f"round-{number}.plan.json"
        if file.is_file():
            return _read_plan(file)
        inputs, labels = run.bench.drawn(run.options.samples)
        made = P.plan(
            self.current,
            run.bench.example,
            data=(inputs, labels) if run.arm.method in SUPERVISED else inputs,
            score=run.score,
            amount=amount,
            scope=self._scope(),
            keep=run.options.keep,
        )
        method = COMPENSATIONS[run.arm.compensate]
        if method is not None:
            made = P.compensated(self.current, made, run.bench.example, method, data=inputs)
        write_atomically(file, made.to_json().encode())
        return made

    def _train(self, number: int, model: nn.Module) -> None:
        """Put the weights where the arm wants them, and train."""
        run = self.run
        options = run.training(number)
        if run.arm.retrain == "reinit":
            model.load_state_dict(reinitialised(model, derived_seed(run.seed, "reinit", number)))
        elif self.rewound is not None:
            model.load_state_dict(self.rewound.state_dict())
        if options is not None:
            stage = f"round-{number}"
            run.bench.fit(model, options, run.directory.training / stage, self.metrics, stage)


def _read_plan(file: Path) -> P.PruningPlan:
    try:
        return P.PruningPlan.from_json(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{str(file)!r} is damaged: {first_line(error)}; {REMEDY}") from error


def _without_repairs(plan: P.PruningPlan) -> P.PruningPlan:
    """Weights of an earlier time are cut as they were."""
    return replace(plan, layers=tuple(replace(layer, repairs=()) for layer in plan.layers))
