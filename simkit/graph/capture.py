"""A model as a graph of ATen operations, by ``torch.export``; what cannot be captured is refused with the reason."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from ..errors import first_line
from .preserve import preserved_rng, quiet_copy


@dataclass(frozen=True)
class Captured:
    """The operations in the order in which they run, for one size of inputs.

    ``tensors`` maps the graph's names of parameters and buffers to their names in ``model``, a copy in eval mode.
    ``constants`` are all arguments of the graph but the user's inputs, by placeholder. ``batch`` is the size of
    dimension 0 of the first input.
    """

    model: nn.Module
    module: fx.GraphModule
    tensors: Mapping[str, str]
    constants: Mapping[str, torch.Tensor]
    batch: int

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        """All nodes, placeholders first, the output last."""
        return tuple(self.module.graph.nodes)

    def arguments(self, inputs: tuple[Any, ...]) -> list[Any]:
        """What the graph is called with: parameters, buffers and constants, and the user's inputs in their places."""
        given = iter(torch.utils._pytree.tree_leaves(inputs))
        return [
            self.constants[node.name] if node.name in self.constants else next(given)
            for node in self.nodes
            if node.op == "placeholder"
        ]


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
    """The operation as a message names it."""
    if node.op == "placeholder":
        return "the model's input"
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


def capture(model: nn.Module, example_inputs: Any) -> Captured:
    """Export a copy of the model in eval mode; the model itself is not run.

    Raises:
        TypeError: no module, or no inputs. ValueError: the model does not run on them.
        NotImplementedError: the model cannot be copied or exported.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    inputs = as_inputs(example_inputs)
    quiet = quiet_copy(model)
    with preserved_rng(), plain_attention(), torch.enable_grad():
        _run_once(quiet, inputs)
        program = _export(quiet, inputs)
    signature = program.graph_signature
    tensors = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    return Captured(quiet, program.graph_module, tensors, _constants(program, quiet, tensors), _batch(inputs))


def _batch(inputs: tuple[Any, ...]) -> int:
    leaves = torch.utils._pytree.tree_leaves(inputs)
    sizes = [int(value.shape[0]) for value in leaves if isinstance(value, torch.Tensor) and value.dim()]
    return max(sizes[0], 1) if sizes else 1


def _constants(
    program: torch.export.ExportedProgram, quiet: nn.Module, tensors: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    own = {**dict(quiet.named_parameters(remove_duplicate=False)), **dict(quiet.named_buffers(remove_duplicate=False))}
    constants = {placeholder: own[name] for placeholder, name in tensors.items()}
    for placeholder, name in program.graph_signature.inputs_to_lifted_tensor_constants.items():
        constants[placeholder] = program.constants[name]
    return constants


@contextmanager
def plain_attention() -> Iterator[None]:
    """Fused inference kernels of attention hide the operations; the user's setting is put back."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _run_once(quiet: nn.Module, inputs: tuple[Any, ...]) -> None:
    try:
        with torch.no_grad():
            quiet(*inputs)
    except Exception as error:
        raise ValueError(f"{type(quiet).__name__} does not run on example_inputs: {first_line(error)}") from error


def _export(quiet: nn.Module, inputs: tuple[Any, ...]) -> torch.export.ExportedProgram:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own deprecations are not the user's business
            return torch.export.export(quiet, inputs, strict=False)
    except Exception as error:
        raise NotImplementedError(f"torch.export cannot capture {type(quiet).__name__}: {first_line(error)}") from error
