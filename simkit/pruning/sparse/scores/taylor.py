"""First-order change of the loss when a unit is removed: units that change it least go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ...scores.ranking import FloatArray, Ranking, Scope, Subject, ascending, require_finite
from ..network import Network
from .producers import by_group
from .supervision import Loss
from .unit_gradients import check_cost, unit_means


@dataclass(frozen=True)
class Taylor:
    """``|mean over positions of a·∂L/∂a|`` of a unit's output a, averaged over samples, over its layer's L2 norm.

    Outputs are those of the layer itself: for ReLU-like activations the product is the same behind them. Where several
    layers compute a unit, their products add up before the absolute value. As a criterion of
    :func:`~simkit.pruning.plan` it ranks channel groups, as one of :func:`~simkit.pruning.masks` the units of each
    weight. Both run the model in eval mode.

    Args:
        loss: of (outputs, targets), a mean over the samples.
        cost: λ, subtracts so much for every million multiply-adds that the unit takes for a sample (for weights only:
            a plan has budgets).

    Source: Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference" (2017).
    """

    loss: Loss = field(default=functional.cross_entropy, repr=False)
    cost: float = 0.0
    unitwise: ClassVar[bool] = True
    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_cost(self.cost)

    @property
    def name(self) -> str:
        """The criterion with its options, as the plan reports it."""
        return repr(self)

    @property
    def scopes(self) -> tuple[Scope, ...]:
        """Both: scores are normalised within layers."""
        return "layer", "global"

    def weights(self, network: Network) -> dict[str, Tensor]:
        """One score per unit ``[units]``, in float64; ValueError for missing data."""
        means = unit_means(network, self.loss, "Taylor()", lambda found: (found.products / found.positions).abs())
        return {name: _normalised(mean.values) - self.cost * mean.cost for name, mean in means.items()}

    def rank(self, subject: Subject, counts: Mapping[str, int]) -> dict[str, Ranking]:
        """All units of the counted groups, smallest change first; ValueError for missing data."""
        if self.cost:
            raise ValueError(f"cost={self.cost} is for weights: give a plan a budget")
        sums: dict[str, FloatArray] = {}
        for found in by_group(subject, counts, self.loss, "Taylor()"):
            for name, products in found.items():
                sums[name] = sums.get(name, 0.0) + np.abs(products).sum(axis=0)
        groups = {group.name: group for group in subject.groups}
        for name, values in sums.items():
            require_finite(groups[name], values)
        return {name: ascending(_normalised(torch.from_numpy(values)).numpy()) for name, values in sums.items()}


def _normalised(values: Tensor) -> Tensor:
    length = float(values.norm())
    return values / length if length > 0.0 else values
