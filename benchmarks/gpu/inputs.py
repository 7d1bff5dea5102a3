"""Inputs made on the device: ReLU features that share latent directions, pairs of known correlations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..features import LATENT
from ..test_w6_cca import correlations
from .device import Device


def generator_on(device: Device, seed: int) -> Any:
    """A source of random numbers on the device."""
    return torch.Generator(device=device.where).manual_seed(seed)


def relu_layers(device: Device, seed: int, n: int, widths: Sequence[int], models: int = 2) -> list[list[Any]]:
    """For each model, one float32 tensor ``[n, width]`` per width; all are mixtures of the same latent variables."""
    draw = {"generator": generator_on(device, seed), "device": device.where}
    latent = torch.randn((n, LATENT), **draw)

    def layer(width: int) -> Any:
        mixed = torch.randn((n, width), **draw).mul_(3)
        return mixed.addmm_(latent, torch.randn((LATENT, width), **draw)).relu_()

    return [[layer(width) for width in widths] for _ in range(models)]


def pair(device: Device, seed: int, n: int, p: int, condition: float) -> tuple[Any, Any]:
    """As ``benchmarks.test_w6_cca.pair``: float64 features of a condition, with correlations known by construction."""
    draw = {"generator": generator_on(device, seed), "device": device.where, "dtype": torch.float64}
    z = torch.randn((n, 2 * p), **draw)
    q = torch.linalg.qr(z - z.mean(dim=0)).Q
    rho = torch.from_numpy(correlations(p)).to(device.where)
    bases = q[:, :p], q[:, :p] * rho + q[:, p:] * torch.sqrt(1 - rho * rho)
    steps = torch.linspace(0, 1, p, dtype=torch.float64, device=device.where)
    spectrum = condition**-steps
    turns = [torch.linalg.qr(torch.randn((p, p), **draw)).Q for _ in range(4)]
    x, y = (base @ turns[k] * spectrum @ turns[k + 1].T for base, k in zip(bases, (0, 2), strict=True))
    return x, y


def on_host(inputs: Any) -> Any:
    """The same nest of lists and tuples, its tensors as NumPy arrays on the host; bfloat16 is widened."""
    if isinstance(inputs, torch.Tensor):
        held = inputs.detach().cpu()
        return (held.float() if held.dtype == torch.bfloat16 else held).numpy()
    if isinstance(inputs, list | tuple):
        return type(inputs)(on_host(part) for part in inputs)
    return inputs
