"""Depthwise, grouped and shuffled convolutions: MobileNet 1 to 3, ShuffleNet 1 and 2, ConvNeXt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Built = tuple[nn.Module, tuple[Any, ...]]


def image(batch: int = 2, channels: int = 3, size: int = 16) -> Tensor:
    return torch.randn(batch, channels, size, size)


def separable(cin: int, cout: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(cin, cin, 3, stride, 1, groups=cin, bias=False), nn.BatchNorm2d(cin), nn.ReLU(inplace=True),
        nn.Conv2d(cin, cout, 1, bias=False), nn.BatchNorm2d(cout), nn.ReLU(inplace=True),
    )  # fmt: skip


class MobileNetV1(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, 7, 3, 2, 1, bias=False), nn.BatchNorm2d(7), nn.ReLU(inplace=True))
        self.model = nn.Sequential(stem, separable(7, 11, 1), separable(11, 14, 2), separable(14, 13, 1))
        self.fc = nn.Linear(13, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.model(x), 1)
        return self.fc(x.view(x.shape[0], -1))


def mobilenet_v1() -> Built:
    return MobileNetV1(), (image(),)


class InvertedResidual(nn.Module):
    def __init__(self, cin: int, hidden: int, cout: int, stride: int) -> None:
        super().__init__()
        self.use_res_connect = stride == 1 and cin == cout
        layers: list[nn.Module] = []
        if hidden != cin:
            layers += [nn.Conv2d(cin, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(inplace=True)]
        layers += [
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, cout, 1, bias=False),
            nn.BatchNorm2d(cout),
        ]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        if self.use_res_connect:
            return x + self.conv(x)
        return self.conv(x)


class MobileNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 9, 3, 2, 1, bias=False), nn.BatchNorm2d(9), nn.ReLU6(inplace=True))
        self.blocks = nn.Sequential(
            InvertedResidual(9, 9, 6, 1),
            InvertedResidual(6, 14, 7, 2),
            InvertedResidual(7, 17, 7, 1),
            InvertedResidual(7, 18, 11, 1),
        )
        self.last = nn.Sequential(nn.Conv2d(11, 19, 1, bias=False), nn.BatchNorm2d(19), nn.ReLU6(inplace=True))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(19, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.blocks(self.stem(x)))
        return self.classifier(x.mean([2, 3]))


def mobilenet_v2() -> Built:
    return MobileNetV2(), (image(),)


class ConvSqueezeExcite(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = F.adaptive_avg_pool2d(x, 1)
        scale = self.expand(F.relu(self.reduce(scale), inplace=True))
        return F.hardsigmoid(scale) * x


class MobileNetV3Block(nn.Module):
    def __init__(self, cin: int, hidden: int, cout: int, stride: int, squeeze: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(cin, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.Hardswish())
        self.depthwise = nn.Sequential(
            nn.Conv2d(hidden, hidden, 5, stride, 2, groups=hidden, bias=False), nn.BatchNorm2d(hidden), nn.Hardswish()
        )
        self.se = ConvSqueezeExcite(hidden, squeeze)
        self.project = nn.Sequential(nn.Conv2d(hidden, cout, 1, bias=False), nn.BatchNorm2d(cout))
        self.residual = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        out = self.project(self.se(self.depthwise(self.expand(x))))
        return out + x if self.residual else out


class MobileNetV3(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 7, 3, 2, 1, bias=False), nn.BatchNorm2d(7), nn.Hardswish(inplace=True))
        self.blocks = nn.Sequential(MobileNetV3Block(7, 13, 9, 2, 5), MobileNetV3Block(9, 18, 9, 1, 4))
        self.last = nn.Sequential(nn.Conv2d(9, 14, 1, bias=False), nn.BatchNorm2d(14), nn.Hardswish())
        self.classifier = nn.Sequential(nn.Linear(14, 17), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(17, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.last(self.blocks(self.stem(x))), 1)
        return self.classifier(torch.flatten(x, 1))


def mobilenet_v3() -> Built:
    return MobileNetV3(), (image(),)


def depth_multiplier() -> Built:
    """Two and three filters per input channel; then groups that do not mix what the groups before them mixed."""
    model = nn.Sequential(
        nn.Conv2d(3, 7, 3), nn.ReLU(), nn.Conv2d(7, 14, 3, groups=7), nn.BatchNorm2d(14), nn.ReLU(),
        nn.Conv2d(14, 9, 1), nn.ReLU(), nn.Conv2d(9, 18, 3, groups=3), nn.Conv2d(18, 12, 3, groups=3), nn.ReLU(),
        nn.ConvTranspose2d(12, 9, 3, groups=3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(9, 10),
    )  # fmt: skip
    return model, (image(),)


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    b, c, h, w = x.size()
    x = x.view(b, groups, c // groups, h, w)
    x = torch.transpose(x, 1, 2).contiguous()
    return x.view(b, -1, h, w)


class ShuffleUnitV1(nn.Module):
    def __init__(self, cin: int, mid: int, cout: int, stride: int, groups: int, first_groups: int) -> None:
        super().__init__()
        self.stride, self.groups = stride, groups
        self.conv1, self.bn1 = nn.Conv2d(cin, mid, 1, groups=first_groups, bias=False), nn.BatchNorm2d(mid)
        self.conv2 = nn.Conv2d(mid, mid, 3, stride, 1, groups=mid, bias=False)
        self.bn2 = nn.BatchNorm2d(mid)
        out = cout - cin if stride == 2 else cout
        self.conv3, self.bn3 = nn.Conv2d(mid, out, 1, groups=groups, bias=False), nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        out = channel_shuffle(F.relu(self.bn1(self.conv1(x))), self.groups)
        out = self.bn3(self.conv3(self.bn2(self.conv2(out))))
        if self.stride == 2:
            return F.relu(torch.cat([F.avg_pool2d(x, 3, 2, 1), out], 1))
        return F.relu(x + out)


class ShuffleNetV1(nn.Module):
    """Shuffled channels go into grouped convolutions, which couples all of a stage."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.units = nn.Sequential(
            ShuffleUnitV1(6, 18, 18, 2, 3, 1), ShuffleUnitV1(18, 12, 18, 1, 3, 3), ShuffleUnitV1(18, 12, 30, 2, 3, 3)
        )
        self.fc = nn.Linear(30, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.units(self.stem(x)).mean((2, 3)))


