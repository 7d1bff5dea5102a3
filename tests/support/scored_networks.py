"""Networks of a few weights, data for them and their loss, by which criteria are judged."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()


def convnet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(12, 3)
    ).double()


def batch(model: nn.Module, samples: int = 10) -> tuple[Tensor, Tensor]:
    shape = (2, 4, 4) if isinstance(model[0], nn.Conv2d) else (4,)
    return torch.randn(samples, *shape, dtype=torch.float64), torch.arange(samples) % 3


def mean_loss(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    with torch.no_grad():
        return float(functional.cross_entropy(model(data[0]), data[1]))


def entries(weight: Tensor) -> Iterator[tuple[int, ...]]:
    return itertools.product(*map(range, weight.shape))


def slope_of_scaling(value: Callable[[], float], weight: Tensor, place: tuple[int, ...]) -> float:
    """θ ∂value/∂θ of one entry, by central differences of 1e-4 of it."""
    start, values = weight[place].item(), []
    with torch.no_grad():
        for sign in (1, -1):
            weight[place] = start * (1 + sign * 1e-4)
            with torch.enable_grad():
                values.append(value())
        weight[place] = start
    return (values[0] - values[1]) / 2e-4
