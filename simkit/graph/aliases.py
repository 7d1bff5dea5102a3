"""What becomes of values: those that nobody reads, and those that change under one of their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import fx

from .capture import opname

_AS_GIVEN = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")  # in eval mode, undeclared


def stale(nodes: Sequence[fx.Node]) -> Mapping[fx.Node, tuple[fx.Node, ...]]:
    """Operation that writes into an argument -> other values in the same memory, made before and read after it.

    The argument itself is not among them: capturing lets all that follows read the operation's result in its place.
    """
    order = {node: index for index, node in enumerate(nodes)}
    base: dict[fx.Node, fx.Node] = {}
    found: dict[fx.Node, tuple[fx.Node, ...]] = {}
    for node in nodes:
        source = _shares(node)
        if source is not None and _writes(node):
            others = [one for one in base if base[one] is base[source] and one is not source]
            read = [one for one in others if any(order[user] > order[node] for user in one.users)]
            found[node] = tuple(one for one in read if not _apart(one, source))
        base[node] = node if source is None else base[source]
    return {node: read for node, read in found.items() if read}


def unread(nodes: Sequence[fx.Node]) -> frozenset[fx.Node]:
    """Operations on which neither the output depends nor what is written into a value."""
    live: set[fx.Node] = set()
    for node in reversed(nodes):
        if node.op != "call_function" or _writes(node):
            live.add(node)
        if node in live:
            live.update(node.all_input_nodes)
    return frozenset(nodes) - live


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and bool(node.target._schema.is_mutable)


def _shares(node: fx.Node) -> fx.Node | None:
    """The argument whose memory the result may be in."""
    first = node.args[0] if node.args else None
    if not isinstance(first, fx.Node):
        return None
    if opname(node) == "getitem" or opname(node) in _AS_GIVEN:
        return first
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    return first if node.target._schema.arguments[0].alias_info is not None else None


def _apart(one: fx.Node, other: fx.Node) -> bool:
    """Whether the two are different parts of one split."""
    parts = [node.args for node in (one, other) if opname(node) == "getitem"]
    return len(parts) == 2 and parts[0][0] is parts[1][0] and parts[0][1] != parts[1][1]
