"""What a criterion is given and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ...graph import Group


@dataclass(frozen=True)
class Subject:
    """The model under judgement (a copy in eval mode), the groups to rank, and the data in memory, if any was given."""

    model: nn.Module
    groups: tuple[Group, ...]
    data: object

    def weight(self, group: Group) -> npt.NDArray[np.float64]:
        """The producing layer's weight, one row per unit: ``[units, fan-in]`` in float64."""
        weight = self.model.get_parameter(group.producers[0].tensor).detach()
        flat: npt.NDArray[np.float64] = weight.reshape(group.units, -1).to(torch.float64).cpu().numpy()
        return flat


@dataclass(frozen=True)
class Ranking:
    """Units in the order in which they go, first removed first, and the score of each (what the criterion calls it)."""

    order: tuple[int, ...]
    scores: tuple[float, ...]


class Score(Protocol):
    """A criterion. ``comparable`` says whether scores of different layers are on one scale."""

    @property
    def name(self) -> str:
        """The criterion with its options, as the plan reports it."""

    @property
    def comparable(self) -> bool:
        """Whether units of different layers may be ranked against one another."""

    def rank(self, subject: Subject, counts: Mapping[str, int]) -> dict[str, Ranking]:
        """For every group named in ``counts``, at least the first ``counts[name]`` units to go."""


def ascending(scores: npt.NDArray[np.float64]) -> Ranking:
    """Units by score, lowest first; ties go to the lowest index."""
    order = np.argsort(scores, kind="stable")
    return Ranking(tuple(int(unit) for unit in order), tuple(float(scores[unit]) for unit in order))
