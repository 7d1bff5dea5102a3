"""Convolutions, plain, grouped, depthwise and transposed."""

from __future__ import annotations

import math
from functools import partial

from torch import fx, nn

from ..capture import bound, described
from ..flow import Flow, GroupedConvolution, Rule, Use, Work, shape_of
from ..labels import Label, Labels, line, over, placed, support


def _convolution(flow: Flow, node: fx.Node, *, transposed: bool) -> None:
    found = bound(node)
    source, weight = found["input"], found["weight"]
    shape, kernel = shape_of(source), shape_of(weight)
    if len(shape) != len(kernel):
        flow.freeze_all(node, f"{described(node)} runs on one sample without a batch dimension")
        return
    if weight not in flow.weights:
        flow.freeze_all(node, f"{described(node)} has a weight that is no parameter's")
        return
    labels, groups = flow.labels(source), int(found["groups"])
    inputs = _channels(flow, node, labels)
    first, second = (over(flow.labels(weight), dim) for dim in (0, 1))
    outer, inner = (None if one is None else line(one, dim) for one, dim in ((first, 0), (second, 1)))
    _freeze_kernel(flow, node, flow.labels(weight))
    outputs: Label | None
    if groups > 1 and outer is None:
        flow.freeze_all(node, f"{described(node)} has a weight without channels")
        return
    if groups > 1:
        outputs = _grouped(flow, node, groups, inputs, (outer, inner), transposed)
    elif transposed:
        outputs = _plain(flow, node, inputs, reads=outer, makes=inner)
    else:
        outputs = _plain(flow, node, inputs, reads=inner, makes=outer)
    _note_work(flow, node, kernel, (outer, inner), transposed)
    passed = [label for label in labels if support(label) == (0,)]
    made = [] if outputs is None else [placed(outputs, 1, len(shape))]
    merged = add_channel_bias(flow, node, flow.merged([*passed, *made]), found["bias"])
    flow.pass_on(node, merged, "other", "layer")


def _channels(flow: Flow, node: fx.Node, labels: Labels) -> Label | None:
    """The atoms along the channels of the input; positions must stay."""
    for label in labels:
        for dim in support(label):
            if dim > 1:
                flow.pin(label, dim, f"{described(node)} runs over them as positions")
    found = over(labels, 1)
    if found is not None and support(found) != (1,):
        for dim in support(found):
            if dim != 1:
                flow.pin(found, dim, f"{described(node)} runs over them as samples")
    return None if found is None else line(found, 1)


def _freeze_kernel(flow: Flow, node: fx.Node, labels: Labels) -> None:
    for label in labels:
        if any(dim > 1 for dim in support(label)):
            flow.freeze(label, f"they are kernel positions of {described(node)}")


def _plain(
    flow: Flow, node: fx.Node, inputs: Label | None, *, reads: Label | None, makes: Label | None
) -> Label | None:
    source = bound(node)["input"]
    if inputs is not None and reads is not None:
        flow.unite(inputs, reads)
        flow.consumed.append(Use(reads, node, source))
    elif reads is not None:
        flow.freeze(reads, f"{described(node)} reads values that have no channels")
    elif inputs is not None:
        flow.freeze(inputs, f"{described(node)} has a weight without channels")
    if makes is not None:
        flow.produced.append(Use(makes, node, source))
    return makes


def _grouped(
    flow: Flow,
    node: fx.Node,
    groups: int,
    inputs: Label | None,
    weight: tuple[Label | None, Label | None],
    transposed: bool,
) -> Label | None:
    """Whole groups, or equally many channels of every group, go; a depthwise convolution has one input per group."""
    outer, inner = weight
    assert outer is not None  # at least as many as groups
    size = len(outer) // groups
    if transposed:
        return _grouped_transposed(flow, node, groups, inputs, (outer, inner))
    if inner is not None or (inputs is None and size > 1):
        grouped = None if inputs is None else inputs.reshape(groups, -1)
        flow.constraints.append(GroupedConvolution(grouped, outer.reshape(groups, size), inner, node, False))
    elif inputs is None:
        flow.freeze(outer, f"{described(node)} reads values that have no channels, each its own")
    else:
        flow.unite(inputs[:, None], outer.reshape(groups, size))
        flow.attribute(node, (nn.Conv1d, nn.Conv2d, nn.Conv3d), "groups", groups, inputs)
    return outer


def _grouped_transposed(
    flow: Flow, node: fx.Node, groups: int, inputs: Label | None, weight: tuple[Label, Label | None]
) -> Label:
    """The weight lies by input channel; what all groups share are its outputs."""
    outer, inner = weight
    outputs = flow.fresh(shape_of(node)[1])
    if inputs is None:
        flow.freeze(outer, f"{described(node)} reads values that have no channels")
    else:
        flow.unite(inputs, outer)
    grouped = None if inputs is None else outer.reshape(groups, -1)
    flow.constraints.append(GroupedConvolution(grouped, outputs.reshape(groups, -1), inner, node, True))
    return outputs


def _note_work(
    flow: Flow, node: fx.Node, kernel: tuple[int, ...], weight: tuple[Label | None, Label | None], transposed: bool
) -> None:
    sites = shape_of(bound(node)["input"] if transposed else node)
    rest = sites[0] * math.prod(sites[2:]) * math.prod(kernel[2:])
    runs = [label for label in weight if label is not None]
    flow.work.append(Work(node, rest, tuple(runs)))


def add_channel_bias(flow: Flow, node: fx.Node, labels: Labels, bias: object) -> Labels:
    """A bias along dimension 1."""
    if not isinstance(bias, fx.Node):
        return labels
    dims = len(shape_of(node))
    theirs = tuple(placed(line(label, 0), 1, dims) for label in flow.labels(bias))
    flow.produced.extend(Use(label.ravel(), node, None) for label in theirs)
    shape = tuple(size if dim == 1 else 1 for dim, size in enumerate(shape_of(node)))
    return flow.combined([(shape_of(node), labels), (shape, theirs)], node)


RULES: dict[str, Rule] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), partial(_convolution, transposed=False)),
    **dict.fromkeys(
        ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), partial(_convolution, transposed=True)
    ),
}
