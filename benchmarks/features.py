"""Synthetic inputs: ReLU features that share latent directions, so that similarities are neither 0 nor 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from .machine import cache_bytes
from .truth import Array

T = TypeVar("T")
LATENT = 32
MOST_SETS = 8


def relu_layers(seed: int, n: int, widths: Sequence[int], models: int = 2) -> list[list[Array]]:
    """For each model, one float32 ``[n, width]`` array per width; all are mixtures of the same latent variables."""
    rng = np.random.default_rng(seed)
    latent = rng.standard_normal((n, LATENT), dtype=np.float32)

    def layer(width: int) -> Array:
        mixed = latent @ rng.standard_normal((LATENT, width), dtype=np.float32)
        mixed += 3 * rng.standard_normal((n, width), dtype=np.float32)
        return np.maximum(mixed, 0, out=mixed)

    return [[layer(width) for width in widths] for _ in range(models)]


def cold_sets(make: Callable[[int], T], size: int) -> list[T]:
    """Input sets of ``size`` bytes, made from a seed: enough to push each other out of the cache, at most eight."""
    return [make(seed) for seed in range(max(2, min(MOST_SETS, 2 * cache_bytes() // size + 1)))]


def named(layers: Sequence[Any]) -> dict[str, Any]:
    """Layers under short names."""
    return {f"layer{i}": layer for i, layer in enumerate(layers)}
