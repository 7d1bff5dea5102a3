"""Score, then keep the best: masks of single weights. Nothing is changed here."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ...errors import LayerCollapseWarning, NothingPruned
from ...graph import preserved_rng, quiet_copy
from ...graph.preserve import own_copy
from ..scores import L1
from .control import updater_of
from .invariants import checked_masks, require_change, require_exact, require_subset
from .network import Masks, Network, first_names, open_weights, unit_dim, zero_masked
from .scores import Magnitude, Reviser, UnitMagnitude, Updater, WeightScore
from .selection import (
    Amount,
    Scope,
    Threshold,
    below,
    checked_amount,
    gone_after,
    removals,
    require_finite,
    require_growth,
    take_lowest,
)  # fmt: skip

DEFAULT_SCORE = Magnitude()


def masks(
    model: nn.Module,
    *,
    score: WeightScore = DEFAULT_SCORE,
    amount: Amount = 0.8,
    scope: Scope = "global",
    data: object = None,
    previous: Mapping[str, Tensor] | None = None,
    keep: Collection[str] = (),
    parameters: Collection[str] | None = None,
    initial: Mapping[str, Tensor] | None = None,
) -> Masks:
    """Decide which weights of a model go: parameter name -> bool tensor, True where a weight stays.

    Exactly ``int(round(amount · n))`` of n weights are gone, whatever the ties, of which the lowest index goes first.
    For a criterion that scores units, n counts units, and a unit takes its bias along.

    Args:
        model: neither run nor changed: a copy is, in the same mode, masked by ``previous``.
        score: a criterion for weights, such as :class:`Magnitude`, :class:`SNIP`, :class:`SynFlow`, :class:`Random`.
        amount: the share of all open weights that is gone in the end, ``previous`` included; or shares by layer or
            parameter name, others staying as they are (``scope="layer"``); or a :class:`Threshold`.
        scope: ``"global"`` ranks the weights of all layers together, ``"layer"`` takes the same share of each.
        data: (inputs, targets) tensors, or an iterable of such batches, for criteria that need them.
        previous: the masks so far; the new ones are within them.
        keep: names of parameters, layers or containers that stay whole.
        parameters: names of the parameters to prune; None: the weights of all layers that have some, no biases.
        initial: parameter name -> value at initialisation, for criteria that look back (a ``state_dict`` will do).

    Raises:
        NothingPruned: nothing would go. MaskGrowth: ``previous`` has lost more than ``amount`` already.
        ValueError: an unknown name, an impossible option, missing data, or a score that is not finite.
        TypeError: something that is no criterion.

    Warns:
        LayerCollapseWarning: a layer is left without any weight.
    """
    names = list(open_weights(model, keep, parameters))
    wanted = checked_amount(amount, scope, names, first_names(model))
    score = as_weight_score(score)
    before = _before(model, names, previous)
    after = _decide(_network(model, names, before, data, initial), score, wanted, scope)
    if isinstance(score, Reviser):
        after = score.revise(after, before)
    require_subset(after, before)
    require_change(before, after, f"amount={amount!r}")
    _warn_of_collapse(before, after)
    return after


def updated(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    *,
    score: WeightScore | Updater,
    data: object = None,
    previous: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """A copy of a model under masks, whose other weights make up for what goes as the criterion says (:class:`OBS`).

    Args:
        model: which ``masks`` were decided for; it is not changed.
        masks: of all weights to move or mask.
        score: the criterion, or its control.
        data: as for :func:`masks`.
        previous: the masks before these, whose weights are gone already.

    Raises:
        MaskGrowth: ``masks`` are not within ``previous``. TypeError: a criterion without such an update.
        ValueError: masks that do not fit, missing data.
    """
    updater = updater_of(score)
    if updater is None:
        raise TypeError(f"score must be a criterion that updates weights, such as OBS(), not {score!r}")
    wanted = checked_masks(dict(model.named_parameters(remove_duplicate=False)), masks)
    before = _before(model, list(wanted), previous)
    require_subset(wanted, before)
    with preserved_rng(), torch.enable_grad():
        values = updater.update(_network(model, list(wanted), before, data, None), wanted)
    own = own_copy(model)
    parameters = dict(own.named_parameters())
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)
    for name, mask in wanted.items():
        zero_masked(parameters[name], mask)
    return own


def score_all(
    model: nn.Module,
    score: WeightScore,
    *,
    data: object = None,
    keep: Collection[str] = (),
    initial: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """What a criterion gives every open weight, or unit, of a model; raises as :func:`masks`."""
    score = as_weight_score(score)
    names = list(open_weights(model, keep))
    network = _network(model, names, _before(model, names, None), data, initial)
    return _scores(network, score, _alive(network, score))


def kept_share(masks: Mapping[str, Tensor]) -> float:
    """The share of the masked parameters' entries that stay, 0 to 1; ValueError for no masks."""
    if not masks:
        raise ValueError(f"masks must hold a mask at least, not {masks!r}")
    return sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())


def require_removals(
    model: nn.Module, score: WeightScore, names: Collection[str], scope: Scope, shares: Sequence[float]
) -> None:
    """NothingPruned if one of several shares, each after the other, would remove nothing beyond the one before."""
    parameters = dict(model.named_parameters())
    sizes = {
        name: parameters[name].shape[unit_dim(model, name)] if _unitwise(score) else parameters[name].numel()
        for name in names
    }
    before = 0
    for share in shares:
        gone = sum(count for _, count in removals(scope, share, sizes))
        if gone <= before:
            kept = sum(sizes.values()) - gone
            raise NothingPruned(f"amount={share!r} would prune nothing: all {kept} weights that are left stay")
        before = gone


