"""What a criterion for weights must answer."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from ..network import Masks, Network


@runtime_checkable
class WeightScore(Protocol):
    """A criterion: how much each weight is worth.

    Optional attributes: ``unitwise`` (True: one score for each output unit ``[units]``, whose weights and bias go
    together), ``iterations`` (the mask is reached in so many steps, each scored again, the kept share falling
    geometrically), ``needs_data`` (True: it cannot do without), ``revise`` (:class:`Reviser`), ``update``
    (:class:`Updater`).
    """

    def weights(self, network: Network) -> dict[str, Tensor]:
        """A finite score for every weight of every mask's parameter, in its shape; the lowest go first."""


@runtime_checkable
class Reviser(Protocol):
    """A criterion that exchanges the mask which its scores give for another one of the same counts."""

    def revise(self, masks: Masks, previous: Masks) -> Masks:
        """The mask to take; a subset of ``previous``."""


@runtime_checkable
class Updater(Protocol):
    """A criterion that also says how the weights that stay make up for those that go."""

    def update(self, network: Network, masks: Masks) -> dict[str, Tensor]:
        """New values of the scored weights, of a network masked as before, under new ``masks``."""