def shufflenet_v1() -> Built:
    return ShuffleNetV1(), (image(),)


class ShuffleUnitV2(nn.Module):
    def __init__(self, cin: int, mid: int, cout: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        half = cout // 2
        if stride > 1:
            self.branch1 = nn.Sequential(
                nn.Conv2d(cin, cin, 3, stride, 1, groups=cin, bias=False), nn.BatchNorm2d(cin),
                nn.Conv2d(cin, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU(inplace=True),
            )  # fmt: skip
        inner = cin if stride > 1 else half
        self.branch2 = nn.Sequential(
            nn.Conv2d(inner, mid, 1, bias=False), nn.BatchNorm2d(mid), nn.ReLU(inplace=True),
            nn.Conv2d(mid, mid, 3, stride, 1, groups=mid, bias=False), nn.BatchNorm2d(mid),
            nn.Conv2d(mid, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU(inplace=True),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            x1, x2 = x.chunk(2, dim=1)
            out = torch.cat((x1, self.branch2(x2)), dim=1)
        else:
            out = torch.cat((self.branch1(x), self.branch2(x)), dim=1)
        return channel_shuffle(out, 2)


class ShuffleNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, 7, 3, 2, 1, bias=False), nn.BatchNorm2d(7), nn.ReLU(inplace=True))
        self.stage2 = nn.Sequential(ShuffleUnitV2(7, 9, 18, 2), ShuffleUnitV2(18, 11, 18, 1))
        self.stage3 = nn.Sequential(ShuffleUnitV2(18, 13, 28, 2), ShuffleUnitV2(28, 12, 28, 1))
        self.conv5 = nn.Sequential(nn.Conv2d(28, 17, 1, bias=False), nn.BatchNorm2d(17), nn.ReLU(inplace=True))
        self.fc = nn.Linear(17, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv5(self.stage3(self.stage2(self.conv1(x))))
        return self.fc(x.mean([2, 3]))


def shufflenet_v2() -> Built:
    return ShuffleNetV2(), (image(),)


class ShuffledGroups(nn.Module):
    """A grouped convolution, a shuffle, then one that reads all channels: its 4 groups of 3 can go, one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=4)
        self.point = nn.Conv2d(12, 11, 1)
        self.fc = nn.Linear(11, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.grouped(F.relu(self.stem(x))))
        x = F.relu(self.point(channel_shuffle(x, self.grouped.groups)))
        return self.fc(x.mean([2, 3]))


def shuffled_groups() -> Built:
    return ShuffledGroups(), (image(size=8),)


class ConvNeXtBlock(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(hidden, dim)
        self.gamma = nn.Parameter(1e-6 * torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.dwconv(x).permute(0, 2, 3, 1)
        x = self.pwconv2(self.act(self.pwconv1(self.norm(x))))
        x = self.gamma * x
        return shortcut + x.permute(0, 3, 1, 2)


class ChannelsFirstNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.downsample_layers = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(3, 9, 2, 2), ChannelsFirstNorm(9)),
                nn.Sequential(ChannelsFirstNorm(9), nn.Conv2d(9, 13, 2, 2)),
            ]
        )
        self.stages = nn.ModuleList(
            [
                nn.Sequential(ConvNeXtBlock(9, 30), ConvNeXtBlock(9, 25)),
                nn.Sequential(ConvNeXtBlock(13, 35)),
            ]
        )
        self.norm = nn.LayerNorm(13, eps=1e-6)
        self.head = nn.Linear(13, 10)

    def forward(self, x: Tensor) -> Tensor:
        for down, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(down(x))
        return self.head(self.norm(x.mean([-2, -1])))


def convnext() -> Built:
    return ConvNeXt(), (image(),)


ARCHITECTURES = (
    mobilenet_v1,
    mobilenet_v2,
    mobilenet_v3,
    depth_multiplier,
    shufflenet_v1,
    shufflenet_v2,
    shuffled_groups,
    convnext,
)
