"""What the walk through a captured model collects: labels of values, ties between atoms, frozen atoms, sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import fx, nn

from .capture import Captured, described, where
from .channels import Transfer
from .labels import Label, Labels, Shape, aligned, over, placed, support

Kind: TypeAlias = Literal["layer", "norm", "activation", "combine", "pool", "shape"]


@dataclass(frozen=True)
class Rectangle:
    """The atoms of ``label`` must go as a product set: whole slices along one of its dimensions."""

    label: Label


@dataclass(frozen=True)
class GroupedConvolution:
    """Inputs ``[groups, in/groups]``, outputs ``[groups, out/groups]``, and what all groups share along dimension 1 of
    the weight: its inputs ``[in/groups]``, or where it is transposed its outputs ``[out/groups]``.

    Either whole groups go, or as many channels from every group. ``inputs`` is None where they carry no label.
    """

    inputs: Label | None
    outputs: Label
    inner: Label | None
    node: fx.Node
    transposed: bool


@dataclass(frozen=True)
class Sized:
    """An integer attribute of a module (entry ``index`` of a tuple) that repeats the length of a run of atoms."""

    module: str
    attribute: str
    index: int | None
    atoms: Label


@dataclass(frozen=True)
class Use:
    """An operation that computes atoms (a layer's outputs), reads them by a weight or adds them up without one;
    ``source`` is the activation it reads."""

    atoms: Label
    node: fx.Node
    source: fx.Node | None


@dataclass(frozen=True)
class Work:
    """Multiply-adds of one operation: ``rest`` times the sizes of runs of atoms."""

    node: fx.Node
    rest: int
    runs: tuple[Label, ...]


@dataclass
class Flow:
    """The state of the walk. Atoms are numbered as they are made; edges say which must be removed together.

    ``constant`` values depend on no input, ``weights`` of them on parameters. ``blank`` are atoms of values that are
    equal all along a dimension: whatever they meet decides. While it is ``lenient``, as for values that nobody reads,
    nothing is frozen or pinned. ``summed`` and ``averaged`` are read by operations without weights; ``renumbered``
    tensors hold numbers of the atoms.
    """

    captured: Captured
    count: int = 0
    parameters: dict[str, Labels] = field(default_factory=dict)
    values: dict[fx.Node, Labels] = field(default_factory=dict)
    parts: dict[fx.Node, tuple[Labels, ...]] = field(default_factory=dict)
    constant: set[fx.Node] = field(default_factory=set)
    weights: set[fx.Node] = field(default_factory=set)
    blank: list[Label] = field(default_factory=list)
    lenient: bool = False
    transfer: dict[fx.Node, Transfer] = field(default_factory=dict)
    kind: dict[fx.Node, Kind] = field(default_factory=dict)
    edges: list[tuple[Label, Label]] = field(default_factory=list)
    frozen: list[tuple[Label, str]] = field(default_factory=list)
    notes: list[tuple[Label, str]] = field(default_factory=list)
    approximate: list[tuple[Label, str]] = field(default_factory=list)
    constraints: list[Rectangle | GroupedConvolution] = field(default_factory=list)
    sized: list[Sized] = field(default_factory=list)
    produced: list[Use] = field(default_factory=list)
    consumed: list[Use] = field(default_factory=list)
    summed: list[Use] = field(default_factory=list)
    averaged: list[Use] = field(default_factory=list)
    renumbered: dict[str, Label] = field(default_factory=dict)
    work: list[Work] = field(default_factory=list)

    def fresh(self, size: int) -> Label:
        """New atoms ``[size]``."""
        self.count += size
        return np.arange(self.count - size, self.count, dtype=np.int64)

    def uniform(self, dim: int, shape: Shape) -> Label:
        """A label of new atoms along a dimension in which all values are the same."""
        self.blank.append(self.fresh(shape[dim]))
        return placed(self.blank[-1], dim, len(shape))

    def is_blank(self, label: Label) -> bool:
        """Whether these are atoms of :meth:`uniform`."""
        first = int(label.flat[0])
        return any(int(run[0]) <= first <= int(run[-1]) for run in self.blank)

    def labels(self, value: Any) -> Labels:
        """Labels of an argument; none for numbers and for values without channels."""
        return self.values.get(value, ()) if isinstance(value, fx.Node) else ()

    def unite(self, first: Label, second: Label) -> None:
        """Atoms that meet (with broadcasting) must be removed together."""
        if first is second:
            return
        left, right = np.broadcast_arrays(first, second)
        self.edges.append((left.ravel(), right.ravel()))

    def freeze(self, label: Label, reason: str) -> None:
        """No atom of the label may be removed."""
        if self.lenient:
            return
        self.frozen.append((label.ravel(), reason))

    def pin(self, label: Label, dim: int, reason: str) -> None:
        """Nothing may be removed along ``dim``: freeze the atoms, or unite them along it if they vary elsewhere too."""
        if support(label) == (dim,):
            self.freeze(label, reason)
        elif label.shape[dim] > 1 and not self.lenient:
            self.unite(label, label.take([0], axis=dim))
            self.notes.append((label.ravel(), reason))

    def merged(self, labels: Iterable[Label]) -> Labels:
        """Labels of one tensor: those that vary over a common dimension are united into one.

        Equal values go along with atoms that vary over one dimension; with more there is nothing for them to decide.
        """
        given = [label for label in labels if support(label)]
        wide = {dim for label in given if len(support(label)) > 1 for dim in support(label)}
        result: list[Label] = []
        for label in given:
            dims = set(support(label))
            if len(dims) == 1 and dims & wide and self.is_blank(label):
                continue
            met = [other for other in result if dims & set(support(other))]
            joint = label
            for other in met:
                self.unite(label, other)
                shape = np.broadcast_shapes(joint.shape, other.shape)
                joint = np.broadcast_to(other if self.is_blank(joint) else joint, shape)
            result = [other for other in result if not any(other is one for one in met)] + [joint]
        return tuple(result)

    def pass_on(self, node: fx.Node, labels: Iterable[Label], transfer: Transfer, kind: Kind) -> None:
        """The labels of an operation's output, and how it treats what flows through it."""
        self.values[node] = self.merged(labels)
        self.transfer[node] = transfer
        self.kind[node] = kind

    def combined(self, operands: Sequence[tuple[Shape, Labels]], node: fx.Node) -> Labels:
        """Elementwise with broadcasting: atoms that meet are united, those that meet values without any are pinned."""
        dims = max(len(shape) for shape, _ in operands)
        full = [((1,) * (dims - len(shape)) + tuple(shape), [aligned(one, dims) for one in found])
                for shape, found in operands]  # fmt: skip
        for index, (_, found) in enumerate(full):
            others = full[:index] + full[index + 1 :]
            for label in found:
                for dim in support(label):
                    if any(shape[dim] > 1 and over(tuple(theirs), dim) is None for shape, theirs in others):
                        self.pin(label, dim, f"{described(node)} combines them with values that have no channels")
        return self.merged(label for _, found in full for label in found)

    def along(self, labels: Labels, label: Label, dim: int, shape: Shape, node: fx.Node) -> None:
        """Per-channel atoms ``label [size]`` of a layer meet dimension ``dim`` of a value."""
        met = over(labels, dim)
        if met is not None:
            self.unite(met, placed(label, dim, len(shape)))
        else:
            self.freeze(label, f"{described(node)} runs over values that have no channels")

    def attribute(self, node: fx.Node, kinds: tuple[type[nn.Module], ...], name: str, size: int, atoms: Label) -> None:
        """Note that the module of ``node`` repeats a size, if it is one of the known kinds."""
        module = self.module(node)
        if isinstance(module, kinds) and getattr(module, name) == size:
            self.sized.append(Sized(where(node), name, None, atoms))

    def module(self, node: fx.Node) -> nn.Module:
        """The module in which an operation runs."""
        return self.captured.model.get_submodule(where(node))

    def freeze_values(self, nodes: Iterable[fx.Node], reason: str) -> None:
        """Freeze all atoms of some values."""
        for node in nodes:
            for label in self._everything(node):
                self.freeze(label, reason)

    def freeze_all(self, node: fx.Node, reason: str) -> None:
        """Freeze every atom that an operation touches; its output has no channels."""
        self.freeze_values(node.all_input_nodes, reason)
        for source in node.all_input_nodes:
            rows = over(self.labels(source), 0) if self._is_weight(source) else None
            if rows is not None:
                self.produced.append(Use(rows.ravel(), node, None))
        self.values[node] = ()
        self.transfer[node], self.kind[node] = "other", "combine"

    def _is_weight(self, node: fx.Node) -> bool:
        found = self.captured.constants.get(node.name)
        return isinstance(found, nn.Parameter) and found.dim() > 1

    def _everything(self, node: fx.Node) -> Iterator[Label]:
        yield from self.values.get(node, ())
        for part in self.parts.get(node, ()):
            yield from part


Rule: TypeAlias = Callable[[Flow, fx.Node], None]


def shape_of(value: Any) -> Shape:
    """Shape of an argument; () for numbers."""
    found = value.meta.get("val") if isinstance(value, fx.Node) else value
    return tuple(int(size) for size in found.shape) if isinstance(found, torch.Tensor) else ()
