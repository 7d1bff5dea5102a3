"""Masking single weights in rounds, by :func:`simkit.pruning.rounds`, which also goes on after a kill."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import pruning as P
from ..errors import first_line
from ..graph import quiet_copy
from .arms import rewound_epoch
from .dense_runs import weights_at
from .measured import performance
from .pruned_run import PrunedRun
from .run_directory import REMEDY, Metrics
from .tensor_files import read_tensors, write_tensors
from .workbench import derived_seed

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # every weight works once per output position


def unstructured_run(run: PrunedRun) -> dict[str, Any]:
    """Carry the run out, or the rest of it; its result. Raises what :func:`simkit.pruning.rounds` raises."""
    with run.directory.open() as metrics:
        records = [_record(run, one) for one in _rounds(run, metrics)]
        return run.directory.finish(run.result(records))


def _rounds(run: PrunedRun, metrics: Metrics) -> Any:
    bench, options, arm = run.bench, run.options, run.arm
    epoch = rewound_epoch(bench.config, arm)
    # What the rounds call the model before training is what weights are rewound to.
    initial = weights_at(bench, run.dense, epoch or 0)
    dense = weights_at(bench, run.dense, 0) if options.start == "initial" else run.dense.model
    score = run.score if run.source is None else survival(run.chosen(), unitwise=getattr(run.score, "unitwise", False))
    retrain: Any = P.FineTune() if epoch is None else P.RewindWeights()
    if arm.retrain == "reinit":
        retrain = P.Reinit(derived_seed(run.seed, "reinit"))
    return P.rounds(
        initial,
        dense=dense,
        train=_trainer(run, metrics),
        score=score,
        amount=run.amount,
        rounds=options.rounds,
        schedule=options.schedule,
        scope=options.scope or "global",
        keep=options.keep,
        data=bench.drawn(options.samples),
        checkpoints=run.directory.training / "rounds",
        retrain=retrain,
        seed=run.seed,
    )


def _trainer(run: PrunedRun, metrics: Metrics) -> Callable[[nn.Module, P.Stage], Any]:
    def train(model: nn.Module, stage: P.Stage) -> Any:
        options = run.training(stage.number)
        if options is None:
            return []
        assert stage.folder is not None
        history = run.bench.fit(model, options, stage.folder, metrics, f"round-{stage.number}")
        return [asdict(record) for record in history.epochs]

    return train


def _record(run: PrunedRun, one: P.SparseRound) -> dict[str, Any]:
    masked = sum(int((~mask).sum()) for mask in one.masks.values())
    place = run.directory.checkpoints
    P.save(one.model, place / f"round-{one.number}.safetensors")
    write_tensors(place / f"round-{one.number}.masks.safetensors", one.masks)

    def measure() -> Mapping[str, Any]:
        found = performance(one.model, run.bench)
        saved = saved_macs(one.model, one.masks, run.bench.example)
        return {
            "share": one.amount,
            "kept": one.kept,
            **found,
            "parameters": found["parameters"] - masked,
            "macs": None if found["macs"] is None else found["macs"] - saved,
        }

    return run.measured(one.number, one.model, measure)


@dataclass(frozen=True)
class Survival:
    """A criterion that repeats nested masks: the number of rounds that a weight (or unit) has survived in them.

    The k best after every round are those that its mask kept, where it kept k.
    """

    unitwise: bool
    rounds: Mapping[str, Tensor] = field(repr=False, compare=False)

    def weights(self, network: Any) -> dict[str, Tensor]:
        """The counts of the network's parameters."""
        device = next(network.model.parameters()).device
        missing = [name for name in network.names if name not in self.rounds]
        if missing:
            raise ValueError(f"the masks to repeat hold no {missing[0]!r}")
        found = {name: self.rounds[name].to(device) for name in network.names}
        return {name: count.flatten(1).amax(dim=1) for name, count in found.items()} if self.unitwise else found


def survival(chosen: Mapping[int, Path], *, unitwise: bool) -> Survival:
    """The criterion that repeats the masks of finished rounds; ValueError for a file that is damaged."""
    found: dict[str, Tensor] = {}
    for place in chosen.values():
        file = place.with_suffix(".masks.safetensors")
        try:
            masks = read_tensors(file)
        except ValueError as error:
            raise ValueError(f"{first_line(error)}; {REMEDY}") from error
        found = {name: mask.float() + found.get(name, 0.0) for name, mask in masks.items()}
    return Survival(unitwise, found)


def saved_macs(model: nn.Module, masks: Mapping[str, Tensor], example: Tensor) -> int:
    """Multiply-adds per sample of masked weights of linear layers and convolutions, which hardware might leave out."""
    ready = quiet_copy(model)
    gone = {name: int((~mask).sum()) for name, mask in masks.items()}
    saved = 0

    def count(masked: int) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            nonlocal saved
            assert isinstance(module, WEIGHTED)
            saved += masked * output.numel() // (len(example) * module.weight.shape[0])

        return hook

    for name, module in ready.named_modules():
        weight = f"{name}.weight" if name else "weight"
        if isinstance(module, WEIGHTED) and weight in gone:
            module.register_forward_hook(count(gone[weight]))
    with torch.no_grad():
        ready(example)
    return saved
