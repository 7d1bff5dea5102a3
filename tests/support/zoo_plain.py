"""Small models that each do one thing users do: shared and bare parameters, gates, several inputs and outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Built = tuple[nn.Module, tuple[Any, ...]]


def mlp_batch_norm() -> Built:
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(28, 17), nn.BatchNorm1d(17), nn.ReLU(), nn.Linear(17, 13, bias=False),
        nn.BatchNorm1d(13, affine=False), nn.Sigmoid(), nn.Linear(13, 11), nn.SELU(),
        nn.BatchNorm1d(11, track_running_stats=False), nn.Linear(11, 10),
    )  # fmt: skip
    return model, (torch.randn(5, 4, 7),)


class GatedMLP(nn.Module):
    """nn.GLU on one Linear of twice the width, F.glu on another, SwiGLU by chunk on a third."""

    def __init__(self) -> None:
        super().__init__()
        self.in1, self.gate, self.out1 = nn.Linear(9, 26), nn.GLU(), nn.Linear(13, 11)
        self.in2, self.out2 = nn.Linear(11, 18), nn.Linear(9, 12)
        self.in3, self.out3 = nn.Linear(12, 30), nn.Linear(15, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.out1(self.gate(self.in1(x)))
        x = self.out2(F.glu(self.in2(F.relu(x)), dim=-1))
        value, gate = self.in3(x).chunk(2, dim=-1)
        return self.out3(F.silu(gate) * value)


def gated_mlp() -> Built:
    return GatedMLP(), (torch.randn(4, 9),)


class SharedLinear(nn.Module):
    """One square Linear called twice in a row; another called on two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.mix, self.mid = nn.Linear(7, 13), nn.Linear(13, 13), nn.Linear(13, 11)
        self.left, self.right, self.both = nn.Linear(11, 9), nn.Linear(11, 9), nn.Linear(9, 12)
        self.out = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.inp(x))
        x = torch.tanh(self.mix(torch.tanh(self.mix(x))))
        x = F.softplus(self.mid(x))
        return self.out(F.relu(self.both(F.relu(self.left(x)))) + torch.sigmoid(self.both(F.relu(self.right(x)))))


def shared_linear() -> Built:
    return SharedLinear(), (torch.randn(4, 7),)


class SharedBlock(nn.Module):
    """A residual block applied three times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 9, 3)
        self.block = nn.Sequential(nn.Conv2d(9, 13, 3, padding=1), nn.BatchNorm2d(13), nn.ReLU(), nn.Conv2d(13, 9, 1))
        self.head = nn.Linear(9, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = x + 0.5 * self.block(x)
        return self.head(F.relu(x).mean((2, 3)))


def shared_block() -> Built:
    return SharedBlock(), (torch.randn(2, 3, 8, 8),)


class BareParameters(nn.Module):
    """F.conv2d, F.linear, matmul, einsum, addmm and a scale, all on parameters that no layer owns."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(9, 3, 3, 3) * 0.2)
        self.scale = nn.Parameter(torch.rand(9, 1, 1) + 0.5)
        self.w1, self.b1 = nn.Parameter(torch.randn(13, 9) * 0.3), nn.Parameter(torch.randn(13))
        self.w2, self.b2 = nn.Parameter(torch.randn(13, 11) * 0.3), nn.Parameter(torch.randn(11))
        self.w3 = nn.Parameter(torch.randn(7, 11) * 0.3)
        self.weights = nn.ParameterList([torch.randn(7, 12) * 0.4, torch.randn(12, 5) * 0.4])
        self.b4 = nn.Parameter(torch.randn(12))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.kernel, padding=1) * self.scale).mean((2, 3))
        x = torch.sigmoid(F.linear(x, self.w1, self.b1))
        x = torch.sigmoid(x @ self.w2 + self.b2)
        x = torch.cos(torch.einsum("bh,oh->bo", x, self.w3))
        x = F.relu(torch.addmm(self.b4, x, self.weights[0]))
        return torch.matmul(x, self.weights[1])


def bare_parameters() -> Built:
    return BareParameters(), (torch.randn(3, 3, 6, 6),)


class DictOutput(nn.Module):
    """The features are an output too, so their units stay."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.features = nn.Linear(8, 17), nn.Linear(17, 11)
        self.head, self.logits = nn.Linear(11, 13), nn.Linear(13, 5)

    def forward(self, x: Tensor) -> dict[str, Any]:
        features = F.relu(self.features(F.relu(self.hidden(x))))
        return {"logits": self.logits(F.gelu(self.head(features))), "more": {"features": features}}


def dict_output() -> Built:
    return DictOutput(), (torch.randn(4, 8),)


class TupleInput(nn.Module):
    """A tuple of two tensors and a keyword's default."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 13), nn.Linear(7, 13)
        self.mid, self.out = nn.Linear(13, 11), nn.Linear(11, 3)

    def forward(self, pair: tuple[Tensor, Tensor], scale: Tensor, bias: float = 0.5) -> tuple[Tensor, list[Tensor]]:
        one, two = pair
        x = F.relu(self.a(one) + self.b(two) * scale + bias)
        x = F.relu(self.mid(x))
        out = self.out(x)
        return out, [out.sum(), out.argmax(dim=-1)]


