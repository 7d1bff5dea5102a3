"""Second-order change of the loss by the Fisher information when a unit is removed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from ..network import Network
from .supervision import Loss, supervised
from .taylor import check_cost, layers_of
from .unit_gradients import multiply_adds, unit_products


@dataclass(frozen=True)
class Fisher:
    """``Δ_k = 1/(2N) Σ_n g_nk²`` with ``g_nk = -Σ_ij a_nkij · ∂L_n/∂a_nkij`` of a unit's output a.

    The model runs in eval mode, as the gradient of every sample's own loss is wanted.

    Args:
        loss: of (outputs, targets), a mean over the samples.
        cost: β, subtracts so much for every million multiply-adds that the unit takes for a sample.

    Source: Theis et al., "Faster gaze prediction with dense networks and Fisher pruning" (2018).
    """

    loss: Loss = field(default=functional.cross_entropy, repr=False)
    cost: float = 0.0
    unitwise: ClassVar[bool] = True
    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_cost(self.cost)

    def weights(self, network: Network) -> dict[str, Tensor]:
        """One score per unit ``[units]``, in float64; ValueError for missing data."""
        layers = layers_of(network)
        sums: dict[str, Tensor] = {}
        costs: dict[str, float] = {}
        samples: dict[str, int] = dict.fromkeys(layers, 0)
        for found in unit_products(network.model, layers, self.loss, supervised(network, "Fisher()")):
            for layer, here in found.items():
                part = here.products.square().sum(dim=0)
                sums[layer] = sums[layer] + part if layer in sums else part
                costs[layer] = self.cost * multiply_adds(network.weights[layers[layer]], len(part), here.positions)
                samples[layer] += len(here.products)
        return {name: sums[layer] / (2 * samples[layer]) - costs[layer] for layer, name in layers.items()}
