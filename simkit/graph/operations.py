"""What each ATen operation does to the channels on their way: one rule per kind of operation, one table."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from .capture import NOT_YET, Chain, bound, described, opname, where
from .channels import Slot, Step, TensorMap, Transfer
from .follow import Path

Rule = Callable[[Path, fx.Node, Chain], None]

_HOMOGENEOUS = ("relu", "leaky_relu")
_AFFINE = ("mul", "div", "add", "sub", "rsub", "neg")
# fmt: off
_OTHER = (
    "abs", "celu", "clamp", "clamp_max", "clamp_min", "elu", "exp", "gelu", "hardshrink", "hardsigmoid", "hardswish",
    "hardtanh", "log_sigmoid", "mish", "relu6", "selu", "sigmoid", "silu", "softplus", "softshrink", "square", "tanh",
    "threshold",
)
# fmt: on
_MAX_POOLS = {"max_pool1d": 1, "max_pool2d": 2, "adaptive_max_pool1d": 1, "adaptive_max_pool2d": 2}
_AVG_POOLS = {"avg_pool1d": 1, "avg_pool2d": 2, "adaptive_avg_pool1d": 1, "adaptive_avg_pool2d": 2}
_RESHAPES = ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze")
_SAME = ("alias", "clone", "contiguous", "detach")
_DROPOUTS = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")


def _replayable(node: fx.Node) -> TensorMap:
    """The operation on another tensor, out of place."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload) and str(target.overloadpacket.__name__).endswith("_"):
        target = getattr(getattr(torch.ops.aten, opname(node)), target._overloadname)
    operation: Any = target
    arguments, options = node.args[1:], dict(node.kwargs)
    return lambda value: operation(value, *arguments, **options)


def _elementwise(path: Path, node: fx.Node, chain: Chain, *, transfer: Transfer) -> None:
    if len(node.all_input_nodes) != 1 or any(isinstance(argument, fx.Node) for argument in node.args[1:]):
        raise NotImplementedError(f"{described(node)} combines two tensors; {NOT_YET}")
    run = _replayable(node)
    path.response = float(run(torch.tensor(path.response, dtype=torch.float64)))
    path.step(node, where(node), transfer, opname(node))
    path.replay(run)
    path.activation()


def _prelu(path: Path, node: fx.Node, chain: Chain) -> None:
    module = where(node)
    name = chain.tensors[str(node.args[1])]
    size = chain.model.get_parameter(name).numel()
    _require_module(chain, node, nn.PReLU)
    if size > 1:
        _require_channel_axis(path, node)
        if path.response < 0:
            path.block(f"a masked unit reaches {described(node)} as {path.response:.6g} and not 0")
    elif path.response < 0:
        path.response *= float(chain.model.get_parameter(name).item())
    path.step(node, module, "homogeneous", "prelu")
    path.carried_by(module, [Slot("carrier", name, 0, path.positions, False)] if size > 1 else [])


def _batch_norm(path: Path, node: fx.Node, chain: Chain) -> None:
    module = where(node)
    _require_module(chain, node, nn.BatchNorm1d, nn.BatchNorm2d)
    _require_channel_axis(path, node)
    named = {key: chain.tensors[value.name] for key, value in bound(node).items() if _is_tensor(value, chain)}
    if "weight" not in named and path.response != 0.0:
        path.block(f"a masked unit reaches {described(node)}, which has no scale, as {path.response:.6g} and not 0")
    # With scale, shift and running mean at zero a masked channel leaves as 0, in eval mode and in train mode.
    path.response = 0.0
    path.step(node, module, "affine", "batch_norm")
    slots = [
        Slot("carrier", named[key], 0, path.positions, key != "running_var")
        for key in ("weight", "bias", "running_mean", "running_var")
        if key in named
    ]
    path.carried_by(module, slots)


def _is_tensor(value: object, chain: Chain) -> bool:
    return isinstance(value, fx.Node) and value.name in chain.tensors


def _pool(path: Path, node: fx.Node, chain: Chain, *, spatial: int, transfer: Transfer) -> None:
    if path.dims != spatial + 2 or path.axis != 1:
        raise NotImplementedError(f"{described(node)} pools over the channels of {path.name!r}; {NOT_YET}")
    arguments = bound(node)
    uneven = any(arguments.get("padding") or ()) or arguments.get("divisor_override") is not None
    if transfer == "mixing" and uneven and path.response != 0.0:
        path.block(f"a masked unit reaches {described(node)} as {path.response:.6g} and leaves it as no constant")
    run = _replayable(node)
    if "adaptive_max" in opname(node):
        # It returns values and indices; the getitem node that follows picks the values.
        path.steps.append(Step(opname(node), where(node), transfer))
    else:
        path.step(node, where(node), transfer, opname(node))
    path.replay(run)


