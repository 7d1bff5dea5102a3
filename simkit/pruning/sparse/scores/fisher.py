"""Second-order change of the loss by the Fisher information when a unit is removed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from ..network import Network
from .supervision import Loss
from .unit_gradients import check_cost, unit_means


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
        means = unit_means(network, self.loss, "Fisher()", lambda found: found.products.square())
        return {name: mean.values / 2 - self.cost * mean.cost for name, mean in means.items()}
