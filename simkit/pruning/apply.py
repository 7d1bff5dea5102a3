"""Carry out a plan on a copy of the model: mask the units, or cut them out and check that both models agree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..graph.preserve import own_copy
from .compensation.repair import check_repair, repair
from .decisions import LayerPlan, PruningPlan
from .recalibrate import RECALIBRATED, recalibrated
from .sizes import named_tensors, read_size, replace_tensors, write_size
from .verify import require_equal

KEPT = "simkit_kept"
SIZES = "simkit_sizes"


def masked(model: nn.Module, plan: PruningPlan) -> nn.Module:
    """A copy of the model, all sizes unchanged, to whose consumers the removed units are zero.

    The columns of every consumer's weight that read a removed unit are zero, whatever the unit emits; repairs are made
    before. Raises ValueError if the plan does not fit the model, NotImplementedError if units are added up without a
    weight that could be zero.
    """
    _check_fits(model, plan)
    bare = next(((layer, one) for layer in plan.layers for one in layer.totals if not one.kept), None)
    if bare is not None:
        raise NotImplementedError(
            f"layer {bare[0].name!r} is added up by {bare[1].node!r}, which has no weight that could be zero"
        )
    return mask(repair(own_copy(model), plan.layers), plan.layers)


def mask(model: nn.Module, layers: Iterable[LayerPlan]) -> nn.Module:
    """Zero the consumers' columns in place."""
    tensors = named_tensors(model)
    with torch.no_grad():
        for layer in layers:
            for slot in layer.slots:
                if slot.role == "consumer":
                    tensor = tensors[slot.tensor]
                    tensor.index_fill_(slot.dim, torch.tensor(slot.positions, device=tensor.device), 0)
    return model


def apply(
    model: nn.Module, plan: PruningPlan, example_inputs: Any, verify: bool = True, *, recalibrate: object = None
) -> nn.Module:
    """A new model without the plan's units: smaller tensors, size attributes to match, the input model untouched.

    Mode, dtype, device and requires_grad are those of the model. What is left is noted in two attributes of the new
    model, which :func:`save` stores: ``simkit_kept``, (tensor, dimension) of every producing layer -> positions kept of
    the first dense model, and ``simkit_sizes``, (module, attribute, index) -> value.

    Args:
        model: the model the plan was made for, or one of the same architecture.
        plan: what to remove.
        example_inputs: a tensor, or a tuple of tensors, that the model runs on.
        verify: run the masked and the cut model on ``example_inputs`` in float64 eval mode, without the model's forward
            hooks, and require equal outputs of every layer concerned, to rounding. Where removal is approximate, the
            masked model's layer and group norms leave the removed channels out of their statistics.
        recalibrate: data on which the statistics of the new model's BatchNorm layers are estimated again, as by
            :func:`recalibrated`, after the verification; None leaves those of the dense model.

    Raises:
        ValueError: the plan does not fit the model, or the outputs differ (the message names the first module); as
            :func:`recalibrated`.
    """
    _check_fits(model, plan)
    whole = repair(own_copy(model), plan.layers) if any(layer.repairs for layer in plan.layers) else model
    small = cut(own_copy(whole), plan.layers)
    setattr(small, KEPT, _kept_overall(model, plan))
    setattr(small, SIZES, _sizes_overall(model, small, plan))
    if verify:
        require_equal(whole, plan.layers, example_inputs, mask=mask, cut=cut)
    vars(small).pop(RECALIBRATED, None)  # that of a model with more units
    return small if recalibrate is None else recalibrated(small, recalibrate)


def cut(small: nn.Module, layers: Iterable[LayerPlan]) -> nn.Module:
    """Remove the units in place."""
    listed = list(layers)
    tensors = named_tensors(small)
    gone: dict[int, tuple[str, dict[int, set[int]]]] = {}
    for slot in (slot for layer in listed for slot in layer.slots):
        _, dims = gone.setdefault(id(tensors[slot.tensor]), (slot.tensor, {}))
        dims.setdefault(slot.dim, set()).update(slot.positions)
    for index in (index for layer in listed for index in layer.indices):
        gone.setdefault(id(tensors[index.tensor]), (index.tensor, {}))
    for size in (size for layer in listed for size in layer.sizes):
        place = (size.module, size.attribute, size.index)
        write_size(small, *place, read_size(small, *place) - size.count)
    with torch.no_grad():
        renewed = _counted_anew(tensors, listed)
        cut_ones = {
            name: _without(renewed.get(key, tensors[name].detach()), dims) for key, (name, dims) in gone.items()
        }
        replace_tensors(small, cut_ones)
    return small


