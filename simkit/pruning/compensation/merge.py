"""Neuron merging: a removed unit is absorbed by a kept one with nearly parallel weights (Kim et al. 2020).

Right where the path from the layer to its consumers is positively homogeneous (ReLU, leaky ReLU, max-pool) or linear
within a channel (average pool, flatten), after at most one BatchNorm. The algebra is in :mod:`simkit.metrics.merging`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr
from torch import Tensor, nn

from ...graph import Group, Slot, Step
from ...kernels import as_number
from ...metrics.merging import SCALES, BatchNorm, Merging, merging
from ..decisions import Repair
from ..scores import Subject
from ..sizes import named_tensors
from .protocol import Answer
from .repair import CannotRepair, constant_of, made, positions_of, require_linear

Floats = npt.NDArray[np.float64]
_PARTS = ("weight", "bias", "running_mean", "running_var")
_SLOPES = {"relu": 0.0}


@dataclass(frozen=True)
class Merge:
    """Add the consumers' weights of every removed unit, scaled, to those of the kept unit that is most like it.

    Args:
        threshold: the least cosine of a partner; None is 0.45, or 0.1 where a BatchNorm follows the layer.
        weight: λ in [0, 1], the share of the cosine in a partner's score where a BatchNorm follows.
        bn_scale: ``"exact"``, or ``"reference"`` for the algebra of the published code.
        compensate_bias: with BatchNorm, add what stays constant, E[f(S y + B)] - S E[f(y)] for normal y, to the next
            bias (the paper drops it).

    Source: Kim et al. 2020, "Neuron Merging: Compensating for Pruned Neurons".
    """

    threshold: float | None = None
    weight: float = 0.85
    bn_scale: Literal["exact", "reference"] = "exact"
    compensate_bias: bool = True

    def __post_init__(self) -> None:
        if self.threshold is not None and not -1.0 <= as_number(self.threshold) <= 1.0:
            raise ValueError(f"threshold must lie in [-1, 1], not {self.threshold!r}")
        if not 0.0 <= as_number(self.weight) <= 1.0:
            raise ValueError(f"weight must lie in [0, 1], not {self.weight!r}")
        if self.bn_scale not in SCALES:
            raise ValueError(f'bn_scale must be "exact" or "reference", not {self.bn_scale!r}')

    @property
    def name(self) -> str:
        """The method with its options, as the plan reports it."""
        return repr(self)

    def answers(self, subject: Subject, removed: Mapping[str, tuple[int, ...]]) -> dict[str, Answer]:
        """For every group named in ``removed``: how its consumers absorb these units, or why they cannot."""
        found: dict[str, Answer] = {}
        for group in subject.groups:
            if group.name in removed:
                try:
                    found[group.name] = self._merged(subject, group, removed[group.name])
                except CannotRepair as reason:
                    found[group.name] = Answer((), f"not merged: {reason}")
        return found

    def _merged(self, subject: Subject, group: Group, removed: tuple[int, ...]) -> Answer:
        layer = LayerWeights.of(subject.model, group)
        for slot in group.consumers:
            _require_homogeneous(slot, layer.norm_module)
        require_linear(subject.model, group)
        kept = np.ones(group.units, dtype=np.bool_)
        kept[list(removed)] = False
        found = merging(
            layer.weight,
            kept,
            bias=layer.bias,
            batch_norm=layer.norm,
            threshold=self.threshold,
            balance=self.weight,
            bn_scale=self.bn_scale,
        )
        merged = int((found.partner >= 0).sum())
        if not merged:
            return Answer((), f"not merged: none of {len(removed)} removed units has a partner above the threshold")
        repairs = tuple(self._repair(subject, group, layer, slot, found, kept) for slot in group.consumers)
        dropped = [slot.module for slot, one in zip(group.consumers, repairs, strict=True) if one.note]
        note = f"{merged} of {len(removed)} removed units merged into kept ones"
        return Answer(repairs, f"{note}; {', '.join(dropped)} has no bias for what stays constant" if dropped else note)

    def _repair(
        self,
        subject: Subject,
        group: Group,
        layer: LayerWeights,
        slot: Slot,
        found: Merging,
        kept: npt.NDArray[np.bool_],
    ) -> Repair:
        pruned = found.pruned.tolist()
        # matrix: [kept, units], 1 where a unit is itself
        mixing = np.ascontiguousarray(found.matrix(kept)[:, found.pruned].T)
        offset = np.zeros(len(pruned))
        constant = constant_of(subject.model, subject.graph, slot)
        if layer.norm is not None and self.compensate_bias:
            offset = _constants(layer.norm, found, slope(subject.model, slot))
        dropped = constant is None and bool(offset.any())
        return made(
            slot,
            positions_of(slot, pruned),
            positions_of(slot, np.flatnonzero(kept).tolist()),
            mixing,
            np.zeros_like(offset) if dropped else offset,
            constant=constant,
            note="dropped" if dropped else "",
        )


@dataclass(frozen=True)
class LayerWeights:
    """The one layer that computes the units: a row of weights each, and the BatchNorm that follows."""

    weight: Floats
    bias: Floats | None
    norm: BatchNorm | None
    norm_module: str | None

    @classmethod
    def of(cls, model: nn.Module, group: Group) -> LayerWeights:
        """CannotRepair where there is no such layer."""
        makers = list(dict.fromkeys(slot.module for slot in group.producers))
        if len(makers) != 1:
            raise CannotRepair(f"several layers compute its units: {', '.join(makers)}")
        tensors = named_tensors(model)
        weights = [slot for slot in group.producers if tensors[slot.tensor].dim() > 1]
        biases = [slot for slot in group.producers if tensors[slot.tensor].dim() == 1]
        if len(weights) != 1 or len(biases) > 1 or not isinstance(model.get_submodule(makers[0]), _LAYERS):
            raise CannotRepair(f"{makers[0] or 'the model itself'} is no plain Linear or convolution layer")
        changed = [slot.tensor for slot in (*weights, *biases) if not slot.plain]
        if changed:
            raise CannotRepair(f"the layer computes with other values than {changed[0]}")
        if getattr(model.get_submodule(makers[0]), "groups", 1) > 1:
            raise CannotRepair(f"the filters of {makers[0]} read different groups of channels")
        if len(np.unique(weights[0].units[weights[0].units >= 0])) != (weights[0].units >= 0).sum():
            raise CannotRepair(f"a unit is several channels of {makers[0]}")
        weight = tensors[weights[0].tensor].detach().movedim(weights[0].dim, 0)
        norm, module = _batch_norm(model, group)
        return cls(
            _by_unit(weights[0], weight.reshape(len(weight), -1), group.units),
            None if not biases else _by_unit(biases[0], tensors[biases[0].tensor].detach(), group.units),
            norm,
            module,
        )


_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def _by_unit(slot: Slot, values: Tensor, units: int) -> Floats:
    """Rows of a tensor in the order of the units, float64."""
    order = np.empty(units, dtype=np.int64)
    places = np.flatnonzero(slot.units >= 0)
    order[slot.units[places]] = places
    found: Floats = values.double().cpu().numpy()[order]
    return found


def _batch_norm(model: nn.Module, group: Group) -> tuple[BatchNorm | None, str | None]:
    modules = list(dict.fromkeys(slot.module for slot in group.carriers))
    if not modules:
        return None, None
    for name in modules:
        if not isinstance(model.get_submodule(name), nn.modules.batchnorm._BatchNorm):
            raise CannotRepair(f"{name} treats each of its units in its own way")
    if len(modules) > 1:
        raise CannotRepair(f"several normalisations follow it: {', '.join(modules)}")
    module = model.get_submodule(modules[0])
    slots = {slot.tensor.rpartition(".")[2]: slot for slot in group.carriers}
    if "running_mean" not in slots or "running_var" not in slots:
        raise CannotRepair(f"{modules[0]} keeps no running statistics")
    if any((np.bincount(slot.units[slot.units >= 0]) != 1).any() for slot in slots.values()):
        raise CannotRepair(f"a unit is several channels of {modules[0]}")
    tensors = named_tensors(model)
    assert isinstance(module, nn.modules.batchnorm._BatchNorm)
    values = {
        part: _by_unit(slots[part], tensors[slots[part].tensor].detach(), group.units)
        for part in _PARTS
        if part in slots
    }
    ones = np.ones(group.units)
    gamma, beta = values.get("weight", ones), values.get("bias", 0 * ones)
    return BatchNorm(gamma, beta, values["running_mean"], values["running_var"], float(module.eps)), modules[0]


def _require_homogeneous(slot: Slot, norm_module: str | None) -> None:
    reader, seen = slot.module or slot.tensor, False
    if norm_module is not None and not any(_is_norm(step, norm_module) for step in slot.steps):
        raise CannotRepair(f"{reader} reads its units without {norm_module}")
    if any(_is_norm(step, norm_module) and not step.once for step in slot.steps):
        raise CannotRepair(f"{norm_module} is not once on every way to {reader}")
    for step in slot.steps:
        if _is_norm(step, norm_module):
            if seen:
                raise CannotRepair(f"{norm_module} does not come right after the layer")
            continue
        if step.transfer not in ("identity", "homogeneous", "mixing"):
            place = f" in {step.module}" if step.module else ""
            raise CannotRepair(f"{step.op}{place} on the way to {reader} is not positively homogeneous")
        seen = seen or step.transfer == "homogeneous"


def _is_norm(step: Step, norm_module: str | None) -> bool:
    return norm_module is not None and step.op == "batch_norm" and step.module == norm_module


def slope(model: nn.Module, slot: Slot) -> float | None:
    """The activation's slope below 0; 1 for none, None for one whose mean is not worked out here."""
    slopes = []
    for step in slot.steps:
        if step.op == "leaky_relu":
            module = model.get_submodule(step.module) if step.module else None
            slopes.append(float(module.negative_slope) if isinstance(module, nn.LeakyReLU) else None)
        elif step.op in _SLOPES:
            slopes.append(_SLOPES[step.op])
        elif step.op == "prelu":
            slopes.append(None)
        if step.transfer == "homogeneous" and not step.once:
            slopes.append(None)  # ways with and without an activation
    return slopes[0] if len(slopes) == 1 else 1.0 if not slopes else None


def _constants(norm: BatchNorm, found: Merging, slope: float | None) -> Floats:
    """E[f(S y + B)] - S E[f(y)] for y ~ N(β, γ²) of the partner; 0 for units without one."""
    offset = np.zeros(len(found.pruned))
    rows = np.flatnonzero(found.partner >= 0)
    if slope is None or not len(rows):
        return offset
    beta, gamma = (np.asarray(values)[found.partner[rows]] for values in (norm.beta, norm.gamma))
    scale, residue = found.scale[rows], found.residue[rows]
    merged = _mean(scale * beta + residue, np.abs(scale * gamma), slope)
    offset[rows] = merged - scale * _mean(beta, np.abs(gamma), slope)
    return offset


def _mean(centre: Floats, spread: Floats, slope: float) -> Floats:
    """E[f(v)] for v ~ N(centre, spread²), f(v) = v above 0 and slope · v below."""
    z = centre / np.where(spread > 0.0, spread, 1.0)
    above = centre * ndtr(z) + spread * np.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
    above = np.where(spread > 0.0, above, np.maximum(centre, 0.0))
    mean: Floats = (1.0 - slope) * above + slope * centre
    return mean
