"""Which dimension of a value holds the samples: transposes move it, and behind some reshapes it cannot be told."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx

from .capture import Captured, bound, opname
from .flow import shape_of
from .labels import factors

_MOVES = ("permute", "transpose", "t", "movedim", "moveaxis", "swapaxes", "swapdims", "numpy_T", "mT")
_RESHAPES = ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as")
_REORDERS = ("index", "index_select", "flip", "roll", "sort", "gather")
_LEFT_ALIGNED = ("embedding", "linear", "getitem")


def sample_dims(captured: Captured) -> Mapping[fx.Node, int]:
    """Value -> the dimension along which the samples lie one after the other; values of which it is known only."""
    found: dict[fx.Node, int] = {}
    for node in captured.nodes:
        if node.op == "placeholder":
            shape = shape_of(node)
            if node.name not in captured.constants and shape and shape[0] == captured.batch:
                found[node] = 0
        elif node.op == "call_function":
            place = _after(node, found)
            shape = _shape(node)
            if place is not None and 0 <= place < len(shape) and shape[place] % captured.batch == 0:
                found[node] = place
    return found


def _shape(node: fx.Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    return shape_of(value[0]) if isinstance(value, (tuple, list)) and value else shape_of(node)


def _after(node: fx.Node, found: Mapping[fx.Node, int]) -> int | None:
    source = next((one for one in node.all_input_nodes if one in found), None)
    if source is None:
        return None
    place, before, after = found[source], _shape(source), _shape(node)
    name = opname(node)
    if name in _MOVES:
        return _moved(node, place, before)
    if name in _RESHAPES:
        return _reshaped(place, before, after)
    if name in ("select", "unbind"):
        taken = int(bound(node)["dim"]) % len(before)
        return None if taken == place else place - (taken < place)
    if name in _REORDERS and place in _reordered(node, len(before)):
        return None
    if name == "stack":
        return place + (int(bound(node)["dim"]) % len(after) <= place)
    if len(after) < len(before):
        return _reduced(node, place, len(before))
    shifted = place if name in _LEFT_ALIGNED else place + len(after) - len(before)
    return shifted if shifted < len(after) and after[shifted] == before[place] else None


def _reordered(node: fx.Node, count: int) -> set[int]:
    """Dimensions whose entries change places."""
    given = bound(node)
    if "indices" in given:
        return {dim for dim, numbers in enumerate(given["indices"]) if numbers is not None}
    dims = given.get("dim", given.get("dims"))
    return {int(dim) % count for dim in ([dims] if isinstance(dims, int) else dims or range(count))}


def _moved(node: fx.Node, place: int, before: tuple[int, ...]) -> int:
    """Where a dimension goes: the operation itself moves one that is marked by its size."""
    marked = torch.empty([2 if dim == place else 1 for dim in range(len(before))])
    moved = node.target(marked, *node.args[1:], **node.kwargs)  # type: ignore[operator]
    return [*moved.shape].index(2)


def _reshaped(place: int, before: tuple[int, ...], after: tuple[int, ...]) -> int | None:
    """The first of the dimensions that its own become, unless others run more slowly within it."""
    for sources, targets in factors(before, after):
        if place in sources:
            slower = [dim for dim in sources if dim < place and before[dim] > 1]
            wide = [dim for dim in targets if after[dim] > 1]
            return None if slower or not targets else (wide or targets)[0]
    return None


def _reduced(node: fx.Node, place: int, count: int) -> int | None:
    given = bound(node).get("dim")
    if given is None:
        return None
    dims = {int(dim) % count for dim in ([given] if isinstance(given, int) else given)}
    return None if place in dims else place - sum(dim < place for dim in dims)
