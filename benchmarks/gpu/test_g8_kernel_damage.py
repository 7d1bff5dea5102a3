"""G8: the full greedy order of a layer's neurons under the RBF kernel, where every candidate must be evaluated."""

from __future__ import annotations

from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from typing import Any

import numpy as np
import torch

import simkit as sk

from .. import truth as host
from ..kernel_rivals import Prepared
from ..rivals import package
from ..test_w8_kernel_damage import ONCE, OPERATIONS
from ..truth import Floats
from . import truth
from .conftest import Measure
from .device import Device
from .inputs import on_host, relu_layers
from .protocol import Contestant, Workload
from .rivals import from_package
from .truth import median


def test_g8_kernel_damage(device: Device, gpu_measure: Measure, at_full_size: bool) -> None:
    """Against the loop over candidates, which keeps the distances and subtracts one unit's part."""
    n, units = (8192, 128) if at_full_size else (60, 8)
    evaluations = units * (units + 1) // 2 - 1
    counted = min(8, units)

    def candidates(x: Any, module: Any) -> tuple[Floats, Any]:
        """The CKA of the first candidates, and the layer: an order is judged by those of all that it keeps."""
        values = on_host(x) if module is host else x
        every = np.arange(x.shape[1])
        return module.kernel_candidates(values, every, every[:counted]), x

    def off(scores: Floats, exact: Any) -> float:
        return float(np.abs(scores[:counted] - exact[0][:counted]).max())

    def order_error(found: Any, exact: Any) -> float:
        if not isinstance(found, sk.Elimination):
            return off(found, exact)
        x, worst = exact[1], 0.0
        for step in (0, len(found.order) // 2, len(found.order) - 4):
            kept = np.setdiff1d(np.arange(len(found.order)), found.order[:step])
            scores = truth.kernel_candidates(x, kept, kept)
            chosen = scores[np.flatnonzero(kept == found.order[step])[0]]
            worst = max(worst, float(scores.max() - chosen), abs(float(found.cka[step] - chosen)))
        return worst

    workload = Workload(
        key="G8",
        title=f"greedy RBF CKA order of {units} neurons, n = {n:,}",
        sizes={"n": n, "units": units, "candidates": evaluations},
        inputs=[relu_layers(device, seed, n, (units,), models=1)[0][0] for seed in range(2)],
        feasible=relu_layers(device, 2, 60, (9,), models=1)[0][0],
        host_truth=lambda x: candidates(x, host),
        truth=lambda x: candidates(x, truth),
        difference=lambda a, b: float(np.abs(a[0] - b[0]).max()),
        error=order_error,
        tolerance=1e-6,
        precision="float32",
        multiply_adds=OPERATIONS * evaluations * n * (n - 1) // 2,
        bytes=4 * n * units,
        programs="the candidates'",
        of_products=False,
        exponentials=evaluations * n * (n - 1) // 2,
    )
    note = f"{counted} of {evaluations} candidates timed and scaled, {ONCE}; its error is of their CKA values"
    result = gpu_measure(
        workload,
        Contestant("simkit", lambda x: sk.greedy_cka(x, kernel=sk.RBF()), plan=lambda found: [found.plan]),
        [
            *[
                Contestant(
                    f"torch, the loop over candidates, {str(dtype).removeprefix('torch.')}",
                    partial(rbf_loop, counted=counted),
                    scale=evaluations / counted,
                    prepare=partial(rbf_prepared, dtype=dtype),
                    note=note,
                    other=True,
                )
                for dtype in (torch.float32, torch.float64)
            ],
            from_package(
                "pykeops.torch",
                Contestant(
                    "KeOps, all candidates of a step in one pass, float32",
                    keops_candidates,
                    scale=evaluations / units,
                    prepare=keops_prepared,
                    note=f"the {units} candidates of the first step timed and scaled, the distances and their median"
                    " timed once and added as they are, its compiler's time left out",
                    other=True,
                ),
            ),
        ],
    )
    result["notes"].append(
        f"{OPERATIONS} operations a pair and candidate, and an exponential, are no product of matrices: the limit is of"
        " the exponentials alone, sixteen a clock and multiprocessor"
    )


def rbf_prepared(x: Any, dtype: Any) -> Prepared:
    """For :func:`rbf_loop`."""
    with torch.inference_mode():
        z = x.to(dtype) - x.to(dtype).mean(dim=0)
        norms = (z * z).sum(dim=1)
        distances = torch.addmm(norms[:, None] + norms, z, z.T, alpha=-2.0).clamp_(min=0.0)
        length = 0.5 * median(distances)
        original = torch.exp(-1 / length * distances)
        original -= original.mean(dim=0)
        original -= original.mean(dim=1, keepdim=True)
        own = (original * original).sum(dtype=torch.float64)
        return Prepared(z, distances, length, original, own, torch.zeros_like(distances))


def rbf_loop(of: Prepared, counted: int) -> Floats:
    """Biased CKA(all units, all but one) for the first ``counted`` units: the distances less one unit's part."""
    z, work, n = of.z, of.space, len(of.z)
    with torch.inference_mode():
        scores = []
        for k in range(counted):
            torch.sub(z[:, k, None], z[:, k], out=work)
            torch.sub(of.pairs, work.square_(), out=work).mul_(-1 / of.length).exp_()
            rows = work.sum(dim=0, dtype=torch.float64)
            top = (work * of.original).sum(dtype=torch.float64)
            squares = work.square_().sum(dtype=torch.float64)
            squares += -2 / n * (rows @ rows) + rows.sum() ** 2 / n**2
            scores.append(top / torch.sqrt(squares * of.own))
        found: Floats = torch.stack(scores).cpu().numpy()
    return found


def keops_prepared(x: Any) -> tuple[Any, float]:
    """For :func:`keops_candidates`: the distances and their median, for the bandwidth, are torch's."""
    with torch.inference_mode():
        z = (x - x.mean(dim=0)).contiguous()
        return z, -1 / (0.5 * median(torch.cdist(z, z).square_()))


def keops_candidates(prepared: tuple[Any, float]) -> Floats:
    """KeOps: the same for every unit, its sums over pairs of samples in one pass."""
    keops = package("pykeops.torch")
    z, scale = prepared
    n, units = z.shape
    with torch.inference_mode(), redirect_stdout(StringIO()):
        parts = (keops.Vi(z) - keops.Vj(z)) ** 2
        every = (parts.sum(-1) * scale).exp()
        without = ((parts.sum(-1) - parts) * scale).exp()
        one = keops.LazyTensor(torch.ones(1, device=z.device))
        products = every.concat(one).tensorprod(without)
        sums = products.concat(without**2).concat(every).concat(every**2).sum(axis=1).double()
    cross, rows, squares, original, own = sums.split([units, units, units, 1, 1], dim=1)

    def centred(total: Any, first: Any, second: Any) -> Any:
        outer = first.sum(dim=0) * second.sum(dim=0) / n**2
        return total.sum(dim=0) - 2 / n * (first * second).sum(dim=0) + outer

    top, bottom = centred(cross, original, rows), centred(squares, rows, rows) * centred(own, original, original)
    found: Floats = (top / torch.sqrt(bottom)).cpu().numpy()
    return found
