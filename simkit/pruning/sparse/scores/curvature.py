"""Second derivatives of a mean loss by all scored weights together: diagonals, and matrices of small networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .supervision import Loss, gradients, loss_of

Batches = Sequence[tuple[Any, Any, int]]
LARGEST = 20_000  # weights of which each takes a backward pass
LARGEST_MATRIX = 2_048


def hessian_rows(model: nn.Module, weights: Sequence[Tensor], loss: Loss, batches: Batches) -> Iterator[Tensor]:
    """The rows of the Hessian ``[p]``, one after another, in float64: exact, one backward pass each."""
    require_small(weights, LARGEST, "an exact Hessian")
    slopes = gradients(model, weights, loss, batches, differentiable=True)
    for entry in torch.cat([slope.flatten() for slope in slopes]):
        if not entry.requires_grad:  # the loss is linear in this weight
            yield torch.zeros(sum(weight.numel() for weight in weights), dtype=torch.float64, device=entry.device)
            continue
        row = torch.autograd.grad(entry, weights, retain_graph=True, allow_unused=True, materialize_grads=True)
        yield flat(row)


def gauss_newton_rows(
    model: nn.Module, weights: Sequence[Tensor], loss: Loss, batches: Batches
) -> Iterator[tuple[Tensor, float]]:
    """Vectors v ``[p]`` and factors c of which ``Σ c·v vᵀ`` is the Gauss-Newton matrix JᵀH_L J of the mean loss.

    For every batch, ∂²L/∂outputs² is taken apart into eigenvectors, through each of which one backward pass goes.
    """
    total = sum(count for _, _, count in batches)
    for inputs, targets, count in batches:
        outputs = model(inputs)
        _require_mean(loss, outputs.detach(), targets)
        for sample in range(count):  # samples do not mix in the loss: one block each
            one, target = outputs[sample : sample + 1], targets[sample : sample + 1]
            values, vectors = torch.linalg.eigh(_output_hessian(loss, one, target))
            for value, vector in zip(values, vectors.T, strict=True):
                if abs(float(value)) > 0.0:
                    row = torch.autograd.grad(
                        (one.flatten().double() * vector).sum(), weights,
                        retain_graph=True, allow_unused=True, materialize_grads=True,
                    )  # fmt: skip
                    yield flat(row), float(value) / total


def hutchinson_diagonal(
    model: nn.Module, weights: Sequence[Tensor], loss: Loss, batches: Batches, samples: int, seed: int
) -> Tensor:
    """The mean of z ⊙ Hz over random signs z, an unbiased estimate of the Hessian's diagonal ``[p]``.

    Source: Bekas et al., "An estimator for the diagonal of a matrix" (2007).
    """
    sizes = [weight.numel() for weight in weights]
    chance = np.random.default_rng(seed)
    total = sum(count for _, _, count in batches)
    signs = [torch.from_numpy(chance.integers(2, size=sum(sizes)) * 2.0 - 1.0) for _ in range(samples)]
    found = torch.zeros(sum(sizes), dtype=torch.float64, device=weights[0].device)
    for batch in batches:
        slopes = gradients(model, weights, loss, [batch], differentiable=True)
        for drawn in signs:
            parts = [
                part.reshape(weight.shape).to(weight)
                for part, weight in zip(torch.split(drawn, sizes), weights, strict=True)
            ]
            inner = sum(
                ((slope * part).sum() for slope, part in zip(slopes, parts, strict=True)), weights[0].new_zeros(())
            )
            if inner.requires_grad:
                product = torch.autograd.grad(
                    inner, weights, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                found += drawn.to(found.device) * flat(product) * (batch[2] / total)
    return found / samples


def flat(parts: Sequence[Tensor]) -> Tensor:
    """All entries in one float64 vector."""
    return torch.cat([part.detach().double().flatten() for part in parts])


def require_small(weights: Sequence[Tensor], largest: int, what: str) -> None:
    """ValueError if there are more weights than can be afforded."""
    count = sum(weight.numel() for weight in weights)
    if count > largest:
        raise ValueError(f"{what} of {count} weights is too large: at most {largest} can be afforded")


def _require_mean(loss: Loss, outputs: Tensor, targets: Tensor) -> None:
    """ValueError unless the loss of a batch is the mean of those of its samples: weighted means are not."""
    whole = float(loss_of(loss, outputs, targets))
    parts = [float(loss_of(loss, outputs[k : k + 1], targets[k : k + 1])) for k in range(len(outputs))]
    mean = sum(parts) / len(parts)
    precision = 100 * torch.finfo(outputs.dtype).eps
    if abs(whole - mean) > precision * max(abs(part) for part in parts):
        raise ValueError(f"loss must be a mean over the samples: it is {whole:.6g} for a batch, {mean:.6g} by samples")


def _output_hessian(loss: Loss, outputs: Tensor, target: Tensor) -> Tensor:
    """∂²L/∂o² ``[k, k]`` of one sample's loss by its outputs."""
    start = outputs.detach().double()

    def of_outputs(values: Tensor) -> Tensor:
        return loss_of(loss, values.reshape(start.shape), target if not target.is_floating_point() else target.double())

    hessian: Callable[..., Tensor] = torch.autograd.functional.hessian
    return hessian(of_outputs, start.flatten())
