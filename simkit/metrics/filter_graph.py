"""The graph of a layer's filters: vertices are unit-normalised filters, edges join those within a threshold.

Source: Wang, Li, Wang 2021, "Convolutional Neural Network Pruning with Structural Redundancy Reduction"
(arXiv:2104.03438). Its number of components is the quotient-space size of the paper.

Decisions: filters that are all zero have no direction; they count as duplicates of one another and unlike every other
filter, and a warning says so. Duplicates, equal up to a positive factor, are adjacent at every threshold. Constant
filters are filters like others. A single filter makes a graph of one component with edge density 0, and a warning.
Filters of one weight are duplicates when their signs agree, and opposite otherwise.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import overload

import numpy as np
import numpy.typing as npt

from ..arrays import Matrix, as_filters
from ..backends.base import Adjacency, Plan, Step
from ..backends.bits import (
    BitArray,
    BoolArray,
    GraphBits,
    on_device,
    on_host,
    pack,
    single,
    unpack,
    without_vertex,
)
from ..backends.choose import check_backend, choose
from ..backends.routes import check_threads
from ..errors import DegenerateWarning
from .covering import Covering, IndexArray, bounds, check_time_limit, solve, total_degree_estimate
from .thresholds import Norm, ThresholdLike, parse_thresholds, to_cosine, to_squared


@dataclass(frozen=True, eq=False)
class FilterGraph:
    """Which filters of a layer are near each other.

    Attributes:
        filters: rows ``[n]`` of the weight that the vertices stand for.
        threshold, norm: as given or calibrated; ``cosine`` is the cosine from which on filters are adjacent.
        components: number of connected components, the quotient-space size.
        labels: the component ``[n]`` of every vertex, numbered by their lowest vertex.
        edges: number of edges.
        packed: packed adjacency ``[1, n, words]``, on the device that formed it; ``bits`` is on the host.
        plan: what ran and why.
    """

    filters: IndexArray = field(repr=False)
    threshold: float
    norm: Norm
    cosine: float
    components: int
    labels: IndexArray = field(repr=False)
    edges: int
    packed: GraphBits = field(repr=False)
    plan: Plan = field(repr=False)
    asked: str | None = field(default=None, repr=False)  # the backend that the user named

    @property
    def backend(self) -> str:
        """The backends that ran."""
        return self.plan.backend

    @property
    def bits(self) -> BitArray:
        """Packed adjacency ``[n, words]`` uint64 on the host, bit j % 64 of word j // 64 of row i."""
        graph: BitArray = on_host(self.packed)[0]
        return graph

    @property
    def edge_density(self) -> float:
        """Edges divided by pairs, in [0, 1]; 0 for a single filter."""
        n = len(self.filters)
        return self.edges / (n * (n - 1) / 2) if n > 1 else 0.0

    def adjacency(self) -> BoolArray:
        """Dense adjacency ``[n, n]``, diagonal False."""
        return unpack(self.bits, len(self.filters))

    def covering(self, exact: bool = False, time_limit: float | None = None) -> Covering:
        """Bounds of the 1-covering number: how few filters have every other filter near one of them.

        Args:
            exact: close the gap between the bounds by integer programming (HiGHS), which may take exponential time.
            time_limit: seconds after which the exact search stops and reports the bounds it has, with ``exact`` False.

        Raises:
            ValueError: a time limit that is not positive.
        """
        check_time_limit(time_limit)
        choice = choose("cover", backend=self.asked, inputs=on_device(self.packed))
        search = choice.function(self.packed)[0]
        known = bounds(search, Plan((Step("cover", choice.backend, choice.reason),)))
        return solve(self.bits, self.labels, search, known, time_limit) if exact and not known.exact else known

    def total_degree_covering(self) -> float:
        """The covering estimate that the CENG501 reproduction of the paper used, for comparison: it bounds nothing.

        The mean of two covers greedy by total, not residual, degree; its 2-hop balls leave out neighbours without a
        common neighbour. See :meth:`covering` for bounds.
        """
        return total_degree_estimate(self.bits)

    def remove(self, i: int) -> FilterGraph:
        """The graph without vertex ``i``: its row and column are deleted, nothing is compared again.

        Vertices after ``i`` move down by one; ``filters`` keeps their rows of the weight.

        Raises:
            TypeError: not an integer. ValueError: no such vertex, or the last one.
        """
        n = len(self.filters)
        if not isinstance(i, int | np.integer) or isinstance(i, bool):
            raise TypeError(f"a vertex is an integer, not {i!r}")
        if not 0 <= i < n:
            raise ValueError(f"there is no vertex {i} in a graph of {n}")
        if n == 1:
            raise ValueError("vertex 0 is the last of its graph and cannot be removed")
        filters = np.delete(self.filters, i)
        return _finish(
            filters,
            [(self.threshold, self.norm, self.cosine)],
            without_vertex(self.bits, int(i))[None],
            self.plan.steps[:1],
            self.asked,
            1,
        )[0]


