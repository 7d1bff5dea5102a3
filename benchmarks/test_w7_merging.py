"""W7: which kept filter absorbs each pruned one, in all layers of a VGG-16 with BatchNorm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from simkit.metrics.merging import BatchNorm, merging

from .conftest import FromNumba, Measure
from .protocol import Contestant, Missing, Workload
from .rivals import compiled, from_package, package
from .truth import Array, Floats

# (filters, fan-in) of the 13 convolutions and the first dense layer of the CIFAR variant
VGG16 = (
    *((64, 27), (64, 576), (128, 576), (128, 1152), (256, 1152), (256, 2304), (256, 2304)),
    *((512, 2304), (512, 4608), (512, 4608), (512, 4608), (512, 4608), (512, 4608), (512, 512)),
)
PRUNED = 0.5
BALANCE, THRESHOLD = 0.85, 0.1
Layer: TypeAlias = tuple[Array, Array, tuple[Floats, Floats, Floats, Floats]]  # weights, kept, (γ, β, mean, var)
Table: TypeAlias = list[tuple[Array, Floats]]  # a layer: the partner of each pruned filter or -1, and its scale


def test_w7_merging(measure: Measure, full: bool, from_numba: FromNumba) -> None:
    """The answer is the published one (``bn_scale="reference"``): the error is the share of partners that differ."""
    shapes = VGG16 if full else tuple((units // 8, fan_in // 8) for units, fan_in in VGG16)
    sets = [[filters(seed, *shape) for shape in shapes] for seed in range(2)]
    truth = [closed_form(layer) for layer in sets[0]]
    half = [(units // 2) * (units - units // 2) * fan_in for units, fan_in in shapes]
    workload = Workload(
        key="W7",
        title=f"neuron merging of the {len(shapes)} layers of a VGG-16, half of the filters pruned",
        sizes={"layers": len(shapes), "weights": sum(units * fan_in for units, fan_in in shapes)},
        inputs=sets,
        error=lambda answer: differing(answer, truth),
        tolerance=0.0,
        precision="float32",
        multiply_adds=sum(half),
        bytes=4 * sum(units * fan_in for units, fan_in in shapes),
    )
    result = measure(
        workload,
        Contestant("simkit", lambda layers: [simkit(layer) for layer in layers]),
        [
            rival("pairwise distances of scikit-learn + the authors' Python loops", "sklearn.metrics"),
            Contestant("NumPy, whole tables in float64", lambda layers: [closed_form(layer) for layer in layers]),
            from_numba(Contestant("numba, fused loops over products in float32", compiled_loops)),
            from_package(
                "torch",
                Contestant(
                    "torch, whole tables, products in float32", lambda layers: [torch_tables(layer) for layer in layers]
                ),
            ),
        ],
    )
    result["notes"].append(f"{np.mean([np.mean(partner >= 0) for partner, _ in truth]):.0%} of the pruned are absorbed")


def filters(seed: int, units: int, fan_in: int) -> Layer:
    """Filters that share directions, as trained ones do; the half of the largest L1 norm is kept."""
    r = np.random.default_rng([seed, units, fan_in])
    shared = r.standard_normal((max(2, units // 4), fan_in), dtype=np.float32)
    w = r.standard_normal((units, len(shared)), dtype=np.float32) ** 3 @ shared
    w += r.standard_normal((units, fan_in), dtype=np.float32)
    kept = np.zeros(units, dtype=bool)
    kept[np.argsort(-np.abs(w).sum(axis=1), kind="stable")[: units - int(units * PRUNED)]] = True
    norm = r.uniform(0.2, 1.5, units), r.standard_normal(units), r.standard_normal(units), r.uniform(0.1, 2.0, units)
    return w, kept, norm


def simkit(layer: Layer) -> tuple[Array, Floats]:
    """One layer by simkit."""
    w, kept, norm = layer
    found = merging(w, kept, batch_norm=BatchNorm(*norm), threshold=THRESHOLD, balance=BALANCE, bn_scale="reference")
    return found.partner, found.scale


def rival(name: str, module: str) -> Contestant | Missing:
    """The authors' way, where scikit-learn is installed."""
    return from_package(module, Contestant(name, lambda layers: [authors(layer) for layer in layers]))


