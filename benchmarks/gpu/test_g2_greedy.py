"""G2 and G3: the full order in which 8192 neurons, or 512 channels, can go at the least CKA damage."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch

import simkit as sk

from .. import truth as host
from ..test_w2_greedy import CHOICE, ONCE
from ..truth import Array, Floats
from . import truth
from .conftest import Measure
from .device import Device, Library
from .inputs import on_host, relu_layers
from .products import gram, prepared, right_products
from .protocol import Contestant, Workload
from .rivals import by_arrays, in_each_mode

Order: TypeAlias = tuple[Array, Floats]


def test_g2_greedy(device: Device, gpu_measure: Measure, at_full_size: bool) -> None:
    """Columns of a dense layer, against the closed form by every product mode and the loop of the source paper.

    Unlike the paper's code, the loop forms the products of the original once, not again for every candidate.
    """
    n, p = (10_000, 8192) if at_full_size else (150, 24)
    evaluations, counted = p * (p + 1) // 2 - 1, 2
    workload = Workload(
        key="G2",
        title=f"greedy CKA order of {p} neurons, n = {n:,}",
        sizes={"n": n, "p": p},
        inputs=[relu_layers(device, seed, n, (p,), models=1)[0][0] for seed in range(2)],
        feasible=relu_layers(device, 2, 140, (20,), models=1)[0][0],
        host_truth=lambda x: host.unit_products(on_host(x), x.shape[1]),
        truth=lambda x: truth.unit_products(x, x.shape[1]),
        difference=apart,
        error=order_error,
        tolerance=CHOICE,
        precision="float32",
        multiply_adds=n * p * (p + 1) // 2,
        bytes=4 * n * p,
        programs="`CrossSquares`, `JoinSquares`, `SumRows`, `Eliminate`",
        wall=0.1 if at_full_size else None,
    )
    gpu_measure(
        workload,
        Contestant("simkit", sk.greedy_cka, plan=lambda found: [found.plan]),
        [
            *in_each_mode("torch, closed form, the steps one CUDA graph", partial(closed_form, device=device)),
            by_arrays(device, "closed form, one triangle, float32", closed_form_by_arrays),
            Contestant(
                "torch, the loop over candidates (Kornblith's feature-space CKA), float32",
                partial(loop_over_candidates, counted=counted),
                error=lambda scores, products: float(np.abs(scores - first_scores(products)[:counted]).max()),
                scale=evaluations / counted,
                prepare=loop_prepared,
                note=f"{counted} of {evaluations} evaluations timed and scaled, {ONCE}; its error is of their CKA",
                other=True,
            ),
        ],
    )


def test_g3_greedy_channels(device: Device, gpu_measure: Measure, at_full_size: bool) -> None:
    """Channels of a convolution: each unit is a block of h·w columns."""
    n, channels, area = (4096, 512, 256) if at_full_size else (64, 12, 16)
    p = channels * area
    workload = Workload(
        key="G3",
        title=f"greedy CKA order of {channels} channels of {area} positions, n = {n:,}",
        sizes={"n": n, "channels": channels, "positions": area},
        inputs=[(relu_layers(device, seed, n, (p,), models=1)[0][0], channels) for seed in range(2)],
        feasible=(relu_layers(device, 2, 60, (10 * 9,), models=1)[0][0], 10),
        host_truth=lambda inputs: host.unit_products(*on_host(inputs)),
        truth=lambda inputs: truth.unit_products(*inputs),
        difference=apart,
        error=order_error,
        tolerance=CHOICE,
        precision="float32",
        multiply_adds=min(n * n * p // 2 + n * n * channels * channels // 4, n * p * (p + 1) // 2),
        bytes=4 * n * p,
        programs="`SumColumns`, `GramTiles`, `PanelProducts`, `Eliminate`",
    )
    gpu_measure(
        workload,
        Contestant("simkit", lambda inputs: sk.greedy_cka(inputs[0], units=inputs[1]), plan=lambda found: [found.plan]),
        in_each_mode("torch, Gram matrices of channels in strips", partial(closed_form_of_channels, device=device)),
    )


def order_error(answer: Any, products: Any) -> float:
    """Of simkit's result, or of (order, CKA)."""
    order, cka = (answer.order, answer.cka) if isinstance(answer, sk.Elimination) else answer
    return truth.order_error(products, order, cka)


def apart(products: Any, exact: Floats) -> float:
    """The largest difference of two products of all units, as a share of the largest."""
    return float(np.abs(on_host(products) - exact).max() / np.abs(exact).max())


def first_scores(products: Any) -> Floats:
    """CKA(all, all but one unit), from the products of all."""
    exact = on_host(products)
    r, total = exact.sum(axis=1), exact.sum()
    scores: Floats = (total - r) / np.sqrt(total * (total - 2 * r + np.diagonal(exact)))
    return scores


