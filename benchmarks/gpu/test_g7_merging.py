"""G7: which kept filter absorbs each pruned one, in layers four times as wide and four times as deep as a VGG-16's."""

from __future__ import annotations

from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch

from simkit.metrics.merging import BatchNorm, merging

from .. import test_w7_merging as w7
from ..truth import Array, Floats
from .conftest import Measure
from .device import Device, Library
from .inputs import on_host
from .products import MODES, prepared, product
from .protocol import Contestant, Workload
from .rivals import by_arrays

Layer: TypeAlias = tuple[Any, Array, tuple[Floats, Floats, Floats, Floats]]  # weights, kept, (γ, β, mean, var)
Table: TypeAlias = list[tuple[Array, Floats]]  # a layer: the partner of each pruned filter or -1, and its scale


def test_g7_merging(device: Device, gpu_measure: Measure, at_full_size: bool) -> None:
    """The answer is the published one (``bn_scale="reference"``): the error is the share of partners that differ."""
    small = tuple((units // 16, max(8, fan_in // 16)) for units, fan_in in w7.VGG16)
    shapes = tuple((4 * units, 4 * fan_in) for units, fan_in in w7.VGG16) if at_full_size else small
    half = [(units // 2) * (units - units // 2) * fan_in for units, fan_in in shapes]
    weights = sum(units * fan_in for units, fan_in in shapes)
    workload = Workload(
        key="G7",
        title=f"neuron merging of the {len(shapes)} layers of a VGG-16, {4 if at_full_size else 1 / 16:g} × as wide",
        sizes={"layers": len(shapes), "weights": weights},
        inputs=[[filters(device, seed, *shape) for shape in shapes] for seed in range(2)],
        feasible=[filters(device, 2, units + 3, fan_in + 5) for units, fan_in in small[:5]],
        host_truth=lambda layers: [w7.closed_form(layer) for layer in on_host(layers)],
        truth=lambda layers: closed_form(layers, "float64"),
        difference=lambda a, b: w7.differing(a, b),
        error=lambda answer, exact: w7.differing(tables_of(answer), exact),
        tolerance=0.0,
        precision="float32",
        multiply_adds=sum(half),
        bytes=4 * weights,
        programs="the partners'",
    )
    gpu_measure(
        workload,
        Contestant(
            "simkit", lambda layers: [simkit(layer) for layer in layers], plan=lambda all_: [x.plan for x in all_]
        ),
        [
            *[
                Contestant(f"torch, whole tables, {mode}", partial(closed_form, precision=mode), mode=mode)
                for mode in MODES
            ],
            by_arrays(device, "whole tables, float64", closed_form_by_arrays),
        ],
    )


def filters(device: Device, seed: int, units: int, fan_in: int) -> Layer:
    """The weights of ``benchmarks.test_w7_merging.filters`` on the device, the rest on the host."""
    w, kept, norm = w7.filters(seed, units, fan_in)
    return torch.from_numpy(w).to(device.where), kept, norm


def simkit(layer: Layer) -> Any:
    """One layer by simkit."""
    w, kept, norm = layer
    return merging(
        w, kept, batch_norm=BatchNorm(*norm), threshold=w7.THRESHOLD, balance=w7.BALANCE, bn_scale="reference"
    )


def tables_of(answer: Any) -> Table:
    """Simkit's results as (partner, scale), which the others are."""
    return [part if isinstance(part, tuple) else (part.partner, part.scale) for part in answer]


def closed_form(layers: list[Layer], precision: str) -> Table:
    """Whole [pruned, kept] tables on the device, the products by one mode, the rest in float64."""
    with torch.inference_mode():
        return [_closed_form(layer, precision) for layer in layers]


def _closed_form(layer: Layer, precision: str) -> tuple[Array, Floats]:
    w, mask, norm = layer
    z = prepared(w, precision)
    gamma, beta, mean, var = (torch.from_numpy(x).to(w.device) for x in norm)
    n, m = (torch.from_numpy(np.flatnonzero(chosen)).to(w.device) for chosen in (~mask, mask))
    norms, n = z.norm(dim=1).double(), n[:, None]
    cosine = product(z[n[:, 0]], z[m].T, precision).double() / (norms[n] * norms[m])
    s = norms[n] / norms[m]
    scale = s * (gamma[m] / gamma[n]) * (var[n] / var[m])
    ratio = ((gamma[m] / var[m]) * (s * (mean[n] - var[n] * beta[n] / gamma[n]) - mean[m]) + beta[m]).abs() / scale
    low, high = ratio.amin(dim=1, keepdim=True), ratio.amax(dim=1, keepdim=True)
    best = (w7.BALANCE * (1 - cosine) + (1 - w7.BALANCE) * (ratio - low) / (high - low)).argmin(dim=1, keepdim=True)
    chosen, scales = cosine.gather(1, best)[:, 0], scale.gather(1, best)[:, 0]
    absorbed = chosen >= w7.THRESHOLD
    partner = torch.where(absorbed, m[best[:, 0]], -1)
    return partner.cpu().numpy(), torch.where(absorbed, scales, 0.0).cpu().numpy()


def closed_form_by_arrays(layers: list[Layer], library: Library) -> Table:
    """The formula of ``benchmarks.test_w7_merging.closed_form`` by another array library."""
    xp, found = library.module, []
    for w, mask, norm in layers:
        z = library.array(w).astype(np.float64)
        gamma, beta, mean, var = (xp.asarray(x) for x in norm)
        kept = xp.asarray(mask)
        norms = xp.linalg.norm(z, axis=1)
        n, m = xp.flatnonzero(~kept)[:, None], xp.flatnonzero(kept)
        cosine = (z[n[:, 0]] @ z[m].T) / (norms[n] * norms[m])
        s = norms[n] / norms[m]
        scale = s * (gamma[m] / gamma[n]) * (var[n] / var[m])
        ratio = xp.abs((gamma[m] / var[m]) * (s * (mean[n] - var[n] * beta[n] / gamma[n]) - mean[m]) + beta[m]) / scale
        low, high = ratio.min(axis=1, keepdims=True), ratio.max(axis=1, keepdims=True)
        best = (w7.BALANCE * (1 - cosine) + (1 - w7.BALANCE) * (ratio - low) / (high - low)).argmin(axis=1)
        rows = xp.arange(len(best))
        absorbed = cosine[rows, best] >= w7.THRESHOLD
        table = xp.where(absorbed, m[best], -1), xp.where(absorbed, scale[rows, best], 0.0)
        found.append((library.to_host(table[0]), library.to_host(table[1])))
    return found
