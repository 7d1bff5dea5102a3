"""Whether two criteria rank weights alike."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from .masks import score_all
from .scores import Oracle, WeightScore

_ORACLE = Oracle()


@dataclass(frozen=True)
class Agreement:
    """Spearman's rank correlation of two criteria, -1 to 1: over everything, and by parameter name (NaN where one of
    them gives all the same score)."""

    overall: float
    layers: Mapping[str, float]


def agreement(
    model: nn.Module,
    score: WeightScore,
    reference: WeightScore = _ORACLE,
    *,
    data: object = None,
    keep: Collection[str] = (),
    initial: Mapping[str, Tensor] | None = None,
) -> Agreement:
    """How well a criterion orders weights (or units) as another does, the :class:`Oracle` by default.

    Raises:
        ValueError: one scores units and the other weights; and as :func:`masks`.
    """
    first, second = (score_all(model, one, data=data, keep=keep, initial=initial) for one in (score, reference))
    for name, values in first.items():
        if values.shape != second[name].shape:
            shapes = f"{tuple(values.shape)} and {tuple(second[name].shape)}"
            raise ValueError(f"{score!r} and {reference!r} score {name!r} in shapes {shapes}")
    layers = {name: _spearman(values, second[name]) for name, values in first.items()}
    overall = _spearman(*(torch.cat([v.double().cpu().flatten() for v in one.values()]) for one in (first, second)))
    return Agreement(overall, layers)


def _spearman(first: Tensor, second: Tensor) -> float:
    ranks = [stats.rankdata(values.detach().double().cpu().flatten().numpy()) for values in (first, second)]
    if min(np.ptp(rank) for rank in ranks) == 0:
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])