def tuple_input() -> Built:
    return TupleInput(), ((torch.randn(4, 5), torch.randn(4, 7)), torch.randn(4, 1))


class TwoHeads(nn.Module):
    """An image and a vector in, a class and a box out; the two are joined by concatenation and by a product."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 9, 3), nn.Conv2d(9, 11, 3)
        self.vector, self.film = nn.Linear(6, 13), nn.Linear(13, 11)
        self.join = nn.Linear(24, 17)
        self.label, self.box_hidden, self.box = nn.Linear(17, 10), nn.Linear(17, 12), nn.Linear(12, 4)

    def forward(self, picture: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
        v = F.relu(self.vector(vector))
        x = F.relu(self.conv2(F.relu(self.conv1(picture))))
        x = x * torch.sigmoid(self.film(v))[:, :, None, None]
        x = F.relu(self.join(torch.cat([x.amax(dim=(2, 3)), v], dim=1)))
        return self.label(x), self.box(F.relu(self.box_hidden(x)))


def two_heads() -> Built:
    return TwoHeads(), (torch.randn(3, 3, 8, 8), torch.randn(3, 6))


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 7, 3), nn.BatchNorm2d(7), nn.ReLU(), nn.Flatten(), nn.Linear(252, 13), nn.Tanh()
        )
        self.verdict = nn.Linear(13, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.verdict(torch.abs(self.encoder(a) - self.encoder(b)))


def siamese() -> Built:
    return Siamese(), (torch.randn(3, 1, 8, 8), torch.randn(3, 1, 8, 8))


def frozen_model() -> Built:
    model = nn.Sequential(
        nn.Conv2d(3, 9, 3), nn.BatchNorm2d(9), nn.ReLU(), nn.Conv2d(9, 11, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(11, 10),
    )  # fmt: skip
    return model.requires_grad_(False), (torch.randn(2, 3, 8, 8),)


class TiedAutoencoder(nn.Module):
    """The decoder is the encoder's weight, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(11, 17)
        self.code, self.back = nn.Linear(17, 6), nn.Linear(6, 17)
        self.bias = nn.Parameter(torch.randn(11))

    def forward(self, x: Tensor) -> Tensor:
        z = self.code(torch.sigmoid(self.encoder(x)))
        return F.linear(torch.sigmoid(self.back(torch.tanh(z))), self.encoder.weight.t(), self.bias)


def tied_autoencoder() -> Built:
    return TiedAutoencoder(), (torch.randn(4, 11),)


class Highway(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(6, 13), nn.Linear(13, 5)
        self.h, self.t = (nn.ModuleList([nn.Linear(13, 13) for _ in range(2)]) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.inp(x))
        for h, t in zip(self.h, self.t, strict=True):
            gate = torch.sigmoid(t(x))
            x = gate * F.relu(h(x)) + (1 - gate) * x
        return self.out(x)


def highway() -> Built:
    return Highway(), (torch.randn(4, 6),)


class Normalised(nn.Module):
    """The input is normalised with buffers; what comes out is scaled per class; BatchNorm without a scale."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.randn(1, 3, 1, 1))
        self.register_buffer("std", torch.rand(1, 3, 1, 1) + 0.5)
        self.conv1, self.bn1 = nn.Conv2d(3, 9, 3, bias=False), nn.BatchNorm2d(9, affine=False)
        self.conv2, self.bn2 = nn.Conv2d(9, 11, 3), nn.BatchNorm2d(11, track_running_stats=False)
        self.fc = nn.Linear(11, 10)
        self.register_buffer("temperature", torch.rand(10) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) / self.std
        x = F.hardtanh(self.bn1(self.conv1(x)))
        x = F.mish(self.bn2(self.conv2(x)))
        return self.fc(x.std(dim=(2, 3))) * self.temperature


def normalised() -> Built:
    return Normalised(), (torch.randn(2, 3, 8, 8),)


ARCHITECTURES = (
    mlp_batch_norm,
    gated_mlp,
    shared_linear,
    shared_block,
    bare_parameters,
    dict_output,
    tuple_input,
    two_heads,
    siamese,
    frozen_model,
    tied_autoencoder,
    highway,
    normalised,
)
