"""Absolute weights, plain or around the mean of their layer: the smallest go first."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..network import Network


@dataclass(frozen=True)
class Magnitude:
    """``|w|``, within a layer or over all of them.

    Source: Han et al., "Learning both Weights and Connections for Efficient Neural Networks" (2015); by
    :class:`~simkit.pruning.Threshold` it takes what lies below a number, else an exact share.
    """

    def weights(self, network: Network) -> dict[str, Tensor]:
        """The absolute weights."""
        return {name: weight.detach().abs() for name, weight in network.weights.items()}


@dataclass(frozen=True)
class Distribution:
    """``|w - μ|``, the distance to the mean of the layer's surviving weights: those near it go first.

    Args:
        standardize: divide by the standard deviation of these weights, so that a threshold counts deviations and
            layers compare by their own spread.

    Raises:
        ValueError: a layer whose surviving weights are all equal, if standardised.
    """

    standardize: bool = False

    def weights(self, network: Network) -> dict[str, Tensor]:
        """The distances, in float64."""
        found: dict[str, Tensor] = {}
        for name, weight in network.weights.items():
            values = weight.detach().double()
            alive = values[network.masks[name]]
            found[name] = (values - alive.mean()).abs() if alive.numel() else values.abs()
            if self.standardize and alive.numel():
                spread = alive.std(correction=0)
                if not spread > 0:
                    raise ValueError(f"the {alive.numel()} weights of {name!r} are all equal: they have no spread")
                found[name] = found[name] / spread
        return found
