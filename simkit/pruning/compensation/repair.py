"""Carry out repairs: consumers' weights of kept units gain those of removed ones, constants go to a bias."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ...graph import ChannelGraph, Group, Slot
from ..decisions import LayerPlan, Packed, Repair
from ..sizes import named_tensors

RUNNING_MEAN = "running_mean"
_PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # each adds its bias to every output, once


class CannotRepair(ValueError):
    """A layer whose consumers cannot make up for removed units: one sentence."""


def repair(model: nn.Module, layers: Iterable[LayerPlan]) -> nn.Module:
    """Make all repairs in place, in float64 steps; the removed units are left for the cut."""
    tensors = named_tensors(model)
    with torch.no_grad():
        for one in (one for layer in layers for one in layer.repairs):
            _repair(tensors, one)
    return model


def _repair(tensors: Mapping[str, Tensor], one: Repair) -> None:
    tensor = tensors[one.tensor]
    gone, stays, mixing, offset = (
        torch.from_numpy(part.array().copy()).to(tensor.device)
        for part in (one.removed, one.kept, one.mixing, one.offset)
    )
    rows = tensor.to(torch.float64).movedim(one.dim, 0)
    theirs = rows[gone]  # [r, w, ...]
    added = torch.einsum("rm,rw...->mw...", mixing, theirs)
    tensor.copy_(rows.index_add(0, stays.reshape(-1), added.flatten(0, 1)).movedim(0, one.dim))
    if one.constant is None or not bool(offset.any()):
        return
    constant = tensors[one.constant]
    made = torch.einsum("r,rw...->w...", offset, theirs).sum(0)  # [out, taps ...]
    made = made.flatten(1).sum(1) if made.dim() > 1 else made
    sign = -1.0 if one.constant.endswith(RUNNING_MEAN) else 1.0
    constant.copy_(constant.to(torch.float64) + sign * made)


def check_repair(tensors: Mapping[str, Tensor], one: Repair) -> None:
    """ValueError where a repair does not fit the model's tensors."""
    largest = max(int(part.array().max(initial=-1)) for part in (one.removed, one.kept))
    tensor = tensors.get(one.tensor)
    if tensor is None or one.dim >= tensor.dim() or largest >= tensor.shape[one.dim]:
        shape = None if tensor is None else tuple(tensor.shape)
        raise ValueError(f"the plan repairs {one.tensor!r} at position {largest} of dimension {one.dim}, not {shape}")
    if one.constant is not None:
        constant = tensors.get(one.constant)
        outputs = tensor.movedim(one.dim, 0).shape[1]
        if constant is None or tuple(constant.shape) != (outputs,):
            raise ValueError(
                f"the plan puts constants of {outputs} outputs into {one.constant!r}, which has not as many"
            )


def positions_of(slot: Slot, units: Sequence[int]) -> npt.NDArray[np.int64]:
    """Positions ``[units, w]`` along the slot, unit by unit.

    Raises:
        CannotRepair: units of different numbers of positions.
    """
    found = [np.flatnonzero(slot.units == unit) for unit in units]
    if len({len(one) for one in found}) > 1:
        raise CannotRepair(f"{slot.module or slot.tensor} reads its units at different numbers of positions")
    return np.stack(found).astype(np.int64)


def require_linear(model: nn.Module, group: Group) -> None:
    """CannotRepair unless every consumer has weights, and any unit's may be added to any other's."""
    summed = [total for total in group.totals if not total.kept]
    if summed:
        raise CannotRepair(f"{summed[0].node!r} adds its units up without weights")
    tensors = named_tensors(model)
    made = {id(tensors[slot.tensor]) for slot in group.producers}
    seen: dict[int, str] = {}
    for slot in group.consumers:
        if not slot.plain:
            raise CannotRepair(f"the weight that reads its units is computed from {slot.tensor}")
        own = id(tensors[slot.tensor])
        if own in made:
            raise CannotRepair(f"{slot.tensor} both computes and reads its units")
        if own in seen:
            raise CannotRepair(f"{seen[own]} and {slot.tensor} are one tensor")
        seen[own] = slot.tensor
        groups = getattr(model.get_submodule(slot.module), "groups", 1) if slot.module else 1
        if isinstance(groups, int) and groups > 1:
            raise CannotRepair(f"{slot.module} reads its units in {groups} groups that do not mix")


def constant_of(model: nn.Module, graph: ChannelGraph, slot: Slot) -> str | None:
    """Where a constant at the consumer's output goes: its bias, or the running mean of the BatchNorm that follows.

    None where there is neither, where the bias serves others too, or where not every output meets every weight of a
    unit (transposed convolutions).
    """
    tensors = named_tensors(model)
    outputs = tensors[slot.tensor].movedim(slot.dim, 0).shape[1]
    module = model.get_submodule(slot.module)
    if not any(type(module).forward is kind.forward for kind in _PLAIN):
        return None
    bias = f"{slot.module}.bias" if slot.module else "bias"
    if bias in tensors and tuple(tensors[bias].shape) == (outputs,):
        shared = sum(one is tensors[bias] for one in tensors.values()) > 1
        return None if shared else bias
    for group in graph.groups:
        if slot.tensor in {made.tensor for made in group.producers} and len(group.producers) == 1:
            means = [one.tensor for one in group.carriers if one.tensor.endswith(RUNNING_MEAN)]
            firsts = [one.steps[:1] for one in group.consumers]
            follows = all(steps and steps[0].op == "batch_norm" and steps[0].once for steps in firsts)
            if len(means) == 1 and group.consumers and follows and tuple(tensors[means[0]].shape) == (outputs,):
                return means[0]
    return None


def made(
    slot: Slot,
    removed: npt.NDArray[np.int64],
    kept: npt.NDArray[np.int64],
    mixing: npt.NDArray[np.float64],
    offset: npt.NDArray[np.float64],
    *,
    constant: str | None,
    errors: tuple[float, float] | None = None,
    held_out: float | None = None,
    note: str = "",
) -> Repair:
    """The repair of one consumer: positions ``removed [r, w]``, ``kept [m, w]``, ``mixing [r, m]``, ``offset [r]``."""
    return Repair(
        tensor=slot.tensor,
        dim=slot.dim,
        removed=Packed.of(removed),
        kept=Packed.of(kept),
        mixing=Packed.of(mixing),
        offset=Packed.of(offset),
        constant=constant,
        before=None if errors is None else errors[0],
        after=None if errors is None else errors[1],
        note=note,
        held_out=held_out,
    )
