"""Networks whose operations are drawn at random: combinations that nobody would think of, from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import Built, randomise

Step: TypeAlias = tuple[Callable[..., Any], tuple[int, ...]]
SIZE = 4  # of the maps, which never changes
ACTIVATIONS = (F.relu, torch.sigmoid, torch.cos, F.softplus, F.gelu, F.leaky_relu, F.hardswish, torch.exp, torch.tanh)
OUTPUTS = 3


class Gate(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.conv(F.adaptive_avg_pool2d(x, 1)))


class ChannelsLast(nn.Module):
    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.linear = nn.Linear(cin, cout)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Program(nn.Module):
    """Values are appended one by one; every step reads some of them. What nobody reads goes into the head."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.scales = nn.ParameterList()
        self.steps: list[Step] = []
        self.channels: list[int] = [3]
        self.head: nn.Module = nn.Identity()
        self.flatten = False

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for run, sources in self.steps:
            # Bounded, so that no product of values drowns the others.
            values.append(8 * torch.tanh(run(*(values[source] for source in sources)) / 8))
        x = torch.cat([values[i] for i in self.unread()], dim=1)
        return self.head(x.flatten(1) if self.flatten else x.mean((2, 3)))

    def unread(self) -> list[int]:
        read = {source for _, sources in self.steps for source in sources}
        return [i for i in range(1, len(self.channels)) if i not in read]


def random_network(seed: int, length: int = 12) -> Built:
    """A network of ``length`` operations in float64 and eval mode, and an input; the global RNG is left alone."""
    draw = random.Random(seed)
    program = Program()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _convolution(program, draw, 0)
        while len(program.steps) < length:
            draw.choice(OPERATIONS)(
                program, draw, draw.randrange(max(0, len(program.channels) - 4), len(program.channels))
            )
        program.flatten = draw.random() < 0.4
        features = sum(program.channels[i] for i in program.unread()) * (SIZE * SIZE if program.flatten else 1)
        program.head = nn.Sequential(nn.Linear(features, 7), nn.Softplus(), nn.Linear(7, OUTPUTS))
        randomise(program)
        inputs = (torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64),)
    return program.double().eval(), inputs


def _add(program: Program, channels: int, run: Callable[..., Any], *sources: int) -> None:
    program.steps.append((run, sources))
    program.channels.append(channels)


def _layer(program: Program, layer: nn.Module, channels: int, source: int) -> None:
    program.layers.append(layer)
    number = len(program.layers) - 1
    # The module is looked up when it runs: a copy of the model must run its own.
    program.steps.append((_Call(program, number), (source,)))
    program.channels.append(channels)


class _Call:
    """Runs the program's layer ``number``; deep copies follow the program they are part of."""

    def __init__(self, program: Program, number: int, kind: str = "layers") -> None:
        self.program, self.number, self.kind = program, number, kind

    def __call__(self, x: Tensor) -> Tensor:
        owner = getattr(self.program, self.kind)[self.number]
        return owner(x) if self.kind == "layers" else x * owner


def _divisor(draw: random.Random, *numbers: int) -> int:
    return draw.choice([d for d in range(1, min(numbers) + 1) if all(n % d == 0 for n in numbers)])


