"""G4: components, edges and covers of the graph of 8192 filters over many thresholds."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np
import torch

import simkit as sk

from .. import truth as host
from ..test_w4_covering import THRESHOLDS, differing
from ..truth import Array
from . import truth
from .conftest import Measure
from .device import Device
from .inputs import generator_on, on_host
from .products import gram, prepared
from .protocol import Contestant, Workload
from .rivals import in_each_mode


def test_g4_covering(device: Device, gpu_measure: Measure, at_full_size: bool) -> None:
    """Every component count, edge count and greedy cover is the reference's: the error is how many of them differ."""
    n, d = (8192, 4608) if at_full_size else (180, 300)
    cosines = np.linspace(0.9, 3 / np.sqrt(d), THRESHOLDS if device.real else 6)
    workload = Workload(
        key="G4",
        title=f"filter graph of {n:,} filters of {d} weights, {len(cosines)} thresholds",
        sizes={"n": n, "d": d, "thresholds": len(cosines)},
        inputs=[filters(device, seed, n, d) for seed in range(2)],
        feasible=filters(device, 2, 150, 200),
        host_truth=lambda w: host.graph_measures(on_host(w), cosines),
        truth=lambda w: truth.graph_measures(w, cosines),
        difference=differing,
        error=lambda answer, exact: differing(measures_of(answer), exact),
        tolerance=0.0,
        precision="float32",
        multiply_adds=n * n * d // 2,
        bytes=4 * n * d,
        programs="the graphs' (adjacency, components, covers)",
    )
    gpu_measure(
        workload,
        Contestant("simkit", partial(simkit, cosines=cosines), plan=plans_of),
        in_each_mode(
            "torch, one product, labels and covers by matrices",
            partial(graph_measures, cosines=cosines),
            note="a pair at a threshold may fall to either side",
            other=True,
        ),
    )


def filters(device: Device, seed: int, n: int, d: int) -> Any:
    """Half of the filters are random; the others lie about n / 16 centres, some close, some far."""
    draw = {"generator": generator_on(device, seed), "device": device.where}
    centres = torch.randn((max(1, n // 16), d), **draw)
    strength = torch.rand(n, **draw).mul_(3.7).add_(0.3) * (torch.rand(n, **draw) >= 0.5)
    nearest = torch.randint(len(centres), (n,), **draw)
    return torch.randn((n, d), **draw).addcmul_(strength[:, None], centres[nearest])


def simkit(w: Any, cosines: Array) -> list[sk.Redundancy]:
    """One call; thresholds at which the graph is empty are part of the sweep."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sk.DegenerateWarning)
        return sk.redundancy(w, threshold=cosines, norm="cosine")


def measures_of(answer: Any) -> list[tuple[int, int, int]]:
    """Simkit's graphs as (components, edges, cover), which the others are."""
    return [
        (found.components, found.graph.edges, found.covering.upper) if isinstance(found, sk.Redundancy) else found
        for found in answer
    ]


def plans_of(answer: list[sk.Redundancy]) -> list[Any]:
    """What formed the graphs, and what covered them."""
    return [plan for found in answer for plan in (found.plan, found.covering.plan)]


def graph_measures(w: Any, cosines: Array, precision: str, every: int = 32) -> list[tuple[int, int, int]]:
    """One product for all thresholds; labels spread and covers grow on the device, which is asked now and then."""
    with torch.inference_mode():
        u = prepared(w, precision)
        similarity = gram(u / u.norm(dim=1, keepdim=True), precision).fill_diagonal_(2.0)
        answer = []
        for cosine in cosines.tolist():
            ball = similarity >= cosine
            edges = (int(ball.sum()) - len(ball)) // 2
            answer.append((_components(ball), edges, _cover(ball, every)))
    return answer


def _components(ball: Any) -> int:
    """Every vertex takes the lowest label around it, and that label's own, until nothing changes."""
    n = len(ball)
    own = torch.arange(n, dtype=torch.int32, device=ball.device)
    labels = own
    while True:
        lower = torch.where(ball, labels, n).amin(dim=1)
        lower = lower[lower.long()]
        if torch.equal(lower, labels):
            return int((labels == own).sum())
        labels = lower


def _cover(ball: Any, every: int) -> int:
    """Greedy by residual degree; those that are left when none covers two are counted."""
    weights = ball.float()
    uncovered = torch.ones(len(ball), device=ball.device)
    picked = torch.zeros((), dtype=torch.int64, device=ball.device)
    while True:
        for _ in range(every):
            gain = weights @ uncovered
            best, k = gain.max(dim=0)
            more = best > 1
            uncovered *= 1 - weights.index_select(0, k.view(1))[0] * more
            picked += more
        if not bool(more):
            return int(picked + uncovered.sum())
