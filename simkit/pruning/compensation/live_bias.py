"""What masked training code leaves behind: a removed unit whose weights are zero but whose bias still speaks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...graph import Group, Slot
from ..scores import Subject
from .merge import LayerWeights, slope
from .protocol import Answer
from .repair import CannotRepair, constant_of, made, positions_of, require_linear

_PASSING = ("identity", "homogeneous", "mixing")


@dataclass(frozen=True)
class LiveBias:
    """Give every consumer the constant f(b) that a unit emits whose incoming weights are zero and whose bias b is not.

    That is what code computes that prunes by setting weights to zero (as the published code of representation-aware
    pruning does); removing a unit also takes its bias away. For a convolution with padding it is not exact at borders.
    """

    @property
    def name(self) -> str:
        """The method as the plan reports it."""
        return "LiveBias()"

    def answers(self, subject: Subject, removed: Mapping[str, tuple[int, ...]]) -> dict[str, Answer]:
        """For every group named in ``removed``: the constants of these units, or why there are none."""
        found: dict[str, Answer] = {}
        for group in subject.groups:
            if group.name in removed:
                try:
                    found[group.name] = self._answer(subject, group, sorted(removed[group.name]))
                except CannotRepair as reason:
                    found[group.name] = Answer((), f"biases removed with their units: {reason}")
        return found

    def _answer(self, subject: Subject, group: Group, removed: list[int]) -> Answer:
        layer = LayerWeights.of(subject.model, group)
        if layer.bias is None:
            return Answer((), "the layer has no biases")
        if layer.norm is not None:
            raise CannotRepair(f"{layer.norm_module} follows the layer")
        kept = np.setdiff1d(np.arange(group.units), removed).tolist()
        repairs = []
        require_linear(subject.model, group)
        for slot in group.consumers:
            constant = constant_of(subject.model, subject.graph, slot)
            if constant is None:
                raise CannotRepair(f"{slot.module or slot.tensor} has no bias to hold the constants")
            value = layer.bias[removed]
            value = np.where(value > 0.0, value, _slope(subject, slot) * value)
            repairs.append(
                made(
                    slot,
                    positions_of(slot, removed),
                    positions_of(slot, kept),
                    np.zeros((len(removed), len(kept))),
                    value,
                    constant=constant,
                )
            )
        return Answer(tuple(repairs), f"the biases of {len(removed)} removed units stay, as constants")


def _slope(subject: Subject, slot: Slot) -> float:
    reader = slot.module or slot.tensor
    for step in slot.steps:
        if step.transfer not in _PASSING:
            raise CannotRepair(f"{step.op} on the way to {reader} is not positively homogeneous")
    found = slope(subject.model, slot)
    if found is None:
        raise CannotRepair(f"several activations are on the way to {reader}")
    return found