def closed_form(x: Any, precision: str, device: Device) -> Order:
    """The closed form of every step from the products of all units, no step waiting for the host."""
    with torch.inference_mode():
        z = prepared(x, precision)
        z = z - z.mean(dim=0)
        return _greedy(gram(z.T, precision).double().square_(), device)


def closed_form_of_channels(inputs: tuple[Any, int], precision: str, device: Device) -> Order:
    """The same for blocks of neighbouring columns."""
    x, units = inputs
    with torch.inference_mode():
        z = prepared(x, precision)
        return _greedy(unit_products(z - z.mean(dim=0), units, precision), device)


def unit_products(z: Any, units: int, precision: str, strip: int = 2**28) -> Any:
    """⟨K_i, K_j⟩ of channels, in strips that fit in memory."""
    n = len(z)
    blocks = z.view(n, units, -1).transpose(0, 1)
    found = torch.zeros((units, units), dtype=torch.float64, device=z.device)
    rows = max(1, min(n, strip // (units * n)))
    times = right_products(blocks.transpose(1, 2), precision)
    for start in range(0, n, rows):
        found += gram(times(blocks[:, start : start + rows].contiguous()).flatten(1), precision)
    return found


def _greedy(products: Any, device: Device) -> Order:
    u, where = len(products), {"dtype": torch.float64, "device": products.device}
    r, diagonal = products.sum(dim=1), products.diagonal().clone()
    total = products.sum().view(1)
    top, bottom, q = total.clone(), total.clone(), r.clone()
    gone = torch.zeros(u, dtype=torch.bool, device=products.device)
    order, scores = torch.zeros(u, dtype=torch.int64, device=products.device), torch.zeros(u, **where)
    place = torch.zeros(1, dtype=torch.int64, device=products.device)

    def step() -> None:
        score = ((top - r) / torch.sqrt(total * (bottom - 2 * q + diagonal))).masked_fill(gone, -torch.inf)
        k = score.argmax().view(1)
        order.index_copy_(0, place, k)
        scores.index_copy_(0, place, score.index_select(0, k))
        top.sub_(r.index_select(0, k))
        bottom.add_(diagonal.index_select(0, k) - 2 * q.index_select(0, k))
        q.sub_(products.index_select(0, k)[0])
        gone.index_fill_(0, k, True)
        place.add_(1)

    repeat(step, u, device)
    return order.cpu().numpy(), scores.cpu().numpy()


def repeat(step: Callable[[], None], count: int, device: Device) -> None:
    """Run ``step`` so many times; on a device, all but the first few as replays of one CUDA graph."""
    eager = min(3, count) if device.real else count
    for _ in range(eager):
        step()
    if eager == count:
        return
    graph, aside, here = torch.cuda.CUDAGraph(), torch.cuda.Stream(), torch.cuda.current_stream()
    aside.wait_stream(here)
    with torch.cuda.stream(aside):  # by hand: `torch.cuda.graph` empties caches, which would be timed
        graph.capture_begin()
        step()  # recorded, not run
        graph.capture_end()
    here.wait_stream(aside)
    for _ in range(count - eager):
        graph.replay()
    here.synchronize()  # the graph's memory goes with it


def closed_form_by_arrays(x: Any, library: Library) -> Order:
    """The closed form, each choice told to the host."""
    xp, values = library.module, library.array(x)
    z = values - values.mean(axis=0, dtype=np.float64).astype(np.float32)
    half = library.half_gram(xp.ascontiguousarray(z.T)).astype(np.float64) ** 2
    products = half + half.T - xp.diag(xp.diagonal(half))
    r, diagonal = products.sum(axis=1), xp.diagonal(products)
    total = top = bottom = r.sum()
    q, gone = r.copy(), xp.zeros(len(r), dtype=bool)
    order, scores = [], []
    with np.errstate(all="ignore"):
        for _ in range(len(r)):
            score = xp.where(gone, -np.inf, (top - r) / xp.sqrt(total * (bottom - 2 * q + diagonal)))
            k = int(score.argmax())
            order.append(k)
            scores.append(score[k])
            gone[k] = True
            top, bottom = top - r[k], bottom - 2 * q[k] + diagonal[k]
            q = q - products[k]
    return np.array(order), np.array([float(score) for score in scores])


def loop_prepared(x: Any) -> tuple[Any, Any]:
    """The centred columns, which stay centred when some are zeroed, and the norm of their products."""
    with torch.inference_mode():
        original = x - x.mean(dim=0)
        return original, torch.linalg.norm(original.T @ original)


def loop_over_candidates(of: tuple[Any, Any], counted: int) -> Floats:
    """CKA(original, one column zeroed) for the first ``counted`` columns, each from two cross-products."""
    original, norm = of
    with torch.inference_mode():
        scores = []
        for k in range(counted):
            pruned = original.clone()
            pruned[:, k] = 0
            scores.append(torch.linalg.norm(original.T @ pruned) ** 2 / (norm * torch.linalg.norm(pruned.T @ pruned)))
        found: Floats = torch.stack(scores).double().cpu().numpy()
    return found
