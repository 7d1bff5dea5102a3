"""Residual networks as their authors write them: CIFAR and ImageNet kinds, both shortcut kinds, SE, ResNeXt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Built = tuple[nn.Module, tuple[Any, ...]]
Shortcut = Callable[[int, int, int], nn.Module]


def image(batch: int = 2, channels: int = 3, size: int = 16) -> Tensor:
    return torch.randn(batch, channels, size, size)


class Lambda(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def projected(cin: int, cout: int, stride: int) -> nn.Module:
    """Option B of He et al. 2016: a 1x1 convolution."""
    return nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))


def padded(cin: int, cout: int, stride: int) -> nn.Module:
    """Option A: every other pixel, and as many zero channels on either side as are missing."""
    return Lambda(lambda x: F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, cout // 4, cout // 4), "constant", 0))


class BasicBlock(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(cin, cout, stride) if stride > 1 or cin != cout else None

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class CifarResNet(nn.Module):
    """6n + 2 layers; three stages."""

    def __init__(self, n: int, widths: tuple[int, int, int], shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = self._stage(n, widths[0], widths[0], 1, shortcut)
        self.layer2 = self._stage(n, widths[0], widths[1], 2, shortcut)
        self.layer3 = self._stage(n, widths[1], widths[2], 2, shortcut)
        self.linear = nn.Linear(widths[2], 10)

    @staticmethod
    def _stage(n: int, cin: int, cout: int, stride: int, shortcut: Shortcut) -> nn.Sequential:
        blocks = [BasicBlock(cin if i == 0 else cout, cout, stride if i == 0 else 1, shortcut) for i in range(n)]
        return nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        out = F.avg_pool2d(out, out.size()[3])
        out = out.view(out.size(0), -1)
        return self.linear(out)


def resnet20_projected() -> Built:
    return CifarResNet(3, (9, 13, 18), projected), (image(),)


def resnet20_padded() -> Built:
    return CifarResNet(3, (10, 20, 40), padded), (image(),)


def resnet56_projected() -> Built:
    return CifarResNet(9, (7, 11, 14), projected), (image(size=8),)


def resnet56_padded() -> Built:
    return CifarResNet(9, (6, 12, 24), padded), (image(size=8),)


class ResNet18(nn.Module):
    def __init__(self, widths: tuple[int, ...] = (10, 14, 18, 22)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        cin = widths[0]
        for number, width in enumerate(widths, 1):
            first = BasicBlock(cin, width, 1 if number == 1 else 2, projected)
            setattr(self, f"layer{number}", nn.Sequential(first, BasicBlock(width, width, 1, projected)))
            cin = width
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(cin, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = torch.flatten(self.avgpool(x), 1)
        return self.fc(x)


def resnet18() -> Built:
    return ResNet18(), (image(size=32),)


class PreActBlock(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(cin)
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        if stride != 1 or cin != cout:
            self.shortcut = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        shortcut = self.shortcut(out) if hasattr(self, "shortcut") else x
        out = self.conv1(out)
        out = self.conv2(F.relu(self.bn2(out)))
        out += shortcut
        return out


class PreActResNet(nn.Module):
    def __init__(self, widths: tuple[int, ...] = (9, 13, 18)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        blocks: list[nn.Module] = []
        cin = widths[0]
        for stage, width in enumerate(widths):
            blocks += [PreActBlock(cin, width, 1 if stage == 0 else 2), PreActBlock(width, width, 1)]
            cin = width
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(cin)
        self.linear = nn.Linear(cin, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn(self.blocks(self.conv1(x))))
        out = F.adaptive_avg_pool2d(out, 1).flatten(1)
        return self.linear(out)


def preact_resnet() -> Built:
    return PreActResNet(), (image(),)


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(
            nn.Linear(channels, hidden, bias=False), nn.ReLU(inplace=True), nn.Linear(hidden, channels), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        y = self.avg_pool(x).view(b, c)
        y = self.fc(y).view(b, c, 1, 1)
        return x * y.expand_as(x)


class SEBlock(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.se = SqueezeExcite(cout, hidden)
        self.downsample = projected(cin, cout, stride) if cin != cout else nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.se(self.bn2(self.conv2(out)))
        out += self.downsample(x)
        return self.relu(out)


class SEResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 9, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(9)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(SEBlock(9, 9, 1, 5), SEBlock(9, 9, 1, 5))
        self.layer2 = nn.Sequential(SEBlock(9, 14, 2, 4), SEBlock(14, 14, 1, 4))
        self.fc = nn.Linear(14, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer2(self.layer1(x))
        return self.fc(x.mean(dim=(2, 3)))


def se_resnet() -> Built:
    return SEResNet(), (image(),)


class Bottleneck(nn.Module):
    """With groups > 1 the block of ResNeXt."""

    def __init__(self, cin: int, width: int, cout: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cin, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, cout, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(cout)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projected(cin, cout, stride) if stride > 1 or cin != cout else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        identity = x if self.downsample is None else self.downsample(x)
        return self.relu(out + identity)


class BottleneckNet(nn.Module):
    def __init__(self, widths: tuple[int, int], streams: tuple[int, int], groups: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 7, 3, padding=1, bias=False), nn.BatchNorm2d(7), nn.ReLU(inplace=True))
        (w1, w2), (s1, s2) = widths, streams
        self.layer1 = nn.Sequential(Bottleneck(7, w1, s1, 1, groups), Bottleneck(s1, w1, s1, 1, groups))
        self.layer2 = nn.Sequential(Bottleneck(s1, w2, s2, 2, groups), Bottleneck(s2, w2, s2, 1, groups))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(s2, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer2(self.layer1(self.stem(x))))


def resnet_bottleneck() -> Built:
    return BottleneckNet((6, 9), (15, 22), 1), (image(),)


def resnext() -> Built:
    return BottleneckNet((15, 20), (14, 22), 5), (image(),)


ARCHITECTURES = (
    resnet18,
    resnet20_projected,
    resnet20_padded,
    resnet56_projected,
    resnet56_padded,
    preact_resnet,
    se_resnet,
    resnet_bottleneck,
    resnext,
)
