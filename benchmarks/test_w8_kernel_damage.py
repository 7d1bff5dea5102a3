"""W8: the full greedy order of a layer's neurons under the RBF kernel, where every candidate must be evaluated."""

from __future__ import annotations

from functools import partial

import numpy as np

import simkit as sk

from .conftest import FromNumba, Measure
from .features import cold_sets, relu_layers
from .protocol import Contestant, Workload
from .rivals import compiled, from_package, keops_candidates
from .truth import Array, Floats, rbf_candidates, rbf_order_error

OPERATIONS = 12  # a pair and candidate: 1 for the distance, 7 for the exponential, 4 for the level and the sums


def test_w8_kernel_damage(measure: Measure, full: bool, from_numba: FromNumba) -> None:
    """Against the loop over candidates in NumPy, which keeps the distances and subtracts one unit's part."""
    n, units = (2000, 128) if full else (200, 10)
    evaluations = units * (units + 1) // 2 - 1
    counted = min(8, units)
    sets = cold_sets(lambda seed: relu_layers(seed, n, (units,), models=1)[0][0], 4 * n * units)[:4]
    expected = rbf_candidates(sets[0], np.arange(units), np.arange(counted))

    def off(scores: Floats) -> float:
        return float(np.abs(scores[:counted] - expected).max())

    workload = Workload(
        key="W8",
        title=f"greedy RBF CKA order of {units} neurons, n = {n}",
        sizes={"n": n, "units": units, "candidates": evaluations},
        inputs=sets,
        error=lambda found: rbf_order_error(sets[0], found.order, found.cka, steps=(0, units // 2, units - 4)),
        tolerance=1e-6,
        precision="float32",
        multiply_adds=OPERATIONS * evaluations * n * (n - 1) // 2,
        bytes=4 * n * units,
    )
    measure(
        workload,
        Contestant("simkit", lambda x: sk.greedy_cka(x, kernel=sk.RBF())),
        [
            *[
                Contestant(
                    f"NumPy, the loop over candidates, {dtype.__name__}",
                    partial(_loop, counted=counted, dtype=dtype),
                    error=off,
                    scale=evaluations / counted,
                    note=f"{counted} of {evaluations} candidates timed and scaled; its error is of their CKA values",
                )
                for dtype in (np.float32, np.float64)
            ],
            from_numba(
                Contestant(
                    "numba, all candidates of a step in one pass, float32",
                    partial(compiled, "rbf_candidates"),
                    error=off,
                    scale=evaluations / units,
                    note=f"the {units} candidates of the first step timed and scaled, its compiler's time left out;"
                    f" its error is of the CKA values of {counted}",
                )
            ),
            from_package(
                "pykeops.numpy",
                Contestant(
                    "KeOps, all candidates of a step in one pass, float32",
                    keops_candidates,
                    error=off,
                    scale=evaluations / units,
                    note=f"the {units} candidates of the first step timed and scaled, its compiler's time left out;"
                    f" its error is of the CKA values of {counted}",
                ),
            ),
        ],
    )


def _loop(x: Array, counted: int, dtype: type) -> Floats:
    """Biased CKA(all units, all but one) for the first ``counted`` units."""
    n = len(x)
    z = (x - x.mean(axis=0)).astype(dtype)
    norms = (z * z).sum(axis=1)
    distances = np.maximum(norms[:, None] + norms - 2 * (z @ z.T), 0)
    scale = dtype(-1 / (0.5 * np.median(distances)))
    original = np.exp(scale * distances)
    original -= original.mean(axis=0)
    original -= original.mean(axis=1)[:, None]
    own = float(np.vdot(original, original))
    scores, work = np.empty(counted), np.empty_like(distances)
    for k in range(counted):
        np.subtract(z[:, k, None], z[:, k], out=work)
        np.multiply(work, work, out=work)
        np.subtract(distances, work, out=work)
        np.multiply(work, scale, out=work)
        np.exp(work, out=work)
        rows = work.sum(axis=0, dtype=np.float64)
        squares = float(np.vdot(work, work)) - 2 / n * float(rows @ rows) + float(rows.sum()) ** 2 / n**2
        scores[k] = float(np.vdot(work, original)) / np.sqrt(squares * own)
    return scores
