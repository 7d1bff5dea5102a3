"""Small networks in which duplicated units merge: plain, with norms, flattened, residual."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def normed(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    for tensor, low, high in (
        (norm.weight, 0.5, 2.0),
        (norm.bias, -1.0, 1.0),
        (norm.running_mean, -1.0, 1.0),
        (norm.running_var, 0.3, 3.0),
    ):
        tensor.data.uniform_(low, high)
    return norm


class Block(nn.Module):
    """A residual block whose inner channels can go."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), normed(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), normed(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4))


def leaky() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 9), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(9, 4))


def plain_conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 9, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(9, 4, 3, padding=1))


def normed_conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 9, 3), normed(9), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(9, 4, 3))


def flattened() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 9, 3, bias=False), normed(9), nn.ReLU(), nn.Flatten(), nn.Linear(9 * 36, 4))


def residual() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 9, 3), Block(9), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(9, 4))


FLAT, MAP = (6,), (3, 8, 8)
