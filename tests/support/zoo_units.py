"""What must be prunable in the zoo, by hand from the models' code, so that refusing everything is no way out.

Every row names a dimension of a tensor and the units in it. Units that are only whole (norm groups, heads, both halves
of a GLU, the positions behind a flatten) have ``width`` indices each. Of a grouped convolution either whole groups can
go or as many channels of each group: ``units`` and ``width`` may change places. Rows that are not ``exact`` pass
through statistics over the channels. What the rows leave out may be refused, with a reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Must:
    """``units`` of the dimension's indices, ``width`` each, can be removed (or ``width``, ``units`` each)."""

    tensor: str
    units: int
    width: int = 1
    dim: int = 0
    exact: bool = True
    grouped: bool = False


@dataclass(frozen=True)
class Stay:
    """Dimension 0 of the tensor stays whole, and the reason says what ``because`` matches."""

    tensor: str
    because: str


@dataclass(frozen=True)
class Silent:
    """A unit of dimension 0 of the tensor is read, without a parameter, from dimension ``dim`` of a module's output."""

    tensor: str
    module: str
    dim: int


def weights(units: int, *modules: str, width: int = 1, exact: bool = True) -> tuple[Must, ...]:
    return tuple(Must(f"{module}.weight", units, width, exact=exact) for module in modules)


def grouped(groups: int, *modules: str, width: int) -> tuple[Must, ...]:
    return tuple(Must(f"{module}.weight", groups, width, grouped=True) for module in modules)


def each(units: Mapping[str, int]) -> tuple[Must, ...]:
    return tuple(Must(f"{module}.weight", count) for module, count in units.items())


def _basic(widths: Iterable[int], blocks: int, stream: Iterable[int]) -> tuple[Must, ...]:
    """Stages of basic blocks: conv1 is a block's own, conv2 and the shortcut are in the stage's stream."""
    rows: list[Must] = [Must("conv1.weight", next(iter(stream)))]
    for stage, (width, units) in enumerate(zip(widths, stream, strict=True), 1):
        rows += weights(width, *[f"layer{stage}.{block}.conv1" for block in range(blocks)])
        rows += weights(units, *[f"layer{stage}.{block}.conv2" for block in range(blocks)])
    return tuple(rows)


def _bottleneck(width: tuple[int, int], groups: tuple[int, int], stream: tuple[int, int]) -> tuple[Must, ...]:
    rows: list[Must] = [Must("stem.0.weight", 7)]
    for stage in (0, 1):
        for block in (0, 1):
            name, units = f"layer{stage + 1}.{block}", groups[stage]
            rows += grouped(units, f"{name}.conv1", f"{name}.conv2", width=width[stage] // units)
            rows += weights(stream[stage], f"{name}.conv3")
        rows += weights(stream[stage], f"layer{stage + 1}.0.downsample.0")
    return tuple(rows)


def _dense(block: str) -> dict[str, int]:
    return {f"{block}.layers.{i}.{conv}": units for i in range(3) for conv, units in (("conv1", 11), ("conv2", 5))}


def _inception(block: str) -> dict[str, int]:
    branches = {"branch1": 6, "branch2.0": 5, "branch2.1": 9, "branch3.0": 4, "branch3.1": 8, "branch3.2": 7}
    return {f"{block}.{branch}.conv": units for branch, units in {**branches, "branch4": 5}.items()}


def _stream(units: int, *rows: tuple[str, int]) -> tuple[Must, ...]:
    """A transformer's residual stream, which its norms make approximate."""
    return tuple(Must(tensor, units, dim=dim, exact=False) for tensor, dim in rows)


VGG_WIDTHS = (5, 6, 7, 9, 10, 11, 10, 13, 12, 13, 12, 14, 11)
VGG_PLAIN = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
VGG_NORMED = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)
VGG_HEAD = {"classifier.0": 17, "classifier.3": 15}
ALEX_HEAD = {"classifier.1": 19, "classifier.4": 13}
VIT_MLP = weights(23, "blocks.0.mlp.fc1", "blocks.1.mlp.fc1")
VIT_STREAM = (("patch_embed.weight", 0), ("cls_token", 2), ("pos_embed", 2), ("blocks.1.mlp.fc2.weight", 0))
ENCODER = (
    *each({"encoder.layers.0.linear1": 19, "encoder.layers.1.linear1": 19, "head.0": 17}),
    *(Must(f"encoder.layers.{i}.self_attn.in_proj_weight", 3, 12) for i in (0, 1)),
    *_stream(12, ("embed.weight", 1), ("encoder.layers.1.self_attn.out_proj.weight", 0), ("head.0.weight", 1)),
)

