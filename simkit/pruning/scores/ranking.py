"""What a criterion is given and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ...graph import ChannelGraph, Group, Slot
from ...graph.channels import Units
from ..sizes import named_tensors

Scope = Literal["layer", "global"]
FloatArray: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Subject:
    """The model under judgement (a copy in eval mode), its graph, the groups to rank, an example, the data, if any."""

    model: nn.Module
    graph: ChannelGraph
    groups: tuple[Group, ...]
    example_inputs: Any
    data: object

    def filters(self, group: Group) -> list[FloatArray]:
        """For every layer that computes the units, their incoming weights ``[units, fan-in]`` in float64, no biases.

        ValueError for a layer without weights, or with one that is not finite.
        """
        found: list[FloatArray] = []
        for slot, tensor in self._made(group):
            places = np.argsort(slot.units, kind="stable")[(slot.units < 0).sum() :]  # a unit may be several rows
            rows = tensor.detach().movedim(slot.dim, 0)[torch.from_numpy(places).to(tensor.device)]
            flat = rows.reshape(group.units, -1).to(torch.float64).cpu().numpy()
            require_finite(group, flat.sum(axis=1))
            found.append(flat)
        if not found:
            raise ValueError(f"layer {group.name!r} has no weights to rank its units by")
        return found

    def fan_in(self, group: Group, before: Group) -> Units | None:
        """The unit of ``before`` that every column of the group's :meth:`filters`, in a row, reads; -1 for none.

        None where no column does.
        """
        tensors = named_tensors(self.model)
        parts: list[Units] = []
        for slot, tensor in self._made(group):
            shape = tensor.shape[: slot.dim] + tensor.shape[slot.dim + 1 :]
            owners = np.full(shape, -1)
            for reader in before.consumers:
                if tensors[reader.tensor] is tensor and reader.dim != slot.dim:
                    along = [1] * len(shape)
                    along[reader.dim - (reader.dim > slot.dim)] = -1
                    here = np.broadcast_to(reader.units.reshape(along), shape)
                    owners = np.where(here >= 0, here, owners)
            parts.append(np.tile(owners.ravel(), int((slot.units >= 0).sum()) // group.units))
        found = np.concatenate(parts)
        return found if (found >= 0).any() else None

    def _made(self, group: Group) -> Iterator[tuple[Slot, torch.Tensor]]:
        """The weights that compute the units, each once."""
        tensors = named_tensors(self.model)
        seen: set[tuple[int, int]] = set()
        for slot in group.producers:
            tensor = tensors[slot.tensor]
            if tensor.dim() > 1 and (id(tensor), slot.dim) not in seen:
                seen.add((id(tensor), slot.dim))
                yield slot, tensor


@dataclass(frozen=True)
class Ranking:
    """Units in the order in which they go, first removed first, and the score of each (what the criterion calls it).

    ``stopped`` says why the criterion lets no more units go, where it ends before the last. The first ``idle`` units
    make no difference on the data.
    """

    order: tuple[int, ...]
    scores: tuple[float, ...]
    stopped: str | None = None
    idle: int = 0


class Score(Protocol):
    """A criterion: which units go first."""

    @property
    def name(self) -> str:
        """The criterion with its options, as the plan reports it."""

    @property
    def scopes(self) -> tuple[Scope, ...]:
        """``"layer"`` where it can rank within a layer that is to lose a given number of units; ``"global"`` where
        scores of different layers are on one scale, or where it says itself which layer loses how many."""

    def rank(self, subject: Subject, counts: Mapping[str, int]) -> dict[str, Ranking]:
        """For every group named in ``counts``, at least the first ``counts[name]`` units to go (fewer if it stops)."""


@runtime_checkable
class Allocator(Protocol):
    """A criterion that says itself from which layer units go (``scope="global"``)."""

    def allocate(
        self, subject: Subject, rankings: Mapping[str, Ranking], cost: Callable[[str], float]
    ) -> Iterator[str]:
        """Names of groups in the order in which they lose one unit each; a plan takes names until its budget is met.

        ``cost(name)`` is what the next unit of a group saves, in the plan's budget, once all units named so far are
        gone. Every group is named at most once for every unit of its ranking.
        """


def ascending(scores: FloatArray) -> Ranking:
    """Units by score, lowest first; ties go to the lowest index."""
    order = np.argsort(scores, kind="stable")
    return Ranking(tuple(int(unit) for unit in order), tuple(float(scores[unit]) for unit in order))


def require_finite(group: Group, values: FloatArray) -> None:
    """ValueError naming the first unit whose value is not finite."""
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise ValueError(f"unit {bad[0]} of layer {group.name!r} has a non-finite weight")
