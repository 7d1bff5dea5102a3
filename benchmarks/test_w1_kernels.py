"""W1 under kernels: all pairs of debiased CKA between the layers of two models; nothing is required of them."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

import simkit as sk

from .conftest import Measure
from .features import cold_sets, named, relu_layers
from .kernel_rivals import (
    EVALUATION,
    ckatorch_rbf_table,
    keops_rbf_table,
    numpy_kernels_once,
    repsim_rbf_table,
    torch_kernels_once,
)
from .protocol import Contestant, Missing, Workload
from .rivals import from_package
from .test_w8_kernel_damage import KERNELS
from .truth import kernel_cka_table

FULL, SMALL = (2000, (512, 256, 128, 64)), (150, (40, 12))


@pytest.mark.parametrize("kernel", KERNELS)
def test_w1_kernels(measure: Measure, full: bool, kernel: str) -> None:
    """Every score within 1e-6 of the float64 value."""
    n, widths = FULL if full else SMALL
    sets = cold_sets(partial(relu_layers, n=n, widths=widths), 8 * n * sum(widths))
    truth = kernel_cka_table(sets[0][0], sets[0][1], kernel)
    layers = len(widths)
    each = 2 * layers * EVALUATION[kernel] + layers * layers + 2 * layers  # a pair of samples, beside its products
    workload = Workload(
        key=f"W1 {kernel}",
        title=f"debiased {kernel} CKA, {layers} × {layers} layers, n = {n}",
        sizes={"n": n, "widths": list(widths)},
        inputs=sets,
        error=lambda table: float(np.abs(np.asarray(table) - truth).max()),
        tolerance=1e-6,
        precision="float32",
        multiply_adds=n * n * sum(widths) + n * n * each // 2,
        bytes=8 * n * sum(widths),
    )

    def simkit(models: Any) -> Any:
        return sk.similarity_matrix(named(models[0]), named(models[1]), measure=sk.CKA(kernel=KERNELS[kernel])).values

    rivals: list[Contestant | Missing] = [
        Contestant("NumPy, each kernel matrix once, float32", partial(numpy_kernels_once, kernel=kernel)),
        from_package(
            "torch", Contestant("torch, each kernel matrix once, float32", partial(torch_kernels_once, kernel=kernel))
        ),
    ]
    if kernel == "RBF":
        own = "its bandwidth is another, and it divides by its biased HSIC"
        rivals += [
            from_package(
                "ckatorch", Contestant("ckatorch (cka_base of every pair), float64", ckatorch_rbf_table, once=full)
            ),
            from_package("repsim", Contestant("repsim, float64", repsim_rbf_table, once=full, note=own)),
            from_package("pykeops.numpy", Contestant("KeOps, all sums in one pass, float32", keops_rbf_table)),
        ]
    result = measure(workload, Contestant("simkit", simkit), rivals)
    if kernel != "polynomial":
        result["notes"].append("the medians of the distances are part of every time, and of no limit")
