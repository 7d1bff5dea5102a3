"""G6: mean CCA, PWCCA, SVCCA and NBS in float64; simkit computes them on the host, and the copy there counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch

import simkit as sk

from .. import test_w6_cca as w6
from ..protocol import Missing
from . import rivals
from .conftest import Measure
from .device import Device, Library
from .inputs import on_host, pair
from .protocol import Contestant, Workload

Pair: TypeAlias = tuple[Any, Any]
CONDITION = 1e4


@pytest.mark.parametrize("name", ["mean CCA", "PWCCA", "SVCCA", "NBS"])
def test_g6_cca(device: Device, gpu_measure: Measure, at_full_size: bool, name: str) -> None:
    """Each measure at one condition: the error is to the Householder route in torch, or to the constructed value."""
    n, p = (20_000, 1024) if at_full_size else (150, 16)
    formula, measure, host = MEASURES[name]

    def constructed(inputs: Pair) -> float | None:
        return float(w6.correlations(inputs[0].shape[1]).mean()) if name == "mean CCA" else None

    workload = Workload(
        key=f"G6 {name}",
        title=f"{name} of two layers of {p}, n = {n:,}, float64, condition {CONDITION:.0e}",
        sizes={"n": n, "p": p, "condition": CONDITION},
        inputs=[pair(device, seed, n, p, CONDITION) for seed in range(2)],
        feasible=pair(device, 2, 120, 12, CONDITION),
        host_truth=lambda inputs: constructed(inputs) or host(on_host(inputs)),
        truth=lambda inputs: constructed(inputs) or formula(inputs),
        difference=lambda a, b: abs(a - b),
        error=lambda answer, exact: abs(float(np.squeeze(getattr(answer, "values", answer))) - exact),
        tolerance=2e-10,
        precision="float64",
        multiply_adds=(1 if name == "NBS" else 2) * n * p * p,
        bytes=2 * 8 * n * p,
        programs="none: the host's",
    )
    contestants: list[Contestant | Missing] = [
        Contestant("torch" if name == "NBS" else "torch, QR and SVD", formula, mode="float64")
    ]
    if name == "mean CCA":
        contestants.append(Contestant("torch, one Cholesky pass", by_cholesky, mode="float64"))
        contestants.append(rivals.by_arrays(device, "QR and SVD", mean_cca_by_arrays))
    result = gpu_measure(
        workload,
        Contestant(
            "simkit",
            lambda inputs: sk.similarity_matrix({"x": inputs[0]}, {"y": inputs[1]}, measure=measure),
            plan=lambda matrix: [matrix.plan],
        ),
        contestants,
    )
    result["notes"].append("simkit copies both layers to the host and computes there: its time is the processor's")


def mean_cca(inputs: tuple[Any, Any]) -> float:
    """By QR and SVD."""
    qx, qy = (torch.linalg.qr(x - x.mean(dim=0)).Q for x in inputs)
    return float(torch.linalg.svdvals(qx.T @ qy).mean())


def by_cholesky(inputs: tuple[Any, Any]) -> float:
    """By one pass of Cholesky factors of the covariances: fast, and less accurate by the square of the condition."""
    x, y = (x - x.mean(dim=0) for x in inputs)
    a, b = torch.linalg.cholesky(x.T @ x), torch.linalg.cholesky(y.T @ y)
    left = torch.linalg.solve_triangular(a, x.T @ y, upper=False)
    return float(torch.linalg.svdvals(torch.linalg.solve_triangular(b, left.T, upper=False)).mean())


def pwcca(inputs: tuple[Any, Any]) -> float:
    """By QR and SVD."""
    x, y = (x - x.mean(dim=0) for x in inputs)
    qx, qy = torch.linalg.qr(x).Q, torch.linalg.qr(y).Q
    u, rho, _ = torch.linalg.svd(qx.T @ qy)
    alpha = ((qx @ u).T @ x).abs().sum(dim=1)
    return float(alpha @ rho / alpha.sum())


def svcca(inputs: tuple[Any, Any]) -> float:
    """By two SVDs."""
    kept = []
    for x in inputs:
        u, s, _ = torch.linalg.svd(x - x.mean(dim=0), full_matrices=False)
        explained = torch.cumsum(s * s, dim=0)
        kept.append(u[:, : int(torch.searchsorted(explained, 0.99 * explained[-1])) + 1])
    return float(torch.linalg.svdvals(kept[0].T @ kept[1]).mean())


def nbs(inputs: tuple[Any, Any]) -> float:
    """By the nuclear norm of the cross-product."""
    x, y = (x - x.mean(dim=0) for x in inputs)
    return float(torch.linalg.svdvals(x.T @ y).sum() / x.norm() / y.norm())


def mean_cca_by_arrays(inputs: tuple[Any, Any], library: Library) -> float:
    """By QR and SVD."""
    linalg = library.module.linalg
    x, y = (library.array(x) for x in inputs)
    qx, qy = (linalg.qr(z - z.mean(axis=0))[0] for z in (x, y))
    return float(linalg.svd(qx.T @ qy, compute_uv=False).mean())


MEASURES: dict[str, tuple[Callable[[Pair], float], Any, Callable[[Any], float]]] = {
    "mean CCA": (mean_cca, sk.MeanCCA(), w6.numpy_cca),
    "PWCCA": (pwcca, sk.PWCCA(), w6.numpy_pwcca),
    "SVCCA": (svcca, sk.SVCCA(), w6.numpy_svcca),
    "NBS": (nbs, sk.NBS(), w6.numpy_nbs),
}
