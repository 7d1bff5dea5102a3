"""The channels of one layer on their way: where they lie, what carries them, what a masked one emits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import fx, nn

from .capture import NOT_YET, described
from .channels import Group, Slot, Step, TensorMap, Transfer, View

Layer: TypeAlias = nn.Linear | nn.Conv1d | nn.Conv2d


@dataclass
class Path:
    """A group under construction. Channel u lies on ``axis`` at ``positions`` consecutive indices from u·positions."""

    name: str
    kind: str
    units: int
    sites: int
    slots: list[Slot]
    shape: tuple[int, ...]
    axis: int
    view: View
    positions: int = 1
    response: float = 0.0
    blocked: str | None = None
    steps: list[Step] = field(default_factory=list)
    pending: list[TensorMap] = field(default_factory=list)

    @classmethod
    def open(cls, node: fx.Node, name: str, kind: str, producers: Sequence[Slot]) -> Path:
        """Start at the output of a producing layer."""
        shape = tuple(node.meta["val"].shape)
        axis = len(shape) - 1 if kind == "linear" else 1
        sample = _product(shape[1:])
        view = View(name, (), axis, sample)
        return cls(name, kind, shape[axis], sample // shape[axis], list(producers), shape, axis, view)

    @property
    def dims(self) -> int:
        """Number of dimensions of the current activation."""
        return len(self.shape)

    def step(self, node: fx.Node, module: str, transfer: Transfer, op: str) -> None:
        """Note one operation and the shape it leaves."""
        self.steps.append(Step(op, module, transfer))
        self.shape = tuple(node.meta["val"].shape)

    def replay(self, run: TensorMap) -> None:
        """An operation without parameters of its own: needed to read the representation if an activation follows."""
        self.pending.append(run)

    def activation(self) -> None:
        """The representation is what the operations noted so far leave."""
        tail = (*self.view.tail, *self.pending)
        self.view = View(self.view.module, tail, self.axis, _product(self.shape[1:]))
        self.pending.clear()

    def carried_by(self, module: str, slots: Sequence[Slot]) -> None:
        """A module with per-channel tensors: the representation is read at its output from now on."""
        self.slots += slots
        self.view = View(module, (), self.axis, _product(self.shape[1:]))
        self.pending.clear()

    def block(self, reason: str) -> None:
        """No unit may be removed; the first reason stands."""
        self.blocked = self.blocked or reason

    def reshape(self, node: fx.Node) -> None:
        """Follow the channels through a reshape (row-major); NotImplementedError if they do not stay whole."""
        new = tuple(node.meta["val"].shape)
        before = _product(self.shape[: self.axis])
        inner = self.positions * _product(self.shape[self.axis + 1 :])
        fits = [
            axis
            for axis in range(len(new))
            if axis > 0 and _product(new[:axis]) == before and new[axis] % self.units == 0
        ]
        if not fits or new[0] != self.shape[0]:
            change = f"{list(self.shape)} into {list(new)}"
            raise NotImplementedError(
                f"{described(node)} turns {change}, which does not keep the batch and the channels of {self.name!r} "
                f"apart; {NOT_YET}"
            )
        # Dimensions of size 1 leave a choice only when there is a single unit; the last one is the real axis then.
        self.axis = fits[-1]
        positions = inner // _product(new[self.axis + 1 :])
        transfer: Transfer = "identity" if positions == self.positions else "mixing"
        self.positions = positions
        self.step(node, "", transfer, "reshape")
        self.replay(lambda value: value.reshape(value.shape[0], *new[1:]))

    def close(self, node: fx.Node, layer: Layer, consumer: Slot) -> Group:
        """The finished group, read by the layer at ``node``."""
        if self.response != 0.0:
            self._fold_into(described(node), layer)
        self.slots.append(consumer)
        return self._group(self.blocked)

    def output(self) -> Group:
        """The finished group of the last layer."""
        return self._group("its units are the model's output")

    def _fold_into(self, reader: str, layer: Layer) -> None:
        value = f"a masked unit emits {self.response:.6g} and not 0"
        if layer.bias is None:
            self.block(f"{value}, and {reader} has no bias to take that up")
        if not isinstance(layer, nn.Linear) and layer.padding != "valid" and any(layer.padding):
            self.block(f"{value}, which the bias of {reader} cannot take up exactly at its padded borders")

    def _group(self, frozen: str | None) -> Group:
        return Group(
            name=self.name,
            kind=self.kind,
            units=self.units,
            slots=tuple(self.slots),
            steps=tuple(self.steps),
            response=self.response,
            sites=self.sites,
            view=self.view,
            frozen=frozen,
        )


def _product(sizes: Sequence[int]) -> int:
    return int(torch.Size(sizes).numel())
