"""Optimal brain damage: the loss that zeroing a weight costs to second order, by the Hessian's diagonal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from ....kernels import as_integer
from ..network import Network
from .curvature import LARGEST, flat, gauss_newton_rows, hessian_rows, hutchinson_diagonal, require_small
from .supervision import Loss, supervised, tracked

Diagonal = Literal["gauss-newton", "exact", "hutchinson"]


@dataclass(frozen=True)
class OBD:
    """``h_kk·w_k²/2`` with h the Hessian of the mean loss over ``data``, of which all but the diagonal is left out.

    At a minimum the gradient is 0, so this is what removing one weight adds to the loss, up to third order.

    Args:
        loss: of (outputs, targets), a mean over the samples. The model runs in the mode it is in.
        diagonal: ``"gauss-newton"`` leaves out second derivatives of the network, as the source recommends (never
            negative; one backward pass for each sample and output); ``"exact"`` is the whole Hessian's (one backward
            pass for each weight); ``"hutchinson"`` estimates that (one for each of ``samples``, however many weights).
        samples: random vectors of the estimate.
        seed: of these vectors.

    Source: LeCun et al., "Optimal Brain Damage" (1990).
    """

    loss: Loss = field(default=functional.cross_entropy, repr=False)
    diagonal: Diagonal = "gauss-newton"
    samples: int = 32
    seed: int = 0
    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.diagonal not in get_args(Diagonal):
            raise ValueError(f"diagonal must be one of {', '.join(get_args(Diagonal))}, not {self.diagonal!r}")
        for option, least in (("samples", 1), ("seed", 0)):
            value = as_integer(getattr(self, option))
            if value is None or value < least:
                raise ValueError(f"{option} must be an integer of at least {least}, not {getattr(self, option)!r}")

    def weights(self, network: Network) -> dict[str, Tensor]:
        """The saliencies, in float64; ValueError for missing data, or too many weights for an exact Hessian."""
        weights = tracked(network)
        batches = list(supervised(network, "OBD()"))
        if self.diagonal == "hutchinson":
            found = hutchinson_diagonal(network.model, weights, self.loss, batches, self.samples, self.seed)
        elif self.diagonal == "exact":
            require_small(weights, LARGEST, "an exact Hessian")
            rows = hessian_rows(network.model, weights, self.loss, batches)
            found = torch.stack([row[place] for place, row in enumerate(rows)])
        else:
            found = torch.zeros(sum(weight.numel() for weight in weights), dtype=torch.float64)
            for row, factor in gauss_newton_rows(network.model, weights, self.loss, batches):
                found = found.to(row.device) + factor * row.square()
        saliency = found * flat(weights).square() / 2
        parts = torch.split(saliency, [weight.numel() for weight in weights])
        return {
            name: part.reshape(weight.shape) for name, weight, part in zip(network.names, weights, parts, strict=True)
        }
