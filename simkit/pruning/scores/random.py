"""Random order: the control every criterion has to beat."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ...kernels import as_integer
from .ranking import Ranking, Scope, Subject, ascending

if TYPE_CHECKING:
    from ..sparse.network import Network


@dataclass(frozen=True)
class Random:
    """A uniform score in [0, 1) for every unit, or weight, from the seed and the layer's name; the lowest go first.

    The same seed gives the same order whatever the amount, so larger amounts remove supersets.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        seed = as_integer(self.seed)
        if seed is None or seed < 0:
            raise ValueError(f"seed must be an integer of at least 0, not {self.seed!r}")
        object.__setattr__(self, "seed", seed)

    @property
    def name(self) -> str:
        """The criterion with its options, as the plan reports it."""
        return repr(self)

    @property
    def scopes(self) -> tuple[Scope, ...]:
        """Both: all scores are drawn from one distribution."""
        return "layer", "global"

    def rank(self, subject: Subject, counts: Mapping[str, int]) -> dict[str, Ranking]:
        """All units of the counted groups in random order."""
        return {
            group.name: ascending(
                np.random.default_rng([self.seed, zlib.crc32(group.name.encode())]).random(group.units)
            )
            for group in subject.groups
            if group.name in counts
        }

    def weights(self, network: Network) -> dict[str, Tensor]:
        """A score for every weight, in float64."""
        return {
            name: torch.from_numpy(np.random.default_rng([self.seed, zlib.crc32(name.encode())]).random(weight.shape))
            for name, weight in network.weights.items()
        }
