"""Convolutional networks without residual streams: VGG, AlexNet, DenseNet, Inception, U-Net, norms, 1-D, PReLU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Built = tuple[nn.Module, tuple[Any, ...]]
VGG16 = (5, 6, "M", 7, 9, "M", 10, 11, 10, "M", 13, 12, 13, "M", 12, 14, 11, "M")


def image(batch: int = 2, channels: int = 3, size: int = 16) -> Tensor:
    return torch.randn(batch, channels, size, size)


class VGG(nn.Module):
    def __init__(self, batch_norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        cin = 3
        for entry in VGG16:
            if entry == "M":
                layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
                continue
            assert isinstance(entry, int)
            layers.append(nn.Conv2d(cin, entry, kernel_size=3, padding=1))
            layers += [nn.BatchNorm2d(entry)] if batch_norm else []
            layers.append(nn.ReLU(inplace=True))
            cin = entry
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.classifier = nn.Sequential(
            nn.Linear(cin, 17), nn.ReLU(True), nn.Dropout(), nn.Linear(17, 15), nn.ReLU(True), nn.Dropout(),
            nn.Linear(15, 10),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))


def vgg16() -> Built:
    return VGG(batch_norm=False), (image(size=32),)


def vgg16_bn() -> Built:
    return VGG(batch_norm=True), (image(size=32),)


class AlexNet(nn.Module):
    """7 maps of 3 x 3 go into the first Linear, by flatten or by a view whose size is written in the code."""

    def __init__(self, literal: bool) -> None:
        super().__init__()
        self.literal = literal
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 5, stride=2, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 11, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(11, 9, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(9, 7, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(0.5), nn.Linear(7 * 3 * 3, 19), nn.ReLU(), nn.Dropout(0.5), nn.Linear(19, 13), nn.ReLU(),
            nn.Linear(13, 10),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = x.view(x.size(0), 7 * 3 * 3) if self.literal else x.flatten(1)
        return self.classifier(x)


def alexnet() -> Built:
    return AlexNet(literal=False), (image(size=24),)


def alexnet_literal() -> Built:
    return AlexNet(literal=True), (image(size=24),)


class DenseLayer(nn.Module):
    def __init__(self, cin: int, growth: int, bottleneck: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(cin)
        self.conv1 = nn.Conv2d(cin, bottleneck, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(bottleneck)
        self.conv2 = nn.Conv2d(bottleneck, growth, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.conv1(self.relu(self.norm1(torch.cat(features, 1))))
        return self.conv2(self.relu(self.norm2(x)))


class DenseBlock(nn.Module):
    def __init__(self, layers: int, cin: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([DenseLayer(cin + i * growth, growth, 11) for i in range(layers)])

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(3, 9, 3, padding=1, bias=False)
        self.block1 = DenseBlock(3, 9, 5)
        self.norm = nn.BatchNorm2d(24)
        self.transition = nn.Conv2d(24, 13, 1, bias=False)
        self.block2 = DenseBlock(3, 13, 5)
        self.norm5 = nn.BatchNorm2d(28)
        self.classifier = nn.Linear(28, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block1(self.conv0(x))
        x = F.avg_pool2d(self.transition(F.relu(self.norm(x))), 2, 2)
        x = F.relu(self.norm5(self.block2(x)), inplace=True)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))


def densenet() -> Built:
    return DenseNet(), (image(size=8),)


class ConvUnit(nn.Module):
    def __init__(self, cin: int, cout: int, **options: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, bias=False, **options)
        self.bn = nn.BatchNorm2d(cout, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class InceptionBlock(nn.Module):
    """Four branches of 6, 9, 7 and 5 channels."""

    def __init__(self, cin: int) -> None:
        super().__init__()
        self.branch1 = ConvUnit(cin, 6, kernel_size=1)
        self.branch2 = nn.Sequential(ConvUnit(cin, 5, kernel_size=1), ConvUnit(5, 9, kernel_size=3, padding=1))
        self.branch3 = nn.Sequential(
            ConvUnit(cin, 4, kernel_size=1),
            ConvUnit(4, 8, kernel_size=(1, 5), padding=(0, 2)),
            ConvUnit(8, 7, kernel_size=(5, 1), padding=(2, 0)),
        )
        self.branch4 = ConvUnit(cin, 5, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.avg_pool2d(x, kernel_size=3, stride=1, padding=1)
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(pooled)], 1)


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvUnit(3, 11, kernel_size=3, stride=2)
        self.block1, self.block2 = InceptionBlock(11), InceptionBlock(27)
        self.fc = nn.Linear(27, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block2(F.max_pool2d(self.block1(self.stem(x)), 2))
        return self.fc(x.mean((2, 3)))


def inception() -> Built:
    return Inception(), (image(),)


def double_conv(cin: int, cmid: int, cout: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(cin, cmid, 3, padding=1, bias=False), nn.BatchNorm2d(cmid), nn.ReLU(inplace=True),
        nn.Conv2d(cmid, cout, 3, padding=1, bias=False), nn.BatchNorm2d(cout), nn.ReLU(inplace=True),
    )  # fmt: skip


class UNet(nn.Module):
    """Skips are concatenated; one way up is a transposed convolution, the other interpolates."""

    def __init__(self) -> None:
        super().__init__()
        self.enc1, self.enc2 = double_conv(3, 5, 7), double_conv(7, 9, 11)
        self.bottom = double_conv(11, 15, 13)
        self.up2 = nn.ConvTranspose2d(13, 10, 2, stride=2)
        self.dec2 = double_conv(21, 12, 9)
        self.dec1 = double_conv(16, 8, 6)
        self.out = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.enc1(x)
        two = self.enc2(F.max_pool2d(one, 2))
        x = self.up2(self.bottom(F.max_pool2d(two, 2)))
        x = self.dec2(torch.cat([two, x], dim=1))
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        return self.out(self.dec1(torch.cat([one, x], dim=1)))


def unet() -> Built:
    return UNet(), (image(size=8),)


class Generator(nn.Module):
    """DCGAN's: a Linear is viewed as 9 maps of 4 x 4, then transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = 9
        self.project = nn.Linear(11, self.channels * 16)
        self.bn0 = nn.BatchNorm2d(self.channels)
        self.up1 = nn.ConvTranspose2d(self.channels, 7, 4, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(7)
        self.up2 = nn.ConvTranspose2d(7, 3, 4, 2, 1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.project(z).view(-1, self.channels, 4, 4)
        x = F.leaky_relu(self.bn0(x), 0.2)
        x = F.leaky_relu(self.bn1(self.up1(x)), 0.2)
        return torch.tanh(self.up2(x))


def generator() -> Built:
    return Generator(), (torch.randn(3, 11),)


class GroupNormNet(nn.Module):
    """3 norm groups of 4, then a norm group per channel, then one norm group for all."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 12, 3, padding=1), nn.GroupNorm(3, 12)
        self.conv2, self.norm2 = nn.Conv2d(12, 10, 3, padding=1), nn.GroupNorm(10, 10)
        self.conv3, self.norm3 = nn.Conv2d(10, 9, 3, padding=1), nn.GroupNorm(1, 9)
        self.fc = nn.Linear(9, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.silu(self.norm2(self.conv2(x)))
        x = F.relu(self.norm3(self.conv3(x)))
        return self.fc(x.mean(dim=[-2, -1]))


def group_norm() -> Built:
    return GroupNormNet(), (image(size=8),)


def instance_norm() -> Built:
    model = nn.Sequential(
        nn.ReflectionPad2d(1), nn.Conv2d(3, 9, 3), nn.InstanceNorm2d(9, affine=True), nn.ReLU(inplace=True),
        nn.Conv2d(9, 11, 3, stride=2, padding=1), nn.InstanceNorm2d(11), nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(11, 7, 3, padding=1), nn.InstanceNorm2d(7, affine=True, track_running_stats=True), nn.ReLU(),
        nn.Upsample(scale_factor=2), nn.ReplicationPad2d(1), nn.Conv2d(7, 3, 3), nn.Tanh(),
    )  # fmt: skip
    return model, (image(size=8),)


class GatedConv1d(nn.Module):
    def __init__(self, channels: int, inner: int, dilation: int) -> None:
        super().__init__()
        self.filter = nn.Conv1d(channels, inner, 2, dilation=dilation)
        self.gate = nn.Conv1d(channels, inner, 2, dilation=dilation)
        self.mix = nn.Conv1d(inner, channels, 1)
        self.skip = nn.Conv1d(inner, 8, 1)
        self.pad = dilation

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        wide = F.pad(x, (self.pad, 0))
        z = torch.tanh(self.filter(wide)) * torch.sigmoid(self.gate(wide))
        return x + self.mix(z), self.skip(z)


class WaveNet(nn.Module):
    """A residual stream of 9, skips of 8 summed over the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Conv1d(2, 9, 1)
        self.layers = nn.ModuleList([GatedConv1d(9, inner, 2**i) for i, inner in enumerate((7, 10, 6))])
        self.end1, self.end2 = nn.Conv1d(8, 11, 1), nn.Conv1d(11, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        total: Tensor | float = 0.0
        for layer in self.layers:
            x, skip = layer(x)
            total = total + skip
        assert isinstance(total, Tensor)
        return self.end2(F.relu(self.end1(F.relu(total))))


def wavenet() -> Built:
    return WaveNet(), (torch.randn(2, 2, 19),)


def prelu() -> Built:
    model = nn.Sequential(
        nn.Conv2d(3, 9, 3), nn.PReLU(9), nn.MaxPool2d(2), nn.Conv2d(9, 11, 3), nn.PReLU(), nn.Flatten(),
        nn.Linear(275, 13), nn.PReLU(13), nn.Linear(13, 10),
    )  # fmt: skip
    return model, (image(),)


class SmoothNet(nn.Module):
    """Activations with f(0) != 0 before padding convolutions, average pools, BatchNorm, flatten and the head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 9, 3, padding=1)
        self.conv2 = nn.Conv2d(9, 11, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(11)
        self.conv3 = nn.Conv2d(11, 7, 3)
        self.bn3 = nn.BatchNorm2d(7)
        self.fc1, self.fc2 = nn.Linear(28, 13), nn.Linear(13, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(torch.sigmoid(self.conv1(x)), 3, 2, 1)
        x = self.bn2(F.softplus(self.conv2(x)))
        x = torch.cos(self.bn3(self.conv3(x)) + 0.5)
        x = F.adaptive_avg_pool2d(torch.exp(-x), 2).flatten(1)
        return self.fc2(torch.cos(self.fc1(x)))


def smooth_activations() -> Built:
    return SmoothNet(), (image(size=8),)


ARCHITECTURES = (
    vgg16,
    vgg16_bn,
    alexnet,
    alexnet_literal,
    densenet,
    inception,
    unet,
    generator,
    group_norm,
    instance_norm,
    wavenet,
    prelu,
    smooth_activations,
)
