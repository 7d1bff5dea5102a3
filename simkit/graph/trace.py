"""Model -> :class:`ChannelGraph`: walk the chain and follow every layer's channels to the layer that reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx, nn

from .capture import NOT_YET, Chain, capture, described, opname, where
from .channels import ChannelGraph, Group, Slot
from .follow import Layer, Path
from .operations import RULES

_LAYERS: dict[str, tuple[type[Layer], Callable[..., Any]]] = {
    "linear": (nn.Linear, nn.Linear.forward),
    "conv1d": (nn.Conv1d, nn.Conv1d.forward),
    "conv2d": (nn.Conv2d, nn.Conv2d.forward),
}


def trace(model: nn.Module, example_inputs: Any) -> ChannelGraph:
    """The channel graph of a plain chain of Linear, Conv1d/2d, BatchNorm, activations, pooling and reshapes.

    The model runs once on ``example_inputs`` (a tensor, or a tuple of one) as a copy in eval mode; the model itself is
    not touched. Units of the last layer are frozen because they are the output. Raises ValueError if the model does not
    run on the inputs, NotImplementedError (naming the operation and its module) for anything that is not such a chain.
    """
    chain = capture(model, example_inputs)
    groups: list[Group] = []
    path: Path | None = None
    for node in chain.nodes:
        name = opname(node)
        if name in _LAYERS:
            layer = _layer(chain, node)
            if path is not None:
                groups.append(path.close(node, layer, _consumer(chain, node, path)))
            path = Path.open(node, where(node), name, _producers(chain, node))
        else:
            rule = RULES.get(name)
            if rule is None:
                raise NotImplementedError(f"{described(node)} is not an operation the chain tracer knows; {NOT_YET}")
            if path is not None:
                rule(path, node, chain)
    if path is None:
        raise ValueError(f"{type(model).__name__} has no Linear or convolution layer whose units could be removed")
    groups.append(path.output())
    return ChannelGraph(tuple(groups))


def _layer(chain: Chain, node: fx.Node) -> Layer:
    name, module = opname(node), chain.model.get_submodule(where(node))
    kind, forward = _LAYERS[name]
    if not isinstance(module, kind) or type(module).forward is not forward:
        plain, found = f"torch.nn.{kind.__name__}", type(module).__name__
        raise NotImplementedError(f"{described(node)} does not run in a plain {plain} but in {found}; {NOT_YET}")
    groups = getattr(module, "groups", 1)
    if groups != 1:
        raise NotImplementedError(f"{described(node)} has groups={groups}; {NOT_YET}")
    dims = node.meta["val"].dim()
    if dims < 2 or (name != "linear" and dims != module.weight.dim()):
        raise NotImplementedError(f"{described(node)} runs on one sample without a batch dimension; {NOT_YET}")
    return module


def _tensor(chain: Chain, node: fx.Node, index: int) -> str | None:
    argument = node.args[index] if index < len(node.args) else None
    return chain.tensors[argument.name] if isinstance(argument, fx.Node) else None


def _producers(chain: Chain, node: fx.Node) -> tuple[Slot, ...]:
    names = [_tensor(chain, node, index) for index in (1, 2)]
    return tuple(Slot("producer", name, 0, 1, True) for name in names if name is not None)


def _consumer(chain: Chain, node: fx.Node, path: Path) -> Slot:
    """The slot of the layer at ``node`` that reads the path's channels; NotImplementedError where it mixes others."""
    weight = _tensor(chain, node, 1)
    axis = path.dims - 1 if opname(node) == "linear" else 1
    if weight is None or path.axis != axis:
        raise NotImplementedError(
            f"{described(node)} does not run over the channels of {path.name!r} but over another dimension; {NOT_YET}"
        )
    return Slot("consumer", weight, 1, path.positions, False)
