"""Products: linear layers, matrix products, einsum, attention. One rule for all: operands with named dimensions.

Atoms that meet along a contracted dimension are united if one side is a weight. Between two activations nothing can be
removed along it, so that with several heads whole heads remain as units.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import fx

from ..capture import bound, described
from ..flow import Flow, Rule, Use, Work, shape_of
from ..labels import Label, Labels, Shape, over, support

BATCH = "abcdefgh"


@dataclass(frozen=True)
class Operand:
    """One side of a product: its dimensions by name, its labels, and whether it is made of parameters alone."""

    node: fx.Node
    letters: str
    shape: Shape
    labels: Labels
    weight: bool

    def spread(self, letters: str) -> list[Label]:
        """The labels with one dimension for each of ``letters``, of size 1 where the operand has none."""
        order = sorted(range(len(self.letters)), key=lambda dim: letters.index(self.letters[dim]))
        sizes = [self.letters.find(letter) for letter in letters]
        return [
            label.transpose(order).reshape([label.shape[dim] if dim >= 0 else 1 for dim in sizes])
            for label in self.labels
        ]

    def sizes(self, letters: str) -> Shape:
        """The shape with one dimension for each of ``letters``."""
        return tuple(self.shape[self.letters.index(one)] if one in self.letters else 1 for one in letters)


def operand(flow: Flow, node: fx.Node, letters: str) -> Operand:
    """An argument of a product."""
    return Operand(node, letters, shape_of(node), flow.labels(node), node in flow.weights)


def contract(flow: Flow, node: fx.Node, left: Operand, right: Operand, out: str) -> Labels:
    """Labels of a product whose output has the dimensions ``out``; notes who produces and who reads which atoms."""
    letters = "".join(dict.fromkeys(left.letters + right.letters))
    pair = (left.spread(letters), right.spread(letters))
    sizes = tuple(max(sides) for sides in zip(left.sizes(letters), right.sizes(letters), strict=True))
    _note_work(flow, node, sizes, [*pair[0], *pair[1]])
    for dim, letter in enumerate(letters):
        if letter not in out and sizes[dim] > 1:
            pair = _along(flow, node, (left, right), pair, dim, letter)
    _note_outputs(flow, node, left, right, pair, letters)
    shapes = [
        tuple(size if letter in out else 1 for size, letter in zip(side.sizes(letters), letters, strict=True))
        for side in (left, right)
    ]
    labels = flow.combined([(shape, tuple(found)) for shape, found in zip(shapes, pair, strict=True)], node)
    order = [letters.index(letter) for letter in out]
    rest = [dim for dim in range(len(letters)) if dim not in order]
    return tuple(label.transpose(order + rest).reshape([label.shape[dim] for dim in order]) for label in labels)


def _along(
    flow: Flow,
    node: fx.Node,
    sides: tuple[Operand, Operand],
    pair: tuple[list[Label], list[Label]],
    dim: int,
    letter: str,
) -> tuple[list[Label], list[Label]]:
    """Contract one dimension; the labels that are left on both sides."""
    left, right = sides
    first, second = over(tuple(pair[0]), dim), over(tuple(pair[1]), dim)
    if first is not None and second is not None and (left.weight or right.weight):
        flow.unite(first, second)
        reads, source = (second, left) if right.weight else (first, right)
        flow.consumed.append(Use(reads.ravel(), node, source.node))
        if left.weight and right.weight:
            flow.produced.append(Use(first.ravel(), node, None))
        return _dropped(pair[0], dim), _dropped(pair[1], dim)
    if letter not in left.letters or letter not in right.letters:
        reason = f"{described(node)} sums over them"
    elif left.weight or right.weight:
        reason = f"{described(node)} multiplies them with values that have no channels"
    else:
        reason = f"{described(node)} contracts them between two activations"
    for label in (first, second):
        if label is not None:
            flow.pin(label, dim, reason)
    return _cut(pair[0], dim), _cut(pair[1], dim)


def _dropped(labels: Iterable[Label], dim: int) -> list[Label]:
    return [label for label in labels if label.shape[dim] == 1]


def _cut(labels: Iterable[Label], dim: int) -> list[Label]:
    return [label.take([0], axis=dim) if label.shape[dim] > 1 else label for label in labels]


def _note_work(flow: Flow, node: fx.Node, sizes: Shape, labels: list[Label]) -> None:
    taken: set[int] = set()
    runs: list[Label] = []
    for label in labels:
        dims = set(support(label))
        if dims and not dims & taken:
            runs.append(label.ravel())
            taken |= dims
    flow.work.append(Work(node, math.prod(size for dim, size in enumerate(sizes) if dim not in taken), tuple(runs)))


def _note_outputs(
    flow: Flow,
    node: fx.Node,
    left: Operand,
    right: Operand,
    pair: tuple[list[Label], list[Label]],
    letters: str,
) -> None:
    for side, other, labels in ((right, left, pair[1]), (left, right, pair[0])):
        if side.weight:
            own = [label for label in labels if any(letters[dim] not in other.letters for dim in support(label))]
            flow.produced.extend(Use(label.ravel(), node, other.node) for label in own)
            return


def add_bias(flow: Flow, node: fx.Node, labels: Labels, bias: Any) -> Labels:
    """The labels of an output to which a bias is added; the bias belongs to the layer."""
    if not isinstance(bias, fx.Node):
        return labels
    theirs = flow.labels(bias)
    flow.produced.extend(Use(label.ravel(), node, None) for label in theirs)
    return flow.combined([(shape_of(node), labels), (shape_of(bias), theirs)], node)


def _linear(flow: Flow, node: fx.Node) -> None:
    found = bound(node)
    batch = BATCH[: len(shape_of(found["input"])) - 1]
    left, right = operand(flow, found["input"], f"{batch}k"), operand(flow, found["weight"], "ok")
    labels = contract(flow, node, left, right, f"{batch}o")
    flow.pass_on(node, add_bias(flow, node, labels, found["bias"]), "other", "layer")


def _matmul(flow: Flow, node: fx.Node) -> None:
    left, right = node.args[0], node.args[1]
    flow.pass_on(node, _product(flow, node, left, right), "other", _kind(flow, left, right))


def _addmm(flow: Flow, node: fx.Node) -> None:
    bias, left, right = node.args[:3]
    labels = add_bias(flow, node, _product(flow, node, left, right), bias)
    flow.pass_on(node, labels, "other", _kind(flow, left, right))


def _kind(flow: Flow, left: Any, right: Any) -> Any:
    return "layer" if left in flow.weights or right in flow.weights else "combine"


def _product(flow: Flow, node: fx.Node, left: Any, right: Any) -> Labels:
    dims = len(shape_of(left)), len(shape_of(right))
    batch = BATCH[: max(*dims, 2) - 2]
    first = "k" if dims[0] == 1 else f"{batch[len(batch) - dims[0] + 2 :]}mk"
    second = "k" if dims[1] == 1 else f"{batch[len(batch) - dims[1] + 2 :]}kn"
    out = f"{batch}{'m' if dims[0] > 1 else ''}{'n' if dims[1] > 1 else ''}"
    return contract(flow, node, operand(flow, left, first), operand(flow, right, second), out)


def _einsum(flow: Flow, node: fx.Node) -> None:
    equation, values = str(node.args[0]).replace(" ", ""), list(node.args[1])  # type: ignore[arg-type]
    terms, arrow, out = equation.partition("->")
    inputs = terms.split(",")
    plain = "." not in equation and all(len(set(term)) == len(term) for term in inputs)
    if len(values) != 2 or not plain or not all(isinstance(value, fx.Node) for value in values):
        flow.freeze_all(node, f"{described(node)} of the form {equation!r} is not understood")
        return
    if not arrow:
        out = "".join(sorted(one for one in set("".join(inputs)) if "".join(inputs).count(one) == 1))
    left, right = (operand(flow, value, term) for value, term in zip(values, inputs, strict=True))
    flow.pass_on(node, contract(flow, node, left, right, out), "other", _kind(flow, *values))


def _attention(flow: Flow, node: fx.Node) -> None:
    found = bound(node)
    if found["dropout_p"]:
        flow.freeze_all(node, f"{described(node)} drops values in eval mode too")
        return
    query, key, value = (found[name] for name in ("query", "key", "value"))
    batch = BATCH[: len(shape_of(query)) - 2]
    left = operand(flow, query, f"{batch}le")
    right, last = (_heads_like(left, operand(flow, one, f"{batch}s{end}")) for one, end in ((key, "e"), (value, "v")))
    scores = contract(flow, node, left, right, f"{batch}ls")
    shape = (
        *(max(a, b) for a, b in zip(left.shape[:-2], right.shape[:-2], strict=True)),
        left.shape[-2],
        right.shape[-2],
    )
    if isinstance(found["attn_mask"], fx.Node):
        mask = found["attn_mask"]
        scores = flow.combined([(shape, scores), (shape_of(mask), flow.labels(mask))], node)
    keys = over(scores, len(batch) + 1)
    if keys is not None:
        flow.pin(keys, len(batch) + 1, f"{described(node)} is normalised over them")
    weights = Operand(node, f"{batch}ls", shape, tuple(_cut(scores, len(batch) + 1)), False)
    flow.pass_on(node, contract(flow, node, weights, last, f"{batch}lv"), "other", "combine")


def _heads_like(query: Operand, side: Operand) -> Operand:
    """Keys and values with fewer heads than the queries serve several of them in a row."""
    if len(side.shape) < 3 or side.shape[-3] in (1, query.shape[-3]):
        return side
    heads, dim = query.shape[-3], len(side.shape) - 3
    labels = tuple(
        np.repeat(label, heads // side.shape[-3], axis=dim) if label.shape[dim] > 1 else label for label in side.labels
    )
    return Operand(side.node, side.letters, (*side.shape[:dim], heads, *side.shape[dim + 1 :]), labels, side.weight)


RULES: dict[str, Rule] = {
    "linear": _linear,
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot"), _matmul),
    **dict.fromkeys(("addmm", "baddbmm"), _addmm),
}
