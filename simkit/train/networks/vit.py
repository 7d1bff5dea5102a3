"""A small vision transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .sizes import Shape, check_shape, check_sizes, seeded


class Attention(nn.Module):
    """Multi-head self-attention whose heads may become fewer or narrower."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``x [n, tokens, width]`` -> the same shape."""
        n, tokens, _ = x.shape
        split = (one(x).view(n, tokens, self.heads, -1).transpose(1, 2) for one in (self.query, self.key, self.value))
        mixed = functional.scaled_dot_product_attention(*split)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """Attention and a two-layer perceptron, each after a LayerNorm and beside an identity."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.gelu = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """``x [n, tokens, width]`` -> the same shape."""
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.fc2(self.gelu(self.fc1(self.norm2(x))))
        return out


class VisionTransformer(nn.Module):
    """Patches as tokens with learnt positions, blocks, the mean over tokens, and a linear layer."""

    def __init__(self, shape: Shape, classes: int, patch: int, width: int, depth: int, heads: int, hidden: int) -> None:
        super().__init__()
        channels, height, columns = shape
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.positions = nn.Parameter(torch.empty(1, (height // patch) * (columns // patch), width))
        self.blocks = nn.Sequential(*(Block(width, heads, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the positions anew; the layers have methods of their own."""
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """``x [n, channels, h, w]`` -> scores ``[n, classes]``."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        out: Tensor = self.fc(self.norm(self.blocks(tokens)).mean(dim=1))
        return out


def vit(
    shape: Shape = (3, 32, 32),
    classes: int = 10,
    *,
    patch: int = 4,
    width: int = 64,
    depth: int = 4,
    heads: int = 4,
    hidden: int = 128,
    seed: int = 0,
) -> nn.Module:
    """A small pre-norm vision transformer (Dosovitskiy et al. 2021) with mean pooling (Beyer et al. 2022).

    The sides of the images must be multiples of ``patch``, and ``width`` one of ``heads``; ValueError otherwise.
    """
    shape = check_shape(shape)
    check_sizes(classes=classes, patch=patch, width=width, depth=depth, heads=heads, hidden=hidden)
    if shape[1] % patch or shape[2] % patch:
        raise ValueError(f"images of {shape[1]}x{shape[2]} pixels cannot be cut into patches of {patch}x{patch}")
    if width % heads:
        raise ValueError(f"width must be a multiple of heads={heads}, not {width}")
    with seeded(seed):
        return VisionTransformer(shape, classes, patch, width, depth, heads, hidden)