def _pick(path: Path, node: fx.Node, chain: Chain) -> None:
    if node.args[1] != 0:
        raise NotImplementedError(f"{described(node)} picks output {node.args[1]} of a pooling layer; {NOT_YET}")
    path.shape = tuple(node.meta["val"].shape)
    path.replay(lambda value: value[0])


def _same(path: Path, node: fx.Node, chain: Chain) -> None:
    """Values and layout of the channels stay as they are."""


def _dropout(path: Path, node: fx.Node, chain: Chain) -> None:
    if bound(node)["train"]:
        raise NotImplementedError(f"{described(node)} drops units in eval mode too; {NOT_YET}")
    path.step(node, where(node), "identity", opname(node))


def _reshape(path: Path, node: fx.Node, chain: Chain) -> None:
    path.reshape(node)


def _permute(path: Path, node: fx.Node, chain: Chain) -> None:
    order = list(range(path.dims))
    arguments = bound(node)
    if "dims" in arguments:
        order = [int(dim) % path.dims for dim in arguments["dims"]]
    else:
        a, b = (int(arguments.get(key, default)) % path.dims for key, default in (("dim0", 0), ("dim1", 1)))
        order[a], order[b] = order[b], order[a]
    if order[0] != 0:
        raise NotImplementedError(f"{described(node)} moves the batch dimension; {NOT_YET}")
    path.axis = order.index(path.axis)
    path.step(node, where(node), "identity" if path.positions == 1 else "mixing", opname(node))
    path.replay(_replayable(node))


def _mean(path: Path, node: fx.Node, chain: Chain) -> None:
    arguments = bound(node)
    dims = sorted({int(dim) % path.dims for dim in arguments.get("dim") or range(path.dims)})
    if 0 in dims or path.axis in dims:
        raise NotImplementedError(f"{described(node)} averages over the batch or the channels; {NOT_YET}")
    path.axis -= 0 if arguments["keepdim"] else sum(dim < path.axis for dim in dims)
    path.step(node, where(node), "mixing", "mean")
    path.replay(_replayable(node))


def _softmax(path: Path, node: fx.Node, chain: Chain) -> None:
    path.block(f"{described(node)} is not elementwise: what it gives one unit depends on the others")
    path.step(node, where(node), "other", opname(node))
    path.replay(_replayable(node))
    path.activation()


def _require_module(chain: Chain, node: fx.Node, *kinds: type[nn.Module]) -> None:
    module = chain.model.get_submodule(where(node))
    if not any(type(module).forward is kind.forward for kind in kinds):
        names = " or ".join(f"torch.nn.{kind.__name__}" for kind in kinds)
        found = type(module).__name__
        raise NotImplementedError(f"{described(node)} runs in {found} and not in a plain {names}; {NOT_YET}")


def _require_channel_axis(path: Path, node: fx.Node) -> None:
    if path.axis != 1:
        raise NotImplementedError(
            f"{described(node)} runs over dimension 1, but the channels of {path.name!r} lie on {path.axis}; {NOT_YET}"
        )


RULES: dict[str, Rule] = {
    "prelu": _prelu,
    "batch_norm": _batch_norm,
    "getitem": _pick,
    "mean": _mean,
    **dict.fromkeys(_SAME, _same),
    **dict.fromkeys(_DROPOUTS, _dropout),
    **dict.fromkeys(_RESHAPES, _reshape),
    **dict.fromkeys(("permute", "transpose", "t"), _permute),
    **dict.fromkeys(("softmax", "log_softmax"), _softmax),
    **dict.fromkeys(_HOMOGENEOUS, partial(_elementwise, transfer="homogeneous")),
    **dict.fromkeys(_AFFINE, partial(_elementwise, transfer="affine")),
    **dict.fromkeys(_OTHER, partial(_elementwise, transfer="other")),
    **{name: partial(_pool, spatial=dims, transfer="homogeneous") for name, dims in _MAX_POOLS.items()},
    **{name: partial(_pool, spatial=dims, transfer="mixing") for name, dims in _AVG_POOLS.items()},
}