MUST: Mapping[str, tuple[Must, ...]] = {
    "resnet18": (*_basic((10, 14, 18, 22), 2, (10, 14, 18, 22)), *weights(14, "layer2.0.downsample.0")),
    "resnet20_projected": (*_basic((9, 13, 18), 3, (9, 13, 18)), *weights(18, "layer3.0.downsample.0")),
    # The first stage's 10 channels go through all stages; what is added to padding cannot go.
    "resnet20_padded": _basic((10, 20, 40), 3, (10, 10, 10)),
    "resnet56_projected": (*_basic((7, 11, 14), 9, (7, 11, 14)), *weights(11, "layer2.0.downsample.0")),
    "resnet56_padded": _basic((6, 12, 24), 9, (6, 6, 6)),
    "preact_resnet": (
        *weights(9, "conv1", "blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1", "blocks.1.conv2"),
        *weights(13, "blocks.2.conv1", "blocks.2.conv2", "blocks.2.shortcut.0", "blocks.3.conv1", "blocks.3.conv2"),
        *weights(18, "blocks.4.conv1", "blocks.4.conv2", "blocks.4.shortcut.0", "blocks.5.conv1", "blocks.5.conv2"),
    ),
    "se_resnet": (
        *_basic((9, 14), 2, (9, 14)),
        *weights(5, "layer1.0.se.fc.0", "layer1.1.se.fc.0"),
        *weights(4, "layer2.0.se.fc.0", "layer2.1.se.fc.0"),
        *weights(9, "layer1.0.se.fc.2"),
        *weights(14, "layer2.1.se.fc.2", "layer2.0.downsample.0"),
    ),
    "resnet_bottleneck": _bottleneck((6, 9), (6, 9), (15, 22)),
    "resnext": _bottleneck((15, 20), (5, 5), (14, 22)),
    "vgg16": each({**{f"features.{i}": w for i, w in zip(VGG_PLAIN, VGG_WIDTHS, strict=True)}, **VGG_HEAD}),
    "vgg16_bn": each({**{f"features.{i}": w for i, w in zip(VGG_NORMED, VGG_WIDTHS, strict=True)}, **VGG_HEAD}),
    "alexnet": each({"features.0": 6, "features.3": 11, "features.5": 9, "features.7": 7, **ALEX_HEAD}),
    "alexnet_literal": each({"features.0": 6, "features.3": 11, "features.5": 9, **ALEX_HEAD}),
    "densenet": each({"conv0": 9, "transition": 13, **_dense("block1"), **_dense("block2")}),
    "inception": each({"stem.conv": 11, **_inception("block1"), **_inception("block2")}),
    "unet": (
        *each({"enc1.0": 5, "enc1.3": 7, "enc2.0": 9, "enc2.3": 11, "bottom.0": 15, "bottom.3": 13}),
        *each({"dec2.0": 12, "dec2.3": 9, "dec1.0": 8, "dec1.3": 6}),
        Must("up2.weight", 10, dim=1),
    ),
    "generator": (*weights(9, "project", width=16), Must("up1.weight", 9), Must("up1.weight", 7, dim=1)),
    "group_norm": (*weights(3, "conv1", width=4), *weights(10, "conv2"), *weights(9, "conv3", exact=False)),
    "instance_norm": each({"1": 9, "4": 11, "7": 7}),
    "wavenet": (
        *weights(9, "start", "layers.0.mix", "layers.1.mix"),
        *weights(8, "layers.0.skip", "layers.2.skip"),
        *[row for i, w in enumerate((7, 10, 6)) for row in weights(w, f"layers.{i}.filter", f"layers.{i}.gate")],
        *weights(11, "end1"),
    ),
    "prelu": each({"0": 9, "1": 9, "3": 11, "6": 13}),
    "smooth_activations": each({"conv1": 9, "conv2": 11, "conv3": 7, "fc1": 13}),
    "mobilenet_v1": each(
        {"model.0.0": 7, "model.1.0": 7, "model.1.3": 11, "model.2.0": 11, "model.2.3": 14, "model.3.3": 13}
    ),
    "mobilenet_v2": each(
        {
            **{"stem.0": 9, "blocks.0.conv.0": 9, "blocks.0.conv.3": 6, "blocks.1.conv.0": 14, "blocks.1.conv.3": 14},
            **{"blocks.1.conv.6": 7, "blocks.2.conv.0": 17, "blocks.2.conv.6": 7, "blocks.3.conv.0": 18},
            **{"blocks.3.conv.6": 11, "last.0": 19},
        }
    ),
    "mobilenet_v3": each(
        {
            **{"stem.0": 7, "last.0": 14, "classifier.0": 17, "blocks.0.project.0": 9, "blocks.1.project.0": 9},
            **{"blocks.0.expand.0": 13, "blocks.0.depthwise.0": 13, "blocks.0.se.reduce": 5, "blocks.0.se.expand": 13},
            **{"blocks.1.expand.0": 18, "blocks.1.depthwise.0": 18, "blocks.1.se.reduce": 4, "blocks.1.se.expand": 18},
        }
    ),
    "depth_multiplier": (
        *(*weights(7, "0"), *grouped(7, "2", width=2), *grouped(3, "5", width=3)),
        *(*grouped(3, "7", width=6), *grouped(3, "8", "10", width=4)),
    ),
    "shufflenet_v1": (),
    "shufflenet_v2": each(
        {
            **{"conv1.0": 7, "stage2.0.branch2.0": 9, "stage2.1.branch2.0": 11},
            **{"stage3.0.branch2.0": 13, "stage3.1.branch2.0": 12, "conv5.0": 17},
        }
    ),
    "shuffled_groups": (*grouped(4, "stem", width=2), *grouped(4, "grouped", width=3), *weights(11, "point")),
    "convnext": (
        *each({"stages.0.0.pwconv1": 30, "stages.0.1.pwconv1": 25, "stages.1.0.pwconv1": 35}),
        *_stream(9, ("downsample_layers.0.0.weight", 0), ("stages.0.0.dwconv.weight", 0), ("stages.0.1.gamma", 0)),
        *_stream(13, ("downsample_layers.1.1.weight", 0), ("stages.1.0.pwconv2.weight", 0)),
    ),
    "vit_fused": (
        *(*VIT_MLP, *_stream(13, *VIT_STREAM)),
        *weights(3, "blocks.0.attn.qkv", width=15),
        *weights(4, "blocks.1.attn.qkv", width=12),
    ),
    # A head goes with as many channels of the stream, by which its code divides.
    "vit_timm": (
        *(*VIT_MLP, Must("patch_embed.weight", 3, 5, exact=False), Must("blocks.1.mlp.fc2.weight", 3, 5, exact=False)),
        *(Must(f"blocks.{i}.attn.qkv.weight", 3, 15, exact=False) for i in (0, 1)),
    ),
    "vit_separate": (
        *(*VIT_MLP, *_stream(14, *VIT_STREAM)),
        *weights(3, "blocks.0.attn.to_q", "blocks.0.attn.to_k", "blocks.0.attn.to_v", width=6),
        *weights(4, "blocks.1.attn.to_q", "blocks.1.attn.to_k", "blocks.1.attn.to_v", width=5),
    ),
    "vit_native": (
        *(*VIT_MLP, *_stream(15, *VIT_STREAM, ("blocks.1.attn.mha.in_proj_weight", 1))),
        *(Must("blocks.0.attn.mha.in_proj_weight", 3, 15), Must("blocks.1.attn.mha.in_proj_weight", 5, 9)),
    ),
    "transformer_encoder": ENCODER,
    "transformer_encoder_post_norm": ENCODER,
    "transformer_decoder": (
        *each({"decoder.linear1": 21}),
        *(Must(f"decoder.{name}.in_proj_weight", 4, 9) for name in ("self_attn", "multihead_attn")),
    ),
    "gpt": (
        *weights(25, "transformer.h.0.mlp.fc1", "transformer.h.1.mlp.fc1"),
        *weights(3, "transformer.h.0.attn.c_attn", width=15),
        *weights(4, "transformer.h.1.attn.c_attn", width=15),
        *_stream(14, ("transformer.wte.weight", 1), ("transformer.wpe.weight", 1), ("lm_head.weight", 1)),
    ),
    "tied_without_norm": (Must("embed.weight", 13, dim=1), *each({"up": 19, "down": 13})),
    "llama": (
        *weights(22, *[f"layers.{i}.feed_forward.{w}" for i in (0, 1) for w in ("w1", "w3")]),
        *_stream(15, ("tok_embeddings.weight", 1), ("layers.1.feed_forward.w2.weight", 0), ("output.weight", 1)),
    ),
    "mlp_mixer": (
        *weights(11, "blocks.0.mlp_tokens.fc1", "blocks.1.mlp_tokens.fc1"),
        *weights(21, "blocks.0.mlp_channels.fc1", "blocks.1.mlp_channels.fc1"),
        *_stream(13, ("stem.weight", 0), ("blocks.1.mlp_channels.fc2.weight", 0)),
    ),
    "mlp_batch_norm": each({"1": 17, "4": 13, "7": 11}),
    "gated_mlp": (
        *(*weights(13, "in1", width=2), *weights(9, "in2", width=2), *weights(15, "in3", width=2)),
        *each({"out1": 11, "out2": 12}),
    ),
    "shared_linear": (
        *each({"inp": 13, "mix": 13, "mid": 11, "left": 9, "right": 9, "both": 12}),
        Must("mix.weight", 13, dim=1),
    ),
    "shared_block": each({"stem": 9, "block.0": 13, "block.3": 9}),
    "bare_parameters": (
        *(Must("kernel", 9), Must("scale", 9), Must("w1", 13), Must("b1", 13), Must("w2", 11, dim=1)),
        *(Must("w3", 7), Must("weights.0", 12, dim=1), Must("b4", 12)),
    ),
    "dict_output": each({"hidden": 17, "head": 13}),
    "tuple_input": each({"a": 13, "b": 13, "mid": 11}),
    "two_heads": each({"conv1": 9, "conv2": 11, "vector": 13, "film": 11, "join": 17, "box_hidden": 12}),
    "siamese": each({"encoder.0": 7, "encoder.4": 13}),
    "frozen_model": each({"0": 9, "3": 11}),
    "lstm": each({"head.0": 13}),
    "tied_autoencoder": each({"encoder": 17, "back": 17, "code": 6}),
    "mixture_of_experts": each(
        {"experts.0.0": 13, "experts.1.0": 9, "experts.2.0": 10, "experts.0.2": 11, "experts.2.2": 11}
    ),
    "energy": each({"fc1": 13, "fc2": 11}),
    "highway": each({"inp": 13, "h.0": 13, "t.1": 13}),
    "channel_statistics": each({"conv1": 9, "point": 7}),
    "odd_operations": each({"layers.3": 9, "layers.5": 9, "hidden": 13}),
    "channel_indexing": (*each({"fc1": 9}), Must("order", 9)),
    "pixel_shuffle": each({"0": 9, "5": 7}),
    "weight_norm": each({"2": 11}),
    "bilinear": each({"hidden": 13}),
    "unrolled_cell": each({"inp": 9, "state": 9, "head.0": 13}),
    "normalised": each({"conv1": 9, "conv2": 11}),
}

STAY: Mapping[str, tuple[Stay, ...]] = {
    "alexnet_literal": (Stay("features.7.weight", r"63|view"),),
    "dict_output": (Stay("features.weight", "output"),),
    "lstm": (Stay("encode.weight", "lstm"),),
    "channel_statistics": (Stay("conv2.weight", "max"),),
    "odd_operations": (
        *(Stay("layers.0.weight", "softmax"), Stay("layers.1.weight", "sort"), Stay("layers.2.weight", "cumsum")),
    ),
    "bilinear": (Stay("a.weight", "bilinear"),),
}

SILENT: Mapping[str, tuple[Silent, ...]] = {
    "energy": (Silent("fc2.weight", "act", 1),),
    "odd_operations": (Silent("layers.3.weight", "layers.3", 1),),
}
