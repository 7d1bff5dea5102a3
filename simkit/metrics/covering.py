"""The covering number of a graph: the size of the smallest set of vertices that all others are adjacent to.

Also called the domination number; NP-hard. Bounds, with N[v] = v and its neighbours:

* above: the greedy cover by residual degree, which takes the vertex that covers most of what is still uncovered;
* below: a packing of vertices more than two hops apart, each of which needs its own centre; and any y ≥ 0 with
  Σ_{u∈N[v]} y_u ≤ 1 for every v, whose sum bounds the linear relaxation;
* exactly: the integer program min Σx, Σ_{u∈N[v]} x_u ≥ 1, component by component, by HiGHS.

Source of the use: Wang, Li, Wang 2021, "Convolutional Neural Network Pruning with Structural Redundancy Reduction".
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..backends.base import CoverSearch, Plan, Step
from ..backends.bits import BitArray, BoolArray, unpack

IndexArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Covering:
    """Bounds of a graph's covering number.

    Attributes:
        lower, upper: the covering number lies between them, ends included.
        exact: whether they meet.
        centres: vertices ``[upper]`` that cover the graph: those of the greedy cover in the order of choice, or of
            the exact solution ascending.
        plan: what ran and why.
    """

    lower: int
    upper: int
    exact: bool
    centres: IndexArray = field(repr=False)
    plan: Plan = field(repr=False)

    @property
    def backend(self) -> str:
        """The backends that ran."""
        return self.plan.backend


def bounds(search: CoverSearch, plan: Plan) -> Covering:
    """What the greedy cover, the packing and the dual tell."""
    upper = len(search.centres)
    lower = min(upper, max(len(search.packing), _whole(search.dual)))
    return Covering(lower, upper, lower == upper, search.centres, plan)


def check_time_limit(time_limit: float | None) -> None:
    """Raise ValueError unless it is None or a positive number of seconds."""
    if time_limit is None:
        return
    number = isinstance(time_limit, int | float | np.number) and not isinstance(time_limit, bool)
    if not (number and 0 < time_limit < math.inf):
        raise ValueError(f"time_limit must be a positive number of seconds, not {time_limit!r}")


def solve(
    bits: BitArray, labels: IndexArray, search: CoverSearch, known: Covering, time_limit: float | None
) -> Covering:
    """The covering number by HiGHS, where its ``known`` bounds do not meet, as far as ``time_limit`` seconds allow."""
    deadline = math.inf if time_limit is None else time.monotonic() + time_limit
    lower, chosen, solved = 0, [], 0
    for members, greedy, packed in _components(labels, search):
        least, centres = packed, greedy
        if packed < len(greedy) and (left := deadline - time.monotonic()) > 0:
            ball = unpack(bits[members], len(labels))[:, members]
            np.fill_diagonal(ball, True)
            least, found = _program(ball, left)
            least = max(least, packed)
            if found is not None and len(found) < len(greedy):
                centres = members[found]
            solved += 1
        lower += min(least, len(centres))
        chosen.append(centres)
    centres = np.sort(np.concatenate(chosen))
    lower = min(len(centres), max(lower, known.lower))
    exact = lower == len(centres)
    outcome = "proved" if exact else "not proved in time"
    step = Step("exact cover", "HiGHS", f"{solved} components whose bounds did not meet, {outcome}")
    return Covering(lower, len(centres), exact, centres, Plan((*known.plan.steps, step), known.plan.notes))


def _components(labels: IndexArray, search: CoverSearch) -> list[tuple[IndexArray, IndexArray, int]]:
    """(members, greedy centres, size of the packing) of every component: all three split by component."""
    count = int(labels.max()) + 1
    members = np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels, minlength=count))[:-1])
    of_centre = labels[search.centres]
    centres = np.split(
        search.centres[np.argsort(of_centre, kind="stable")], np.cumsum(np.bincount(of_centre, minlength=count))[:-1]
    )
    packed = np.bincount(labels[search.packing], minlength=count)
    return [(m, c, int(k)) for m, c, k in zip(members, centres, packed, strict=True)]


def _program(ball: BoolArray, time_limit: float) -> tuple[int, IndexArray | None]:
    """(a lower bound, the best cover found or None) of one component."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    options: dict[str, Any] = {"mip_rel_gap": 0.0}
    if time_limit < math.inf:
        options["time_limit"] = time_limit
    result = milp(
        np.ones(len(ball)),
        integrality=np.ones(len(ball)),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(csr_array(ball.astype(np.float64)), lb=1.0),
        options=options,
    )
    bound = result.get("mip_dual_bound")
    least = 0 if bound is None or not math.isfinite(bound) else _whole(bound)
    if result.x is None:
        return least, None
    found = np.flatnonzero(result.x > 0.5)
    if not ball[found].any(axis=0).all():
        return least, None
    return len(found) if result.status == 0 else least, found


def _whole(bound: float) -> int:
    """The least integer that a lower bound leaves; rounding of sums and of the solver is below 1e-6."""
    return math.ceil(bound - 1e-6)


def total_degree_estimate(bits: BitArray) -> float:
    """The covering estimate of a reproduction of Wang et al. (Duymuş & Güder, METU CENG501, 2022), as its code has it.

    The mean of two greedy covers whose centres are always uncovered vertices of the largest *total* degree, the last
    of equals: one by neighbours, one by vertices with a common neighbour, which leaves out neighbours that share none.
    It bounds nothing.
    """
    n = len(bits)
    graph = unpack(bits, n)
    degrees = graph.sum(axis=1)

    def size(hops: int) -> int:
        uncovered = np.ones(n, dtype=bool)
        centres = 0
        while uncovered.any():
            candidates = np.flatnonzero(uncovered)
            centre = candidates[len(candidates) - 1 - int(degrees[candidates][::-1].argmax())]
            reached = graph[centre] if hops == 1 else graph[graph[centre]].any(axis=0)
            uncovered &= ~reached
            uncovered[centre] = False
            centres += 1
        return centres

    return (size(1) + size(2)) / 2
