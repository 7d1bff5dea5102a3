"""Optimal brain surgeon: what removing a weight costs when the others make up for it, and how they do."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from ....kernels import as_number
from ..network import Masks, Network
from .curvature import LARGEST_MATRIX, flat, gauss_newton_rows, hessian_rows, require_small
from .layer_inputs import input_products
from .supervision import Loss, supervised, tracked

Form = Literal["layer", "full", "exact"]


@dataclass(frozen=True)
class OBS:
    """``w_q² / (2 [H⁻¹]_qq)``; the weights that stay move by ``δw = -w_q/[H⁻¹]_qq · H⁻¹e_q``.

    For several removed weights S the update is the minimum of ``δwᵀHδw`` under ``w_S + δw_S = 0``, which is where
    removing them one after another ends, in any order. :func:`~simkit.pruning.updated` makes it.

    Args:
        loss: of (outputs, targets), a mean over the samples; not used by ``form="layer"``.
        form: ``"layer"``: for every layer by itself ``H = X Xᵀ / n`` of its inputs X, the squared error of its outputs;
            weights are ranked once. ``"full"``: one H for all weights, the Gauss-Newton matrix of the loss, of which
            the source's sum of squared output gradients is the case of squared errors; weights are removed one at a
            time, the inverse renewed after each. ``"exact"``: the same with the whole Hessian. The last two take at
            most 2,048 weights.
        damping: α, added to the diagonal of H; the source takes 1e-8 to 1e-4.

    Source: Hassibi & Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon" (1993); by layers,
    Dong et al., "Learning to Prune Deep Neural Networks via Layer-wise Optimal Brain Surgeon" (2017).
    """

    loss: Loss = field(default=functional.cross_entropy, repr=False)
    form: Form = "layer"
    damping: float = 1e-4
    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.form not in get_args(Form):
            raise ValueError(f"form must be one of {', '.join(get_args(Form))}, not {self.form!r}")
        if not 0.0 < as_number(self.damping) < math.inf:
            raise ValueError(f"damping must be a positive number, not {self.damping!r}")

    def weights(self, network: Network) -> dict[str, Tensor]:
        """The saliencies, in float64: for one matrix of all weights, summed up to where each weight goes.

        ValueError for missing data, too many weights, or a matrix that is not positive; NotImplementedError for a layer
        whose inputs are unknown.
        """
        if self.form != "layer":
            return self._elimination(network)
        found: dict[str, Tensor] = {}
        for name, blocks in input_products(network, "OBS()").items():
            rows = _rows(network.weights[name].detach(), len(blocks))
            alive = _rows(network.masks[name], len(blocks))
            parts = [self._saliency(*args) for args in zip(rows, blocks, alive, strict=True)]
            found[name] = torch.cat(parts).reshape(network.weights[name].shape)
        return found

    def update(self, network: Network, masks: Masks) -> dict[str, Tensor]:
        """The weights under new masks, within those of the network, moved to make up for what goes."""
        if self.form != "layer":
            return self._joint_update(network, masks)
        found: dict[str, Tensor] = {}
        for name, blocks in input_products(network, "OBS()").items():
            weight = network.weights[name].detach()
            rows, before, after = (
                _rows(tensor, len(blocks)) for tensor in (weight, network.masks[name], masks[name].to(weight.device))
            )
            moved = [self._moved(*args) for args in zip(rows, blocks, before, after, strict=True)]
            found[name] = torch.cat(moved).reshape(weight.shape).to(weight.dtype)
        return found

    def _saliency(self, rows: Tensor, products: Tensor, alive: Tensor) -> Tensor:
        """``[units, inputs]``: rows that have lost other inputs have other inverses."""
        found = torch.zeros_like(rows, dtype=torch.float64)
        damped = _damped(products, self.damping)
        for pattern, members in _patterns(alive):
            here = pattern.nonzero().flatten()
            if not len(here):
                continue
            inverse = _inverse(damped[here][:, here])
            block = rows[members][:, here].double()
            found[members[:, None], here] = block.square() / (2 * inverse.diagonal())
        return found

    def _moved(self, rows: Tensor, products: Tensor, before: Tensor, after: Tensor) -> Tensor:
        damped = _damped(products, self.damping)
        moved = torch.zeros_like(rows, dtype=torch.float64)
        for row in range(len(rows)):
            kept, gone = after[row].nonzero().flatten(), (before[row] & ~after[row]).nonzero().flatten()
            moved[row, kept] = _compensated(rows[row].double(), damped, kept, gone)
        return moved

    def _elimination(self, network: Network) -> dict[str, Tensor]:
        weights, matrix, alive = self._joint(network)
        values = flat(weights)
        places = alive.nonzero().flatten()
        order, costs = _eliminate(values[places], _inverse(matrix[places][:, places]))
        scores = torch.zeros_like(values)
        scores[places[order]] = costs.cumsum(0)
        return _unflatten(network, scores)

    def _joint_update(self, network: Network, masks: Masks) -> dict[str, Tensor]:
        weights, matrix, alive = self._joint(network)
        stays = torch.cat([masks[name].to(alive.device).flatten() for name in network.names])
        kept, gone = stays.nonzero().flatten(), (alive & ~stays).nonzero().flatten()
        moved = torch.zeros(len(stays), dtype=torch.float64, device=alive.device)
        moved[kept] = _compensated(flat(weights), matrix, kept, gone)
        found = _unflatten(network, moved)
        return {name: found[name].to(weight.dtype) for name, weight in zip(network.names, weights, strict=True)}

    def _joint(self, network: Network) -> tuple[list[Tensor], Tensor, Tensor]:
        """Weights, their damped matrix ``[p, p]``, and which of them are left ``[p]``."""
        weights: list[Tensor] = list(tracked(network))
        require_small(weights, LARGEST_MATRIX, f"form={self.form!r}")
        batches = list(supervised(network, "OBS()"))
        if self.form == "exact":
            matrix = torch.stack(list(hessian_rows(network.model, weights, self.loss, batches)))
            matrix = (matrix + matrix.T) / 2
        else:
            size = sum(weight.numel() for weight in weights)
            matrix = torch.zeros(size, size, dtype=torch.float64, device=weights[0].device)
            for row, factor in gauss_newton_rows(network.model, weights, self.loss, batches):
                matrix.addr_(row, row, alpha=factor)
        alive = torch.cat([network.masks[name].flatten() for name in network.names])
        return weights, _damped(matrix, self.damping), alive


def _eliminate(values: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """The order ``[p]`` in which weights go, always the one that costs least, and what each then costs ``[p]``."""
    values, inverse = values.clone(), inverse.clone()
    left = torch.ones(len(values), dtype=torch.bool, device=values.device)
    order, costs = [], []
    for _ in range(len(values)):
        diagonal = inverse.diagonal()
        saliency = torch.where(left, values.square() / (2 * diagonal), math.inf)
        chosen = int(saliency.argmin())
        order.append(chosen)
        costs.append(saliency[chosen])
        left[chosen] = False
        column = inverse[:, chosen].clone()
        values -= column * (values[chosen] / column[chosen])
        inverse -= torch.outer(column, column) / column[chosen]
        values[chosen] = 0.0
        inverse[chosen, chosen] = 1.0  # gone: never divided by 0 again
    return torch.tensor(order, device=values.device), torch.stack(costs)


def _compensated(values: Tensor, matrix: Tensor, kept: Tensor, gone: Tensor) -> Tensor:
    """The kept of ``values [p]`` plus ``H_KK⁻¹ H_KS w_S``, the minimum of the quadratic form with w_S gone."""
    if not len(gone) or not len(kept):
        return values[kept]
    pull = matrix[kept][:, gone] @ values[gone]
    return values[kept] + torch.cholesky_solve(pull[:, None], _factor(matrix[kept][:, kept])).flatten()


def _damped(matrix: Tensor, damping: float) -> Tensor:
    return matrix + damping * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)


def _factor(matrix: Tensor) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info):
        raise ValueError(f"OBS needs a positive matrix, but pivot {int(info)} of {len(matrix)} is not: raise damping=")
    found: Tensor = factor
    return found


def _inverse(matrix: Tensor) -> Tensor:
    return torch.cholesky_inverse(_factor(matrix))


def _patterns(alive: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The different rows of a mask ``[units, inputs]``, each with the indices of the rows that are like it."""
    patterns, which = torch.unique(alive, dim=0, return_inverse=True)
    return [(pattern, (which == number).nonzero().flatten()) for number, pattern in enumerate(patterns)]


def _rows(tensor: Tensor, groups: int) -> tuple[Tensor, ...]:
    """A weight or mask as ``[units, inputs]`` for every group of its layer."""
    return torch.chunk(tensor.flatten(1), groups)


def _unflatten(network: Network, values: Tensor) -> dict[str, Tensor]:
    weights = network.weights
    parts = torch.split(values, [weight.numel() for weight in weights.values()])
    return {name: part.reshape(weights[name].shape) for name, part in zip(weights, parts, strict=True)}
