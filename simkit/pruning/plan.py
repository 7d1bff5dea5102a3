"""Score, then decide: how many units go from which layer, and which. Nothing is changed here."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable, Mapping
from numbers import Real
from typing import Any, get_args

from torch import nn

from ..graph import ChannelGraph, Group, quiet_copy
from ..kernels import as_integer
from .budget import Budget, Decision, Request, decide
from .compensate import with_repairs
from .compensation import Compensation
from .decisions import FrozenLayer, LayerPlan, PruningPlan
from .layers import layer_plan, layers_of
from .probe import trace
from .scores import Allocator, CKADamage, Ranking, Scope, Score, Subject
from .sizes import named_tensors

Amount = float | Mapping[str, float]
DEFAULT_SCORE = CKADamage()


def plan(
    model: nn.Module,
    example_inputs: Any,
    *,
    data: object = None,
    score: Score = DEFAULT_SCORE,
    amount: Amount = 0.5,
    scope: Scope = "layer",
    budget: Budget = "units",
    keep: Collection[str] = (),
    round_to: int = 1,
    compensate: Compensation | None = None,
) -> PruningPlan:
    """Decide which units of the model's hidden layers to remove.

    Args:
        model: any model that :func:`trace` understands; it is neither run nor changed, a copy in eval mode is.
        example_inputs: a tensor, or a tuple of tensors, that the model runs on.
        data: what :class:`CKADamage` and :class:`Taylor` run the model on: inputs ``[n, ...]``, or batches (inputs
            first), with targets for :class:`Taylor`, which others leave out; (inputs, targets) are one batch.
        score: a criterion: :class:`CKADamage`, :class:`Redundancy`, :class:`L1`, :class:`L2`,
            :class:`GeometricMedian`, :class:`BNScale`, :class:`Taylor` or :class:`Random`.
        amount: the share to remove: ``int(round(amount * n))`` units of a layer of n, or shares by layer name (layers
            that are not named stay whole). In ``scope="global"`` the share of all open layers' units together. With
            another budget, the share of all that the model has (or takes), of which the least removal that meets it
            is planned.
        scope: ``"layer"`` ranks within each layer, and takes the same share of units from every one; ``"global"`` takes
            the lowest scores of all layers first, or lets the criterion say which layer is next (:class:`Redundancy`,
            :class:`CKADamage`). Every layer keeps a unit.
        budget: what ``amount`` counts: ``"units"``; ``"params"`` or ``"macs"``, exactly, as units go; ``"latency"``, by
            timing the cut model on ``example_inputs`` for a few candidates (the plan then depends on the machine).
        keep: names of layers whose units all stay; a container's name stands for the layers in it.
        round_to: the number of units left is rounded up to a multiple of this (and at most to the layer's size).
        compensate: what makes up for the removed units in the layers that read them: :class:`Merge` (from weights
            alone) or :class:`LeastSquares` (from ``data``). Layers where it is not possible say why in the plan.

    Raises:
        ValueError: no layer has units that can go; a layer would lose all its units; nothing would be removed; a budget
            out of reach; an unknown name in ``amount`` or ``keep`` (the message offers near ones); an impossible
            option; a criterion in a scope that it cannot decide in; missing data.
        NotImplementedError: a model that cannot be captured.
    """
    _check_options(score, scope, budget)
    graph = trace(model, example_inputs)
    kept = kept_layers(graph, keep)
    free = _free(model, graph, kept)
    request = Request(_check_amount(amount, scope, budget, graph, kept), scope, budget, _check_rounding(round_to), free)
    subject = Subject(quiet_copy(model), graph, free, example_inputs, data)
    made = _assemble(model, graph, request, score, decide(request, subject, score))
    return made if compensate is None else with_repairs(made, subject, compensate)


def _check_options(score: Score, scope: str, budget: str) -> None:
    if not callable(getattr(score, "rank", None)) or isinstance(score, type):
        raise TypeError(f"score must be a criterion such as CKADamage() or L1(), not {score!r}")
    if scope not in ("layer", "global"):
        raise ValueError(f"scope must be 'layer' or 'global', not {scope!r}")
    if scope not in score.scopes:
        why = "its scores do not compare across layers" if scope == "global" else "it decides over all layers"
        raise ValueError(f"scope={scope!r} does not go with {score.name}: {why}")
    if budget not in get_args(Budget):
        raise ValueError(f"budget must be one of {', '.join(get_args(Budget))}, not {budget!r}")


def _check_rounding(round_to: int) -> int:
    multiple = as_integer(round_to)
    if multiple is None or multiple < 1:
        raise ValueError(f"round_to must be an integer of at least 1, not {round_to!r}")
    return multiple


def _check_amount(
    amount: Amount, scope: str, budget: str, graph: ChannelGraph, kept: Mapping[str, str]
) -> float | dict[str, float]:
    if not isinstance(amount, Mapping):
        return _fraction(amount, "amount")
    if scope == "global":
        raise ValueError("amount by layer needs scope='layer', not 'global'")
    if budget != "units":
        raise ValueError(f"amount by layer needs budget='units', not {budget!r}")
    stay = {**graph.frozen, **kept}
    for name in amount:
        if name not in {group.name for group in graph.groups}:
            leader = next((group.name for group in graph.groups if name in layers_of(group)), None)
            if leader is not None:
                raise ValueError(f"amount names {name!r}, which is coupled with {leader!r}: name that")
            raise ValueError(f"amount names {name!r}, which is no layer of the model{_nearest(name, graph)}")
        if name in stay:
            raise ValueError(f"amount names {name!r}, whose units stay: {stay[name]}")
    return {name: _fraction(value, f"amount[{name!r}]") for name, value in amount.items()}


def _fraction(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0.0 <= float(value) <= 1.0:
        raise ValueError(f"{name} must be a share from 0 to 1, not {value!r}")
    return float(value)


def _nearest(name: str, graph: ChannelGraph) -> str:
    names = [group.name for group in graph.groups]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:3]
    return f"; near names are {', '.join(repr(known) for known in near)}"


def kept_layers(graph: ChannelGraph, keep: Collection[str]) -> dict[str, str]:
    """Names of the groups that ``keep`` leaves whole, and why; ValueError for a name that holds no layer."""
    if isinstance(keep, str):
        raise TypeError(f"keep must be a collection of names, not the string {keep!r}")
    found: dict[str, str] = {}
    for name in keep:
        inside = [
            group.name
            for group in graph.groups
            if any(layer == name or layer.startswith(f"{name}.") for layer in layers_of(group))
        ]
        if not inside:
            raise ValueError(f"keep names {name!r}, which holds no layer of the model{_nearest(str(name), graph)}")
        found.update(dict.fromkeys(inside, f"keep names {name!r}"))
    return found


def _free(model: nn.Module, graph: ChannelGraph, kept: Mapping[str, str]) -> tuple[Group, ...]:
    """The layers that may lose units; ValueError with the reason of each where there is none."""
    free = tuple(group for group in graph.prunable if group.name not in kept)
    if not free:
        stay = {**graph.frozen, **kept}
        itself = f"the {type(model).__name__} itself"
        places = [(f"layer {group.name!r}" if group.name else itself, stay[group.name]) for group in graph.groups]
        reasons = "; ".join(f"{place}: {reason}" for place, reason in places)
        raise ValueError(f"no layer has units that can be removed: {reasons}")
    return free


def _assemble(
    model: nn.Module,
    graph: ChannelGraph,
    request: Request,
    score: Score,
    decision: Decision,
) -> PruningPlan:
    layers: list[LayerPlan] = []
    stays: list[FrozenLayer] = []
    open_names = {group.name for group in request.free}
    for group in graph.groups:
        count = decision.counts.get(group.name, 0)
        ranking = decision.rankings.get(group.name)
        if count and ranking is not None:
            layers.append(_layer(group, request, score, count, ranking))
        else:
            default = "amount leaves it whole" if group.name in open_names else "keep names it"
            stopped = None if ranking is None else ranking.stopped
            stays.append(FrozenLayer(group.name, group.units, group.frozen or stopped or default))
    before, after, device = decision.latencies or (None, None, None)
    return PruningPlan(
        layers=tuple(layers),
        frozen=tuple(stays),
        score=score.name,
        amount=request.amount,
        scope=request.scope,
        round_to=request.round_to,
        params_before=sum(parameter.numel() for parameter in model.parameters()),
        params_after=_params_after(model, layers),
        macs_before=graph.macs(),
        macs_after=graph.macs({layer.name: layer.removed for layer in layers}),
        exact=all(layer.approximate is None for layer in layers),
        exact_reason=_exact_reason(layers),
        budget=request.budget,
        latency_before=before,
        latency_after=after,
        latency_device=device,
    )


def _layer(group: Group, request: Request, score: Score, count: int, ranking: Ranking) -> LayerPlan:
    amount = f"amount {request.share(group.name)}"
    if request.budget != "units":
        amount += f" of the {request.budget}"
    if request.scope == "layer":
        reason = f"first in the criterion's order, {amount}"
    elif isinstance(score, Allocator):
        reason = f"as many as the criterion takes from this layer, {amount} over all"
    else:
        reason = f"lowest of all layers' scores together, {amount}"
    if request.round_to > 1:
        reason += f", a multiple of {request.round_to} left"
    if ranking.idle:
        reason += f"; {min(ranking.idle, count)} without effect on the data, which go first and by index"
    if ranking.stopped is not None and count + request.round_to > len(ranking.order):
        reason += f"; no more, as {ranking.stopped}"
    return layer_plan(group, ranking.order[:count], ranking.scores[:count], reason)


def _params_after(model: nn.Module, layers: Iterable[LayerPlan]) -> int:
    """What is left of the parameters; several layers may cut one dimension, and tied parameters count once."""
    tensors = named_tensors(model)
    gone: dict[int, dict[int, set[int]]] = {}
    for slot in (slot for layer in layers for slot in layer.slots):
        gone.setdefault(id(tensors[slot.tensor]), {}).setdefault(slot.dim, set()).update(slot.positions)
    return sum(
        math.prod(size - len(gone.get(id(one), {}).get(dim, ())) for dim, size in enumerate(one.shape))
        for one in model.parameters()
    )


def _exact_reason(layers: Iterable[LayerPlan]) -> str:
    reasons = dict.fromkeys(layer.approximate for layer in layers if layer.approximate is not None)
    if not reasons:
        return "a masked unit feeds 0 to the layers that read it, so cutting it changes nothing"
    return "; ".join(reasons)