def as_weight_score(score: object) -> WeightScore:
    """The criterion for weights that is meant; TypeError for what is none, or only the class of one."""
    if isinstance(score, L1):
        return UnitMagnitude()
    if isinstance(score, type) or not isinstance(score, WeightScore):
        raise TypeError(f"score must be a criterion for weights such as Magnitude() or SynFlow(), not {score!r}")
    return score


def _before(model: nn.Module, names: list[str], previous: Mapping[str, Tensor] | None) -> Masks:
    """All-true masks, or ``previous``: of the open weights, and of biases that units took along."""
    parameters = dict(model.named_parameters())
    if previous is None:
        return {name: torch.ones_like(parameters[name], dtype=torch.bool) for name in names}
    given = checked_masks(dict(model.named_parameters(remove_duplicate=False)), previous)
    full = {name: torch.ones_like(parameters[name], dtype=torch.bool) for name in names if name not in given}
    order = [name for name in parameters if name in full or name in given]
    return {name: full[name] if name in full else given[name].clone() for name in order}  # theirs stay theirs


def _decide(network: Network, score: WeightScore, amount: float | dict[str, float] | Threshold, scope: Scope) -> Masks:
    alive = _alive(network, score)
    if isinstance(amount, Threshold):
        return _reduced(network, score, below(_scores(network, score, alive), alive, amount.value)).masks
    for step in _steps(score, amount, scope, alive):
        if all(stay == sum(int(alive[name].sum()) for name in names) for names, stay in step):
            continue  # there is nothing to choose
        scores = _scores(network, score, alive)
        for names, stay in step:
            gone = sum(alive[name].numel() for name in names) - stay
            alive = {**alive, **take_lowest({name: scores[name] for name in names}, alive, gone)}
            require_exact({name: alive[name] for name in names}, stay)
        network = _reduced(network, score, alive)
    return network.masks


def _steps(
    score: WeightScore, amount: float | dict[str, float], scope: Scope, alive: Masks
) -> Iterator[list[tuple[list[str], int]]]:
    """For every step of a criterion, sets of tensors that are ranked together, and how many entries of each stay."""
    steps = int(getattr(score, "iterations", 1))
    wanted = removals(scope, amount, {name: mask.numel() for name, mask in alive.items()})
    sizes = [sum(alive[name].numel() for name in names) for names, _ in wanted]
    started = [sum(int(alive[name].sum()) for name in names) for names, _ in wanted]
    for (_, gone), kept, size in zip(wanted, started, sizes, strict=True):
        require_growth(size - kept, size, gone)
    for step in range(1, steps + 1):
        yield [
            (names, size - gone_after(step / steps, kept, size, gone))
            for (names, gone), kept, size in zip(wanted, started, sizes, strict=True)
        ]


def _reduced(network: Network, score: WeightScore, alive: Masks) -> Network:
    """The network without the weights, or units, that a criterion took."""
    return _masked(network, _spread(network, alive) if _unitwise(score) else {**network.masks, **alive})


def _scores(network: Network, score: WeightScore, alive: Masks) -> dict[str, Tensor]:
    with preserved_rng(), torch.enable_grad():
        scores = score.weights(network)
    for name, mask in alive.items():
        if name not in scores or scores[name].shape != mask.shape:
            shape = tuple(scores[name].shape) if name in scores else None
            raise ValueError(f"{score!r} gives {name!r} scores of shape {shape}, not {tuple(mask.shape)}")
    require_finite(scores, alive)
    return {name: scores[name] for name in alive}


def _unitwise(score: WeightScore) -> bool:
    return bool(getattr(score, "unitwise", False))


def _alive(network: Network, score: WeightScore) -> Masks:
    """What the criterion scores and is left: weights, or units ``[units]`` of which any incoming weight is left."""
    if not _unitwise(score):
        return {name: network.masks[name] for name in network.names}
    return {
        name: network.masks[name].movedim(unit_dim(network.model, name), 0).flatten(1).any(dim=1)
        for name in network.names
    }


def _spread(network: Network, units: Masks) -> Masks:
    """Masks of weights, and of the biases of the same units, from those of units."""
    found = dict(network.masks)
    parameters = dict(network.model.named_parameters())
    for name, stays in units.items():
        shape = [1] * found[name].dim()
        shape[unit_dim(network.model, name)] = -1
        found[name] = found[name] & stays.reshape(shape)
        bias = ".".join([*name.split(".")[:-1], "bias"])
        if bias in parameters and parameters[bias].shape == stays.shape:
            found[bias] = stays & found.get(bias, torch.ones_like(stays))
    return {name: found[name] for name in parameters if name in found}


def _masked(network: Network, masks: Masks) -> Network:
    """The network with smaller masks, its model's weights zeroed to match."""
    parameters = dict(network.model.named_parameters())
    for name, mask in masks.items():
        zero_masked(parameters[name], mask)
    return replace(network, masks=masks)


def _network(
    model: nn.Module, names: Collection[str], masks: Masks, data: object, initial: Mapping[str, Tensor] | None
) -> Network:
    own = quiet_copy(model)
    for copied, module in zip(own.modules(), model.modules(), strict=True):
        copied.training = module.training
    return _masked(Network(own, tuple(names), masks, data, initial), masks)


def _warn_of_collapse(before: Masks, after: Masks) -> None:
    empty = [name for name, mask in after.items() if not mask.any() and (name not in before or before[name].any())]
    if empty:
        listed = ", ".join(f"{name!r} ({after[name].numel()})" for name in empty)
        warnings.warn(f"layer collapse: no weight is left of {listed}", LayerCollapseWarning, stacklevel=3)