@overload
def filter_graph(
    weight: object,
    *,
    threshold: float | None = None,
    norm: Norm = "distance",
    backend: str | None = None,
    threads: int | None = None,
) -> FilterGraph: ...
@overload
def filter_graph(
    weight: object,
    *,
    threshold: Iterable[float] | npt.NDArray[np.floating],
    norm: Norm = "distance",
    backend: str | None = None,
    threads: int | None = None,
) -> list[FilterGraph]: ...
def filter_graph(
    weight: object,
    *,
    threshold: ThresholdLike = None,
    norm: Norm = "distance",
    backend: str | None = None,
    threads: int | None = None,
) -> FilterGraph | list[FilterGraph]:
    """The graph of a layer's filters, or one for each of several thresholds from one pass over the pairs.

    Args:
        weight: filters ``[n, ...]``, flattened to ``[n, d]`` and normalised to unit length.
        threshold: in the units of ``norm``; a sequence gives a list of graphs in its order. None: the cosine that
            two random filters of the same fan-in d exceed with probability 1%.
        norm: ``"distance"``: edge iff the Euclidean distance of unit filters is at most the threshold.
            ``"cosine"``: edge iff their cosine is at least the threshold. ``"sqrt_fan_in"``: edge iff distance / √d
            is at most the threshold, for reproduction: at 0.023 and d = 4608 that is cosine ≥ -0.22, and the graph is
            complete.
        backend: a backend's name; None lets simkit choose.
        threads: worker threads; None takes the processors of this process.

    Returns:
        :class:`FilterGraph`: ``components``, ``edge_density``, ``covering()``, ``remove(i)``. Pairs near the
        threshold are decided by float64 differences, and pairs at it (to 1e-12) are adjacent.

    Raises:
        ValueError: a non-finite weight, an unknown norm, a threshold that is no distance or cosine.
        TypeError: a threshold that is no number; a weight that is no array.

    Warns:
        DegenerateWarning: graphs without an edge or with all of them, and why; zero filters; a single filter.

    Source: Wang, Li, Wang 2021, arXiv:2104.03438; the thresholds by default are simkit's.
    """
    sweep = build(as_filters(weight), threshold, norm, backend, threads)
    return sweep.graphs if sweep.several else sweep.graphs[0]


@dataclass(frozen=True, eq=False)
class Sweep:
    """The graphs of one layer at all thresholds, and their packed adjacency ``[thresholds, n, words]``."""

    graphs: list[FilterGraph]
    bits: GraphBits
    several: bool  # whether a sequence was asked for


def build(weight: Matrix, threshold: ThresholdLike, norm: Norm, backend: str | None, threads: int | None) -> Sweep:
    """The graphs of a layer at one or several thresholds, from one pass over the pairs; warns of degenerate ones."""
    check_backend(backend)
    team = check_threads(threads)
    values, several = parse_thresholds(threshold, norm, weight.p)
    limits = np.array([to_squared(value, norm, weight.p) for value in values])
    choice = choose("adjacency", backend=backend, inputs=[weight])
    found: Adjacency = choice.function(weight, limits, threads=team)
    if not found.finite:
        _refuse(weight, backend, team)
    kinds = [(value, norm, to_cosine(value, norm, weight.p)) for value in values]
    multiply_adds = weight.n * (weight.n - 1) // 2 * weight.p
    step = Step("adjacency", choice.backend, choice.reason, found.route, multiply_adds, found.bits.nbytes)
    graphs = _finish(np.arange(weight.n), kinds, found.bits, (step,), backend, team)
    _warn(weight, graphs, found, calibrated=threshold is None)
    return Sweep(graphs, found.bits, several)


