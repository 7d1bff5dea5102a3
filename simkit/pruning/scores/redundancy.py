"""Structural redundancy: layers whose filters resemble one another lose units, whichever units these are."""

from __future__ import annotations

import heapq
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from ...errors import DegenerateWarning
from ...graph import Group
from ...graph.channels import Units
from ...metrics.filter_gram import FilterGram
from ...metrics.filter_graph import FilterGraph, filter_graph
from ...metrics.redundancy import CoveringEstimator, redundancy
from ...metrics.thresholds import Norm, parse_thresholds
from .l1 import L1
from .ranking import Ranking, Scope, Subject

Step = Literal["one", "two_sqrt"]
FanIn = Literal["left", "whole"]
TIE = 12  # decimals: sums of the formula's two terms differ in the last digit where the ratio does not


@dataclass(frozen=True)
class Redundancy:
    """How many units each layer loses follows from its redundancy N / (0.65 · covering number + 0.35 · components).

    One vertex at a time goes from the graph of the filters of the layer that is most redundant at that moment, which is
    then measured again, until the plan's ``amount`` of all layers together is met (``scope="global"``). Which units go
    is a minor matter by the source: those of the smallest L1 norm in the whole model, so that what is measured are the
    filters that stay, without the weights for units of other layers that have gone (``fan_in="left"``).

    Of equally redundant layers the one with the largest share of its units left comes first, then the first. Where
    several layers compute a unit, its filter is all their incoming weights in a row.

    Args:
        threshold, norm, estimator: as in :func:`simkit.redundancy`.
        step: ``"one"`` unit at a time; ``"two_sqrt"``: ⌊2√r⌋ units, r the redundancy, before the layer is measured
            again, as the CENG501 reproduction of the paper does. Its numbers are those of ``Redundancy(threshold=0.023,
            norm="sqrt_fan_in", estimator="total_degree", step="two_sqrt", fan_in="whole")``: graphs that are complete,
            so that the widest layer is the most redundant.
        fan_in: ``"left"``: a unit that goes takes its weights from the filters that read it, and these layers are
            measured again, a calibrated threshold for the weights that are left; ``"whole"``: filters stay as they are.

    Source: Wang, Li, Wang, "Convolutional Neural Network Pruning with Structural Redundancy Reduction" (2021).
    """

    threshold: float | None = None
    norm: Norm = "distance"
    estimator: CoveringEstimator = "greedy"
    step: Step = "one"
    fan_in: FanIn = "left"

    def __post_init__(self) -> None:
        for option, value, allowed in (
            ("estimator", self.estimator, get_args(CoveringEstimator)),
            ("step", self.step, get_args(Step)),
            ("fan_in", self.fan_in, get_args(FanIn)),
        ):
            if value not in allowed:
                raise ValueError(f"{option} must be one of {', '.join(allowed)}, not {value!r}")
        if parse_thresholds(self.threshold, self.norm, 2)[1]:
            raise ValueError(f"threshold must be one number or None, not {self.threshold!r}")

    @property
    def name(self) -> str:
        """The criterion with its options, as the plan reports it."""
        return repr(self)

    @property
    def scopes(self) -> tuple[Scope, ...]:
        """Over all layers only: how many units each one loses is what the criterion decides."""
        return ("global",)

    def rank(self, subject: Subject, counts: Mapping[str, int]) -> dict[str, Ranking]:
        """All units of the counted groups, smallest L1 norm first; a non-finite weight raises ValueError."""
        return L1().rank(subject, counts)

    def allocate(
        self, subject: Subject, rankings: Mapping[str, Ranking], cost: Callable[[str], float]
    ) -> Iterator[str]:
        """The most redundant layer at every step; what a unit costs does not matter. One unit of each layer stays.

        Warns:
            DegenerateWarning: a layer's graph without an edge, or with all of them.
        """
        groups = [group for group in subject.groups if group.name in rankings]
        layers = [self._layer(subject, group) for group in groups]
        readers = _readers(subject, groups) if self.fan_in == "left" else [[] for _ in groups]
        changed = [0] * len(groups)
        queue = [self._measured(place, layer, 0) for place, layer in enumerate(layers)]
        heapq.heapify(queue)
        while queue:
            value, _, place, version = heapq.heappop(queue)
            if version != changed[place]:
                continue  # it has been measured again since
            layer, order = layers[place], rankings[groups[place].name].order
            count = 1 if self.step == "one" else max(1, math.floor(2.0 * math.sqrt(-value)))
            touched = {place}
            for _ in range(min(count, layer.left - 1)):
                unit = order[layer.units - layer.left]
                yield groups[place].name
                layer.remove(unit)
                for other, owners in readers[place]:
                    layers[other].shrink(np.flatnonzero(owners == unit))
                    touched.add(other)
            for other in sorted(touched):
                changed[other] += 1
                if layers[other].left > 1:
                    heapq.heappush(queue, self._measured(other, layers[other], changed[other]))

    def _layer(self, subject: Subject, group: Group) -> _Layer:
        filters = np.concatenate(subject.filters(group), axis=1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", DegenerateWarning)
            graph = filter_graph(filters, threshold=self.threshold, norm=self.norm)
        for warning in caught:
            warnings.warn(f"layer {group.name!r}: {warning.message}", warning.category, stacklevel=2)
        return _Layer(graph, FilterGram(filters) if self.fan_in == "left" else None)

    def _measured(self, place: int, layer: _Layer, version: int) -> tuple[float, float, int, int]:
        graph = layer.graph(self.threshold, self.norm)
        value = round(float(redundancy(graph, estimator=self.estimator)), TIE)
        return -value, -layer.left / layer.units, place, version


class _Layer:
    """A layer's filters as they go: a graph that loses vertices, or inner products that lose weights too."""

    def __init__(self, graph: FilterGraph, gram: FilterGram | None) -> None:
        self.units = len(graph.filters)
        self._graph: FilterGraph | None = graph
        self._gram = gram

    @property
    def left(self) -> int:
        """How many filters are left."""
        source = self._gram or self._graph
        assert source is not None
        return len(source.filters)

    def remove(self, unit: int) -> None:
        """A filter goes."""
        if self._gram is not None:
            self._gram.remove(unit)
            self._graph = None
        elif self._graph is not None:
            self._graph = self._graph.remove(int(np.searchsorted(self._graph.filters, unit)))

    def shrink(self, weights: Units) -> None:
        """Weights go from every filter, unless they are the last."""
        if self._gram is not None and len(weights) < self._gram.fan_in:
            self._gram.shrink(weights)
            self._graph = None

    def graph(self, threshold: float | None, norm: Norm) -> FilterGraph:
        """Of what is left."""
        if self._graph is None:
            assert self._gram is not None
            self._graph = self._gram.graph(threshold=threshold, norm=norm)
        return self._graph


def _readers(subject: Subject, groups: Sequence[Group]) -> list[list[tuple[int, Units]]]:
    """For every layer, those whose filters have weights for its units, and the unit of every such weight."""
    return [
        [(place, owners) for place, group in enumerate(groups) if (owners := subject.fan_in(group, before)) is not None]
        for before in groups
    ]
