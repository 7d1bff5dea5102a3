"""How to train, as frozen data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

Optimizer = Literal["sgd", "adam", "adamw"]
Schedule = Literal["constant", "cosine", "step"]
Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class TrainOptions:
    """Options of :func:`simkit.train.fit`.

    Args:
        epochs: passes over the data.
        first_epoch: where in the schedule training begins: epochs ``first_epoch`` to ``epochs - 1`` are run, as if
            those before were done (learning-rate rewinding, Renda et al. 2020).
        batch_size: samples per step, where the data is a pair of tensors; above 1 a last batch of one sample joins the
            one before it, because BatchNorm cannot train on one sample.
        optimizer: ``"sgd"`` (with ``momentum``), ``"adam"`` or ``"adamw"``.
        lr: learning rate at the start.
        momentum: of SGD only, below 1.
        nesterov: Nesterov's form of SGD's momentum.
        weight_decay: as the optimiser defines it.
        schedule: ``"constant"``; ``"cosine"`` falls to 0 at the end, step by step; ``"step"`` multiplies by
            ``step_factor`` after every ``step_epochs`` epochs.
        warmup_epochs: over so many first epochs the rate rises in a straight line, step by step, to what the schedule
            says at their end; a cosine falls over the epochs that are left.
        precision: ``"bfloat16"`` or ``"float16"`` run the model under autocast; the weights stay float32, and float16
            scales the loss, leaving out steps whose gradients overflow.
        accumulate: batches whose gradients are averaged into one step.
        clip_norm: largest norm of the whole gradient, or None.
        patience: stop after so many epochs without a lower validation loss, or None. The weights are those of the last
            epoch, not of the best.
        seed: of the order of the samples and of dropout.
        device: where to train; None leaves the model where it is.
    """

    epochs: int = 10
    first_epoch: int = 0
    batch_size: int = 128
    optimizer: Optimizer = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: Schedule = "constant"
    step_epochs: int = 10
    step_factor: float = 0.1
    warmup_epochs: int = 0
    precision: Precision = "float32"
    accumulate: int = 1
    clip_norm: float | None = None
    patience: int | None = None
    seed: int = 0
    device: str | None = None

    def __post_init__(self) -> None:
        for name, smallest in _INTEGERS.items():
            _check_integer(name, getattr(self, name), smallest, optional=name == "patience")
        for name, allowed in (("optimizer", Optimizer), ("schedule", Schedule), ("precision", Precision)):
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(f"{name} must be one of {', '.join(get_args(allowed))}, not {getattr(self, name)!r}")
        for name in ("lr", "step_factor", "clip_norm"):
            _check_number(name, getattr(self, name), positive=True, optional=name == "clip_norm", below=_TOO_LARGE)
        for name in ("momentum", "weight_decay"):
            _check_number(name, getattr(self, name), positive=False, below=1.0 if name == "momentum" else _TOO_LARGE)
        self._check_rise()
        if not isinstance(self.nesterov, bool):
            raise ValueError(f"nesterov must be true or false, not {self.nesterov!r}")
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise ValueError(f"nesterov needs sgd with momentum, not {self.optimizer} with momentum={self.momentum}")
        for name in ("warmup_epochs", "first_epoch"):
            if getattr(self, name) > self.epochs:
                raise ValueError(f"{name} must be at most epochs={self.epochs}, not {getattr(self, name)}")

    def rate(self, epoch: int, fraction: float) -> float:
        """The learning rate when ``fraction`` (0 to 1) of epoch ``epoch`` (0 is the first) is done."""
        done = epoch + fraction
        if done < self.warmup_epochs:
            return self._scheduled(self.warmup_epochs, self.warmup_epochs) * done / self.warmup_epochs
        return self._scheduled(epoch, done)

    def _check_rise(self) -> None:
        steps = max(self.epochs - 1, 0) // self.step_epochs if self.schedule == "step" else 0
        if math.log(self.lr) + steps * math.log(self.step_factor) >= math.log(_TOO_LARGE):
            raise ValueError(f"step_factor={self.step_factor!r} raises lr={self.lr!r} to {_TOO_LARGE:g} and more")

    def _scheduled(self, epoch: int, done: float) -> float:
        if self.schedule == "cosine":
            left = max(self.epochs - self.warmup_epochs, 1)
            return self.lr * 0.5 * (1.0 + math.cos(math.pi * min((done - self.warmup_epochs) / left, 1.0)))
        if self.schedule == "step":
            return self.lr * self.step_factor ** (epoch // self.step_epochs)
        return self.lr


_TOO_LARGE = 1e30  # float32 ends at 3.4e38, where torch raises errors of its own
_MOST = 2**31 - 1  # of what is counted
_INTEGERS = {
    "epochs": 0, "first_epoch": 0, "batch_size": 1, "step_epochs": 1, "warmup_epochs": 0, "accumulate": 1,
    "patience": 1, "seed": 0,
}  # fmt: skip


def _check_integer(name: str, value: object, smallest: int, *, optional: bool = False) -> None:
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
        raise ValueError(f"{name} must be an integer of at least {smallest}, not {value!r}")
    if value > _MOST and name != "seed":
        raise ValueError(f"{name} must be at most {_MOST}, not {value!r}")


def _check_number(name: str, value: object, *, positive: bool, below: float, optional: bool = False) -> None:
    if optional and value is None:
        return
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    if below <= number < math.inf:  # before isfinite, which great integers overflow
        raise ValueError(f"{name} must be below {below:g}, not {value!r}")
    if not math.isfinite(number) or number < 0 or (positive and number == 0):
        raise ValueError(f"{name} must be a {'positive' if positive else 'non-negative'} number, not {value!r}")
