"""The sum of a unit's absolute incoming weights: units below a threshold, or the smallest, go whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..network import Network, unit_dim


@dataclass(frozen=True)
class UnitMagnitude:
    """``Σ_in |w|`` for every output unit of a layer; a unit's weights and bias go together.

    For filters of a convolution this is the L1 norm of Li et al. (2017), which :class:`~simkit.pruning.L1` cuts out.

    Source: Hagiwara, "A simple and effective method for removal of hidden units and weights" (1994).
    """

    unitwise: ClassVar[bool] = True

    def weights(self, network: Network) -> dict[str, Tensor]:
        """One sum per unit ``[units]``, in float64."""
        return unit_sums(network)


def unit_sums(network: Network) -> dict[str, Tensor]:
    """``Σ_in |w|`` of every unit ``[units]``."""
    return {
        name: weight.detach().double().abs().movedim(unit_dim(network.model, name), 0).flatten(1).sum(dim=1)
        for name, weight in network.weights.items()
    }
