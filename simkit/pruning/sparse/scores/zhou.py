"""Criteria that compare a weight after training with itself before, and what then becomes of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ....graph.preserve import own_copy
from ....kernels import as_number
from ..invariants import checked_masks
from ..network import Network

Criterion = Literal[
    "large_final", "small_final", "large_init", "small_init", "large_init_large_final", "small_init_small_final",
    "magnitude_increase", "movement", "large_final_same_sign", "large_final_diff_sign",
]  # fmt: skip
Kept = Literal["init", "constant"]
Pruned = Literal["zero", "init", "toward-zero"]

_FORMULAS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "large_final": lambda first, last, scale: last.abs(),
    "small_final": lambda first, last, scale: -last.abs(),
    "large_init": lambda first, last, scale: first.abs(),
    "small_init": lambda first, last, scale: -first.abs(),
    "large_init_large_final": lambda first, last, scale: torch.minimum(scale * last.abs(), first.abs()),
    "small_init_small_final": lambda first, last, scale: -torch.maximum(scale * last.abs(), first.abs()),
    "magnitude_increase": lambda first, last, scale: last.abs() - scale * first.abs(),
    "movement": lambda first, last, scale: (last - first).abs(),
    "large_final_same_sign": lambda first, last, scale: (first.sign() * last).clamp(min=0.0),
    "large_final_diff_sign": lambda first, last, scale: (-first.sign() * last).clamp(min=0.0),
}


@dataclass(frozen=True)
class Zhou:
    """A mask criterion of the initial weight w_i and the final one w_f; it needs ``initial``.

    ``large_final`` |w_f|, ``large_init`` |w_i|, both with ``small_`` for the opposite; ``large_init_large_final``
    min(α|w_f|, |w_i|); ``small_init_small_final`` -max(α|w_f|, |w_i|); ``magnitude_increase`` |w_f| - α|w_i|;
    ``movement`` |w_f - w_i|; ``large_final_same_sign`` max(0, sign(w_i)·w_f); ``large_final_diff_sign``
    max(0, -sign(w_i)·w_f).

    Args:
        criterion: which.
        scale: α.

    Source: Zhou et al., "Deconstructing Lottery Tickets: Zeros, Signs, and the Supermask" (2019).
    """

    criterion: Criterion = "magnitude_increase"
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.criterion not in get_args(Criterion):
            raise ValueError(f"criterion must be one of {', '.join(get_args(Criterion))}, not {self.criterion!r}")
        if not 0.0 < as_number(self.scale) < math.inf:
            raise ValueError(f"scale must be a positive number, not {self.scale!r}")

    def weights(self, network: Network) -> dict[str, Tensor]:
        """The scores, in float64; ValueError where the initial weights are missing or do not fit."""
        formula = _FORMULAS[self.criterion]
        return {
            name: formula(_other(network.initial, name, weight), weight.detach().double(), self.scale)
            for name, weight in network.weights.items()
        }


def supermask(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    *,
    kept: Kept = "constant",
    pruned: Pruned = "zero",
    final: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """A copy of an untrained model under a mask: what the mask alone is worth.

    Args:
        model: at initialisation; it is not changed.
        masks: parameter name -> bool tensor.
        kept: the mask-1 action: ``"constant"`` sets a weight to its sign times the standard deviation of its layer's
            initial weights, ``"init"`` leaves it.
        pruned: the mask-0 action: ``"zero"``; ``"init"`` leaves it; ``"toward-zero"`` sets to 0 what training
            had made smaller in size, and leaves the rest, which needs ``final``.
        final: parameter name -> value after training.

    Source: Zhou et al. (2019), sections 3 to 5.
    """
    if kept not in get_args(Kept):
        raise ValueError(f"kept must be one of {', '.join(get_args(Kept))}, not {kept!r}")
    if pruned not in get_args(Pruned):
        raise ValueError(f"pruned must be one of {', '.join(get_args(Pruned))}, not {pruned!r}")
    own = own_copy(model)
    parameters = dict(own.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, mask in checked_masks(parameters, masks).items():
            weight: Tensor = parameters[name]
            stays = weight.sign() * weight.std(correction=0) if kept == "constant" else weight
            goes = weight
            if pruned == "zero":
                goes = torch.zeros_like(weight)
            elif pruned == "toward-zero":
                smaller = _other(final, name, weight).abs() < weight.double().abs()
                goes = torch.where(smaller, torch.zeros_like(weight), weight)
            weight.copy_(torch.where(mask, stays, goes))
    return own


def _other(given: Mapping[str, Tensor] | None, name: str, weight: Tensor) -> Tensor:
    if given is None or name not in given:
        raise ValueError(f"the other value of {name!r} is needed: initial= of the criterion, or final= of supermask")
    if given[name].shape != weight.shape:
        raise ValueError(f"{name!r} has shape {tuple(weight.shape)}, its other value {tuple(given[name].shape)}")
    return given[name].detach().to(weight.device).double()
