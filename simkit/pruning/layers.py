"""From a group of the channel graph to the plan of a layer: which positions of which tensors a set of units is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..graph import Group
from .decisions import IndexPlan, LayerPlan, SizePlan, SlotPlan, TotalPlan, as_ranges


def layers_of(group: Group) -> tuple[str, ...]:
    """Names that stand for the group: its own, and the paths of all layers that compute its units."""
    return tuple(dict.fromkeys([group.name, *(slot.module for slot in group.producers if slot.module)]))


def layer_plan(group: Group, removed: Sequence[int], scores: Sequence[float], reason: str) -> LayerPlan:
    """The plan that removes these units."""
    slots = [
        SlotPlan(slot.role, slot.tensor, slot.dim, len(slot.units), as_ranges(slot.positions(removed)))
        for slot in group.slots
    ]
    sizes = [
        SizePlan(one.module, one.attribute, one.index, len(one.units), as_ranges(_places(one.units, removed)))
        for one in group.sizes
    ]
    totals = [
        TotalPlan(one.node, one.dim, len(one.units), as_ranges(_places(one.units, removed)), one.kept)
        for one in group.totals
    ]
    indices = [IndexPlan(one.tensor, len(one.units), as_ranges(_places(one.units, removed))) for one in group.indices]
    return LayerPlan(
        name=group.name,
        units=group.units,
        removed=tuple(removed),
        scores=tuple(scores),
        slots=tuple(slots),
        sizes=tuple(sizes),
        totals=tuple(totals),
        indices=tuple(indices),
        approximate=group.approximate,
        reason=reason,
    )


def _places(units: np.ndarray[tuple[int, ...], np.dtype[np.int64]], removed: Sequence[int]) -> list[int]:
    return np.flatnonzero(np.isin(units, np.asarray(removed, dtype=np.int64))).tolist()
