"""Carry out a plan on a copy of the model: mask the units, or cut them out and check that both models agree."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..graph import quiet_copy
from ..graph.preserve import own_copy
from .decisions import LayerPlan, PruningPlan
from .sizes import named_tensors, replace_tensor
from .verify import require_equal

KEPT = "simkit_kept"


def masked(model: nn.Module, plan: PruningPlan) -> nn.Module:
    """A copy of the model, all sizes unchanged, whose removed units are silent.

    Their incoming weights, biases, BatchNorm scales, shifts and running means are zero, so that a removed unit emits 0
    into its activation and feeds a constant (``LayerPlan.response``, mostly 0) to the next layer. Raises ValueError if
    the plan does not fit the model.
    """
    _check_fits(model, plan)
    silent = own_copy(model)
    tensors = named_tensors(silent)
    with torch.no_grad():
        for layer in plan.layers:
            for slot in layer.slots:
                if slot.masked:
                    tensor = tensors[slot.tensor]
                    tensor.index_fill_(slot.dim, slot.indices(layer.removed, tensor.device), 0)
    return silent


def apply(model: nn.Module, plan: PruningPlan, example_inputs: Any, verify: bool = True) -> nn.Module:
    """A new model without the plan's units: smaller tensors, size attributes to match, the input model untouched.

    Mode, dtype, device and requires_grad are those of the model. A constant that masked units would have fed to the
    next layer is added to its bias. Kept units are noted, by their number in the first dense model, in the attribute
    ``simkit_kept`` (layer name -> units), which :func:`save` stores.

    Args:
        model: the model the plan was made for, or one of the same architecture.
        plan: what to remove.
        example_inputs: a tensor, or a tuple of one, that the model runs on.
        verify: run the masked and the cut model on ``example_inputs`` in float64 eval mode, without the model's forward
            hooks, and require equal outputs of every layer concerned, to rounding.

    Raises:
        ValueError: the plan does not fit the model, or the outputs differ (the message names the first module).
    """
    _check_fits(model, plan)
    small = _cut_out(own_copy(model), plan)
    setattr(small, KEPT, _kept_overall(model, plan))
    if verify:
        # Cut in float64 too: a folded constant rounds to the bias's precision otherwise.
        silent, cut = quiet_copy(masked(model, plan)).double(), _cut_out(quiet_copy(model).double(), plan)
        require_equal(silent, cut, plan, example_inputs)
    return small


def _cut_out(small: nn.Module, plan: PruningPlan) -> nn.Module:
    with torch.no_grad():
        for layer in plan.layers:
            _fold(small, layer)
        for layer in plan.layers:
            _cut(small, layer)
    return small


def _check_fits(model: nn.Module, plan: PruningPlan) -> None:
    if not isinstance(plan, PruningPlan):
        raise TypeError(f"plan must be a PruningPlan, not {type(plan).__name__}")
    tensors = named_tensors(model)
    for layer in plan.layers:
        for slot in layer.slots:
            if slot.tensor not in tensors:
                raise ValueError(f"the plan cuts {slot.tensor!r}, which {type(model).__name__} does not have")
            shape, size = tuple(tensors[slot.tensor].shape), layer.units * slot.positions
            if slot.dim >= len(shape) or shape[slot.dim] != size:
                raise ValueError(
                    f"the plan expects size {size} in dimension {slot.dim} of {slot.tensor!r}, not shape {shape}"
                )
            if layer.response != 0.0 and slot.role == "consumer" and f"{slot.module}.bias" not in tensors:
                raise ValueError(f"the plan needs a bias in {slot.module!r} to take up the constant {layer.response}")


def _fold(small: nn.Module, layer: LayerPlan) -> None:
    """Add what the removed units would have fed to the next layer, a constant, to its bias."""
    if layer.response == 0.0:
        return
    for slot in layer.slots:
        if slot.role == "consumer":
            reader = small.get_submodule(slot.module)
            weight, bias = reader.get_parameter("weight"), reader.get_parameter("bias")
            removed = weight.index_select(slot.dim, slot.indices(layer.removed, weight.device))
            effect = layer.response * removed.to(torch.float64).reshape(len(bias), -1).sum(dim=1)
            bias.copy_(bias.to(torch.float64) + effect)


def _cut(small: nn.Module, layer: LayerPlan) -> None:
    for slot in layer.slots:
        tensor = named_tensors(small)[slot.tensor].detach()
        kept = slot.indices(layer.kept, tensor.device)
        replace_tensor(small, slot.tensor, tensor.index_select(slot.dim, kept))


def _kept_overall(model: nn.Module, plan: PruningPlan) -> dict[str, tuple[int, ...]]:
    """Kept units by their number in the first dense model, through all earlier cuts."""
    earlier: dict[str, tuple[int, ...]] = dict(getattr(model, KEPT, {}))
    for layer in plan.layers:
        before = earlier.get(layer.name, tuple(range(layer.units)))
        earlier[layer.name] = tuple(before[unit] for unit in layer.kept)
    return earlier
