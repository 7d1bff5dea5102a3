"""W8: the full greedy order of a layer's neurons under a kernel, where every candidate must be evaluated."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import simkit as sk
from simkit.kernels import Kernel

from .conftest import FromNumba, Measure
from .features import cold_sets, relu_layers
from .kernel_rivals import (
    EVALUATION,
    keops_candidates,
    keops_prepared,
    numpy_candidates,
    numpy_prepared,
    torch_candidates,
    torch_prepared,
)
from .protocol import Contestant, Missing, Workload
from .rivals import compiled, from_package
from .truth import Array, Floats, kernel_candidates, kernel_order_error

SUMS = 4  # a pair and candidate: for the level and the sums
OPERATIONS = EVALUATION["RBF"] + SUMS
ONCE = "what a layer needs once (its pairs of samples, the bandwidth, its kernel) timed once and added as it is"
KERNELS: dict[str, Kernel] = {"RBF": sk.RBF(), "Laplacian": sk.Laplacian(), "polynomial": sk.Polynomial()}


@pytest.mark.parametrize("kernel", KERNELS)
def test_w8_kernel_damage(measure: Measure, full: bool, from_numba: FromNumba, kernel: str) -> None:
    """Against the loop over candidates in NumPy, which keeps the distances and subtracts one unit's part."""
    n, units = (2000, 128) if full else (200, 10)
    evaluations = units * (units + 1) // 2 - 1
    counted = min(8, units)
    sets = cold_sets(lambda seed: relu_layers(seed, n, (units,), models=1)[0][0], 4 * n * units)[:4]
    expected = kernel_candidates(sets[0], np.arange(units), np.arange(counted), kernel)
    steps = (0, units // 2, units - 4)

    def off(scores: Floats) -> float:
        return float(np.abs(scores[:counted] - expected).max())

    workload = Workload(
        key="W8" if kernel == "RBF" else f"W8 {kernel}",
        title=f"greedy {kernel} CKA order of {units} neurons, n = {n}",
        sizes={"n": n, "units": units, "candidates": evaluations},
        inputs=sets,
        error=lambda found: kernel_order_error(sets[0], found.order, found.cka, steps, kernel),
        tolerance=1e-6,
        precision="float32",
        multiply_adds=(EVALUATION[kernel] + SUMS) * evaluations * n * (n - 1) // 2,
        bytes=4 * n * units,
    )
    few = f"{counted} of {evaluations} candidates timed and scaled, {ONCE}; its error is of their CKA values"
    rivals = [
        *[
            Contestant(
                f"NumPy, the loop over candidates, {dtype.__name__}",
                partial(numpy_candidates, counted=counted, kernel=kernel),
                error=off,
                scale=evaluations / counted,
                prepare=partial(numpy_prepared, kernel=kernel, dtype=dtype),
                note=few,
            )
            for dtype in (np.float32, np.float64)
        ],
        from_package(
            "torch",
            Contestant(
                "torch, the loop over candidates, four at once, float32",
                partial(torch_candidates, counted=counted, kernel=kernel),
                error=off,
                scale=evaluations / counted,
                prepare=partial(torch_prepared, kernel=kernel),
                note=few,
            ),
        ),
    ]
    if kernel == "RBF":
        rivals += _in_one_pass(off, units, evaluations, counted, from_numba)
    measure(workload, Contestant("simkit", lambda x: sk.greedy_cka(x, kernel=KERNELS[kernel])), rivals)


def _in_one_pass(
    off: Callable[[Floats], float], units: int, evaluations: int, counted: int, from_numba: FromNumba
) -> list[Contestant | Missing]:
    """All candidates of the first step at once, as numba and KeOps allow."""
    note = (
        f"the {units} candidates of the first step timed and scaled, {ONCE}, its compiler's time left out; its error is"
        f" of the CKA values of {counted}"
    )
    scale = evaluations / units

    def rival(name: str, prepare: Callable[[Array], Any], call: Callable[[Any], Floats]) -> Contestant:
        title = f"{name}, all candidates of a step in one pass, float32"
        return Contestant(title, call, off, scale, prepare, note=note)

    return [
        from_numba(rival("numba", partial(compiled, "rbf_prepared"), partial(compiled, "rbf_candidates"))),
        from_package("pykeops.numpy", rival("KeOps", keops_prepared, keops_candidates)),
    ]
