"""What a criterion is given and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ...graph import ChannelGraph, Group
from ..sizes import named_tensors


@dataclass(frozen=True)
class Subject:
    """The model under judgement (a copy in eval mode), its graph, the groups to rank, an example, the data, if any."""

    model: nn.Module
    graph: ChannelGraph
    groups: tuple[Group, ...]
    example_inputs: Any
    data: object

    def weights(self, group: Group) -> list[tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]]:
        """The weights of all layers that compute the units, one row per channel ``[channels, fan-in]`` in float64, and
        the unit of every row, -1 for none. Biases are left out."""
        found: dict[tuple[int, int], tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]] = {}
        for slot in group.producers:
            tensor = named_tensors(self.model)[slot.tensor].detach()
            if tensor.dim() > 1:
                rows = tensor.movedim(slot.dim, 0).reshape(tensor.shape[slot.dim], -1)
                found[id(tensor), slot.dim] = rows.to(torch.float64).cpu().numpy(), slot.units
        return list(found.values())


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
