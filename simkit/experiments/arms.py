"""The arms of a pruning experiment: its methods and the controls they have to beat; how each one trains again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..train import TrainOptions
from .config import Compensate, ExperimentConfig, PruneConfig, Retrain
from .workbench import derived_seed


@dataclass(frozen=True)
class Arm:
    """A method, how it trains again, what makes up for removed units, and whether it is there to be beaten."""

    method: str
    retrain: Retrain = "finetune"
    compensate: Compensate = "none"
    control: bool = False

    @property
    def label(self) -> str:
        """The arm's name in tables and of its runs: the method, and what is not as it usually is."""
        parts = [self.method]
        if self.compensate != "none":
            parts.append(self.compensate)
        if self.retrain != "finetune":
            parts.append(self.retrain)
        return "+".join(parts)


def arms(options: PruneConfig) -> tuple[Arm, ...]:
    """Every method, trained again in every way; a random choice likewise; and the first method with new weights.

    Arms with new weights come last: they take, round by round, what the run that :func:`chooser` names has removed.
    """
    methods = dict.fromkeys((*options.methods, "random"))
    found = [
        Arm(method, retrain, compensate, method == "random")
        for method in methods
        for retrain in options.retrain
        for compensate in options.compensate
    ]
    if "reinit" not in options.retrain:
        found.append(Arm(options.methods[0], "reinit", control=True))
    return tuple(sorted(found, key=lambda arm: arm.retrain == "reinit"))


def chooser(options: PruneConfig, arm: Arm) -> Arm | None:
    """The arm whose masks or plans an arm with new weights takes, the method's first other one; None for other arms.

    Source: Frankle & Carbin 2019, whose control is a ticket's mask over newly drawn weights.
    """
    if arm.retrain != "reinit":
        return None
    return next(one for one in arms(options) if one.method == arm.method and one.retrain != "reinit")


def arm_content(options: PruneConfig, arm: Arm, amount: float) -> dict[str, Any]:
    """All that decides what one arm does with one amount."""
    shared = options.model_dump(exclude={"methods", "amounts", "retrain", "compensate"})
    found = {**shared, "method": arm.method, "amount": amount, "retrain": arm.retrain, "compensate": arm.compensate}
    source = chooser(options, arm)
    return found if source is None else {**found, "chosen_by": [source.retrain, source.compensate]}


def rewound_epoch(config: ExperimentConfig, arm: Arm) -> int | None:
    """The epoch of the dense training whose weights the arm goes back to; None: it keeps those it has."""
    if arm.retrain == "rewind-init":
        return 0
    return _schedule_start(config) if arm.retrain == "rewind-weights" else None


def retraining(config: ExperimentConfig, arm: Arm, seed: int, number: int) -> TrainOptions | None:
    """How the network is trained after the cut of a round; None: not at all."""
    options = config.prune
    if options is None or arm.retrain == "none":
        return None
    base = config.train.training(derived_seed(seed, "round", number), config.run.device)
    if arm.retrain in ("reinit", "rewind-init"):  # untrained weights need the whole training
        return base
    if arm.retrain == "finetune":
        last = config.train.training(seed).rate(max(config.train.epochs - 1, 0), 0.0)
        rate = options.lr or last or config.train.lr
        epochs = options.epochs or config.train.epochs
        return replace(base, epochs=epochs, lr=rate, schedule="constant", warmup_epochs=0)
    return replace(base, first_epoch=_schedule_start(config))


def _schedule_start(config: ExperimentConfig) -> int:
    again = None if config.prune is None else config.prune.epochs
    return config.train.epochs - (again or config.train.epochs)
