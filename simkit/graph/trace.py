"""Model -> :class:`ChannelGraph`: label every value of the captured model, unite what must go together, form groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from torch import fx, nn

from .aliases import stale, unread
from .capture import Captured, capture, described, opname
from .channels import ChannelGraph
from .flow import Flow
from .groups import form
from .labels import over, placed
from .operations import RULES
from .solve import solve

OUTPUT = "its units are the model's output"
Side: TypeAlias = tuple[str, int]  # a tensor and one of its dimensions


def trace(model: nn.Module, example_inputs: Any, *, ties: Sequence[tuple[Side, Side]] = ()) -> ChannelGraph:
    """The channel graph of any model that ``torch.export`` captures.

    The model runs on ``example_inputs`` (a tensor or a tuple) as a copy in eval mode; the model itself is not touched.
    Channels that an unknown operation touches are frozen, and it is named. ``ties`` are pairs of dimensions of
    parameters whose entries are to be removed together, place by place. Raises ValueError if the model does not run on
    the inputs or has no layer with channels, NotImplementedError with the reason if it cannot be captured.
    """
    captured = capture(model, example_inputs)
    graph = form(captured, *labelled(captured, ties))
    if not graph.groups:
        raise ValueError(f"{type(model).__name__} has no Linear or convolution layer whose units could be removed")
    return graph


def labelled(captured: Captured, ties: Sequence[tuple[Side, Side]]) -> tuple[Flow, Any]:
    """Walk through the operations; what was collected, and the units it amounts to."""
    flow = Flow(captured)
    by_tensor: dict[int, tuple[Any, ...]] = {}
    renamed, dead = stale(captured.nodes), unread(captured.nodes)
    for node in captured.nodes:
        flow.lenient = node in dead
        if node.op == "placeholder":
            _enter(flow, node, by_tensor)
        elif node.op == "output":
            for label in (label for source in node.all_input_nodes for label in flow.labels(source)):
                flow.freeze(label, OUTPUT)
        elif node.op == "call_function":
            _apply(flow, node)
            if node in renamed:
                flow.freeze_values((node, *renamed[node]), f"{described(node)} changes in place what has other names")
        else:
            flow.freeze_all(node, f"{described(node)} is no plain operation")
    for pair in ties:
        first, second = (over(flow.parameters.get(tensor, ()), dim) for tensor, dim in pair)
        if first is not None and second is not None:
            flow.unite(first.ravel(), second.ravel())
    return flow, solve(flow)


def _enter(flow: Flow, node: fx.Node, by_tensor: dict[int, tuple[Any, ...]]) -> None:
    """Fresh atoms for every dimension of a parameter or buffer; tied ones share them. Inputs have no channels."""
    flow.values[node] = ()
    constant = flow.captured.constants.get(node.name)
    if constant is None:
        return
    flow.constant.add(node)
    flow.weights.add(node)
    if node.name not in flow.captured.tensors:
        return
    if id(constant) not in by_tensor:
        shape = tuple(constant.shape)
        by_tensor[id(constant)] = tuple(
            placed(flow.fresh(size), dim, len(shape)) for dim, size in enumerate(shape) if size > 1
        )
        flow.parameters[flow.captured.tensors[node.name]] = by_tensor[id(constant)]
    flow.values[node] = by_tensor[id(constant)]


def _apply(flow: Flow, node: fx.Node) -> None:
    if node.meta.get("val") is None:
        return  # an assertion
    if all(source in flow.constant for source in node.all_input_nodes):
        flow.constant.add(node)
    if node in flow.constant and any(source in flow.weights for source in node.all_input_nodes):
        flow.weights.add(node)
    rule = RULES.get(opname(node))
    if rule is None:
        flow.freeze_all(node, f"{described(node)} is not an operation whose channels are understood")
    else:
        rule(flow, node)
