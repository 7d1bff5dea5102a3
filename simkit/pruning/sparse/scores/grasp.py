"""Gradient signal preservation: weights whose removal would lower the norm of the gradient stay."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from ....graph import preserved_rng
from ....graph.preserve import own_copy
from ....kernels import as_number
from ..network import Network
from .supervision import Loss, gradients, supervised, tracked

_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class GraSP:
    """``θ ⊙ Hg``, g the gradient of the mean loss over ``data`` and H its Hessian; the lowest go.

    Removing a weight changes ``gᵀg / 2`` by ``-θ·(Hg)`` to first order, so the low ones are those without which the
    gradient grows, or falls least. Weights that are gone have no gradient. A model in half precision is scored in
    float32.

    Args:
        loss: of (outputs, targets), a mean over the samples. The model runs in the mode it is in.
        temperature: what outputs are divided by.

    Source: Wang et al., "Picking Winning Tickets Before Training by Preserving Gradient Flow" (2020), with T = 200.
    """

    loss: Loss = field(default=functional.cross_entropy, repr=False)
    temperature: float = 200.0
    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0.0 < as_number(self.temperature) < math.inf:
            raise ValueError(f"temperature must be a positive number, not {self.temperature!r}")

    def weights(self, network: Network) -> dict[str, Tensor]:
        """The products, in float64; ValueError for missing data."""
        batches = list(supervised(network, "GraSP()"))
        if any(parameter.dtype in _HALF for parameter in network.model.parameters()):
            network = replace(network, model=own_copy(network.model).float())
            batches = [(_single(inputs), _single(targets), count) for inputs, targets, count in batches]
        weights = tracked(network)
        with preserved_rng():  # dropout must draw the same again
            slopes = gradients(network.model, weights, self._loss, batches)
        fixed = [slope * network.masks[name] for name, slope in zip(network.names, slopes, strict=True)]
        total = sum(count for _, _, count in batches)
        products = [torch.zeros_like(weight) for weight in weights]
        for inputs, targets, count in batches:  # one graph at a time
            here = gradients(network.model, weights, self._loss, [(inputs, targets, count)], differentiable=True)
            terms = ((slope * held).sum() for slope, held in zip(here, fixed, strict=True))
            inner = sum((term.to(weights[0].device) for term in terms), weights[0].new_zeros(()))
            if inner.requires_grad:
                found = torch.autograd.grad(inner * (count / total), weights, allow_unused=True, materialize_grads=True)
                products = [before + new for before, new in zip(products, found, strict=True)]
        return {
            name: weight.detach().double() * product.double()
            for name, weight, product in zip(network.names, weights, products, strict=True)
        }

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.loss(outputs / self.temperature, targets)


def _single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in _HALF else tensor
