"""Views: the same elements in another shape or order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import fx

from ..capture import bound, described
from ..flow import Flow, Rectangle, Rule, shape_of
from ..labels import Label, Labels, Shape, aligned, factors, over, reshaped, support

_RESHAPES = ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as")


def _reshape(flow: Flow, node: fx.Node) -> None:
    source = node.args[0]
    before, after = shape_of(source), shape_of(node)
    named = [label for label in flow.labels(source) if not flow.is_blank(label)]
    found = [reshaped(label, before, after) for label in named]
    for label in found:
        if any(other is not label and {*support(other)} & {*support(label)} for other in found):
            flow.notes.append((label.ravel(), f"{described(node)} lays the channels of two dimensions along one"))
    labels = flow.merged(found)
    labels = (*labels, *_blanks(flow, source, labels, after))
    flow.pass_on(node, rectangles(flow, labels), "identity" if _one_by_one(labels, after) else "mixing", "shape")


def _blanks(flow: Flow, source: Any, taken: Labels, after: Shape) -> Labels:
    """What is left of runs of equal values: nothing where they meet labels, which say more than they do."""
    before = shape_of(source)
    blank = [label for label in flow.labels(source) if flow.is_blank(label)]
    found: list[Label] = []
    for sources, targets in factors(before, after):
        theirs = [label for label in blank if {*support(label)} & {*sources}]
        if not theirs or any(over(taken, dim) is not None for dim in targets):
            continue
        equal = all(before[dim] == 1 or over(tuple(theirs), dim) is not None for dim in sources)
        wide = [dim for dim in targets if after[dim] > 1]
        if equal and (len(theirs) > 1 or len(wide) > 1):
            found.extend(flow.uniform(dim, after) for dim in wide)
        else:
            found.append(reshaped(theirs[0], before, after))
    return tuple(found)


def _one_by_one(labels: Labels, shape: Shape) -> bool:
    """Whether every atom still has one index along its dimension, so that values are only renamed."""
    return all(len(np.unique(label)) == label.size for label in labels)


def rectangles(flow: Flow, labels: Labels) -> Labels:
    """Labels that vary over several dimensions come with the constraint of a product set."""
    flow.constraints.extend(Rectangle(label) for label in labels if len(support(label)) > 1)
    return labels


def _permute(flow: Flow, node: fx.Node) -> None:
    """The operation itself reorders the dimensions of the labels, or what lies along one."""
    move: Any = node.target
    labels = [move(torch.tensor(label), *node.args[1:], **node.kwargs).numpy() for label in flow.labels(node.args[0])]
    flow.pass_on(node, labels, "identity", "shape")


def _expand(flow: Flow, node: fx.Node) -> None:
    """Also where the size of a broadcast dimension is written in the code."""
    shape = shape_of(node)
    labels = [aligned(label, len(shape)) for label in flow.labels(node.args[0])]
    flow.pass_on(node, [*labels, *_spread(flow, node)], "identity", "shape")


def _spread(flow: Flow, node: fx.Node) -> Labels:
    """Labels of the dimensions along which one entry became many."""
    after = shape_of(node)
    before = (1,) * (len(after) - len(shape_of(node.args[0]))) + shape_of(node.args[0])
    return tuple(flow.uniform(dim, after) for dim, size in enumerate(after) if before[dim] == 1 and size > 1)


def _repeat(flow: Flow, node: fx.Node) -> None:
    given: Any = node.args[1]
    dims = len(shape_of(node))
    counts = [1] * (dims - len(given)) + list(given)  # tile may leave the first ones out
    tiled = []
    for label in flow.labels(node.args[0]):
        wide = aligned(label, dims)
        tiled.append(np.tile(wide, [n if size > 1 else 1 for n, size in zip(counts, wide.shape, strict=True)]))
    flow.pass_on(node, [*tiled, *_spread(flow, node)], "identity", "shape")


def _repeat_interleave(flow: Flow, node: fx.Node) -> None:
    found = bound(node)
    count, dim = found.get("repeats"), found.get("dim")
    if not isinstance(count, int) or not isinstance(dim, int):
        flow.freeze_all(node, f"{described(node)} repeats by a tensor or over all dimensions")
        return
    labels = flow.labels(node.args[0])
    flow.pass_on(
        node,
        [np.repeat(label, count, axis=dim) if label.shape[dim] > 1 else label for label in labels],
        "identity",
        "shape",
    )


def _pixel_shuffle(flow: Flow, node: fx.Node) -> None:
    r = int(bound(node)["upscale_factor"])
    *lead, c, h, w = shape_of(node.args[0])
    n = len(lead)
    split, order = (*lead, c // r**2, r, r, h, w), [*range(n), n, n + 3, n + 1, n + 4, n + 2]
    _through(flow, node, split, order)


def _pixel_unshuffle(flow: Flow, node: fx.Node) -> None:
    r = int(bound(node)["downscale_factor"])
    *lead, c, h, w = shape_of(node.args[0])
    n = len(lead)
    split, order = (*lead, c, h // r, r, w // r, r), [*range(n), n, n + 2, n + 4, n + 1, n + 3]
    _through(flow, node, split, order)


def _channel_shuffle(flow: Flow, node: fx.Node) -> None:
    groups = int(bound(node)["groups"])
    n, c, *rest = shape_of(node.args[0])
    _through(flow, node, (n, groups, c // groups, *rest), [0, 2, 1, *range(3, len(rest) + 3)])


def _through(flow: Flow, node: fx.Node, split: Shape, order: list[int]) -> None:
    """Split dimensions, permute, and join again into the shape of the output."""
    before, after = shape_of(node.args[0]), shape_of(node)
    labels = rectangles(flow, flow.merged(reshaped(label, before, split) for label in flow.labels(node.args[0])))
    moved = tuple(split[dim] for dim in order)
    passed = flow.merged(_each(labels, lambda label: reshaped(label.transpose(order), moved, after)))
    flow.pass_on(node, rectangles(flow, passed), "mixing", "shape")


def _each(labels: Iterable[Label], change: Callable[[Label], Label]) -> Iterable[Label]:
    return [change(label) for label in labels]


RULES: dict[str, Rule] = {
    **dict.fromkeys(_RESHAPES, _reshape),
    **dict.fromkeys(
        ("permute", "transpose", "t", "movedim", "moveaxis", "swapaxes", "swapdims", "numpy_T", "mT"), _permute
    ),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), _expand),
    "flip": _permute,
    **dict.fromkeys(("repeat", "tile"), _repeat),
    "repeat_interleave": _repeat_interleave,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "channel_shuffle": _channel_shuffle,
}
