"""W1: all pairs of debiased linear CKA between the layers of two models."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

import simkit as sk

from .conftest import Measure
from .features import cold_sets, named, relu_layers
from .protocol import Contestant, Workload
from .requirements import memory_kept, of
from .rivals import (
    ckatorch_like_pairs,
    from_package,
    numpy_gram_once,
    pytorch_cka_features,
    repsim_table,
    rsatoolbox_table,
    torch_cka_arithmetic,
    torch_gram_once,
)
from .truth import cka_table

FULL = (2000, (*[4096] * 4, *[2048] * 4, *[1024] * 4, *[512] * 4, 512, 10))
SMALL = (203, (300, 128, 64, 10))


def test_w1_all_pairs(measure: Measure, full: bool) -> None:
    """Every score within 1e-8 of the float64 value at full size, 1e-6 at every size."""
    n, widths = FULL if full else SMALL
    sets = cold_sets(partial(relu_layers, n=n, widths=widths), 8 * n * sum(widths))
    truth = cka_table(*sets[0])
    layers = len(widths)
    workload = Workload(
        key="W1",
        title=f"debiased linear CKA, {layers} × {layers} layers, n = {n}",
        sizes={"n": n, "widths": list(widths)},
        inputs=sets,
        error=lambda table: float(np.abs(np.asarray(table) - truth).max()),
        tolerance=of("W1", "error").bound if full else 1e-6,
        precision="float32",
        multiply_adds=n * n * sum(widths) + n * n * (layers * layers + 2 * layers) // 2,
        bytes=8 * n * sum(widths),
    )

    def simkit(models: Any) -> Any:
        return sk.similarity_matrix(named(models[0]), named(models[1])).values

    result = measure(
        workload,
        Contestant("simkit", simkit),
        [
            from_package("cka", Contestant("pytorch-cka (cka_from_features)", pytorch_cka_features)),
            from_package(
                "torch_cka", Contestant("torch_cka (its arithmetic, one batch)", torch_cka_arithmetic, once=full)
            ),
            from_package("repsim", Contestant("repsim (divides by its biased HSIC), float64", repsim_table, once=True)),
            from_package(
                "ckatorch",
                Contestant(
                    "ckatorch (cka_base of every pair), float64",
                    ckatorch_like_pairs,
                    error=lambda scores: float(np.abs(scores - np.diagonal(truth)).max()),
                    scale=layers,
                    once=full,
                    note=f"{layers} of {layers * layers} pairs, each layer with the one of its width, timed and scaled",
                ),
            ),
            from_package(
                "rsatoolbox",
                Contestant(
                    "rsatoolbox (whitened RDMs), float64",
                    rsatoolbox_table,
                    error=lambda table: float(np.abs(table - cka_table(*sets[0], debiased=False)).max()),
                    once=full,
                    note="the biased estimator only; its error is against that",
                ),
            ),
            Contestant("NumPy, each Gram matrix once, float32", numpy_gram_once),
            from_package("torch", Contestant("torch, each Gram matrix once, float32", torch_gram_once)),
        ],
    )
    memory_kept(result)
