"""Add to a plan what makes up for the removed units; merge in one call."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from torch import nn

from ..graph import quiet_copy
from .apply import apply
from .compensation import Compensation, Merge
from .decisions import PruningPlan
from .probe import trace
from .scores import Subject


def compensated(
    model: nn.Module, plan: PruningPlan, example_inputs: Any, method: Compensation, *, data: object = None
) -> PruningPlan:
    """The plan with the repairs of ``method`` (:class:`Merge` or :class:`LeastSquares`) in the place of any it had.

    Raises:
        ValueError: a layer of the plan that the model does not have; missing data.
    """
    graph = trace(model, example_inputs)
    units = {group.name: group.units for group in graph.prunable}
    for layer in plan.layers:
        if units.get(layer.name) != layer.units:
            found = units.get(layer.name)
            raise ValueError(f"the plan prunes {layer.name!r} of {layer.units} units, of which the model has {found}")
    return with_repairs(plan, Subject(quiet_copy(model), graph, graph.prunable, example_inputs, data), method)


def with_repairs(plan: PruningPlan, subject: Subject, method: Compensation) -> PruningPlan:
    """The plan with the repairs of ``method``; TypeError if that is none."""
    if isinstance(method, type) or not callable(getattr(method, "answers", None)):
        raise TypeError(f"compensate must be Merge(), LeastSquares() or None, not {method!r}")
    answers = method.answers(subject, plan.removed)
    layers = tuple(
        replace(layer, repairs=answers[layer.name].repairs, compensation=answers[layer.name].note)
        for layer in plan.layers
    )
    return replace(plan, layers=layers, compensate=method.name)


def merge(
    model: nn.Module,
    plan: PruningPlan,
    example_inputs: Any,
    *,
    threshold: float | None = None,
    weight: float = 0.85,
    bn_scale: Literal["exact", "reference"] = "exact",
    compensate_bias: bool = True,
) -> nn.Module:
    """The model cut by the plan, its removed units merged into kept ones as by :class:`Merge` with these options.

    Raises:
        ValueError: as :func:`apply`; or no layer of the plan can be merged (the message says why of each).
    """
    method = Merge(threshold=threshold, weight=weight, bn_scale=bn_scale, compensate_bias=compensate_bias)
    found = compensated(model, plan, example_inputs, method)
    if not any(layer.repairs for layer in found.layers):
        reasons = "; ".join(f"{layer.name}: {layer.compensation}" for layer in found.layers)
        raise ValueError(f"no layer can be merged: {reasons}")
    return apply(model, found, example_inputs)
