"""The true change of the loss when a weight or a unit is removed: what every criterion estimates."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..network import Network, unit_dim
from .supervision import Loss, eval_mode, loss_of, supervised


@dataclass(frozen=True)
class Oracle:
    """``|L(without it) - L|`` of the mean loss over ``data``, by removing each on its own; one pass over the data each.

    Args:
        loss: of (outputs, targets), a mean over the samples. The model runs in eval mode.
        units: remove whole units with their biases, as the source does; else single weights.
        absolute: else the signed change, by which what harms goes first.

    Source: Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference" (2017).
    """

    loss: Loss = field(default=functional.cross_entropy, repr=False)
    units: bool = True
    absolute: bool = True
    needs_data: ClassVar[bool] = True

    @property
    def unitwise(self) -> bool:
        """Whether there is a score for each unit."""
        return self.units

    def weights(self, network: Network) -> dict[str, Tensor]:
        """The changes, in float64; ValueError for missing data."""
        batches = list(supervised(network, "Oracle()"))
        found: dict[str, Tensor] = {}
        with eval_mode(network.model), torch.no_grad():
            base = self._mean_loss(network.model, batches)
            for name in network.names:
                changes = [self._mean_loss(network.model, batches) - base for _ in _removals(network, name, self.units)]
                shape = (-1,) if self.units else network.weights[name].shape
                found[name] = torch.tensor(changes, dtype=torch.float64).reshape(shape)
        return {name: changes.abs() for name, changes in found.items()} if self.absolute else found

    def _mean_loss(self, model: nn.Module, batches: list[tuple[Tensor, Tensor, int]]) -> float:
        total = sum(count for _, _, count in batches)
        return sum(
            float(loss_of(self.loss, model(inputs), targets).double()) * count / total
            for inputs, targets, count in batches
        )


def _removals(network: Network, name: str, units: bool) -> Iterator[None]:
    """Zero one weight, or one unit's weights and bias, after another; each is put back before the next."""
    weight = network.weights[name]
    parts: list[Tensor] = [weight.movedim(unit_dim(network.model, name), 0) if units else weight]
    bias = dict(network.model.named_parameters()).get(".".join([*name.split(".")[:-1], "bias"]))
    if units and bias is not None and len(bias) == len(parts[0]):
        parts.append(bias)
    for place in itertools.product(*map(range, parts[0].shape[:1] if units else weight.shape)):
        held = [part[place].clone() for part in parts]
        for part in parts:
            part[place] = 0.0
        yield
        for part, value in zip(parts, held, strict=True):
            part[place] = value
