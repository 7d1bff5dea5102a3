"""Normalisation layers: per-channel parameters are carried along; statistics over channels make removal approximate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx, nn

from ..capture import bound, described, opname, where
from ..flow import Flow, Rule, Sized, shape_of
from ..labels import Labels, aligned, line, over, placed, support

_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
_PER_CHANNEL = ("weight", "bias", "running_mean", "running_var")


def _batch_norm(flow: Flow, node: fx.Node) -> None:
    found = bound(node)
    shape, labels = shape_of(found["input"]), flow.labels(found["input"])
    channels = over(labels, 1)
    for label in labels:
        for dim in support(label):
            if dim != 1:
                flow.pin(label, dim, f"{described(node)} has statistics over them")
    labels = _carried(flow, node, [found[name] for name in _PER_CHANNEL], labels, shape)
    if channels is not None and support(channels) == (1,):
        flow.attribute(node, _BATCH_NORMS, "num_features", shape[1], line(channels, 1))
    flow.pass_on(node, labels, "affine" if opname(node) == "batch_norm" else "other", "norm")


def _carried(flow: Flow, node: fx.Node, parameters: Sequence[Any], labels: Labels, shape: tuple[int, ...]) -> Labels:
    operands = [(shape, labels)]
    for parameter in parameters:
        if isinstance(parameter, fx.Node):
            theirs = tuple(placed(line(label, 0), 1, len(shape)) for label in flow.labels(parameter))
            operands.append((tuple(size if dim == 1 else 1 for dim, size in enumerate(shape)), theirs))
    return flow.combined(operands, node)


def _group_norm(flow: Flow, node: fx.Node) -> None:
    found = bound(node)
    shape, labels, groups = shape_of(found["input"]), flow.labels(found["input"]), int(found["num_groups"])
    for label in labels:
        for dim in support(label):
            if dim > 1:
                flow.pin(label, dim, f"{described(node)} has statistics over them")
    labels = _carried(flow, node, (found["weight"], found["bias"]), labels, shape)
    channels = over(labels, 1)
    if channels is not None:
        atoms = line(channels, 1)
        if groups == 1:
            flow.approximate.append((atoms, f"the statistics of {described(node)} run over the channels"))
        else:
            blocks = atoms.reshape(groups, -1)
            flow.unite(blocks, blocks[:, :1])
            flow.attribute(node, (nn.GroupNorm,), "num_groups", groups, blocks[:, 0])
        flow.attribute(node, (nn.GroupNorm,), "num_channels", shape[1], atoms)
    flow.pass_on(node, labels, "other", "norm")


def _layer_norm(flow: Flow, node: fx.Node) -> None:
    found = bound(node)
    shape, labels = shape_of(found["input"]), flow.labels(found["input"])
    first = len(shape) - len(found["normalized_shape"])
    operands = [(shape, labels)]
    for name in ("weight", "bias"):
        if isinstance(found.get(name), fx.Node):
            theirs = tuple(aligned(label, len(shape)) for label in flow.labels(found[name]))
            operands.append(((1,) * first + shape[first:], theirs))
    labels = flow.combined(operands, node)
    module = flow.module(node)
    for dim in range(first, len(shape)):
        label = over(labels, dim)
        if label is not None:
            flow.approximate.append((label.ravel(), f"the statistics of {described(node)} run over the channels"))
            if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
                flow.sized.append(Sized(where(node), "normalized_shape", dim - first, line(label, dim)))
    flow.pass_on(node, labels, "other", "norm")


def _prelu(flow: Flow, node: fx.Node) -> None:
    source, weight = node.args[:2]
    shape, labels = shape_of(source), flow.labels(source)
    if shape_of(weight) != (1,):
        labels = _carried(flow, node, [weight], labels, shape)
    flow.pass_on(node, labels, "homogeneous", "activation")


RULES: dict[str, Rule] = {
    **dict.fromkeys(("batch_norm", "instance_norm"), _batch_norm),
    "group_norm": _group_norm,
    **dict.fromkeys(("layer_norm", "rms_norm"), _layer_norm),
    "prelu": _prelu,
}
