"""Score, then decide: how many units go from which layer, and which. Nothing is changed here."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

from torch import nn

from ..graph import ChannelGraph, Group, quiet_copy
from ..kernels import as_integer
from .decisions import FrozenLayer, LayerPlan, PruningPlan
from .layers import layer_plan, layers_of
from .probe import trace
from .scores import CKADamage, Ranking, Score, Subject
from .sizes import named_tensors

Amount = float | Mapping[str, float]
Scope = Literal["layer", "global"]
DEFAULT_SCORE = CKADamage()
BUDGETS_TO_COME = ("params", "macs", "latency")


@dataclass(frozen=True)
class _Request:
    """How much is to go, from where: the validated options of :func:`plan`."""

    amount: float | dict[str, float]
    scope: Scope
    round_to: int
    free: tuple[Group, ...]

    def share(self, name: str) -> float:
        return self.amount.get(name, 0.0) if isinstance(self.amount, dict) else self.amount


def plan(
    model: nn.Module,
    example_inputs: Any,
    *,
    data: object = None,
    score: Score = DEFAULT_SCORE,
    amount: Amount = 0.5,
    scope: Scope = "layer",
    budget: str = "units",
    keep: Collection[str] = (),
    round_to: int = 1,
) -> PruningPlan:
    """Decide which units of the model's hidden layers to remove.

    Args:
        model: any model that :func:`trace` understands; it is neither run nor changed, a copy in eval mode is.
        example_inputs: a tensor, or a tuple of tensors, that the model runs on.
        data: what :class:`CKADamage` runs the model on: inputs ``[n, ...]``, or batches (inputs first).
        score: :class:`CKADamage`, :class:`L1` or :class:`Random`.
        amount: the share to remove, ``int(round(amount * n))`` units of a layer of n, or shares by layer name (layers
            that are not named stay whole). In ``scope="global"`` the share of all units of all layers together.
        scope: ``"layer"`` ranks within each layer; ``"global"`` ranks all units together and leaves every layer one.
        budget: what ``amount`` counts; ``"units"``.
        keep: names of layers whose units all stay; a container's name stands for the layers in it.
        round_to: the number of units left is rounded up to a multiple of this (and at most to the layer's size).

    Raises:
        ValueError: no layer has units that can go; a layer would lose all its units; nothing would be removed; an
            unknown name in ``amount`` or ``keep`` (the message offers near ones); an impossible option; missing data.
        NotImplementedError: a model that cannot be captured; a budget other than units; ``scope="global"`` with a
            criterion whose scores do not compare across layers.
    """
    _check_options(score, scope, budget)
    graph = trace(model, example_inputs)
    kept = _kept(graph, keep)
    free = _free(model, graph, kept)
    request = _Request(_check_amount(amount, scope, graph, kept), scope, _check_rounding(round_to), free)
    subject = Subject(quiet_copy(model), graph, free, example_inputs, data)
    counts, rankings = _decide(request, subject, score)
    return _assemble(model, graph, request, score, counts, rankings)


def _check_options(score: Score, scope: str, budget: str) -> None:
    if not callable(getattr(score, "rank", None)) or isinstance(score, type):
        raise TypeError(f"score must be a criterion such as CKADamage() or L1(), not {score!r}")
    if scope not in ("layer", "global"):
        raise ValueError(f"scope must be 'layer' or 'global', not {scope!r}")
    if scope == "global" and not score.comparable:
        raise NotImplementedError(f"scope='global' cannot rank {score.name} across layers: its scores do not compare")
    if budget in BUDGETS_TO_COME:
        raise NotImplementedError(f"budget={budget!r} is not there yet; only budget='units' is")
    if budget != "units":
        raise ValueError(f"budget must be 'units', not {budget!r}")


def _check_rounding(round_to: int) -> int:
    multiple = as_integer(round_to)
    if multiple is None or multiple < 1:
        raise ValueError(f"round_to must be an integer of at least 1, not {round_to!r}")
    return multiple


def _check_amount(amount: Amount, scope: str, graph: ChannelGraph, kept: Mapping[str, str]) -> float | dict[str, float]:
    if not isinstance(amount, Mapping):
        return _fraction(amount, "amount")
    if scope == "global":
        raise ValueError("amount by layer needs scope='layer', not 'global'")
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


def _kept(graph: ChannelGraph, keep: Collection[str]) -> dict[str, str]:
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


def _decide(request: _Request, subject: Subject, score: Score) -> tuple[dict[str, int], dict[str, Ranking]]:
    if request.scope == "layer":
        counts = {group.name: round(request.share(group.name) * group.units) for group in request.free}
        counts = _rounded(request, counts)
        return counts, score.rank(subject, {name: count for name, count in counts.items() if count})
    rankings = score.rank(subject, {group.name: group.units for group in request.free})
    return _rounded(request, _global_counts(request, rankings)), rankings


def _rounded(request: _Request, counts: Mapping[str, int]) -> dict[str, int]:
    """Counts that leave a multiple of ``round_to``; ValueError where a layer would vanish or nothing would go."""
    rounded: dict[str, int] = {}
    for group in request.free:
        left = math.ceil((group.units - counts[group.name]) / request.round_to) * request.round_to
        if left == 0:
            raise ValueError(
                f"amount {request.share(group.name)} removes all {group.units} units of layer {group.name!r}; "
                "at least one must stay"
            )
        rounded[group.name] = group.units - min(left, group.units)
    if not any(rounded.values()):
        layers = ", ".join(f"{group.name!r} ({group.units} units)" for group in request.free)
        raise ValueError(
            f"amount {request.amount} with round_to={request.round_to} removes nothing; open to removal: {layers}"
        )
    return rounded


def _global_counts(request: _Request, rankings: Mapping[str, Ranking]) -> dict[str, int]:
    """How many units go from each layer when the lowest scores of all go first and every layer keeps one."""
    total = sum(group.units for group in request.free)
    wanted = round(request.share("") * total)
    # The last unit of every layer is out of reach, so that exactly `wanted` units go and no layer collapses.
    queue = sorted(
        (value, place, rank, group.name)
        for place, group in enumerate(request.free)
        for rank, value in enumerate(rankings[group.name].scores[: group.units - 1])
    )
    if wanted > len(queue):
        raise ValueError(f"amount {request.amount} removes {wanted} of {total} units, but every layer must keep one")
    counts = {group.name: 0 for group in request.free}
    for _, _, _, name in queue[:wanted]:
        counts[name] += 1
    return counts


def _assemble(
    model: nn.Module,
    graph: ChannelGraph,
    request: _Request,
    score: Score,
    counts: Mapping[str, int],
    rankings: Mapping[str, Ranking],
) -> PruningPlan:
    layers: list[LayerPlan] = []
    stays: list[FrozenLayer] = []
    open_names = {group.name for group in request.free}
    for group in graph.groups:
        count = counts.get(group.name, 0)
        if count:
            layers.append(_layer(group, request, count, rankings[group.name]))
        else:
            default = "amount leaves it whole" if group.name in open_names else "keep names it"
            stays.append(FrozenLayer(group.name, group.units, group.frozen or default))
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
    )


def _layer(group: Group, request: _Request, count: int, ranking: Ranking) -> LayerPlan:
    if request.scope == "global":
        reason = f"lowest of all layers' scores together, amount {request.share(group.name)}"
    else:
        reason = f"first in the criterion's order, amount {request.share(group.name)}"
    if request.round_to > 1:
        reason += f", a multiple of {request.round_to} left"
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
