"""Structural redundancy: layers whose filters resemble one another lose units, whichever units these are."""

from __future__ import annotations

import heapq
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from ...errors import DegenerateWarning
from ...graph import Group
from ...metrics.filter_graph import FilterGraph, filter_graph
from ...metrics.redundancy import CoveringEstimator, redundancy
from ...metrics.thresholds import Norm, parse_thresholds
from .l1 import L1
from .ranking import Ranking, Scope, Subject

Step = Literal["one", "two_sqrt"]
TIE = 12  # decimals: sums of the formula's two terms differ in the last digit where the ratio does not


@dataclass(frozen=True)
class Redundancy:
    """How many units each layer loses follows from its redundancy N / (0.65 · covering number + 0.35 · components).

    One vertex at a time goes from the graph of the filters of the layer that is most redundant at that moment, which is
    then measured again, until the plan's ``amount`` of all layers together is met (``scope="global"``). Which units go
    is a minor matter by the source: those of the smallest L1 norm, so that what is measured are the filters that stay.
    The filters are those of the model as it is: weights that go with units of the layer before still count.

    Of equally redundant layers the one with the largest share of its units left comes first, then the first. Where
    several layers compute a unit, its filter is all their incoming weights in a row.

    Args:
        threshold, norm, estimator: as in :func:`simkit.redundancy`.
        step: ``"one"`` unit at a time; ``"two_sqrt"``: ⌊2√r⌋ units, r the redundancy, before the layer is measured
            again, as the CENG501 reproduction of the paper does. Its numbers are those of
            ``Redundancy(threshold=0.023, norm="sqrt_fan_in", estimator="total_degree", step="two_sqrt")``: graphs that
            are complete, so that the widest layer is the most redundant.

    Source: Wang, Li, Wang, "Convolutional Neural Network Pruning with Structural Redundancy Reduction" (2021).
    """

    threshold: float | None = None
    norm: Norm = "distance"
    estimator: CoveringEstimator = "greedy"
    step: Step = "one"

    def __post_init__(self) -> None:
        for option, value, allowed in (
            ("estimator", self.estimator, get_args(CoveringEstimator)),
            ("step", self.step, get_args(Step)),
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
        queue: list[tuple[float, float, int, FilterGraph]] = []
        for place, group in enumerate(groups):
            queue.append(self._measured(place, group, self._graph(subject, group)))
        heapq.heapify(queue)
        while queue:
            value, _, place, graph = heapq.heappop(queue)
            group = groups[place]
            order = rankings[group.name].order
            count = 1 if self.step == "one" else max(1, math.floor(2.0 * math.sqrt(-value)))
            for _ in range(min(count, len(graph.filters) - 1)):
                unit = order[group.units - len(graph.filters)]
                yield group.name
                graph = graph.remove(int(np.searchsorted(graph.filters, unit)))
            if len(graph.filters) > 1:
                heapq.heappush(queue, self._measured(place, group, graph))

    def _graph(self, subject: Subject, group: Group) -> FilterGraph:
        filters = np.concatenate(subject.filters(group), axis=1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", DegenerateWarning)
            graph = filter_graph(filters, threshold=self.threshold, norm=self.norm)
        for warning in caught:
            warnings.warn(f"layer {group.name!r}: {warning.message}", warning.category, stacklevel=2)
        return graph

    def _measured(self, place: int, group: Group, graph: FilterGraph) -> tuple[float, float, int, FilterGraph]:
        value = round(float(redundancy(graph, estimator=self.estimator)), TIE)
        return -value, -len(graph.filters) / group.units, place, graph
