"""Residual networks: ResNet-20 and ResNet-56 for CIFAR with either shortcut, and ResNet-18."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from .sizes import Shape, check_shape, check_sizes, seeded

Shortcut = Literal["A", "B"]
LARGE = 64  # pixels from which ResNet-18 begins as on ImageNet


class PaddedShortcut(nn.Module):
    """Option A of He et al. (2016): every ``stride``-th pixel, and zero channels on both sides; no parameters."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.low = (after - before) // 2
        self.high = after - before - self.low

    def forward(self, x: Tensor) -> Tensor:
        """``x [n, before, h, w]`` -> ``[n, after, h / stride, w / stride]``."""
        kept = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(kept, (0, 0, 0, 0, self.low, self.high))


class ProjectedShortcut(nn.Sequential):
    """Option B: a 1x1 convolution and BatchNorm."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, 1, stride, bias=False)
        self.bn = nn.BatchNorm2d(after)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm beside a shortcut."""

    def __init__(self, before: int, after: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.shortcut = _shortcut(before, after, stride, shortcut)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """``x [n, before, h, w]`` -> ``[n, after, h / stride, w / stride]``."""
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        out: Tensor = self.relu2(y + self.shortcut(x))
        return out


class ResNet(nn.Module):
    """A convolution, stages of basic blocks, global average pooling, and a linear layer."""

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        widths: Sequence[int],
        blocks: Sequence[int],
        shortcut: Shortcut,
        large: bool = False,
    ) -> None:
        super().__init__()
        kernel, stride = (7, 2) if large else (3, 1)
        self.conv1 = nn.Conv2d(channels, widths[0], kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu1 = nn.ReLU()
        self.pool1: nn.Module = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        before = widths[0]
        stages = []
        for stage, (after, count) in enumerate(zip(widths, blocks, strict=True)):
            first = BasicBlock(before, after, 2 if stage else 1, shortcut)
            stages.append(nn.Sequential(first, *(BasicBlock(after, after, 1, shortcut) for _ in range(count - 1))))
            before = after
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        """``x [n, channels, h, w]`` -> scores ``[n, classes]``."""
        x = self.pool1(self.relu1(self.bn1(self.conv1(x))))
        out: Tensor = self.fc(self.flatten(self.pool(self.stages(x))))
        return out


def resnet20(
    shape: Shape = (3, 32, 32), classes: int = 10, *, width: int = 16, shortcut: Shortcut = "A", seed: int = 0
) -> nn.Module:
    """ResNet-20 for CIFAR (He et al. 2016): three stages of 3 blocks, widths w, 2w, 4w; shortcut ``"A"`` or ``"B"``."""
    return _cifar(shape, classes, 3, width, shortcut, seed)


def resnet56(
    shape: Shape = (3, 32, 32), classes: int = 10, *, width: int = 16, shortcut: Shortcut = "A", seed: int = 0
) -> nn.Module:
    """ResNet-56 for CIFAR (He et al. 2016): three stages of 9 blocks, widths w, 2w, 4w; shortcut ``"A"`` or ``"B"``."""
    return _cifar(shape, classes, 9, width, shortcut, seed)


def resnet18(shape: Shape = (3, 224, 224), classes: int = 10, *, width: int = 64, seed: int = 0) -> nn.Module:
    """ResNet-18 (He et al. 2016): four stages of 2 blocks, widths w, 2w, 4w, 8w, projected shortcuts.

    Below 64x64 pixels its first convolution is 3x3 without stride and without pooling, as is usual on CIFAR.
    """
    channels, height, columns = check_shape(shape)
    check_sizes(classes=classes, width=width)
    widths = (width, 2 * width, 4 * width, 8 * width)
    large = min(height, columns) >= LARGE
    with seeded(seed):
        return ResNet(channels, classes, widths=widths, blocks=(2, 2, 2, 2), shortcut="B", large=large)


def _cifar(shape: Shape, classes: int, blocks: int, width: int, shortcut: Shortcut, seed: int) -> nn.Module:
    channels, _, _ = check_shape(shape)
    check_sizes(classes=classes, width=width)
    if shortcut not in ("A", "B"):
        raise ValueError(f"shortcut must be 'A' or 'B', not {shortcut!r}")
    widths = (width, 2 * width, 4 * width)
    with seeded(seed):
        return ResNet(channels, classes, widths=widths, blocks=(blocks,) * 3, shortcut=shortcut)


def _shortcut(before: int, after: int, stride: int, shortcut: Shortcut) -> nn.Module:
    if stride == 1 and before == after:
        return nn.Identity()
    kind = PaddedShortcut if shortcut == "A" else ProjectedShortcut
    return kind(before, after, stride)
