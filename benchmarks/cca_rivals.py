"""The CCA family and NBS by torch, and by the functions of anatome, netrep and repsim that give the same numbers.

All take two float64 layers and return a similarity. Published at their sources, though on no package index: anatome
(github.com/moskomule/anatome) and netrep (github.com/ahwillia/netrep), which take part where they are installed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

from .rivals import package, repsim_pair, tensors
from .truth import Floats, centred

Pair: TypeAlias = tuple[Floats, Floats]
Call: TypeAlias = Callable[[Pair], float]


def _torch_centred(inputs: Pair) -> Any:
    return (t - t.mean(dim=0) for t in tensors(inputs))


def torch_cca(inputs: Pair) -> float:
    """Mean CCA by QR and singular values."""
    import torch

    with torch.inference_mode():
        qx, qy = (torch.linalg.qr(z)[0] for z in _torch_centred(inputs))
        return float(torch.linalg.svdvals(qx.T @ qy).mean())


def torch_pwcca(inputs: Pair) -> float:
    """PWCCA by QR and SVD."""
    import torch

    with torch.inference_mode():
        x, y = _torch_centred(inputs)
        qx, qy = torch.linalg.qr(x)[0], torch.linalg.qr(y)[0]
        u, rho, _ = torch.linalg.svd(qx.T @ qy)
        alpha = ((qx @ u).T @ x).abs_().sum(dim=1)
        return float(alpha @ rho / alpha.sum())


def torch_svcca(inputs: Pair) -> float:
    """SVCCA by two SVDs."""
    import torch

    with torch.inference_mode():
        kept = []
        for z in _torch_centred(inputs):
            u, s, _ = torch.linalg.svd(z, full_matrices=False)
            explained = (s * s).cumsum(dim=0)
            kept.append(u[:, : int(torch.searchsorted(explained, 0.99 * explained[-1])) + 1])
        return float(torch.linalg.svdvals(kept[0].T @ kept[1]).mean())


def torch_nbs(inputs: Pair) -> float:
    """NBS by the singular values of the cross-product."""
    import torch

    with torch.inference_mode():
        x, y = _torch_centred(inputs)
        return float(torch.linalg.svdvals(x.T @ y).sum() / torch.linalg.norm(x) / torch.linalg.norm(y))


TORCH: dict[str, Call] = {"mean CCA": torch_cca, "PWCCA": torch_pwcca, "SVCCA": torch_svcca, "NBS": torch_nbs}


def _anatome(name: str, inputs: Pair) -> float:
    """Its distances by QR, which is faster than its SVD; PWCCA weighs by the features as given: they are centred."""
    import torch

    distance = package("anatome.distance")
    with torch.inference_mode():
        x, y = tensors([centred(z) for z in inputs] if name == "PWCCA" else inputs)
        if name == "mean CCA":
            return float(distance.cca(x, y, backend="qr")[2].mean())
        if name == "PWCCA":
            return 1 - float(distance.pwcca_distance(x, y, backend="qr"))
        if name == "SVCCA":
            return 1 - float(distance.svcca_distance(x, y, accept_rate=0.99, backend="qr"))
        return 1 - float(distance.orthogonal_procrustes_distance(x, y))


def _netrep(name: str, inputs: Pair) -> float:
    """Its angle after the best invertible (alpha = 0) or rotating (alpha = 1) alignment is that of mean CCA, or NBS."""
    metric = package("netrep.metrics").LinearMetric(alpha=0.0 if name == "mean CCA" else 1.0, score_method="angular")
    return math.cos(metric.fit(*inputs).score(*inputs))


# Repsim's names; what it calls Pillai's trace is the mean of the correlations.
_REPSIM = {"mean CCA": ("cca", "pillai"), "PWCCA": ("pwcca",), "SVCCA": ("svcca", "pillai")}
# For each package, what it has.
PUBLISHED: dict[str, tuple[str, ...]] = {
    "repsim": tuple(_REPSIM),
    "anatome.distance": tuple(TORCH),
    "netrep.metrics": ("mean CCA", "NBS"),
}


def published(module: str, name: str) -> Call:
    """The function of a package for a measure."""
    if module == "repsim":
        function, *options = _REPSIM[name]
        return lambda inputs: repsim_pair(function, inputs, *options)
    return lambda inputs: (_anatome if module == "anatome.distance" else _netrep)(name, inputs)
