"""Connection sensitivity: how much the loss changes to first order as a weight is scaled."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from ....kernels import as_integer
from ..network import Network
from .supervision import Loss, gradients, supervised, tracked


@dataclass(frozen=True)
class GradientMagnitude:
    """``|g·w| / Σ|g·w|`` over all weights, with g the gradient of the mean loss over all of ``data``.

    Args:
        loss: of (outputs, targets), a mean over the samples. The model runs in the mode it is in.
    """

    loss: Loss = field(default=functional.cross_entropy, repr=False)
    needs_data: ClassVar[bool] = True

    def weights(self, network: Network) -> dict[str, Tensor]:
        """The shares, in float64; ValueError for missing data."""
        return _sensitivity(network, self.loss, "GradientMagnitude()", first=False)


@dataclass(frozen=True)
class SNIP:
    """``|g ⊙ w| / Σ|g ⊙ w|`` at initialisation, with g from the first batch of ``data``.

    Args:
        loss: of (outputs, targets), a mean over the samples. The model runs in the mode it is in.
        iterations: steps in which the mask is reached, scored again after each; 1 as published.

    Source: Lee et al., "SNIP: Single-shot Network Pruning based on Connection Sensitivity" (2019).
    """

    loss: Loss = field(default=functional.cross_entropy, repr=False)
    iterations: int = 1
    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_iterations(self.iterations)

    def weights(self, network: Network) -> dict[str, Tensor]:
        """The shares, in float64; ValueError for missing data."""
        return _sensitivity(network, self.loss, "SNIP()", first=True)


def check_iterations(iterations: object) -> None:
    """ValueError unless it is a whole number of at least 1."""
    value = as_integer(iterations)
    if value is None or value < 1:
        raise ValueError(f"iterations must be an integer of at least 1, not {iterations!r}")


def _sensitivity(network: Network, loss: Loss, who: str, *, first: bool) -> dict[str, Tensor]:
    weights = tracked(network)
    slopes = gradients(network.model, weights, loss, supervised(network, who, first=first))
    products = [
        (slope.double() * weight.detach().double()).abs() for slope, weight in zip(slopes, weights, strict=True)
    ]
    total = sum(float(product.sum()) for product in products)
    if not total > 0.0:
        raise ValueError(f"{who} cannot rank weights: the gradient times the weight sums to {total}")
    return {name: product / total for name, product in zip(network.names, products, strict=True)}
