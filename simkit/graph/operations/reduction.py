"""Pooling, resizing and reductions: over positions they pass, over channels nothing can be removed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import fx

from ..capture import bound, described, opname
from ..channels import Transfer
from ..flow import Flow, Kind, Rule, Use, shape_of
from ..labels import Labels, support, without

_MAX_POOLS = {f"{prefix}max_pool{n}d": n for n in (1, 2, 3) for prefix in ("", "adaptive_")}
_MAX_POOLS |= {f"max_pool{n}d_with_indices": n for n in (1, 2, 3)}
_STATISTICS = ("mean", "nanmean", "var", "std", "var_mean", "std_mean")
_SUMS = ("sum", "nansum")
_AVG_POOLS = {f"{prefix}avg_pool{n}d": n for n in (1, 2, 3) for prefix in ("", "adaptive_")}
_RESIZES = {
    "upsample_nearest1d": 1, "upsample_nearest2d": 2, "upsample_nearest3d": 3, "upsample_linear1d": 1,
    "upsample_bilinear2d": 2, "upsample_bicubic2d": 2, "upsample_trilinear3d": 3, "_upsample_nearest_exact2d": 2,
}  # fmt: skip


def _over_positions(flow: Flow, node: fx.Node, *, spatial: int, transfer: Transfer) -> None:
    shape = shape_of(node.args[0])
    labels = _pinned(flow, node, range(len(shape) - spatial, len(shape)))
    if isinstance(node.meta["val"], (tuple, list)):
        flow.parts[node] = tuple(labels for _ in node.meta["val"])
    flow.pass_on(node, labels, transfer, "pool")


def _pinned(flow: Flow, node: fx.Node, dims: Sequence[int], uses: list[Use] | None = None) -> Labels:
    """The labels that are left once nothing can be removed along ``dims``, but from what is noted in ``uses``."""
    labels = []
    for label in flow.labels(node.args[0]):
        for dim in dims:
            if uses is not None and support(label) == (dim,):
                uses.append(Use(label.ravel(), node, node.all_input_nodes[0]))
                label = label.take([0], axis=dim)  # noqa: PLW2901
            elif label.shape[dim] > 1:
                flow.pin(label, dim, f"{described(node)} runs over them")
                label = label.take([0], axis=dim)  # noqa: PLW2901
        labels.append(label)
    return tuple(labels)


def _reduction(flow: Flow, node: fx.Node, *, transfer: Transfer, kind: Kind) -> None:
    found = bound(node)
    count = len(shape_of(node.args[0]))
    given = found.get("dim")
    listed = [given] if isinstance(given, int) else list(given or range(count))
    dims = [int(dim) % max(count, 1) for dim in listed]
    uses: list[Use] = []
    averages = opname(node) in _STATISTICS
    # A weight that is divided by its length keeps it where the layer reads zeros, and loses some where it is cut.
    open_ = node.args[0] not in flow.weights and (averages or _ignores_zeros(node))
    kept = _pinned(flow, node, dims, uses if open_ else None)
    if flow.lenient:
        uses.clear()
    if averages:
        flow.averaged.extend(uses)
        for use in uses:
            flow.approximate.append((use.atoms, f"the statistics of {described(node)} run over the channels"))
    else:
        flow.summed.extend(uses)
    labels = tuple(without(label, dims, bool(found.get("keepdim"))) for label in kept)
    if isinstance(node.meta["val"], (tuple, list)):
        flow.parts[node] = tuple(labels for _ in node.meta["val"])
    flow.pass_on(node, labels, transfer, kind)


def _ignores_zeros(node: fx.Node) -> bool:
    """Whether a removed term counts as much as a term that is zero."""
    order: Any = bound(node).get("ord", 2)
    return opname(node) in _SUMS or (opname(node) == "linalg_vector_norm" and order > 0)


def _extreme(flow: Flow, node: fx.Node) -> None:
    """``max`` and ``min`` of one tensor reduce, of two they compare elementwise."""
    if len(node.all_input_nodes) > 1:
        operands = [(shape_of(one), flow.labels(one)) for one in node.all_input_nodes]
        flow.pass_on(node, flow.combined(operands, node), "other", "combine")
    else:
        _reduction(flow, node, transfer="homogeneous", kind="pool")


def _getitem(flow: Flow, node: fx.Node) -> None:
    source, index = node.args
    if not isinstance(source, fx.Node) or source not in flow.parts or not isinstance(index, int):
        flow.freeze_all(node, f"{opname(node)!r} picks from something that is not understood")
        return
    flow.pass_on(node, flow.parts[source][index], "identity", "shape")


RULES: dict[str, Rule] = {
    "getitem": _getitem,
    **dict.fromkeys(("max", "min"), _extreme),
    **dict.fromkeys(("mean", "sum", "nanmean", "nansum"), partial(_reduction, transfer="mixing", kind="pool")),
    **dict.fromkeys(("amax", "amin"), partial(_reduction, transfer="homogeneous", kind="pool")),
    **dict.fromkeys(
        (
            "var",
            "std",
            "var_mean",
            "std_mean",
            "linalg_vector_norm",
            "norm",
            "logsumexp",
            "prod",
            "argmax",
            "argmin",
            "all",
            "any",
        ),
        partial(_reduction, transfer="other", kind="activation"),
    ),
    **{name: partial(_over_positions, spatial=dims, transfer="homogeneous") for name, dims in _MAX_POOLS.items()},
    **{name: partial(_over_positions, spatial=dims, transfer="mixing") for name, dims in _AVG_POOLS.items()},
    **{name: partial(_over_positions, spatial=dims, transfer="mixing") for name, dims in _RESIZES.items()},
}
