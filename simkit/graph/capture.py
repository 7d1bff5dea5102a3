"""A model as a chain of ATen operations, by ``torch.export``; whatever is not a chain is refused by name."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from .preserve import preserved_rng, quiet_copy

NOT_YET = "only plain chains of layers are supported, the general channel graph is not there yet"


@dataclass(frozen=True)
class Chain:
    """The operations from input to output, each fed by the one before.

    ``tensors`` maps the graph's names of parameters and buffers to their names in ``model``, a copy in eval mode.
    """

    model: nn.Module
    nodes: tuple[fx.Node, ...]
    tensors: Mapping[str, str]


def as_inputs(example_inputs: Any) -> tuple[Any, ...]:
    """The positional inputs of the model: a tensor stands for a tuple of one."""
    if isinstance(example_inputs, torch.Tensor):
        return (example_inputs,)
    if isinstance(example_inputs, (tuple, list)) and example_inputs:
        return tuple(example_inputs)
    found = f"{'an empty ' if isinstance(example_inputs, (tuple, list)) else ''}{type(example_inputs).__name__}"
    raise TypeError(f"example_inputs must be a tensor or a tuple of tensors, not {found}")


def where(node: fx.Node) -> str:
    """Path of the innermost module in which the operation runs; empty for the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def opname(node: fx.Node) -> str:
    """Plain name of the operation: ``relu`` for ``aten.relu_.default``."""
    if isinstance(node.target, torch._ops.OpOverload):
        name = str(node.target.overloadpacket.__name__)
        return name[:-1] if name.endswith("_") and not name.endswith("__") else name
    return str(getattr(node.target, "__name__", node.target))


def described(node: fx.Node) -> str:
    """The operation as an error message names it."""
    place = where(node)
    return f"{opname(node)!r} in module {place!r}" if place else f"{opname(node)!r} in the model's forward"


def bound(node: fx.Node) -> dict[str, Any]:
    """The operation's arguments by name, defaults filled in."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return {str(index): value for index, value in enumerate(node.args)}
    values: dict[str, Any] = {}
    for index, argument in enumerate(node.target._schema.arguments):
        if index < len(node.args):
            values[argument.name] = node.args[index]
        elif argument.name in node.kwargs:
            values[argument.name] = node.kwargs[argument.name]
        elif argument.has_default_value():
            values[argument.name] = argument.default_value
    return values


def capture(model: nn.Module, example_inputs: Any) -> Chain:
    """Export the model and check that it is a chain; the model itself is not run, its copy is."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    inputs = as_inputs(example_inputs)
    _refuse_tied(model)
    quiet = quiet_copy(model)
    with preserved_rng():
        _run_once(quiet, inputs)
        program = _export(quiet, inputs)
    signature = program.graph_signature
    tensors = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    _refuse_reused(program.graph, tensors)
    sources = [node for node in program.graph.nodes if node.name in signature.user_inputs and node.users]
    if len(sources) != 1:
        raise NotImplementedError(f"{type(model).__name__} reads {len(sources)} inputs and not 1; {NOT_YET}")
    return Chain(quiet, tuple(_follow(sources[0], tensors)), tensors)


def _refuse_tied(model: nn.Module) -> None:
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            raise NotImplementedError(f"{first[id(parameter)]!r} and {name!r} are one shared parameter; {NOT_YET}")
        first[id(parameter)] = name


def _refuse_reused(graph: fx.Graph, tensors: Mapping[str, str]) -> None:
    for node in graph.nodes:
        if node.name in tensors and len(node.users) > 1:
            module = tensors[node.name].rpartition(".")[0]
            raise NotImplementedError(f"module {module!r} is used {len(node.users)} times; {NOT_YET}")


def _run_once(quiet: nn.Module, inputs: tuple[Any, ...]) -> None:
    try:
        with torch.no_grad():
            quiet(*inputs)
    except Exception as error:
        raise ValueError(f"{type(quiet).__name__} does not run on example_inputs: {_first_line(error)}") from error


def _export(quiet: nn.Module, inputs: tuple[Any, ...]) -> torch.export.ExportedProgram:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own deprecations are not the user's business
            return torch.export.export(quiet, inputs, strict=False)
    except Exception as error:
        raise NotImplementedError(
            f"torch.export cannot capture {type(quiet).__name__}: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _follow(source: fx.Node, tensors: Mapping[str, str]) -> list[fx.Node]:
    chain: list[fx.Node] = []
    current = source
    while True:
        users = [user for user in current.users if user.op == "output" or user.users]
        if len(users) != 1:
            raise NotImplementedError(_fork(current, chain, users))
        node = users[0]
        strangers = [n for n in node.all_input_nodes if n is not current and n.name not in tensors]
        if strangers and node.op == "output":
            raise NotImplementedError(f"the model has {len(strangers) + 1} outputs; {NOT_YET}")
        if strangers:
            raise NotImplementedError(f"{described(node)} also reads {described(strangers[0])}; {NOT_YET}")
        if node.op == "output":
            return chain
        if node.op != "call_function":
            raise NotImplementedError(f"{described(node)} is no plain operation; {NOT_YET}")
        chain.append(node)
        current = node


def _fork(current: fx.Node, chain: list[fx.Node], users: list[fx.Node]) -> str:
    start = f"the output of {described(current)}" if chain else "the model's input"
    if not users:
        return f"{start} is not used; {NOT_YET}"
    readers = ", ".join(described(user) for user in users if user.op != "output")
    also = " and is an output" if any(user.op == "output" for user in users) else ""
    return f"{start} is read by {readers}{also}: a branch; {NOT_YET}"
