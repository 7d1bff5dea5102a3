"""G5: exact CKA of two models over a stream of batches that lie on the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch

import simkit as sk

from .. import truth as host
from ..features import named
from ..rivals import package
from ..truth import Floats
from . import truth
from .conftest import Measure
from .device import Device
from .inputs import on_host, relu_layers
from .products import gram, prepared, product
from .protocol import Contestant, Workload
from .rivals import from_package, in_each_mode

Models: TypeAlias = list[list[Any]]


@dataclass(frozen=True)
class Stream:
    """``repeats`` passes over the batches of a pool that lies on the device."""

    models: Models
    batch: int
    repeats: int

    def __iter__(self) -> Iterator[Models]:
        for _ in range(self.repeats):
            for start in range(0, len(self.models[0][0]), self.batch):
                yield [[layer[start : start + self.batch] for layer in model] for model in self.models]

    @property
    def rows(self) -> int:
        return self.repeats * len(self.models[0][0])


def test_g5_stream(device: Device, gpu_measure: Measure, at_full_size: bool) -> None:
    """Equal to the float64 value of the whole data."""
    rows, pool, batch, widths = (262_144, 32_768, 2048, (512,) * 4) if at_full_size else (384, 192, 64, (24, 16))
    models = [relu_layers(device, seed, pool, widths) for seed in range(2)]
    p, repeats = sum(widths), rows // pool
    per_row = p * p + 2 * sum(width * (width + 1) // 2 for width in widths)

    def biased(answer: Any, exact: tuple[Any, Stream]) -> float:
        return float(np.abs(answer - truth.cka_table(*exact[1].models, debiased=False)).max())

    workload = Workload(
        key="G5",
        title=f"streaming debiased CKA, {len(widths)} + {len(widths)} layers of {max(widths)}, {rows:,} rows",
        sizes={"rows": rows, "widths": list(widths), "batch": batch},
        inputs=[Stream(layers, batch, repeats) for layers in models],
        feasible=Stream(relu_layers(device, 2, 120, (20, 12, 8)), 50, 3),
        host_truth=lambda stream: (host.cka_table(*on_host(stream.models), repeats=stream.repeats), stream),
        truth=lambda stream: (truth.cka_table(*stream.models, repeats=stream.repeats), stream),
        difference=lambda a, b: float(np.abs(a[0] - b[0]).max()),
        error=lambda matrix, exact: float(np.abs(getattr(matrix, "values", matrix) - exact[0]).max()),
        tolerance=1e-9,
        precision="float64",
        multiply_adds=rows * per_row,
        bytes=8 * rows * p,
        programs="the stream's (moments)",
    )
    gpu_measure(
        workload,
        Contestant("simkit, exact", simkit, plan=lambda matrix: [matrix.plan]),
        [
            Contestant("simkit, minibatch estimate", partial(simkit, mode="minibatch")),
            *in_each_mode(
                "torch, sums of cross-products",
                stream_of_products,
                error=biased,
                note="the biased estimator only; its error is against that",
            ),
            from_package("cka", Contestant("pytorch-cka, minibatch estimate (its hsic)", pytorch_cka_stream)),
        ],
    )


def simkit(stream: Stream, mode: Any = "exact") -> Any:
    """Every batch where it lies."""
    running = sk.StreamingCKA(mode=mode)
    for left, right in stream:
        running.update(named(left), named(right))
    return running.compute()


def stream_of_products(batches: Stream, precision: str) -> Floats:
    """One pass of biased linear CKA: sums of cross-products and of each layer's own, centred at the end."""
    widths = [[layer.shape[1] for layer in model] for model in batches.models]
    where = {"dtype": torch.float64, "device": batches.models[0][0].device}
    with torch.inference_mode():
        totals = [torch.zeros(sum(side), **where) for side in widths]
        cross = torch.zeros((sum(widths[0]), sum(widths[1])), **where)
        own = [[torch.zeros((width, width), **where) for width in side] for side in widths]
        for models in batches:
            sides = [torch.cat([prepared(layer, precision) for layer in model], dim=1) for model in models]
            cross += product(sides[0].T, sides[1], precision)
            for side, total, parts, widths_of in zip(sides, totals, own, widths, strict=True):
                total += side.sum(dim=0, dtype=torch.float64)
                for layer, part in zip(side.split(widths_of, dim=1), parts, strict=True):
                    part += gram(layer.T, precision)
        n = batches.rows
        squares = (cross - torch.outer(*totals) / n).square_()
        strips = [strip.split(widths[1], dim=1) for strip in squares.split(widths[0])]
        tops = torch.stack([torch.stack([block.sum() for block in strip]) for strip in strips])
        norms = [
            torch.stack([
                (part - torch.outer(total, total) / n).norm()
                for part, total in zip(parts, sums.split(widths_of), strict=True)
            ])
            for parts, sums, widths_of in zip(own, totals, widths, strict=True)
        ]  # fmt: skip
        table: Floats = (tops / torch.outer(*norms)).cpu().numpy()
    return table


def pytorch_cka_stream(batches: Any) -> Floats:
    """pytorch-cka: the mean of its estimate of every batch."""
    hsic = package("cka.hsic").hsic
    totals: list[Any] = [0.0, 0.0, 0.0]
    with torch.inference_mode():
        for models in batches:
            grams = [torch.stack([t @ t.T for t in model]) for model in models]
            totals = [total + part for total, part in zip(totals, hsic(*grams), strict=True)]
    cross, rows, columns = totals
    table: Floats = (cross / torch.sqrt(torch.clamp(torch.outer(rows, columns), min=0))).double().cpu().numpy()
    return table
