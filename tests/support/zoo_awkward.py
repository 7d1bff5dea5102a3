"""Small models that each do one thing that is awkward for pruning: most of it must be refused, by name, or be right."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

Built = tuple[nn.Module, tuple[Any, ...]]


class Recurrent(nn.Module):
    """What an LSTM reads and keeps must stay; the head behind it need not."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(6, 9)
        self.lstm = nn.LSTM(9, 8, batch_first=True)
        self.head = nn.Sequential(nn.Linear(8, 13), nn.ReLU(), nn.Linear(13, 5))

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(F.relu(self.encode(x)))
        return self.head(out[:, -1])


def lstm() -> Built:
    return Recurrent(), (torch.randn(3, 7, 6),)


class Experts(nn.Module):
    """A mixture of three experts, mixed by a softmax over the experts."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 3)
        self.experts = nn.ModuleList(
            [nn.Sequential(nn.Linear(8, hidden), nn.ReLU(), nn.Linear(hidden, 11)) for hidden in (13, 9, 10)]
        )
        self.out = nn.Linear(11, 5)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.gate(x).softmax(dim=-1)
        mixed = torch.stack([expert(x) for expert in self.experts], dim=1)
        return self.out((mixed * weights.unsqueeze(-1)).sum(dim=1))


def mixture_of_experts() -> Built:
    return Experts(), (torch.randn(4, 8),)


class Energy(nn.Module):
    """Units are summed, without a weight: the sum is their consumer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.act = nn.Linear(7, 13), nn.Linear(13, 11), nn.Softplus()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.fc2(torch.tanh(self.fc1(x)))).sum(dim=-1)


def energy() -> Built:
    return Energy(), (torch.randn(4, 7),)


class ChannelStatistics(nn.Module):
    """CBAM: the mean and the maximum over the channels decide where to look."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 9, 3, padding=1), nn.Conv2d(9, 11, 3, padding=1)
        self.spatial = nn.Conv2d(2, 1, 3, padding=1)
        self.point, self.fc = nn.Conv2d(11, 7, 1), nn.Linear(7, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        maps = torch.cat([x.mean(dim=1, keepdim=True), x.max(dim=1, keepdim=True)[0]], dim=1)
        x = x * torch.sigmoid(self.spatial(maps))
        return self.fc(F.relu(self.point(x)).mean((2, 3)))


def channel_statistics() -> Built:
    return ChannelStatistics(), (torch.randn(2, 3, 8, 8),)


class OddOperations(nn.Module):
    """Operations over the channels that no weight stands behind: softmax, sort, cumsum, l2 norm, roll."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 9), *[nn.Linear(9, 9) for _ in range(5)]])
        self.hidden, self.out = nn.Linear(9, 13), nn.Linear(13, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.softmax(self.layers[0](x), dim=1)
        x = torch.sort(self.layers[1](x), dim=1)[0]
        x = torch.cumsum(self.layers[2](x), dim=1)
        x = F.normalize(self.layers[3](x), dim=1)
        x = torch.roll(self.layers[4](x), 2, dims=1)
        return self.out(F.relu(self.hidden(F.relu(self.layers[5](x)))))


def odd_operations() -> Built:
    return OddOperations(), (torch.randn(4, 6),)


class ChannelIndexing(nn.Module):
    """Channels are permuted by a buffer, flipped, sliced with a step, split unevenly and selected."""

    order: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.tensor([3, 0, 8, 5, 1, 7, 2, 6, 4]))
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 9), nn.Linear(9, 14), nn.Linear(7, 11)
        self.fc4, self.fc5, self.out = nn.Linear(4, 10), nn.Linear(7, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(x))[:, self.order].flip(1)
        x = F.relu(self.fc3(F.relu(self.fc2(x))[:, ::2]))
        a, b = torch.split(x, [4, 7], dim=1)
        x = self.fc4(a) + self.fc5(b)
        return self.out(F.relu(x)) + x[:, :1]


def channel_indexing() -> Built:
    return ChannelIndexing(), (torch.randn(4, 6),)


def pixel_shuffle() -> Built:
    model = nn.Sequential(
        nn.Conv2d(1, 9, 5, padding=2), nn.Tanh(), nn.Conv2d(9, 12, 3, padding=1), nn.PixelShuffle(2), nn.ReLU(),
        nn.Conv2d(3, 7, 3, padding=1), nn.ReLU(), nn.Conv2d(7, 4, 3, padding=1), nn.PixelShuffle(2),
    )  # fmt: skip
    return model, (torch.randn(2, 1, 6, 6),)


def weight_norm() -> Built:
    """The first weight is computed from two parameters at every call."""
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(6, 9)), nn.ReLU(), nn.Linear(9, 11), nn.ReLU(), nn.Linear(11, 4)
    )
    return model, (torch.randn(4, 6),)


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.pair = nn.Linear(5, 9), nn.Linear(7, 8), nn.Bilinear(9, 8, 11)
        self.hidden, self.out = nn.Linear(11, 13), nn.Linear(13, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        x = self.pair(torch.tanh(self.a(a)), torch.tanh(self.b(b)))
        return self.out(F.relu(self.hidden(F.relu(x))))


def bilinear() -> Built:
    return Bilinear(), (torch.randn(4, 5), torch.randn(4, 7))


class UnrolledCell(nn.Module):
    """A recurrent cell written out; its first state is zeros of the size that an attribute says."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 9
        self.inp, self.state = nn.Linear(5, self.size), nn.Linear(self.size, self.size)
        self.head = nn.Sequential(nn.Linear(self.size, 13), nn.ReLU(), nn.Linear(13, 4))

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], self.size)
        for step in range(x.shape[1]):
            h = torch.tanh(self.inp(x[:, step]) + self.state(h))
        return self.head(h)


def unrolled_cell() -> Built:
    return UnrolledCell(), (torch.randn(3, 4, 5),)


ARCHITECTURES = (
    lstm,
    mixture_of_experts,
    energy,
    channel_statistics,
    odd_operations,
    channel_indexing,
    pixel_shuffle,
    weight_norm,
    bilinear,
    unrolled_cell,
)
