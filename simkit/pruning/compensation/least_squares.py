"""Least squares: consumers' weights of kept units change so that their outputs stay nearest to what they were, on data.

The algebra is in :mod:`simkit.metrics.reconstruction`: one mixing of units for all positions of a map, estimated over
samples and positions. For a convolution with padding the constant part is not exact at the borders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...graph import Group, Slot, View
from ...graph.channels import Units
from ...kernels import as_integer, as_number
from ...metrics.reconstruction import reconstruction
from ..decisions import Repair
from ..representations import Moments, Source, columns_of, stream
from ..scores import Subject
from ..sizes import named_tensors
from .protocol import Answer
from .repair import CannotRepair, constant_of, made, positions_of, require_linear

FEW = 4  # rows for each kept unit, below which the error on the data says little of other data


@dataclass(frozen=True)
class LeastSquares:
    """Reconstruct what every consumer reads of the removed units from the kept ones, by the data's covariance.

    Args:
        samples: at most so many samples of the data are used; they are streamed, not kept.
        ridge: share of the units' variance; None takes the least that makes the kept units well conditioned.
    """

    samples: int = 2000
    ridge: float | None = None

    def __post_init__(self) -> None:
        samples = as_integer(self.samples)
        if samples is None or samples < 1:
            raise ValueError(f"samples must be an integer of at least 1, not {self.samples!r}")
        if self.ridge is not None and not 0.0 <= as_number(self.ridge) < np.inf:
            raise ValueError(f"ridge must be at least 0 and finite, not {self.ridge!r}")

    @property
    def name(self) -> str:
        """The method with its options, as the plan reports it."""
        return repr(self)

    def answers(self, subject: Subject, removed: Mapping[str, tuple[int, ...]]) -> dict[str, Answer]:
        """For every group named in ``removed``: what its consumers do without these units, and the errors.

        Raises:
            ValueError: no data; a value that is not finite.
        """
        if subject.data is None:
            raise ValueError("LeastSquares needs data=: a tensor, a DataLoader or an iterable of batches")
        found: dict[str, Answer] = {}
        groups: list[Group] = []
        for group in subject.groups:
            if group.name in removed:
                try:
                    _require(subject, group)
                    groups.append(group)
                except CannotRepair as reason:
                    found[group.name] = Answer((), f"not compensated: {reason}")
        for group, moments in self._streamed(subject, groups):
            repairs = tuple(
                self._repair(subject, group, slot, seen, removed[group.name])
                for slot, seen in zip(group.consumers, moments, strict=True)
            )
            found[group.name] = Answer(repairs, _note(repairs))
        return found

    def _streamed(self, subject: Subject, groups: list[Group]) -> list[tuple[Group, list[Moments]]]:
        """The covariance of what every consumer reads, of all groups in one pass."""
        made = [(group, [Moments() for _ in group.consumers]) for group in groups]
        wanted = [
            (group, view, seen.take)
            for group, moments in made
            for slot, seen in zip(group.consumers, moments, strict=True)
            for view in slot.reads
        ]
        if wanted:
            stream(Source(subject.model, subject.graph, subject.example_inputs), wanted, subject.data, self.samples)
        return made

    def _repair(self, subject: Subject, group: Group, slot: Slot, seen: Moments, removed: tuple[int, ...]) -> Repair:
        owners = _owners(group, slot)
        places = _places(slot, owners)
        gone, kept = np.flatnonzero(np.isin(owners, removed)), np.flatnonzero(~np.isin(owners, removed))
        constant = constant_of(subject.model, subject.graph, slot)
        tensor = named_tensors(subject.model)[slot.tensor]
        found = reconstruction(
            seen.result(), kept, constant=constant is not None, precision=_precision(tensor), ridge=self.ridge
        )
        rows = seen.result().n
        few = f"; only {rows} rows, of which this is the error" if rows < FEW * len(kept) else ""
        weight: Any = tensor.detach().double().movedim(slot.dim, 0).cpu().numpy()[places]  # [entries, w, ...]
        return made(
            slot,
            places[gone],
            places[kept],
            found.mixing[gone],
            found.offset[gone],
            constant=constant,
            errors=found.error(weight.reshape(len(places), -1).T),
            note=f"ridge {found.ridge:.3g}, condition {found.condition:.3g}{few}",
        )


def _require(subject: Subject, group: Group) -> None:
    require_linear(subject.model, group)
    for slot in group.consumers:
        reader = slot.module or slot.tensor
        if not slot.reads or any(not view.rows for view in slot.reads):
            raise CannotRepair(f"what {reader} reads does not hold samples along its first dimension")
        owners = [_owners_of(group, view) for view in slot.reads]
        if any(not np.array_equal(one, owners[0]) for one in owners):
            raise CannotRepair(f"{reader} reads its units in several forms")
        _places(slot, owners[0])


def _owners(group: Group, slot: Slot) -> Units:
    """The unit of every entry that is mixed: the units themselves, or the channels of units that have several."""
    return _owners_of(group, slot.reads[0])


def _owners_of(group: Group, view: View) -> Units:
    found = columns_of(group, view)
    return np.arange(group.units) if found is None else found


def _places(slot: Slot, owners: Units) -> Units:
    """Positions ``[entries, w]`` along the slot; CannotRepair where an entry is not as many as every other."""
    units, counts = np.unique(owners, return_counts=True)
    places = positions_of(slot, units.tolist())
    if (counts != counts[0]).any() or places.shape[1] % counts[0]:
        raise CannotRepair(f"{slot.module or slot.tensor} reads its units at different numbers of positions")
    return places.reshape(len(owners), -1)


def _precision(tensor: torch.Tensor) -> str:
    return "float64" if tensor.dtype == torch.float64 else "float32"


def _note(repairs: tuple[Repair, ...]) -> str:
    before = sum(one.before or 0.0 for one in repairs)
    after = sum(one.after or 0.0 for one in repairs)
    return f"least squares: mean squared error at the consumers {before:.4g} -> {after:.4g}; {repairs[0].note}"
