"""The random-mask control: as many weights of every layer as a criterion keeps, but any."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...kernels import as_integer
from .invariants import require_different
from .network import Masks, Network
from .scores import Updater, WeightScore
from .scores.magnitude import Magnitude

_MAGNITUDE = Magnitude()


@dataclass(frozen=True)
class Shuffled:
    """Within every layer as many weights as ``score`` would remove, drawn at random from those that are left.

    What such a network reaches is what the layers' densities are worth; what the criterion reaches beyond it is due to
    the weights that it chose. Where the criterion moves the weights that stay, so does the control. A draw that equals
    the criterion's mask is an error (:class:`~simkit.errors.ControlEqualsCriterion`).

    Args:
        score: the criterion that is controlled; it judges the control's own network.
        seed: of the draws, which differ between rounds.
    """

    score: WeightScore = _MAGNITUDE
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.score, type) or not isinstance(self.score, WeightScore):
            raise TypeError(f"score must be a criterion for weights such as Magnitude(), not {self.score!r}")
        if getattr(self.score, "unitwise", False):
            raise NotImplementedError(f"{self.score!r} scores units; Shuffled exchanges single weights")
        seed = as_integer(self.seed)
        if seed is None or seed < 0:
            raise ValueError(f"seed must be an integer of at least 0, not {self.seed!r}")

    @property
    def iterations(self) -> int:
        """Those of the criterion."""
        return int(getattr(self.score, "iterations", 1))

    @property
    def needs_data(self) -> bool:
        """Whether the criterion does."""
        return bool(getattr(self.score, "needs_data", False))

    def weights(self, network: Network) -> dict[str, Tensor]:
        """The criterion's scores."""
        return self.score.weights(network)

    def revise(self, masks: Masks, previous: Masks) -> Masks:
        """Other weights of the same number in every layer; ControlEqualsCriterion if they are the same."""
        drawn = {name: _drawn(mask, previous[name], self.seed, name) for name, mask in masks.items()}
        require_different(drawn, masks)
        return drawn


def updater_of(score: object) -> Updater | None:
    """What moves the weights that stay: the criterion, or that of a control; None if it leaves them alone."""
    if isinstance(score, Shuffled):
        return updater_of(score.score)
    return score if isinstance(score, Updater) and not isinstance(score, type) else None


def _drawn(mask: Tensor, before: Tensor, seed: int, name: str) -> Tensor:
    left = before.flatten().nonzero().flatten().cpu().numpy()
    kept = int(mask.sum())
    chosen = np.random.default_rng([seed, zlib.crc32(name.encode()), kept]).choice(left, size=kept, replace=False)
    flat = torch.zeros(mask.numel(), dtype=torch.bool)
    flat[torch.from_numpy(chosen)] = True
    return flat.reshape(mask.shape).to(mask.device)
