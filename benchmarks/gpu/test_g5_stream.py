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
from .products import prepared, product
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

    def biased(answer: Any, stream: Stream) -> float:
        return float(np.abs(answer - truth.cka_table(*stream.models, debiased=False)).max())

    workload = Workload(
        key="G5",
        title=f"streaming debiased CKA, {len(widths)} + {len(widths)} layers of {max(widths)}, {rows:,} rows",
        sizes={"rows": rows, "widths": list(widths), "batch": batch},
        inputs=[Stream(layers, batch, repeats) for layers in models],
        feasible=Stream(relu_layers(device, 2, 192, (24, 16)), 64, 2),
        host_truth=lambda stream: host.cka_table(*on_host(stream.models), repeats=stream.repeats),
        truth=lambda stream: truth.cka_table(*stream.models, repeats=stream.repeats),
        difference=lambda a, b: float(np.abs(a - b).max()),
        error=lambda matrix, exact: float(np.abs(getattr(matrix, "values", matrix) - exact).max()),
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
                error=lambda answer, _: biased(answer, workload.inputs[0]),
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


def stream_of_products(batches: Any, precision: str) -> Floats:
    """One pass of biased linear CKA: sums of cross-products, centred at the end."""
    with torch.inference_mode():
        rows, totals, cross = 0, None, None
        for models in batches:
            layers = [layer for model in models for layer in model]
            z = torch.cat([prepared(layer, precision) for layer in layers], dim=1)
            part, column_sums = product(z.T, z, precision).double(), z.sum(dim=0, dtype=torch.float64)
            cross = part if cross is None else cross.add_(part)
            totals = column_sums if totals is None else totals.add_(column_sums)
            rows += len(z)
        assert cross is not None
        assert totals is not None
        squares = (cross - torch.outer(totals, totals) / rows).square_()
        widths = [layer.shape[1] for layer in layers]
        tops = torch.stack([
            torch.stack([block.sum() for block in strip.split(widths, dim=1)]) for strip in squares.split(widths)
        ])  # fmt: skip
        own, left = tops.diagonal().sqrt(), len(models[0])
        table: Floats = (tops / torch.outer(own, own))[:left, left:].cpu().numpy()
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