def authors(layer: Layer) -> tuple[Array, Floats]:
    """The structure of the published code: one matrix of distances, then a loop over pruned and kept filters."""
    w, mask, (gamma, beta, mean, var) = layer
    distances = package("sklearn.metrics").pairwise_distances(w, metric="cosine")
    kept = np.flatnonzero(mask)
    partners: list[int] = []
    scales: list[float] = []
    for n in np.flatnonzero(~mask):
        current = np.linalg.norm(w[n])
        cosines, terms, biases = [], [], []
        for m in kept:
            cosines.append(distances[n, m])
            s = current / np.linalg.norm(w[m])
            scale = s * (gamma[m] / gamma[n]) * (var[n] / var[m])
            bias = abs((gamma[m] / var[m]) * (s * (-(var[n] * beta[n] / gamma[n]) + mean[n]) - mean[m]) + beta[m])
            terms.append(scale)
            biases.append(bias / scale)
        rescaled = (np.array(biases) - np.min(biases)) / (np.max(biases) - np.min(biases))
        best = int(np.argmin(BALANCE * np.array(cosines) + (1 - BALANCE) * rescaled))
        absorbed = 1 - cosines[best] >= THRESHOLD
        partners.append(int(kept[best]) if absorbed else -1)
        scales.append(float(terms[best]) if absorbed else 0.0)
    return np.array(partners), np.array(scales)


def closed_form(layer: Layer) -> tuple[Array, Floats]:
    """The same from whole [pruned, kept] tables in float64."""
    w, mask, (gamma, beta, mean, var) = layer
    z = w.astype(np.float64)
    norms = np.linalg.norm(z, axis=1)
    n, m = np.flatnonzero(~mask)[:, None], np.flatnonzero(mask)
    cosine = (z[n[:, 0]] @ z[m].T) / (norms[n] * norms[m])
    s = norms[n] / norms[m]
    scale = s * (gamma[m] / gamma[n]) * (var[n] / var[m])
    ratio = np.abs((gamma[m] / var[m]) * (s * (mean[n] - var[n] * beta[n] / gamma[n]) - mean[m]) + beta[m]) / scale
    low, high = ratio.min(axis=1, keepdims=True), ratio.max(axis=1, keepdims=True)
    best = (BALANCE * (1 - cosine) + (1 - BALANCE) * (ratio - low) / (high - low)).argmin(axis=1)
    rows = np.arange(len(best))
    absorbed = cosine[rows, best] >= THRESHOLD
    return np.where(absorbed, m[best], -1), np.where(absorbed, scale[rows, best], 0.0)


def compiled_loops(layers: Sequence[Layer]) -> Table:
    """By numba, all layers."""
    return [compiled("merging", layer, BALANCE, THRESHOLD) for layer in layers]


def torch_tables(layer: Layer) -> tuple[Array, Floats]:
    """As :func:`closed_form`, by torch."""
    import torch

    with torch.inference_mode():
        w, mask = torch.from_numpy(layer[0]), torch.from_numpy(layer[1])
        gamma, beta, mean, var = (torch.from_numpy(values) for values in layer[2])
        norms = torch.linalg.vector_norm(w, dim=1).double()
        n, m = torch.nonzero(~mask), torch.nonzero(mask)[:, 0]
        cosine = (w[n[:, 0]] @ w[m].T) / (norms[n] * norms[m])
        s = norms[n] / norms[m]
        scale = s * (gamma[m] / gamma[n]) * (var[n] / var[m])
        ratio = ((gamma[m] / var[m]) * (s * (mean[n] - var[n] * beta[n] / gamma[n]) - mean[m]) + beta[m]).abs() / scale
        low, high = torch.aminmax(ratio, dim=1, keepdim=True)
        best = (BALANCE * (1 - cosine) + (1 - BALANCE) * (ratio - low) / (high - low)).argmin(dim=1)
        rows = torch.arange(len(best))
        absorbed = cosine[rows, best] >= THRESHOLD
        partner, chosen = torch.where(absorbed, m[best], -1), torch.where(absorbed, scale[rows, best], 0.0)
        return partner.numpy(), chosen.numpy()


def differing(answer: Any, truth: Table) -> float:
    """The share of partners that differ; infinite where the scale of an equal partner is off by more than 1e-4."""
    pairs = list(zip(answer, truth, strict=True))
    for (partner, scale), (right, exact) in pairs:
        same = partner == right
        if not np.allclose(scale[same], exact[same], rtol=1e-4, atol=0):
            return float("inf")
    return float(np.mean(np.concatenate([partner != right for (partner, _), (right, _) in pairs])))
