"""Gradients of a loss over (inputs, targets): what the data-driven criteria have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..network import Network

Loss: TypeAlias = Callable[[Any, Any], Tensor]
"""Of (outputs, targets), a mean over the samples."""


def supervised(network: Network, who: str, *, first: bool = False) -> Iterator[tuple[Any, Any, int]]:
    """Batches of the network's data on its device: inputs, targets, number of samples.

    Raises:
        ValueError: no data, or no samples. TypeError: data that is no (inputs, targets), nor batches of them.
    """
    if network.data is None:
        raise ValueError(f"{who} needs data=: (inputs, targets) tensors, or batches of them")
    device = next((parameter.device for parameter in network.model.parameters()), torch.device("cpu"))
    seen = 0
    for batch in _batches(network.data, who):
        inputs, targets = batch[0].to(device), batch[1].to(device)
        seen += len(inputs)
        if len(inputs):
            yield inputs, targets, len(inputs)
        if first and seen:
            return
    if seen == 0:
        raise ValueError(f"{who} needs samples, but data= has none")


def first_inputs(data: object, who: str) -> Tensor:
    """The first batch of inputs, of data with or without targets."""
    if isinstance(data, Tensor):
        return data
    return next(iter(_batches(data, who)))[0]


def gradients(
    model: nn.Module,
    weights: Sequence[Tensor],
    loss: Loss,
    batches: Iterable[tuple[Any, Any, int]],
    *,
    differentiable: bool = False,
) -> list[Tensor]:
    """The gradient of the mean loss over all samples, for every weight; zero where the loss does not depend on it."""
    parts = list(batches)
    total = sum(count for _, _, count in parts)
    sums = [torch.zeros_like(weight) for weight in weights]
    for inputs, targets, count in parts:
        value = loss_of(loss, model(inputs), targets)
        found = torch.autograd.grad(
            value * (count / total), weights, create_graph=differentiable, allow_unused=True, materialize_grads=True
        )
        sums = [before + new for before, new in zip(sums, found, strict=True)]
    return sums


def loss_of(loss: Loss, outputs: Any, targets: Any) -> Tensor:
    """The loss; ValueError if it is not one finite number."""
    value = loss(outputs, targets)
    if value.numel() != 1:
        raise ValueError(f"loss must be a mean over the samples, not of shape {tuple(value.shape)}")
    if not math.isfinite(float(value.detach())):
        raise ValueError(f"the loss is {float(value.detach())}")
    return value


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; each module's own mode is put back."""
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, flag in before.items():
            module.training = flag


def tracked(network: Network) -> list[nn.Parameter]:
    """The weights to score, all requiring gradients: the copy's, whatever the caller has frozen."""
    weights = list(network.weights.values())
    for weight in weights:
        weight.requires_grad_(True)
    return weights


def _batches(data: object, who: str) -> Iterator[tuple[Tensor, Tensor]]:
    if isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        if len(data[0]) != len(data[1]):
            raise ValueError(f"data has {len(data[0])} inputs and {len(data[1])} targets")
        yield data[0], data[1]
        return
    if not isinstance(data, Iterable) or isinstance(data, Tensor):
        raise TypeError(f"{who} needs data= of (inputs, targets), not {type(data).__name__}")
    if isinstance(data, Iterator):  # every step, and every pass, must see the same batches
        raise TypeError(
            f"data= must be iterable again and again, as a list or a DataLoader is, not {type(data).__name__}"
        )
    for batch in data:
        if not isinstance(batch, (tuple, list)) or len(batch) < 2 or not all(isinstance(p, Tensor) for p in batch[:2]):
            raise TypeError(f"data must yield (inputs, targets) tensors, not {type(batch).__name__}")
        yield batch[0], batch[1]
