"""How the zoo's tests read graphs and plans; the one place that knows the names of their fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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


def cuts(plan: Any) -> tuple[Cut, ...]:
    """All that goes, slot by slot."""
    return tuple(
        Cut(layer.name, slot.role, Removed(slot.tensor, slot.dim, tuple(slot.positions)), layer.approximate is None)
        for layer in plan.layers
        for slot in layer.slots
    )


def stays(plan: Any) -> dict[str, str]:
    """Name of a group whose units all stay -> the reason."""
    return {layer.name: layer.reason for layer in plan.frozen}


def reasons_for(plan: Any, tensor: str) -> list[str]:
    """Why units of the layer that owns the tensor stay, or of the tensor itself."""
    module = tensor.rpartition(".")[0]
    return [reason for name, reason in stays(plan).items() if name.partition("#")[0] in (module, tensor)]
