"""The optimiser that the options name, and one step of it."""

from __future__ import annotations

import torch
from torch import nn

from .config import TrainOptions


def make_optimizer(model: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    """The optimiser that the options name, over all parameters that require gradients; ValueError if there are none."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError(f"{type(model).__name__} has no parameter that requires gradients")
    if options.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=options.lr,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
            nesterov=options.nesterov,
        )
    kind = torch.optim.Adam if options.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=options.lr, weight_decay=options.weight_decay)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """One learning rate for all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None, clip_norm: float | None
) -> None:
    """One step along the gradients that are there, clipped; a scaled one is left out where gradients overflowed."""
    if scaler is not None and clip_norm is not None:
        scaler.unscale_(optimizer)
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
