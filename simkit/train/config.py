"""How to train, as frozen data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

Optimizer = Literal["sgd", "adam", "adamw"]
Schedule = Literal["constant", "cosine", "step"]


@dataclass(frozen=True)
class TrainOptions:
    """Options of :func:`simkit.train.fit`.

    Args:
        epochs: passes over the data.
        batch_size: samples per step, where the data is a pair of tensors; above 1 a last batch of one sample joins the
            one before it, because BatchNorm cannot train on one sample.
        optimizer: ``"sgd"`` (with ``momentum``), ``"adam"`` or ``"adamw"``.
        lr: learning rate at the start.
        momentum: of SGD only.
        weight_decay: as the optimiser defines it.
        schedule: ``"constant"``; ``"cosine"`` falls to 0 at the end, step by step; ``"step"`` multiplies by
            ``step_factor`` after every ``step_epochs`` epochs.
        clip_norm: largest norm of the whole gradient, or None.
        patience: stop after so many epochs without a lower validation loss, or None.
        seed: of the order of the samples and of dropout.
        device: where to train; None leaves the model where it is.
    """

    epochs: int = 10
    batch_size: int = 128
    optimizer: Optimizer = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Schedule = "constant"
    step_epochs: int = 10
    step_factor: float = 0.1
    clip_norm: float | None = None
    patience: int | None = None
    seed: int = 0
    device: str | None = None

    def __post_init__(self) -> None:
        for name, smallest in (("epochs", 0), ("batch_size", 1), ("step_epochs", 1), ("patience", 1), ("seed", 0)):
            _check_integer(name, getattr(self, name), smallest, optional=name == "patience")
        if self.optimizer not in get_args(Optimizer):
            raise ValueError(f"optimizer must be one of {', '.join(get_args(Optimizer))}, not {self.optimizer!r}")
        if self.schedule not in get_args(Schedule):
            raise ValueError(f"schedule must be one of {', '.join(get_args(Schedule))}, not {self.schedule!r}")
        for name in ("lr", "step_factor", "clip_norm"):
            _check_number(name, getattr(self, name), positive=True, optional=name == "clip_norm")
        for name in ("momentum", "weight_decay"):
            _check_number(name, getattr(self, name), positive=False)

    def rate(self, epoch: int, fraction: float) -> float:
        """The learning rate when ``fraction`` (0 to 1) of epoch ``epoch`` (0 is the first) is done."""
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1.0 + math.cos(math.pi * (epoch + fraction) / self.epochs))
        if self.schedule == "step":
            return self.lr * self.step_factor ** (epoch // self.step_epochs)
        return self.lr


def _check_integer(name: str, value: object, smallest: int, *, optional: bool = False) -> None:
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
        raise ValueError(f"{name} must be an integer of at least {smallest}, not {value!r}")


def _check_number(name: str, value: object, *, positive: bool, optional: bool = False) -> None:
    if optional and value is None:
        return
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    if not math.isfinite(number) or number < 0 or (positive and number == 0):
        raise ValueError(f"{name} must be a {'positive' if positive else 'non-negative'} number, not {value!r}")
