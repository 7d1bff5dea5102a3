"""Operations that work on every element for itself, with broadcasting."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import fx

from ..capture import bound, described, opname
from ..channels import Transfer
from ..flow import Flow, Kind, Rule, shape_of
from ..labels import over

# fmt: off
_HOMOGENEOUS = ("relu", "leaky_relu")
_OTHER = (
    "abs", "acos", "asin", "atan", "ceil", "celu", "clamp", "clamp_max", "clamp_min", "clip", "cos",
    "cosh", "elu", "erf", "exp", "exp2", "expm1", "floor", "gelu", "hardshrink", "hardsigmoid", "hardswish",
    "hardtanh", "isnan", "log", "log10", "log1p", "log2", "log_sigmoid", "logit", "logical_not", "mish", "nan_to_num",
    "reciprocal", "relu6", "round", "rsqrt", "rrelu", "selu", "sgn", "sigmoid", "sign", "silu", "sin", "sinh",
    "softplus", "softshrink", "softsign", "sqrt", "square", "tan", "tanh", "tanhshrink", "threshold", "trunc",
)
_COMBINING = (
    "addcdiv", "addcmul", "atan2", "bitwise_and", "bitwise_not", "bitwise_or", "eq", "floor_divide", "fmod", "ge", "gt",
    "le", "lerp", "logical_and", "logical_or", "lt", "masked_fill", "maximum", "minimum", "ne", "pow", "remainder",
    "where", "__and__", "__or__",
)
# fmt: on
_SUMS = ("add", "sub", "rsub")
_PRODUCTS = ("mul", "div", "multiply", "divide", "neg")
_SAME = ("alias", "clone", "contiguous", "detach", "lift_fresh_copy", "to", "_to_copy", "type_as", "float", "double")
_LIKE = ("zeros_like", "ones_like", "full_like", "empty_like")
_FILLED = ("full", "new_full", "new_ones", "new_zeros", "ones", "zeros")
_DROPOUTS = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
_MAKERS = ("arange", "empty", "eye", "linspace", "scalar_tensor")


def _elementwise(flow: Flow, node: fx.Node, *, transfer: Transfer, kind: Kind) -> None:
    operands = [(shape_of(one), flow.labels(one)) for one in node.all_input_nodes]
    flow.pass_on(node, flow.combined(operands, node), transfer, kind)


def _sum(flow: Flow, node: fx.Node) -> None:
    """Of two activations both of which run through channels: linear in both, so scales pass; else a shift."""
    _elementwise(flow, node, transfer=_pairwise(flow, node, both="identity"), kind="combine")


def _product(flow: Flow, node: fx.Node) -> None:
    _elementwise(flow, node, transfer=_pairwise(flow, node, both="other"), kind="combine")


def _pairwise(flow: Flow, node: fx.Node, both: Transfer) -> Transfer:
    moving = [one for one in node.args if isinstance(one, fx.Node) and one not in flow.constant]
    return both if len(moving) > 1 and all(flow.labels(one) for one in moving) else "affine"


def _same(flow: Flow, node: fx.Node) -> None:
    flow.pass_on(node, flow.labels(node.args[0]), "identity", "shape")


def _dropout(flow: Flow, node: fx.Node) -> None:
    if bound(node)["train"]:
        flow.freeze_all(node, f"{described(node)} drops units in eval mode too")
    else:
        _same(flow, node)


def _maker(flow: Flow, node: fx.Node) -> None:
    flow.pass_on(node, (), "other", "shape")


def _filled(flow: Flow, node: fx.Node) -> None:
    """One value everywhere: of whatever length the code makes it."""
    flow.constant.add(node)
    shape = shape_of(node)
    flow.pass_on(node, [flow.uniform(dim, shape) for dim, size in enumerate(shape) if size > 1], "other", "shape")


def _like(flow: Flow, node: fx.Node) -> None:
    """Of the shape of another value, but not of its values."""
    flow.constant.add(node)
    source, shape = flow.labels(node.args[0]), shape_of(node)
    new = [flow.uniform(dim, shape) for dim, size in enumerate(shape) if size > 1 and over(source, dim) is None]
    flow.pass_on(node, [*source, *new], "other", "shape")


def _softmax(flow: Flow, node: fx.Node) -> None:
    kept = []
    for label in flow.labels(node.args[0]):
        for dim in _dims(node):
            flow.pin(label, dim, f"{described(node)} is not elementwise: what it gives one unit depends on the others")
            label = label.take([0], axis=dim)  # noqa: PLW2901
        kept.append(label)
    flow.pass_on(node, kept, "other", "activation")


def _dims(node: fx.Node) -> list[int]:
    found = bound(node)
    given: Any = found.get("dim", found.get("dims"))
    count = len(shape_of(node))
    listed = [given] if isinstance(given, int) else list(given or range(count))
    return [int(dim) % max(count, 1) for dim in listed]


def _triangle(flow: Flow, node: fx.Node) -> None:
    labels = flow.labels(node.args[0])
    dims = len(shape_of(node))
    for label in labels:
        for dim in (dims - 2, dims - 1):
            flow.pin(label, dim, f"{opname(node)!r} depends on where they lie")
    flow.pass_on(node, [label for label in labels if label.shape[-2:] == (1, 1)], "other", "combine")


RULES: dict[str, Rule] = {
    **dict.fromkeys(_HOMOGENEOUS, partial(_elementwise, transfer="homogeneous", kind="activation")),
    **dict.fromkeys(_OTHER, partial(_elementwise, transfer="other", kind="activation")),
    **dict.fromkeys(_COMBINING, partial(_elementwise, transfer="other", kind="combine")),
    **dict.fromkeys(_SUMS, _sum),
    **dict.fromkeys(_PRODUCTS, _product),
    **dict.fromkeys(_SAME, _same),
    **dict.fromkeys(_LIKE, _like),
    **dict.fromkeys(_FILLED, _filled),
    **dict.fromkeys(_DROPOUTS, _dropout),
    **dict.fromkeys(_MAKERS, _maker),
    **dict.fromkeys(("softmax", "log_softmax", "cumsum", "cumprod", "roll"), _softmax),
    **dict.fromkeys(("tril", "triu"), _triangle),
}