def of_adjacency(
    filters: IndexArray, adjacent: BoolArray, threshold: float, norm: Norm, fan_in: int, reason: str
) -> FilterGraph:
    """The graph of filters whose adjacency ``[n, n]`` (diagonal False) is known."""
    kind = (threshold, norm, to_cosine(threshold, norm, fan_in))
    return _finish(filters, [kind], pack(adjacent)[None], (Step("adjacency", "reference", reason),), None, 1)[0]


def _finish(
    filters: IndexArray,
    kinds: list[tuple[float, Norm, float]],
    bits: GraphBits,
    steps: tuple[Step, ...],
    backend: str | None,
    threads: int,
) -> list[FilterGraph]:
    choice = choose("components", backend=backend, inputs=on_device(bits))
    labels, edges = choice.function(bits, threads=threads)
    plan = Plan((*steps, Step("components", choice.backend, choice.reason)))
    return [
        FilterGraph(filters, *kind, int(label.max()) + 1, label, int(edges[t]), single(bits, t), plan, backend)
        for t, (kind, label) in enumerate(zip(kinds, labels, strict=True))
    ]


def _refuse(weight: Matrix, backend: str | None, threads: int) -> None:
    stats = choose("column_stats", backend=backend, inputs=[weight]).function(weight, threads=threads)
    row, column = stats.first_nonfinite
    what = "entry" if stats.nonfinite == 1 else "entries"
    raise ValueError(
        f"{weight.name} has {stats.nonfinite} non-finite {what}, the first at filter {row}, entry {column}"
    )


def _warn(weight: Matrix, graphs: list[FilterGraph], found: Adjacency, *, calibrated: bool) -> None:
    sentences = []
    zeros = len(found.zeros)
    if zeros:
        filters = "filter" if zeros == 1 else "filters"
        sentences.append(
            f"{weight.name} has {zeros} zero {filters}, the first number {found.zeros[0]}: without a direction they "
            "count as duplicates of one another and unlike every other"
        )
    if weight.n == 1:
        sentences.append(f"{weight.name} has a single filter: its graph has no pair and says nothing of redundancy")
    else:
        if calibrated and weight.p == 1:
            sentences.append(
                f"{weight.name} has filters of one weight, whose cosines are -1 or 1: the threshold is calibrated to "
                "cosine 1, which joins filters of the same sign"
            )
        sentences.extend(_extremes(weight, graphs, found))
    for sentence in sentences:
        warnings.warn(sentence, DegenerateWarning, stacklevel=4)


def _extremes(weight: Matrix, graphs: list[FilterGraph], found: Adjacency) -> list[str]:
    """Why graphs have no edge, or all of them."""
    sentences = []
    pairs = weight.n * (weight.n - 1) // 2
    for edges, what, which, squared in (
        (0, "empty", "closest", found.nearest),
        (pairs, "complete", "farthest", found.farthest),
    ):
        same = [graph for graph in graphs if graph.edges == edges]
        if not same:
            continue
        if math.isnan(squared):
            why = f"its {weight.n} filters are all zero" if edges else "fewer than two of its filters are not zero"
        else:
            measured = f"have cosine {1 - squared / 2:.3g}, distance {math.sqrt(squared):.3g}"
            why = f"the {which} two of its {weight.n} filters {measured}"
        cosines = sorted({graph.cosine for graph in same})
        asked = f"cosine ≥ {cosines[0]:.3g}" + (f" to {cosines[-1]:.3g}" if len(cosines) > 1 else "")
        count = f" at {len(same)} of {len(graphs)} thresholds" if len(graphs) > 1 else ""
        sentences.append(f"the graph of {weight.name} is {what}{count}: an edge means {asked}, and {why}")
    return sentences