def _convolution(program: Program, draw: random.Random, source: int) -> None:
    cin, cout = program.channels[source], draw.choice([6, 8, 9, 10, 12])
    groups = _divisor(draw, cin, cout) if draw.random() < 0.4 else 1
    size = draw.choice([1, 3])
    kind = nn.ConvTranspose2d if draw.random() < 0.15 else nn.Conv2d
    layer = kind(cin, cout, size, padding=size // 2, groups=groups, bias=draw.random() < 0.5)
    _layer(program, layer, cout, source)


def _depthwise(program: Program, draw: random.Random, source: int) -> None:
    cin = program.channels[source]
    multiplier = draw.choice([1, 1, 2]) if cin <= 10 else 1
    _layer(program, nn.Conv2d(cin, cin * multiplier, 3, padding=1, groups=cin), cin * multiplier, source)


def _norm(program: Program, draw: random.Random, source: int) -> None:
    channels = program.channels[source]
    norms = [
        nn.BatchNorm2d(channels),
        nn.BatchNorm2d(channels, affine=False),
        nn.GroupNorm(_divisor(draw, channels), channels),
        nn.InstanceNorm2d(channels, affine=True),
        nn.PReLU(channels),
    ]
    _layer(program, draw.choice(norms), channels, source)


def _activation(program: Program, draw: random.Random, source: int) -> None:
    _add(program, program.channels[source], draw.choice(ACTIVATIONS), source)


def _scale(program: Program, draw: random.Random, source: int) -> None:
    program.scales.append(nn.Parameter(torch.rand(program.channels[source], 1, 1) + 0.5))
    _add(program, program.channels[source], _Call(program, len(program.scales) - 1, "scales"), source)


def _pair(program: Program, draw: random.Random, source: int) -> None:
    channels = program.channels[source]
    partners = [i for i, count in enumerate(program.channels) if count == channels and i and i != source]
    if not partners or not source:
        return
    _add(
        program, channels, draw.choice([torch.add, torch.mul, torch.sub, torch.maximum]), source, draw.choice(partners)
    )


def _cat(program: Program, draw: random.Random, source: int) -> None:
    others = [draw.randrange(len(program.channels)) for _ in range(draw.choice([1, 1, 2]))]
    count = sum(program.channels[i] for i in (source, *others))
    if count <= 30:
        _add(program, count, lambda *parts: torch.cat(parts, dim=1), source, *others)


def _chunk(program: Program, draw: random.Random, source: int) -> None:
    channels = program.channels[source]
    parts = _divisor(draw, channels)
    if 1 < parts <= 4 and channels // parts > 1:
        which = draw.randrange(parts)
        _add(program, channels // parts, lambda x: x.chunk(parts, dim=1)[which], source)
        _add(program, channels // parts, lambda x: x.chunk(parts, dim=1)[which - 1], source)


def _slice(program: Program, draw: random.Random, source: int) -> None:
    channels = program.channels[source]
    start, stop = sorted(draw.sample(range(channels + 1), 2))
    if stop - start > 1:
        _add(program, stop - start, lambda x: x[:, start:stop], source)


def _shuffle(program: Program, draw: random.Random, source: int) -> None:
    channels = program.channels[source]
    groups = _divisor(draw, channels)

    def shuffle(x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)

    _add(program, channels, shuffle, source)


def _gate(program: Program, draw: random.Random, source: int) -> None:
    _layer(program, Gate(program.channels[source]), program.channels[source], source)


def _spatial(program: Program, draw: random.Random, source: int) -> None:
    functions: list[Callable[[Tensor], Tensor]] = [
        lambda x: F.avg_pool2d(x, 3, 1, 1),
        lambda x: F.max_pool2d(x, 3, 1, 1),
        lambda x: F.interpolate(F.avg_pool2d(x, 2), scale_factor=2),
        lambda x: F.pad(x, (1, 1, 1, 1), value=0.5)[:, :, 1:-1, :-2],
        lambda x: x - x.mean(dim=(2, 3), keepdim=True),
        lambda x: x.flatten(2).softmax(dim=-1).unflatten(2, (SIZE, SIZE)),
        lambda x: x.transpose(2, 3).flip(2),
    ]
    _add(program, program.channels[source], draw.choice(functions), source)


def _pad(program: Program, draw: random.Random, source: int) -> None:
    before, after = draw.choice([0, 1, 2]), draw.choice([0, 2])
    if program.channels[source] <= 12:
        count = program.channels[source] + before + after
        _add(program, count, lambda x: F.pad(x, (0, 0, 0, 0, before, after)), source)


def _glu(program: Program, draw: random.Random, source: int) -> None:
    if program.channels[source] % 2 == 0 and program.channels[source] > 4:
        _add(program, program.channels[source] // 2, lambda x: F.glu(x, dim=1), source)


def _channels_last(program: Program, draw: random.Random, source: int) -> None:
    count = draw.choice([7, 8, 9])
    _layer(program, ChannelsLast(program.channels[source], count), count, source)


def _again(program: Program, draw: random.Random, source: int) -> None:
    """A convolution that ran before, on another value."""
    fits = [
        number
        for number, layer in enumerate(program.layers)
        if isinstance(layer, nn.Conv2d) and layer.in_channels == program.channels[source]
    ]
    if fits:
        number = draw.choice(fits)
        layer = program.layers[number]
        assert isinstance(layer, nn.Conv2d)
        _add(program, layer.out_channels, _Call(program, number), source)


def _folded(program: Program, draw: random.Random, source: int) -> None:
    """Channels as rows and columns: rows are added up, or channels are repeated."""
    channels = program.channels[source]
    parts = _divisor(draw, channels)
    if 1 < parts < channels:
        _add(program, channels // parts, lambda x: x.unflatten(1, (parts, -1)).sum(dim=1), source)
    elif channels <= 10:
        repeat = draw.choice([lambda x: x.repeat(1, 2, 1, 1), lambda x: x.repeat_interleave(2, dim=1)])
        _add(program, channels * 2, repeat, source)


def _across(program: Program, draw: random.Random, source: int) -> None:
    """What runs over the channels, and what mixes maps by their products."""
    functions: list[Callable[[Tensor], Tensor]] = [
        lambda x: x.softmax(dim=1),
        lambda x: x * x.mean(dim=1, keepdim=True),
        lambda x: x / (x.norm(dim=1, keepdim=True) + 1),
        lambda x: x * torch.sigmoid(x.sum(dim=1, keepdim=True)),
        lambda x: x.flip(1),
        lambda x: x.roll(1, dims=1),
        lambda x: (x.flatten(2).transpose(1, 2) @ x.flatten(2) @ x.flatten(2).transpose(1, 2)).mT.unflatten(
            2, (SIZE, -1)
        ),
    ]
    _add(program, program.channels[source], draw.choice(functions), source)


OPERATIONS = (
    *[_convolution] * 6, *[_activation] * 2, *[_pair] * 3, *[_norm] * 2, *[_cat] * 2, _depthwise, _scale, _chunk,
    _slice, _shuffle, _gate, _spatial, _pad, _glu, _channels_last, _again, _folded, _across,
)  # fmt: skip
