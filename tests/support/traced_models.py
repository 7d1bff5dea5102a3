"""Small models that several tests of the channel graph read: functions between layers, a residual stream, heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Functional(nn.Module):
    """Everything between the layers is a function, and one ReLU module is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding="same", bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1)
        self.fc1 = nn.Linear(6 * 4, 10)
        self.prelu = nn.PReLU(10)
        self.bn2 = nn.BatchNorm1d(10)
        self.fc2 = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(self.relu(self.bn1(self.conv1(x))), 2)
        x = functional.adaptive_avg_pool2d(self.relu(self.conv2(x)), 2)
        x = x.view(x.size(0), -1)
        x = functional.dropout(self.bn2(self.prelu(self.fc1(x))), 0.5, self.training)
        return functional.log_softmax(self.fc2(torch.sigmoid(x * 2)), 1)


class Residual(nn.Module):
    """Two blocks on one stream, the second normalised before its layers; the stream is read by a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.one = nn.Sequential(nn.Conv2d(6, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 1))
        self.norm = nn.BatchNorm2d(6)
        self.two = nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.one(x))
        x = x + self.two(torch.relu(self.norm(x)))
        return self.head(x.mean((2, 3)))


class Attention(nn.Module):
    """Queries, keys and values from one layer, three heads of two."""

    def __init__(self, *, plain: bool) -> None:
        super().__init__()
        self.qkv, self.out, self.plain = nn.Linear(5, 18), nn.Linear(6, 4), plain

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, 3, 2).permute(2, 0, 3, 1, 4).unbind(0)
        if self.plain:
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            y = ((q @ k.transpose(-2, -1)) / 2).softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))
