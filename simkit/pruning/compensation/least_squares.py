"""Least squares: consumers' weights of kept units change so that their outputs stay nearest to what they were, on data.

The algebra is in :mod:`simkit.metrics.reconstruction`: one mixing of units for all positions of a map, estimated over
samples and positions. For a convolution with padding the constant part is not exact at the borders.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from ...errors import OverfitWarning
from ...graph import Group, Slot, View
from ...graph.channels import Units
from ...kernels import as_integer, as_number
from ...metrics.reconstruction import reconstruction
from ...streaming.covariance import Covariance
from ..decisions import Repair
from ..representations import Keeper, Moments, Source, columns_of, stream
from ..scores import Subject
from ..sizes import named_tensors
from .protocol import Answer
from .repair import CannotRepair, constant_of, made, positions_of, require_linear

FEW = 10  # rows for each kept unit
HOLD_OUT = 5


@dataclass(frozen=True)
class LeastSquares:
    """Reconstruct what every consumer reads of the removed units from the kept ones, by the data's covariance.

    A fit of k unknowns to n independent rows has about (n / (n - k))² times its error on other rows. The plan has both:
    ``after`` on all samples, to which the repair is fitted, and ``held_out`` on every fifth sample, of a fit to the
    others. Positions of a map are rows that are not independent.

    Args:
        samples: at most so many samples of the data are used; they are streamed, not kept.
        ridge: share of the units' variance; None takes the least that makes the condition of the kept units'
            correlations at most 1/√ε of the weights' precision (2,896 for float32), and none where it is.
        hold_out: every so many samples one is kept apart to measure the error; None keeps none.

    Warns (when used):
        OverfitWarning: fewer than ten rows for each kept unit, so that the error on others is at least 23% larger.
    """

    samples: int = 2000
    ridge: float | None = None
    hold_out: int | None = HOLD_OUT

    def __post_init__(self) -> None:
        samples = as_integer(self.samples)
        if samples is None or samples < 1:
            raise ValueError(f"samples must be an integer of at least 1, not {self.samples!r}")
        if self.ridge is not None and not 0.0 <= as_number(self.ridge) < np.inf:
            raise ValueError(f"ridge must be at least 0 and finite, not {self.ridge!r}")
        every = as_integer(self.hold_out)
        if self.hold_out is not None and (every is None or every < 2):
            raise ValueError(f"hold_out must be an integer of at least 2 or None, not {self.hold_out!r}")

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
            _warn_of_few(group, moments, removed[group.name])
            repairs = tuple(
                self._repair(subject, group, slot, seen, removed[group.name])
                for slot, seen in zip(group.consumers, moments, strict=True)
            )
            found[group.name] = Answer(repairs, self._note(repairs))
        return found

    def _streamed(self, subject: Subject, groups: list[Group]) -> list[tuple[Group, list[_Parts]]]:
        """The covariance of what every consumer reads, of all groups in one pass."""
        made = [(group, [_Parts(self.hold_out) for _ in group.consumers]) for group in groups]
        wanted = [
            (group, view, seen.keeper())
            for group, moments in made
            for slot, seen in zip(group.consumers, moments, strict=True)
            for view in slot.reads
        ]
        if wanted:
            stream(Source(subject.model, subject.graph, subject.example_inputs), wanted, subject.data, self.samples)
        return made

    def _repair(self, subject: Subject, group: Group, slot: Slot, seen: _Parts, removed: tuple[int, ...]) -> Repair:
        owners = _owners(group, slot)
        places = _places(slot, owners)
        gone, kept = np.flatnonzero(np.isin(owners, removed)), np.flatnonzero(~np.isin(owners, removed))
        constant = constant_of(subject.model, subject.graph, slot)
        tensor = named_tensors(subject.model)[slot.tensor]
        fit = partial(
            reconstruction,
            kept=kept,
            constant=constant is not None,
            precision="float64" if tensor.dtype == torch.float64 else "float32",
            ridge=self.ridge,
        )
        rows = seen.all()
        found = fit(rows)
        entries: Any = tensor.detach().double().movedim(slot.dim, 0).cpu().numpy()[places]  # [entries, w, ...]
        weight = entries.reshape(len(places), -1).T
        return made(
            slot,
            places[gone],
            places[kept],
            found.mixing[gone],
            found.offset[gone],
            constant=constant,
            errors=found.error(weight),
            held_out=fit(seen.fitted.result()).error_on(seen.held.result(), weight) if seen.held.rows else None,
            note=f"ridge {found.ridge:.3g}, condition {found.condition:.3g}, {rows.n / len(kept):.3g} rows per unit",
        )

    def _note(self, repairs: tuple[Repair, ...]) -> str:
        before, after = (sum(getattr(one, when) for one in repairs) for when in ("before", "after"))
        apart = ""
        if all(one.held_out is not None for one in repairs):
            error = sum(one.held_out or 0.0 for one in repairs)
            apart = f" ({error:.4g} on one sample in {self.hold_out}, fitted to the others)"
        errors = f"mean squared error at the consumers {before:.4g} -> {after:.4g}{apart}"
        return f"least squares: {errors}; {repairs[0].note}"


class _Parts:
    """The moments of what one consumer reads: of samples to fit, and of those held out, by their place in the data."""

    def __init__(self, every: int | None) -> None:
        self.every = every
        self.fitted, self.held = Moments(), Moments()

    def keeper(self) -> Keeper:
        """Takes the rows of one of the values that the consumer reads."""
        seen = 0

        def keep(rows: torch.Tensor, samples: int) -> None:
            nonlocal seen
            if self.every is None:
                self.fitted.take(rows, samples)
                return
            apart = torch.arange(seen, seen + samples, device=rows.device) % self.every == self.every - 1
            seen += samples
            by_sample = rows.reshape(samples, -1, rows.shape[1])
            for part, chosen in ((self.fitted, ~apart), (self.held, apart)):
                count = int(chosen.sum())
                if count:
                    part.take(by_sample[chosen].flatten(0, 1), count)

        return keep

    def all(self) -> Covariance:
        """Of all samples."""
        fitted = self.fitted.result()
        return fitted + self.held.result() if self.held.rows else fitted


def _warn_of_few(group: Group, moments: list[_Parts], removed: tuple[int, ...]) -> None:
    rows = min(seen.fitted.rows + seen.held.rows for seen in moments)
    kept = int(np.isin(_owners(group, group.consumers[0]), removed, invert=True).sum())
    if rows < FEW * kept:
        warnings.warn(
            f"layer {group.name!r}: least squares fits {kept} unknowns to {rows} rows, fewer than {FEW} for each: the "
            "error on other data is larger than on these",
            OverfitWarning,
            stacklevel=2,
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
