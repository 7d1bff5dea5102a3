"""Parts of tensors: concatenation, splitting, slicing, padding, table look-up."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import fx

from ..capture import bound, described, opname
from ..flow import Flow, Rule, Use, shape_of
from ..labels import Label, Labels, over, placed, support, without


def _cat(flow: Flow, node: fx.Node) -> None:
    found = bound(node)
    nodes: Any = [one for one in found["tensors"] if shape_of(one) != (0,)]
    dim = int(found["dim"]) % len(shape_of(node))
    parts = [(shape_of(one), flow.labels(one)) for one in nodes]
    rest = [
        (tuple(1 if d == dim else size for d, size in enumerate(shape)), _apart(labels, dim)) for shape, labels in parts
    ]
    joined = flow.combined(rest, node)
    if any(over(labels, dim) is not None for _, labels in parts):
        joined = (*joined, _joined(flow, node, parts, dim))
    flow.pass_on(node, joined, "identity", "shape")


def _apart(labels: Labels, dim: int) -> Labels:
    return tuple(label for label in labels if label.shape[dim] == 1)


def _joined(flow: Flow, node: fx.Node, parts: list[tuple[tuple[int, ...], Labels]], dim: int) -> Label:
    """One label along ``dim``; parts without channels, and of size 1, get atoms of their own that stay."""
    pieces = []
    for shape, labels in parts:
        label = over(labels, dim)
        if label is None:
            fresh = flow.fresh(shape[dim])
            flow.freeze(fresh, f"{described(node)} puts values without channels beside them")
            label = placed(fresh, dim, len(shape))
        pieces.append(label)
    others = [max(piece.shape[d] for piece in pieces) for d in range(len(shape_of(node)))]
    full = [np.broadcast_to(p, [p.shape[d] if d == dim else size for d, size in enumerate(others)]) for p in pieces]
    return np.concatenate(full, axis=dim)


def _stack(flow: Flow, node: fx.Node) -> None:
    found = bound(node)
    nodes: Any = found["tensors"]
    dim = int(found["dim"]) % len(shape_of(node))
    labels = flow.combined([(shape_of(one), flow.labels(one)) for one in nodes], node)
    flow.pass_on(node, [np.expand_dims(label, dim) for label in labels], "identity", "shape")


def _split(flow: Flow, node: fx.Node) -> None:
    found = bound(node)
    dim = int(found["dim"]) % len(shape_of(node.args[0]))
    sizes = [int(value.shape[dim]) for value in node.meta["val"]]
    edges = [sum(sizes[:index]) for index in range(len(sizes) + 1)]
    labels = flow.labels(node.args[0])
    label = over(labels, dim)
    if label is not None and len(set(sizes)) == 1 and len(sizes) > 1:
        _alike(flow, node, label, dim, len(sizes))
    flow.parts[node] = tuple(
        tuple(_part(flow, node, one, dim, slice(start, stop)) for one in labels) for start, stop in pairwise(edges)
    )
    flow.pass_on(node, labels, "identity", "shape")


def _alike(flow: Flow, node: fx.Node, label: Label, dim: int, parts: int) -> None:
    """Equal parts stay equal: what goes from one goes from all, at the same places."""
    stacked = np.stack(np.split(label, parts, axis=dim))
    flow.unite(stacked, stacked[:1])
    flow.notes.append((label.ravel(), f"{described(node)} takes equal parts of them"))


def _part(flow: Flow, node: fx.Node, label: Label, dim: int, part: slice) -> Label:
    """A part of a label; a single channel is no longer followed, so it must stay."""
    if label.shape[dim] == 1:
        return label
    found = label[(slice(None),) * dim + (part,)]
    if found.shape[dim] == 1:
        flow.freeze(found, f"{described(node)} takes it alone")
    return found


def _slice(flow: Flow, node: fx.Node) -> None:
    found = bound(node)
    shape = shape_of(node.args[0])
    dim = int(found["dim"]) % len(shape)
    start, stop, step = slice(found["start"], found["end"], found["step"]).indices(shape[dim])
    labels = flow.labels(node.args[0])
    label = over(labels, dim)
    size = stop - start
    if label is not None and step != 1:
        flow.pin(label, dim, f"{described(node)} takes every {step}th of them")
    elif label is not None and 0 < size < shape[dim] and shape[dim] % size == 0 and start % size == 0:
        _alike(flow, node, label, dim, shape[dim] // size)
    flow.pass_on(node, [_part(flow, node, one, dim, slice(start, stop, step)) for one in labels], "identity", "shape")


def _narrow(flow: Flow, node: fx.Node) -> None:
    found = bound(node)
    dim, start = int(found["dim"]) % len(shape_of(node)), int(found["start"])
    part = slice(start, start + int(found["length"]))
    labels = [_part(flow, node, one, dim, part) for one in flow.labels(node.args[0])]
    flow.pass_on(node, labels, "identity", "shape")


def _select(flow: Flow, node: fx.Node) -> None:
    found = bound(node)
    dim = int(found["dim"]) % len(shape_of(node.args[0]))
    flow.pass_on(node, _picked(flow, node, dim, int(found["index"])), "identity", "shape")


def _unbind(flow: Flow, node: fx.Node) -> None:
    dim = int(bound(node)["dim"]) % len(shape_of(node.args[0]))
    flow.parts[node] = tuple(_picked(flow, node, dim, index) for index in range(len(node.meta["val"])))
    flow.pass_on(node, (), "identity", "shape")


def _picked(flow: Flow, node: fx.Node, dim: int, index: int) -> Labels:
    """The slice at ``index``; the code counts along ``dim``, so nothing can be removed along it."""
    labels = flow.labels(node.args[0])
    for label in labels:
        flow.pin(label, dim, f"{described(node)} picks one of them by its number")
    return tuple(without(label.take([index], axis=dim) if label.shape[dim] > 1 else label, [dim]) for label in labels)


def _pad(flow: Flow, node: fx.Node) -> None:
    found = bound(node)
    shape, amounts = shape_of(node.args[0]), [int(one) for one in found["pad"]]
    constant = found.get("mode", "constant") == "constant"
    labels = []
    for label in flow.labels(node.args[0]):
        for dim in support(label):
            place = 2 * (len(shape) - 1 - dim)
            before, after = (*amounts[place : place + 2], 0, 0)[:2]
            if before or after:
                label = _padded(flow, node, label, dim, (before, after), constant)  # noqa: PLW2901
        labels.append(label)
    shifts = constant and bool(found.get("value"))  # None and 0 pad with zeros
    flow.pass_on(node, labels, "affine" if shifts else "identity", "shape")


def _padded(flow: Flow, node: fx.Node, label: Label, dim: int, amounts: tuple[int, int], constant: bool) -> Label:
    """The amounts are written in the code, so the padded channels stay; those they surround may go."""
    if not constant or min(amounts) < 0:
        flow.pin(label, dim, f"{described(node)} pads them with one another")
    pieces = []
    for amount in amounts:
        fresh = flow.fresh(max(amount, 0))
        flow.freeze(fresh, f"{described(node)} puts as many zeros in their place as its code says")
        others = [1 if d == dim else size for d, size in enumerate(label.shape)]
        pieces.append(np.broadcast_to(placed(fresh, dim, label.ndim), [*others[:dim], len(fresh), *others[dim + 1 :]]))
    middle = _part(flow, node, label, dim, slice(max(-amounts[0], 0), label.shape[dim] - max(-amounts[1], 0)))
    return np.concatenate([pieces[0], middle, pieces[1]], axis=dim)


def _embedding(flow: Flow, node: fx.Node) -> None:
    weight, indices = node.args[:2]
    for label in flow.labels(indices):
        flow.freeze(label, f"{described(node)} looks up by them")
    for label in flow.labels(weight):
        flow.pin(label, 0, f"{described(node)} looks them up by number")
    rows = over(flow.labels(weight), 1)
    dims = len(shape_of(node))
    if rows is None:
        flow.pass_on(node, (), "other", "layer")
        return
    if weight in flow.constant:
        flow.produced.append(Use(rows.ravel(), node, None))
    flow.pass_on(node, [placed(rows[0], dims - 1, dims)], "other", "layer")


def _index(flow: Flow, node: fx.Node) -> None:
    """Picks along one dimension by one tensor of numbers; anything else is not followed."""
    listed: Any = list(bound(node)["indices"])
    used = [dim for dim, one in enumerate(listed) if one is not None]
    if len(used) != 1 or not isinstance(listed[used[0]], fx.Node):
        flow.freeze_all(node, f"{described(node)} picks values by several numbers")
        return
    _by_numbers(flow, node, used[0], listed[used[0]])


def _index_select(flow: Flow, node: fx.Node) -> None:
    found = bound(node)
    _by_numbers(flow, node, int(found["dim"]) % len(shape_of(node)), found["index"])


def _by_numbers(flow: Flow, node: fx.Node, dim: int, numbers: fx.Node) -> None:
    """Channels in the order of a buffer, which loses those that go and counts the others anew; else they stay."""
    label = over(flow.labels(node.args[0]), dim)
    known = None if label is None or support(label) != (dim,) else _numbers(flow, numbers, label.size)
    if label is None or known is None:
        _picked_by(flow, node, dim, numbers)
        return
    values, name = known
    taken = placed(label.ravel()[values], dim, label.ndim)
    flow.unite(placed(flow.labels(numbers)[0].ravel(), dim, label.ndim), taken)
    flow.unite(flow.renumbered.setdefault(name, label.ravel()), label.ravel())
    rest = [one for one in flow.labels(node.args[0]) if one is not label]
    flow.pass_on(node, [*rest, taken], "identity", "shape")


def _numbers(flow: Flow, node: fx.Node, size: int) -> tuple[Label, str] | None:
    """What a buffer picks of ``size`` channels, and its name; None if it holds no such numbers, or not only they."""
    name, value = flow.captured.tensors.get(node.name), flow.captured.constants.get(node.name)
    used = all(opname(user) in ("index", "index_select") for user in node.users)
    if name is None or value is None or value.dim() != 1 or len(value) == 1 or not used:
        return None
    if value.dtype not in (torch.int32, torch.int64) or len(flow.renumbered.get(name, range(size))) != size:
        return None
    return np.remainder(value.detach().cpu().numpy().astype(np.int64), size), name


def _picked_by(flow: Flow, node: fx.Node, dim: int, numbers: fx.Node) -> None:
    """Rows of a table."""
    count = len(shape_of(numbers))
    labels = []
    for label in flow.labels(node.args[0]):
        flow.pin(label, dim, f"{described(node)} picks them by number")
        left = label.take([0], axis=dim) if label.shape[dim] > 1 else label
        labels.append(left.reshape(left.shape[:dim] + (1,) * count + left.shape[dim + 1 :]))
    for label in flow.labels(numbers):
        flow.freeze(label, f"{described(node)} picks by them")
    flow.pass_on(node, labels, "other", "shape")


RULES: dict[str, Rule] = {
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    "stack": _stack,
    **dict.fromkeys(("split", "chunk", "split_with_sizes", "tensor_split"), _split),
    "slice": _slice,
    "narrow": _narrow,
    "select": _select,
    "unbind": _unbind,
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
    "embedding": _embedding,
    "index": _index,
    "index_select": _index_select,
}
