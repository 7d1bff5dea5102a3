"""VGG-16 and AlexNet, in their forms for large and for small images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from .sizes import Shape, check_shape, check_sizes, seeded

STAGES = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))  # channels of VGG-16 in units of its first width
LARGE = 64  # pixels from which AlexNet strides as on ImageNet


def vgg16(
    shape: Shape = (3, 32, 32),
    classes: int = 10,
    *,
    width: int = 64,
    hidden: Sequence[int] = (),
    batch_norm: bool = True,
    seed: int = 0,
) -> nn.Sequential:
    """VGG-16 (Simonyan & Zisserman 2015), by default with BatchNorm and one linear layer, as it is used on CIFAR-10.

    Every stage ends in max-pooling as long as two pixels are left, so 8x8 inputs run too. ``hidden=(512, 512)`` is the
    other CIFAR form; ``hidden=(4096, 4096), batch_norm=False`` on 224x224 the original, with average pooling to at most
    7x7 before the linear layers. ``width`` is the number of channels of the first stage.
    """
    channels, height, columns = check_shape(shape)
    check_sizes(classes=classes, width=width, **{f"hidden[{i}]": size for i, size in enumerate(hidden)})
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    before, index = channels, 0
    with seeded(seed):
        for stage, multiples in enumerate(STAGES, start=1):
            for multiple in multiples:
                index += 1
                layers[f"conv{index}"] = nn.Conv2d(before, multiple * width, 3, padding=1, bias=not batch_norm)
                if batch_norm:
                    layers[f"bn{index}"] = nn.BatchNorm2d(multiple * width)
                layers[f"relu{index}"] = nn.ReLU()
                before = multiple * width
            if min(height, columns) > 1:
                layers[f"pool{stage}"] = nn.MaxPool2d(2)
                height, columns = height // 2, columns // 2
        _classifier(layers, before, (min(height, 7), min(columns, 7)), hidden, classes, dropout=0.0)
    return nn.Sequential(layers)


def alexnet(
    shape: Shape = (3, 32, 32),
    classes: int = 10,
    *,
    hidden: Sequence[int] = (512, 512),
    dropout: float = 0.5,
    seed: int = 0,
) -> nn.Sequential:
    """AlexNet in one tower (Krizhevsky 2014): five convolutions of 64, 192, 384, 256, 256 channels, three max-poolings.

    From 64x64 pixels on with the kernels and strides for ImageNet (there with ``hidden=(4096, 4096)``); below with 5x5
    and 3x3 kernels without strides, and as many of the poolings as leave a pixel.
    """
    channels, height, columns = check_shape(shape)
    check_sizes(classes=classes, **{f"hidden[{i}]": size for i, size in enumerate(hidden)})
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must be a share from 0 to below 1, not {dropout!r}")
    large = min(height, columns) >= LARGE
    widths = (channels, 64, 192, 384, 256, 256)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    with seeded(seed):
        for index, (before, after) in enumerate(pairwise(widths), start=1):
            kernel = (11 if large else 5) if index == 1 else 5 if index == 2 else 3
            stride, padding = (4, 2) if large and index == 1 else (1, kernel // 2)
            layers[f"conv{index}"] = nn.Conv2d(before, after, kernel, stride, padding)
            layers[f"relu{index}"] = nn.ReLU()
            height, columns = (((side + 2 * padding - kernel) // stride + 1) for side in (height, columns))
            if index in (1, 2, 5) and min(height, columns) > 2:
                layers[f"pool{index}"] = nn.MaxPool2d(3, 2)
                height, columns = (height - 3) // 2 + 1, (columns - 3) // 2 + 1
        _classifier(layers, widths[-1], (min(height, 6), min(columns, 6)), hidden, classes, dropout=dropout)
    return nn.Sequential(layers)


def _classifier(
    layers: OrderedDict[str, nn.Module],
    channels: int,
    pixels: tuple[int, int],
    hidden: Sequence[int],
    classes: int,
    *,
    dropout: float,
) -> None:
    """Linear layers on what ``pixels`` of every channel are left."""
    layers["average"] = nn.AdaptiveAvgPool2d(pixels)
    layers["flatten"] = nn.Flatten()
    widths = [channels * pixels[0] * pixels[1], *hidden, classes]
    for index, (before, after) in enumerate(pairwise(widths), start=1):
        last = index == len(widths) - 1
        if dropout and not last:
            layers[f"dropout{index}"] = nn.Dropout(dropout)
        layers[f"fc{index}"] = nn.Linear(before, after)
        if not last:
            layers[f"fc_relu{index}"] = nn.ReLU()
