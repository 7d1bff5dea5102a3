"""Where the samples are in a value: transposes and reshapes move them, and behind some operations it cannot be told."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import fx

from .capture import Captured, bound, opname
from .flow import shape_of
from .labels import Label, Shape, aligned, placed, reshaped, support, without

_MOVES = ("permute", "transpose", "t", "movedim", "moveaxis", "swapaxes", "swapdims", "numpy_T", "mT", "flip")
_RESHAPES = ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as")
_REORDERS = ("index", "index_select", "roll", "sort", "gather")
_LEFT_ALIGNED = ("embedding", "linear", "getitem")


def by_sample(captured: Captured) -> frozenset[fx.Node]:
    """Values whose dimension 0 is known to hold the samples one after the other, each with as many rows."""
    found: dict[fx.Node, Label] = {}
    samples = np.arange(captured.batch, dtype=np.int64)
    for node in captured.nodes:
        shape = _shape(node)
        if node.op == "placeholder" and node.name not in captured.constants:
            if shape and shape[0] == captured.batch:
                found[node] = placed(samples, 0, len(shape))
        elif node.op == "call_function":
            label = _after(node, found)
            if label is not None and _fits(label, shape):
                found[node] = label
    return frozenset(node for node, label in found.items() if _leads(label, _shape(node), samples))


def _leads(label: Label, shape: Shape, samples: Label) -> bool:
    if len(samples) == 1:
        return bool(shape)
    return support(label) == (0,) and np.array_equal(label.ravel(), np.repeat(samples, shape[0] // len(samples)))


def _fits(label: Label, shape: Shape) -> bool:
    return len(label.shape) == len(shape) and all(a in (1, b) for a, b in zip(label.shape, shape, strict=True))


def _shape(node: fx.Node) -> Shape:
    value = node.meta.get("val")
    return shape_of(value[0]) if isinstance(value, (tuple, list)) and value else shape_of(node)


def _after(node: fx.Node, found: Mapping[fx.Node, Label]) -> Label | None:
    source = next((one for one in node.all_input_nodes if one in found), None)
    if source is None:
        return None
    label, before, after, name = found[source], _shape(source), _shape(node), opname(node)
    if name in _MOVES:
        moved: torch.Tensor = node.target(torch.tensor(label), *node.args[1:], **node.kwargs)  # type: ignore[operator]
        return moved.numpy()
    if name in _RESHAPES:
        return reshaped(label, before, after)
    if name == "einsum":
        return _through_einsum(node, source, label)
    if name == "stack":
        return np.expand_dims(label, int(bound(node)["dim"]) % len(after))
    if name in _REORDERS and any(label.shape[dim] > 1 for dim in _dims(node, len(before))):
        return None
    if len(after) < len(before):
        dims = _dims(node, len(before))
        return None if any(label.shape[dim] > 1 for dim in dims) else without(label, dims)
    if name in _LEFT_ALIGNED:
        return label.reshape(label.shape + (1,) * (len(after) - len(before)))
    return aligned(label, len(after))


def _through_einsum(node: fx.Node, source: fx.Node, label: Label) -> Label | None:
    """The equation says where a dimension goes; None where the samples are summed over, or it is of another form."""
    equation, operands = str(node.args[0]).replace(" ", ""), node.args[1]
    terms, arrow, out = equation.partition("->")
    given = terms.split(",")[list(operands).index(source)]  # type: ignore[arg-type]
    if not arrow or "." in equation or any(letter not in out for dim in support(label) for letter in given[dim]):
        return None
    places = [given.find(letter) for letter in out]
    kept = [dim for dim in places if dim >= 0]
    moved = label.transpose([*kept, *(dim for dim in range(label.ndim) if dim not in kept)])
    sizes = [label.shape[dim] if dim >= 0 else 1 for dim in places]
    return moved.reshape(sizes)


def _dims(node: fx.Node, count: int) -> list[int]:
    """The dimensions that an operation reduces, picks from or reorders; all where it does not say."""
    given = bound(node)
    if "indices" in given:
        return [dim for dim, numbers in enumerate(given["indices"]) if numbers is not None]
    dims = given.get("dim", given.get("dims"))
    return [int(dim) % count for dim in ([dims] if isinstance(dims, int) else dims or range(count))]
