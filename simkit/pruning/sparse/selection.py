"""Exactly k: which entries of scored tensors go, ties and all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...errors import MaskGrowth
from ...kernels import as_number
from .network import Masks, weight_name

Scope = Literal["global", "layer"]


@dataclass(frozen=True)
class Threshold:
    """An ``amount`` that is a score: what lies strictly below it goes, in every layer, however much that is."""

    value: float

    def __post_init__(self) -> None:
        if not math.isfinite(as_number(self.value)):
            raise ValueError(f"a threshold must be a finite number, not {self.value!r}")


Amount = float | Mapping[str, float] | Threshold


def checked_amount(
    amount: Amount, scope: str, names: list[str], aliases: Mapping[str, str]
) -> float | dict[str, float] | Threshold:
    """An amount whose names are those of parameters; ValueError for a share outside [0, 1] or an unknown name.

    ``aliases`` gives the first name of every name that a parameter has.
    """
    if scope not in ("global", "layer"):
        raise ValueError(f"scope must be 'global' or 'layer', not {scope!r}")
    if isinstance(amount, Threshold):
        return amount
    if not isinstance(amount, Mapping):
        return _share(amount, "amount")
    if scope == "global":
        raise ValueError("amount by layer needs scope='layer', not 'global'")
    found: dict[str, float] = {}
    for given, value in amount.items():
        name = weight_name(given, names, "amount", aliases)
        if name in found:
            raise ValueError(f"amount names {name!r} twice")
        found[name] = _share(value, f"amount[{given!r}]")
    return found


def removals(scope: str, amount: float | dict[str, float], sizes: Mapping[str, int]) -> list[tuple[list[str], int]]:
    """Sets of tensors that are ranked together, and how many entries of each set are gone in the end.

    ``int(round(share · n))`` of n, all layers together or layer by layer; layers that an amount by layer leaves out
    stay as they are.
    """
    if isinstance(amount, dict):
        return [([name], round(share * sizes[name])) for name, share in amount.items()]
    if scope == "layer":
        return [([name], round(amount * size)) for name, size in sizes.items()]
    return [(list(sizes), round(amount * sum(sizes.values())))]


def gone_after(part: float, kept: int, size: int, gone: int) -> int:
    """How many of ``size`` entries are gone when a share ``part`` of the steps is done, the kept falling geometrically.

    ``kept`` are left before the first step, ``size - gone`` after the last.
    """
    return gone if part == 1.0 else size - round(kept ** (1.0 - part) * (size - gone) ** part)


def take_lowest(scores: Mapping[str, Tensor], alive: Masks, gone: int) -> Masks:
    """Masks of which exactly ``gone`` entries are False: the dead ones, and the lowest scores of the living.

    Ties go to the lowest index, in the order of the tensors.

    Raises:
        MaskGrowth: more than ``gone`` entries are dead already. ValueError: a score that is not finite.
    """
    living = torch.cat([alive[name].flatten().cpu() for name in scores])
    values = torch.cat([score.detach().flatten().cpu() for score in scores.values()])
    wanted = gone - int(living.logical_not().sum())
    require_growth(gone - wanted, len(living), gone)
    places = living.nonzero().flatten()
    kept = living.clone()
    kept[places[_lowest(values[places], wanted)]] = False
    parts = torch.split(kept, [score.numel() for score in scores.values()])
    return {
        name: part.reshape(alive[name].shape).to(alive[name].device)
        for name, part in zip(scores, parts, strict=True)
    }  # fmt: skip


def require_growth(dead: int, size: int, gone: int) -> None:
    """MaskGrowth if more of ``size`` entries are dead than are to be gone."""
    if dead > gone:
        raise MaskGrowth(f"{dead} of {size} weights are gone already: only {gone} gone would revive {dead - gone}")


def below(scores: Mapping[str, Tensor], alive: Masks, threshold: float) -> Masks:
    """Masks without the living entries that score below a threshold, which is compared in float64."""
    return {
        name: alive[name] & (score.detach().to(alive[name].device).double() >= threshold)
        for name, score in scores.items()
    }


def require_finite(scores: Mapping[str, Tensor], alive: Masks) -> None:
    """ValueError naming the first living entry whose score is not finite."""
    for name, score in scores.items():
        bad = (~score.isfinite()) & alive[name].to(score.device)
        if bad.any():
            place = tuple(int(index) for index in bad.nonzero()[0])
            raise ValueError(f"the score of {name}{list(place)} is {float(score[place])}")


def _lowest(values: Tensor, count: int) -> Tensor:
    """Indices of the ``count`` lowest values ``[n]``, of equal ones the first."""
    if count == 0:
        return torch.zeros(0, dtype=torch.int64)
    bound = values.kthvalue(count).values
    under = values < bound
    ties = (values == bound).nonzero().flatten()
    return torch.cat([under.nonzero().flatten(), ties[: count - int(under.sum())]])


def _share(value: object, name: str) -> float:
    share = as_number(value)
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"{name} must be a share from 0 to 1, not {value!r}")
    return float(share)
