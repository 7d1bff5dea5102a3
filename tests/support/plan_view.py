"""How the zoo's tests read graphs and plans; the one place that knows the names of their fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from masking_oracle import Removed


@dataclass(frozen=True)
class Cut:
    """Indices that go from one dimension of a tensor, because they belong to removed units of ``layer``."""

    layer: str
    role: str
    removed: Removed
    exact: bool


@dataclass(frozen=True)
class GroupView:
    """One group of the graph; ``frozen`` and ``approximate`` are reasons, or None."""

    name: str
    units: int
    frozen: str | None
    approximate: str | None


def groups(graph: Any) -> tuple[GroupView, ...]:
    return tuple(GroupView(g.name, g.units, g.frozen, g.approximate) for g in graph.groups)


def cuts(graph: Any, plan: Any) -> tuple[Cut, ...]:
    """All that goes, slot by slot."""
    approximate = {group.name: group.approximate for group in groups(graph)}
    return tuple(
        Cut(layer.name, slot.role, Removed(slot.tensor, slot.dim, positions), approximate[layer.name] is None)
        for layer in plan.layers
        for slot in layer.slots
        if (positions := _positions(slot, layer.removed))
    )


def _positions(slot: Any, removed: Iterable[int]) -> tuple[int, ...]:
    units = np.asarray(slot.units)
    return tuple(np.flatnonzero(np.isin(units, np.asarray(tuple(removed)))).tolist())


def frozen_reasons(graph: Any, tensor: str) -> list[str]:
    """Why units of the layer that owns the tensor stay: every reason given under its module's name or a part of it."""
    module = tensor.rpartition(".")[0]
    reasons: Mapping[str, str] = graph.frozen
    return [reason for name, reason in reasons.items() if name.partition("#")[0] in (module, tensor)]