def _counted_anew(tensors: Mapping[str, torch.Tensor], layers: Iterable[LayerPlan]) -> dict[int, torch.Tensor]:
    """Buffers of channel numbers, by id, with the numbers that the channels left have then."""
    gone: dict[str, tuple[int, set[int]]] = {}
    for one in (one for layer in layers for one in layer.indices):
        gone.setdefault(one.tensor, (one.size, set()))[1].update(one.positions)
    found: dict[int, torch.Tensor] = {}
    for name, (size, positions) in gone.items():
        numbers = tensors[name]
        stays = torch.ones(size, dtype=torch.int64, device=numbers.device)
        stays[sorted(positions)] = 0
        found[id(numbers)] = (stays.cumsum(0) - 1)[numbers.long() % size].to(numbers.dtype)
    return found


def _without(tensor: torch.Tensor, dims: dict[int, set[int]]) -> torch.Tensor:
    for dim, positions in dims.items():
        kept = [position for position in range(tensor.shape[dim]) if position not in positions]
        tensor = tensor.index_select(dim, torch.tensor(kept, device=tensor.device))
    return tensor


def _check_fits(model: nn.Module, plan: PruningPlan) -> None:
    if not isinstance(plan, PruningPlan):
        raise TypeError(f"plan must be a PruningPlan, not {type(plan).__name__}")
    tensors = named_tensors(model)
    for layer in plan.layers:
        for slot in layer.slots:
            _check_has(model, tensors, slot.tensor)
            shape = tuple(tensors[slot.tensor].shape)
            if slot.dim >= len(shape) or shape[slot.dim] != slot.size:
                raise ValueError(
                    f"the plan expects size {slot.size} in dimension {slot.dim} of {slot.tensor!r}, not shape {shape}"
                )
        for index in layer.indices:
            _check_has(model, tensors, index.tensor)
        for one in layer.repairs:
            check_repair(tensors, one)
        for size in layer.sizes:
            found = read_size(model, size.module, size.attribute, size.index)
            if found != size.size:
                raise ValueError(
                    f"the plan expects {size.attribute!r} of module {size.module!r} to be {size.size}, not {found}"
                )


def _check_has(model: nn.Module, tensors: Mapping[str, torch.Tensor], name: str) -> None:
    if name not in tensors:
        raise ValueError(f"the plan cuts {name!r}, which {type(model).__name__} does not have")


def _kept_overall(model: nn.Module, plan: PruningPlan) -> dict[tuple[str, int], tuple[int, ...]]:
    """Kept positions of the producing layers by their number in the first dense model, through all earlier cuts."""
    earlier: dict[tuple[str, int], tuple[int, ...]] = dict(getattr(model, KEPT, {}))
    gone: dict[tuple[str, int], set[int]] = {}
    sizes: dict[tuple[str, int], int] = {}
    for slot in (slot for layer in plan.layers for slot in layer.slots if slot.role == "producer"):
        gone.setdefault((slot.tensor, slot.dim), set()).update(slot.positions)
        sizes[slot.tensor, slot.dim] = slot.size
    for place, positions in gone.items():
        before = earlier.get(place, tuple(range(sizes[place])))
        earlier[place] = tuple(number for index, number in enumerate(before) if index not in positions)
    return earlier


def _sizes_overall(model: nn.Module, small: nn.Module, plan: PruningPlan) -> dict[tuple[str, str, int | None], int]:
    places = {(size.module, size.attribute, size.index) for layer in plan.layers for size in layer.sizes}
    known: dict[tuple[str, str, int | None], int] = dict(getattr(model, SIZES, {}))
    return {**known, **{place: read_size(small, *place) for place in sorted(places, key=str)}}
