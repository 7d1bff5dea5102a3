"""G1: all pairs of debiased linear CKA between the layers of two models, n = 8192."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

import simkit as sk

from .. import truth as host
from ..features import named
from ..rivals import debiased_from_sums, package
from ..truth import Floats
from . import truth
from .conftest import Measure
from .device import Device, Library
from .inputs import on_host, relu_layers
from .products import gram, prepared
from .protocol import Contestant, Workload
from .rivals import by_arrays, from_package, in_each_mode

FULL = (8192, (*[4096] * 4, *[2048] * 4, *[1024] * 4, *[512] * 4, 512, 10))
SMALL = (90, (120, 64, 10))


def workload_of(device: Device, at_full_size: bool, *, bfloat16: bool = False) -> Workload:
    n, widths = FULL if at_full_size else SMALL
    layers, kind = len(widths), torch.bfloat16 if bfloat16 else torch.float32

    def models(seed: int, n: int, widths: Sequence[int]) -> list[list[Any]]:
        return [[x.to(kind) for x in model] for model in relu_layers(device, seed, n, widths)]

    return Workload(
        key="G1 bf16" if bfloat16 else "G1",
        title=f"debiased linear CKA, {layers} × {layers} layers{' of bfloat16' * bfloat16}, n = {n:,}",
        sizes={"n": n, "widths": list(widths)},
        inputs=[models(seed, n, widths) for seed in range(2)],
        feasible=models(2, 70, (80, 30)),
        host_truth=lambda models: host.cka_table(*on_host(models)),
        truth=lambda models: truth.cka_table(*models),
        difference=lambda a, b: float(np.abs(a - b).max()),
        error=lambda table, exact: float(np.abs(values_of(table) - exact).max()),
        tolerance=1e-6,
        precision="bf16" if bfloat16 else "float32",
        multiply_adds=n * n * sum(widths) + n * n * (layers * layers + 2 * layers) // 2,
        bytes=(4 if bfloat16 else 8) * n * sum(widths),
        programs="`SumColumns`, `RowCentres`, `GramTiles`, `PanelProducts`"
        if bfloat16
        else "`SumColumns`, `GramTiles`, `PanelProducts`",
        error_asked=1e-8 if at_full_size else None,
        float32=at_full_size,
    )


def test_g1_all_pairs(device: Device, gpu_measure: Measure, at_full_size: bool) -> None:
    """Every score within 1e-6 of the float64 value; at full size 1e-8 is asked, and less than plain float32's time."""
    gpu_measure(
        workload_of(device, at_full_size),
        Contestant("simkit", simkit, plan=lambda matrix: [matrix.plan]),
        [
            *in_each_mode("torch, each Gram matrix once", gram_once),
            by_arrays(device, "each Gram matrix once, triangles, float32", gram_once_by_arrays),
            from_package("cka", Contestant("pytorch-cka (cka_from_features)", pytorch_cka_features, other=True)),
            from_package(
                "torch_cka", Contestant("torch_cka (its arithmetic, one batch)", torch_cka_arithmetic, other=True)
            ),
        ],
    )


def test_g1_all_pairs_of_bfloat16(device: Device, gpu_measure: Measure, at_full_size: bool) -> None:
    """The same layers rounded to bfloat16, which simkit multiplies as they are, against their float64 value."""
    gpu_measure(
        workload_of(device, at_full_size, bfloat16=True),
        Contestant("simkit", simkit, plan=lambda matrix: [matrix.plan]),
        in_each_mode("torch, each Gram matrix once", gram_once),
    )


def values_of(table: Any) -> Floats:
    """Simkit's answer holds its table, the others' are tables."""
    return np.asarray(getattr(table, "values", table))


def simkit(models: Any) -> Any:
    """One call; the features are read where they lie."""
    return sk.similarity_matrix(named(models[0]), named(models[1]))


def gram_once(models: Sequence[Sequence[Any]], precision: str) -> Floats:
    """Centre, one Gram matrix a layer, all pairs as one product."""
    rows, columns = models
    layers, n = [*rows, *columns], len(rows[0])
    with torch.inference_mode():
        wanted = torch.float64 if precision == "float64" else torch.float32
        grams = torch.empty((len(layers), n, n), dtype=wanted, device=rows[0].device)
        for layer, held in zip(layers, grams, strict=True):
            z = prepared(layer, precision)
            held.copy_(gram(z - z.mean(dim=0), precision)).fill_diagonal_(0)
        sums = grams.sum(dim=2, dtype=torch.float64).cpu().numpy()
        products = gram(grams.flatten(1), precision).double().cpu().numpy()
    return debiased_from_sums(products, sums, n)[: len(rows), len(rows) :]


def gram_once_by_arrays(models: Sequence[Sequence[Any]], library: Library) -> Floats:
    """The same by one triangle of each: cuBLAS's symmetric product does half of the work."""
    rows, columns = models
    xp, layers, n = library.module, [library.array(x) for x in [*rows, *columns]], len(rows[0])
    grams = xp.empty((len(layers), n, n), dtype=np.float32)
    for layer, held in zip(layers, grams, strict=True):
        z = layer - layer.mean(axis=0, dtype=np.float64).astype(np.float32)
        held[...] = library.half_gram(z)
        held[xp.arange(n), xp.arange(n)] = 0
    sums = grams.sum(axis=2, dtype=np.float64) + grams.sum(axis=1, dtype=np.float64)
    flat = grams.reshape(len(layers), -1)
    products = 2 * (flat @ flat.T).astype(np.float64)
    host = [library.to_host(x) for x in (products, sums)]
    return debiased_from_sums(*host, n)[: len(rows), len(rows) :]


def pytorch_cka_features(models: Sequence[Sequence[Any]]) -> Floats:
    """pytorch-cka: its vectorised call for features in memory."""
    with torch.inference_mode():
        table: Floats = package("cka").cka_from_features(*models).double().cpu().numpy()
    return table


def torch_cka_arithmetic(models: Sequence[Sequence[Any]]) -> Floats:
    """torch_cka: the loop of its ``compare`` with its own HSIC, on features in memory as one batch."""
    hsic = package("torch_cka").CKA._HSIC
    rows, columns = models
    of = SimpleNamespace(device=rows[0].device)
    table = np.zeros((3, len(rows), len(columns)))
    with torch.inference_mode():
        for i, x in enumerate(rows):
            k = (x @ x.t()).fill_diagonal_(0.0)
            table[0, i, :] = hsic(of, k, k)
            for j, y in enumerate(columns):
                other = (y @ y.t()).fill_diagonal_(0.0)
                table[1, i, j] = hsic(of, k, other)
                table[2, i, j] = hsic(of, other, other)
    with np.errstate(invalid="ignore"):
        result: Floats = table[1] / (np.sqrt(table[0]) * np.sqrt(table[2]))
    return result
