"""The channel graph as data: groups of coupled channels, where they lie in which tensor, and what carries them on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

Role = Literal["producer", "carrier", "consumer"]
Transfer = Literal["identity", "homogeneous", "affine", "mixing", "other"]
TensorMap = Callable[[torch.Tensor], torch.Tensor]


def weakest(transfers: Iterable[Transfer]) -> Transfer:
    """The class of a path: that of its least structured step (identity is the most structured)."""
    order = get_args(Transfer)
    return max(transfers, key=order.index, default="identity")


@dataclass(frozen=True)
class Slot:
    """Where the units of a group lie in one tensor: unit u is ``positions`` consecutive indices along ``dim``.

    ``masked`` says whether masking a unit sets these entries to zero (running variances and consumers stay).
    """

    role: Role
    tensor: str
    dim: int
    positions: int
    masked: bool

    @property
    def module(self) -> str:
        """Path of the module that owns the tensor."""
        return self.tensor.rpartition(".")[0]

    def indices(self, units: Sequence[int], device: torch.device | None = None) -> torch.Tensor:
        """The indices [len(units) * positions] along ``dim`` that belong to ``units``, in the order of ``units``."""
        starts = torch.tensor(units, dtype=torch.int64, device=device) * self.positions
        return (starts[:, None] + torch.arange(self.positions, device=device)).reshape(-1)


@dataclass(frozen=True)
class Step:
    """One operation between producer and consumer, the module it runs in, and its transfer class.

    identity: passes values on; homogeneous: f(s·v) = s·f(v) for s > 0 (ReLU, max-pool); affine: per channel
    (BatchNorm); mixing: linear within a channel (average pool, flatten); other: none of these.
    """

    op: str
    module: str
    transfer: Transfer


@dataclass(frozen=True)
class View:
    """Where to read the representation of a group: the output of ``module``, followed by the operations ``tail``."""

    module: str
    tail: tuple[TensorMap, ...]
    axis: int
    elements: int

    def read(self, output: torch.Tensor, units: int) -> torch.Tensor:
        """The representation ``[n, units, positions]`` from the module's output; always a new tensor."""
        value = output.detach()
        for step in self.tail:
            value = step(value)
        value = value.movedim(self.axis, 1).reshape(value.shape[0], units, -1)
        return value.clone() if value.untyped_storage().data_ptr() == output.untyped_storage().data_ptr() else value


@dataclass(frozen=True)
class Group:
    """Channels that are removed together: one producing layer, what carries its channels, the layer that consumes them.

    ``response`` is the constant that a masked unit feeds to the consumer. ``sites`` is the number of output positions
    of the producing layer per sample (1 for a linear layer on ``[n, p]``). ``frozen`` is the reason why no unit may be
    removed, or None.
    """

    name: str
    kind: str
    units: int
    slots: tuple[Slot, ...]
    steps: tuple[Step, ...]
    response: float
    sites: int
    view: View
    frozen: str | None

    @property
    def producers(self) -> tuple[Slot, ...]:
        """Slots of the layer that computes the units (weight, bias)."""
        return tuple(slot for slot in self.slots if slot.role == "producer")

    @property
    def carriers(self) -> tuple[Slot, ...]:
        """Slots of per-channel tensors on the way (BatchNorm, PReLU)."""
        return tuple(slot for slot in self.slots if slot.role == "carrier")

    @property
    def consumers(self) -> tuple[Slot, ...]:
        """Slots of the layer that reads the units."""
        return tuple(slot for slot in self.slots if slot.role == "consumer")

    @property
    def transfer(self) -> Transfer:
        """Transfer class of the path from producer to consumer."""
        return weakest(step.transfer for step in self.steps)


@dataclass(frozen=True)
class ChannelGraph:
    """The groups of a model in the order in which they run."""

    groups: tuple[Group, ...]

    @property
    def prunable(self) -> tuple[Group, ...]:
        """Groups from which units may be removed."""
        return tuple(group for group in self.groups if group.frozen is None)

    @property
    def frozen(self) -> dict[str, str]:
        """Layer name -> the reason why its units stay."""
        return {group.name: group.frozen for group in self.groups if group.frozen is not None}

    def explain(self) -> str:
        """One line per group: the layer, its units, the path to its consumer, and why it is frozen if it is."""
        return "\n".join(_line(group) for group in self.groups)


def _line(group: Group) -> str:
    path = " > ".join(step.op for step in group.steps) or "directly"
    target = ", ".join(slot.module for slot in group.consumers) or "the output"
    state = f"frozen: {group.frozen}" if group.frozen else f"transfer {group.transfer}"
    return f"{group.name} ({group.kind}, {group.units} units) -> {path} -> {target}; {state}"
