"""Plain stacks of layers: multi-layer perceptrons, LeNet-5, and two small convolutional networks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from .sizes import Shape, check_shape, check_sizes, seeded


def mlp(inputs: int, hidden: Sequence[int] = (300, 100), classes: int = 10, *, seed: int = 0) -> nn.Sequential:
    """A fully connected ReLU network on flattened inputs ``[n, ...]``; (300, 100) on 28x28 is LeNet-300-100."""
    if not isinstance(hidden, Sequence):
        raise ValueError(f"hidden must be a list of widths, such as [64, 64], not {hidden!r}")
    check_sizes(inputs=inputs, classes=classes, **{f"hidden[{i}]": width for i, width in enumerate(hidden)})
    widths = [inputs, *hidden, classes]
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    with seeded(seed):
        for index, (before, after) in enumerate(pairwise(widths), start=1):
            layers[f"fc{index}"] = nn.Linear(before, after)
            layers[f"relu{index}"] = nn.ReLU()
    layers.popitem()
    return nn.Sequential(layers)


def lenet5(shape: Shape = (1, 28, 28), classes: int = 10, *, seed: int = 0) -> nn.Sequential:
    """LeNet-5 with ReLU and max-pooling in place of the scaled tanh and trainable pooling of LeCun et al. (1998).

    The first convolution pads by 2, so 28x28 inputs run through the original's sizes. Smaller sides than 12 raise
    ValueError.
    """
    channels, height, width = check_shape(shape, smallest=12)
    check_sizes(classes=classes)
    rows, columns = (height // 2 - 4) // 2, (width // 2 - 4) // 2
    with seeded(seed):
        return nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(channels, 6, 5, padding=2),
                relu1=nn.ReLU(),
                pool1=nn.MaxPool2d(2),
                conv2=nn.Conv2d(6, 16, 5),
                relu2=nn.ReLU(),
                pool2=nn.MaxPool2d(2),
                flatten=nn.Flatten(),
                fc1=nn.Linear(16 * rows * columns, 120),
                relu3=nn.ReLU(),
                fc2=nn.Linear(120, 84),
                relu4=nn.ReLU(),
                fc3=nn.Linear(84, classes),
            )
        )


def small_cnn(
    shape: Shape = (1, 8, 8),
    classes: int = 10,
    *,
    widths: Sequence[int] = (16, 32, 32),
    hidden: int = 64,
    seed: int = 0,
) -> nn.Sequential:
    """3x3 convolutions with BatchNorm and ReLU, pooled after each but the first, then two linear layers.

    Trains on 8x8 digits in seconds; runs on 28x28 images too. Inputs too small for the pooling raise ValueError.
    """
    channels, height, width = check_shape(shape, smallest=2 ** (len(widths) - 1) if widths else 1)
    check_sizes(classes=classes, hidden=hidden, **{f"widths[{i}]": value for i, value in enumerate(widths)})
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    with seeded(seed):
        for index, (before, after) in enumerate(pairwise([channels, *widths]), start=1):
            layers[f"conv{index}"] = nn.Conv2d(before, after, 3, padding=1, bias=False)
            layers[f"bn{index}"] = nn.BatchNorm2d(after)
            layers[f"relu{index}"] = nn.ReLU()
            if index > 1:
                layers[f"pool{index}"] = nn.MaxPool2d(2)
                height, width = height // 2, width // 2
        layers["flatten"] = nn.Flatten()
        layers["fc1"] = nn.Linear([channels, *widths][-1] * height * width, hidden)
        layers[f"relu{len(widths) + 1}"] = nn.ReLU()
        layers["fc2"] = nn.Linear(hidden, classes)
    return nn.Sequential(layers)


def conv8(shape: Shape = (3, 32, 32), classes: int = 10, *, width: int = 16, seed: int = 0) -> nn.Sequential:
    """The plain network of eight convolutions on which layer correspondence is checked across seeds.

    Widths w, w, 2w, 2w, 2w, 4w, 4w, 4w; strides of 2 at the third and sixth; 3x3 kernels, the last 1x1; each followed
    by BatchNorm and ReLU; global average pooling and a linear layer. As "Tiny-10" in Kornblith et al. (2019),
    "Similarity of Neural Network Representations Revisited"; its unpadded seventh convolution is padded where fewer
    than 3 pixels are left, so 8x8 inputs run too.
    """
    channels, height, columns = check_shape(shape, smallest=1)
    check_sizes(classes=classes, width=width)
    widths = [width, width, 2 * width, 2 * width, 2 * width, 4 * width, 4 * width, 4 * width]
    left = -(-min(height, columns) // 4)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    with seeded(seed):
        for index, (before, after) in enumerate(pairwise([channels, *widths]), start=1):
            kernel = 1 if index == 8 else 3
            padding = 0 if index == 8 or (index == 7 and left >= 3) else 1
            stride = 2 if index in (3, 6) else 1
            layers[f"conv{index}"] = nn.Conv2d(before, after, kernel, stride, padding, bias=False)
            layers[f"bn{index}"] = nn.BatchNorm2d(after)
            layers[f"relu{index}"] = nn.ReLU()
        layers["pool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["fc"] = nn.Linear(widths[-1], classes)
    return nn.Sequential(layers)
