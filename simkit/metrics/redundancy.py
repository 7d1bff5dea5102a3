"""Structural redundancy of a layer: how many filters there are for every direction that their graph needs.

Redundancy = N / (0.65 · covering number + 0.35 · components) of the graph of the layer's N filters. Source: Wang, Li,
Wang 2021, "Convolutional Neural Network Pruning with Structural Redundancy Reduction" (arXiv:2104.03438). The covering
number is NP-hard; its upper bound is used.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from ..arrays import as_filters
from ..backends.base import Plan, Step
from ..backends.bits import on_device
from ..backends.choose import choose
from ..backends.routes import check_threads
from .covering import Covering, bounds
from .filter_graph import FilterGraph, Sweep, build
from .thresholds import Norm, ThresholdLike

CoveringEstimator: TypeAlias = Literal["greedy", "total_degree"]


@dataclass(frozen=True, eq=False)
class Redundancy:
    """The structural redundancy of a layer; ``float(redundancy)`` is its value.

    Attributes:
        value: filters / (covering_weight · covering_number + components_weight · components); 1 when no two filters
            are near, larger the more redundant.
        graph: what it was measured on, with ``components``, ``edge_density``, ``threshold`` and ``norm``.
        covering: bounds of the covering number.
        covering_number: what stands in the formula: ``covering.upper``, or the estimate that was asked for.
        plan: what ran and why.
    """

    value: float
    graph: FilterGraph
    covering: Covering
    covering_number: float
    plan: Plan = field(repr=False)

    @property
    def backend(self) -> str:
        """The backends that ran."""
        return self.plan.backend

    @property
    def filters(self) -> int:
        """Number of filters N."""
        return len(self.graph.filters)

    @property
    def components(self) -> int:
        """Number of connected components, the quotient-space size."""
        return self.graph.components

    @property
    def edge_density(self) -> float:
        """Edges divided by pairs, in [0, 1]."""
        return self.graph.edge_density

    @property
    def threshold(self) -> float:
        """The threshold, in the units of the graph's norm."""
        return self.graph.threshold

    def __float__(self) -> float:
        return self.value


@overload
def redundancy(
    weight: object,
    *,
    threshold: float | None = None,
    norm: Norm | None = None,
    covering_weight: float = 0.65,
    components_weight: float = 0.35,
    estimator: CoveringEstimator = "greedy",
    backend: str | None = None,
    threads: int | None = None,
) -> Redundancy: ...
@overload
def redundancy(
    weight: object,
    *,
    threshold: Iterable[float] | npt.NDArray[np.floating],
    norm: Norm | None = None,
    covering_weight: float = 0.65,
    components_weight: float = 0.35,
    estimator: CoveringEstimator = "greedy",
    backend: str | None = None,
    threads: int | None = None,
) -> list[Redundancy]: ...
def redundancy(
    weight: object,
    *,
    threshold: ThresholdLike = None,
    norm: Norm | None = None,
    covering_weight: float = 0.65,
    components_weight: float = 0.35,
    estimator: CoveringEstimator = "greedy",
    backend: str | None = None,
    threads: int | None = None,
) -> Redundancy | list[Redundancy]:
    """Structural redundancy N / (0.65 · covering number + 0.35 · components) of a layer's filters.

    Args:
        weight: filters ``[n, ...]``, or the :class:`simkit.FilterGraph` of some, such as ``graph.remove(i)``.
        threshold: as in :func:`simkit.filter_graph`; a sequence gives a list. A graph has its own.
        norm: of the threshold, as in :func:`simkit.filter_graph`; None is ``"distance"``. A graph has its own.
        covering_weight: factor of the covering number, not negative.
        components_weight: factor of the number of components, not negative; the two are not both 0.
        estimator: ``"greedy"`` takes the upper bound of the covering number; ``"total_degree"`` the estimate of the
            CENG501 reproduction of the paper (:meth:`simkit.FilterGraph.total_degree_covering`), which with
            ``norm="sqrt_fan_in", threshold=0.023`` gives its numbers.
        backend: a backend's name; None lets simkit choose.
        threads: worker threads; None takes the processors of this process.

    Raises:
        ValueError: bad weights of the formula, an unknown estimator, a threshold or a norm beside a graph; and as
            :func:`simkit.filter_graph`.

    Warns:
        DegenerateWarning: as :func:`simkit.filter_graph`; the redundancy of an empty graph is 1 and that of a complete
            one its number of filters, whatever the filters are.

    Source: Wang, Li, Wang 2021, arXiv:2104.03438.
    """
    _check_weights(covering_weight, components_weight)
    if estimator not in ("greedy", "total_degree"):
        raise ValueError(f'estimator must be "greedy" or "total_degree", not {estimator!r}')
    if isinstance(weight, FilterGraph):
        for option, own, given in (("threshold", weight.threshold, threshold), ("norm", weight.norm, norm)):
            if given is not None:
                raise ValueError(f"a graph has its {option}, {own!r}: {option}={given!r} cannot be given")
        sweep = Sweep([weight], weight.packed, False)
        backend = weight.asked if backend is None else backend
    else:
        sweep = build(as_filters(weight), threshold, "distance" if norm is None else norm, backend, threads)
    choice = choose("cover", backend=backend, inputs=on_device(sweep.bits))
    step = Step("cover", choice.backend, choice.reason)
    results = []
    for graph, search in zip(sweep.graphs, choice.function(sweep.bits, threads=check_threads(threads)), strict=True):
        covering = bounds(search, Plan((step,)))
        number = float(covering.upper) if estimator == "greedy" else graph.total_degree_covering()
        value = len(graph.filters) / (covering_weight * number + components_weight * graph.components)
        results.append(Redundancy(value, graph, covering, number, Plan((*graph.plan.steps, step))))
    return results if sweep.several else results[0]


def _check_weights(covering_weight: float, components_weight: float) -> None:
    for name, value in (("covering_weight", covering_weight), ("components_weight", components_weight)):
        number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        if not (number and 0 <= value < math.inf):
            raise ValueError(f"{name} must be a number of at least 0, not {value!r}")
    if covering_weight == components_weight == 0:
        raise ValueError(
            f"covering_weight and components_weight are both {covering_weight!r}: the formula divides by 0"
        )
