"""Least squares: consumers' weights of kept units change so that their outputs stay nearest to what they were, on data.

The algebra is in :mod:`simkit.metrics.reconstruction`: one mixing of units for all positions of a map, estimated over
samples and positions. For a convolution with padding the constant part is not exact at the borders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...graph import Group, Slot, View
from ...kernels import as_integer
from ...metrics.reconstruction import Reconstruction, reconstruction
from ...streaming.covariance import CovarianceStream
from ..decisions import Repair
from ..representations import Source, passing, take
from ..scores import Subject
from ..sizes import named_tensors
from .protocol import Answer
from .repair import CannotRepair, constant_of, made, positions_of, require_linear


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
        if self.ridge is not None and not 0.0 <= self.ridge < np.inf:
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
        for group, streams in self._streamed(subject, groups):
            repairs = tuple(
                self._repair(subject, slot, stream, removed[group.name], group.units)
                for slot, stream in zip(group.consumers, streams, strict=True)
            )
            found[group.name] = Answer(repairs, _note(repairs))
        return found

    def _streamed(self, subject: Subject, groups: list[Group]) -> list[tuple[Group, list[CovarianceStream]]]:
        """The covariance of what every consumer reads, of all groups in one pass."""
        source = Source(subject.model, subject.graph, subject.example_inputs)
        views: list[tuple[View, int]] = []
        targets: list[CovarianceStream] = []
        streams: list[tuple[Group, list[CovarianceStream]]] = []
        for group in groups:
            own = [CovarianceStream(group.units) for _ in group.consumers]
            for slot, stream in zip(group.consumers, own, strict=True):
                views += [(view, group.units) for view in slot.reads]
                targets += [stream] * len(slot.reads)
            streams.append((group, own))
        if views:
            inputs = take(subject.data, self.samples, source.inputs)
            for values in passing(source, views, inputs):
                for value, target in zip(values, targets, strict=True):
                    target.update(_table(value))
        return streams

    def _repair(
        self, subject: Subject, slot: Slot, stream: CovarianceStream, removed: tuple[int, ...], units: int
    ) -> Repair:
        gone = sorted(removed)
        kept = np.setdiff1d(np.arange(units), gone)
        constant = constant_of(subject.model, subject.graph, slot)
        tensor = named_tensors(subject.model)[slot.tensor]
        found = reconstruction(
            stream.result(), kept, constant=constant is not None, precision=_precision(tensor), ridge=self.ridge
        )
        return made(
            slot,
            gone,
            kept.tolist(),
            found.mixing[gone],
            found.offset[gone],
            constant=constant,
            errors=_errors(tensor, slot, found, units),
            note=f"ridge {found.ridge:.3g}, condition {found.condition:.3g}",
        )


def _require(subject: Subject, group: Group) -> None:
    for slot in group.consumers:
        require_linear(subject.model, slot, group.producers)
        positions_of(slot, range(group.units))
        if not slot.reads or any(not view.rows for view in slot.reads):
            raise CannotRepair(
                f"what {slot.module or slot.tensor} reads does not hold samples along its first dimension"
            )


def _table(value: torch.Tensor) -> npt.NDArray[np.float64]:
    """``[b, units, positions]`` as rows ``[b * positions, units]``."""
    rows: npt.NDArray[np.float64] = value.movedim(1, 2).reshape(-1, value.shape[1]).double().cpu().numpy()
    return rows


def _precision(tensor: torch.Tensor) -> str:
    return "float64" if tensor.dtype == torch.float64 else "float32"


def _errors(tensor: torch.Tensor, slot: Slot, found: Reconstruction, units: int) -> tuple[float, float]:
    """Mean squared error of the consumer's output; of several taps or positions, each alone and then summed."""
    places = positions_of(slot, range(units))
    weight: Any = tensor.detach().double().movedim(slot.dim, 0).cpu().numpy()[places]  # [units, w, ...]
    return found.error(weight.reshape(units, -1).T)


def _note(repairs: tuple[Repair, ...]) -> str:
    before = sum(one.before or 0.0 for one in repairs)
    after = sum(one.after or 0.0 for one in repairs)
    return f"least squares: mean squared error at the consumers {before:.4g} -> {after:.4g}; {repairs[0].note}"
