"""Atoms -> units: union-find over the edges, and the constraints that leave a choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import nn

from .capture import described
from .flow import Flow, GroupedConvolution, Rectangle, Use
from .labels import Label, reduced, support

Edges = Sequence[tuple[Label, Label]]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Solution:
    """``roots [atoms]``: the coupled set of every atom; ``reason``: root -> why it is frozen; ``notes``: root -> why
    atoms were united where nothing could be removed."""

    roots: Label
    reason: dict[int, str]
    notes: dict[int, str]


def solve(flow: Flow) -> Solution:
    """Unite what must go together; constraints are settled one by one so that most units are left."""
    roots = _components(flow.count, flow.edges)
    waiting = list(flow.constraints)
    while waiting:
        frozen = _frozen(flow, roots)
        index = next((i for i, one in enumerate(waiting) if _is_open(one, roots)), None)
        if index is None:
            break
        one = waiting[index]
        if isinstance(one, Rectangle):
            edges = _settle_rectangle(roots[one.label], frozen)
        else:
            edges = _settle_groups(flow, one, roots, frozen)
            waiting.pop(index)
        # Roots are atoms of no meaning of their own: edges between them are lifted to representatives.
        first = _representatives(roots)
        lifted = [(first[left], first[right]) for left, right in edges]
        flow.edges.extend(lifted)
        roots = _merge(roots, edges)
    return Solution(roots, _by_root(roots, flow.frozen), _by_root(roots, flow.notes))


def _components(count: int, edges: Edges) -> Label:
    if not edges:
        return np.arange(count, dtype=np.int64)
    left = np.concatenate([one for one, _ in edges])
    right = np.concatenate([one for _, one in edges])
    graph = coo_array((np.ones(len(left), dtype=np.int8), (left, right)), shape=(count, count))
    roots: Label = connected_components(graph, directed=False)[1].astype(np.int64)
    return roots


def _merge(roots: Label, edges: Edges) -> Label:
    return _components(int(roots.max()) + 1, edges)[roots]


def _representatives(roots: Label) -> Label:
    return np.unique(roots, return_index=True)[1].astype(np.int64)


def _frozen(flow: Flow, roots: Label) -> Mask:
    mask = np.zeros(int(roots.max()) + 1, dtype=np.bool_)
    for atoms, _ in flow.frozen:
        mask[roots[atoms]] = True
    return mask


def _by_root(roots: Label, said: Sequence[tuple[Label, str]]) -> dict[int, str]:
    found: dict[int, str] = {}
    for atoms, reason in said:
        for root in np.unique(roots[atoms]):
            found.setdefault(int(root), reason)
    return found


def _is_open(one: Rectangle | GroupedConvolution, roots: Label) -> bool:
    return isinstance(one, GroupedConvolution) or len(support(reduced(roots[one.label]))) > 1


def _left(roots: Label, edges: Edges, frozen: Mask) -> int:
    """How many of the coupled sets in ``roots`` could still be removed, separately, with these edges."""
    known = np.unique(roots)
    local = [(np.searchsorted(known, left), np.searchsorted(known, right)) for left, right in edges]
    parts = _components(len(known), local)
    stuck = np.zeros(int(parts.max()) + 1, dtype=np.bool_)
    stuck[parts[frozen[known]]] = True
    return int((~stuck).sum())


def _settle_rectangle(roots: Label, frozen: Mask) -> Edges:
    """Unite along all dimensions but the one that leaves most units; on ties the first."""
    choices = [(_along_all_but(roots, dim), dim) for dim in support(reduced(roots))]
    return max(choices, key=lambda choice: (_left(roots, choice[0], frozen), -choice[1]))[0]


def _along_all_but(roots: Label, keep: int) -> Edges:
    flat = np.moveaxis(roots, keep, 0).reshape(roots.shape[keep], -1)
    return [(np.repeat(flat[:, 0], flat.shape[1]), flat.ravel())]


def _settle_groups(flow: Flow, one: GroupedConvolution, roots: Label, frozen: Mask) -> Edges:
    """Whole groups of a convolution, or as many channels of every group: what leaves more units."""
    outputs = roots[one.outputs]
    inputs = None if one.inputs is None else roots[one.inputs]
    alike = _alike(outputs) + ([] if inputs is None else _alike(inputs))
    if inputs is not None:
        everything = np.concatenate([outputs.ravel(), inputs.ravel()])
        whole = [*_along_all_but(outputs, 0), *_along_all_but(inputs, 0), (outputs[:, 0], inputs[:, 0])]
        if _left(everything, whole, frozen) >= _left(everything, alike, frozen):
            _whole_groups(flow, one)
            return whole
    shared = outputs[0] if one.transposed else None if inputs is None else inputs[0]
    if one.inner is not None and shared is not None:
        alike.append((roots[one.inner], shared))
    _note_uses(flow, one)
    return alike


def _note_uses(flow: Flow, one: GroupedConvolution) -> None:
    """Who produces and who reads where as many channels of every group go."""
    source = one.node.all_input_nodes[0]
    makes, reads = (one.inner, one.inputs) if one.transposed else (one.outputs, one.inner)
    if makes is None:
        flow.freeze(one.outputs, f"{described(one.node)} makes one of them for every group")
    else:
        flow.produced.append(Use(makes.ravel(), one.node, source))
    if reads is not None and one.inputs is not None:
        flow.consumed.append(Use(reads.ravel(), one.node, source))
    elif reads is not None:
        flow.freeze(reads, f"{described(one.node)} reads values that have no channels")


def _alike(roots: Label) -> list[tuple[Label, Label]]:
    return [(np.tile(roots[0], len(roots)), roots.ravel())]


def _whole_groups(flow: Flow, one: GroupedConvolution) -> None:
    assert one.inputs is not None
    if one.inner is not None:
        flow.freeze(one.inner, f"{described(one.node)} loses whole groups")
    kinds = (nn.modules.conv._ConvNd,)
    flow.attribute(one.node, kinds, "groups", len(one.inputs), one.inputs[:, 0])
