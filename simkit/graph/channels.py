"""The channel graph as data: groups of coupled channels, where they lie in which tensor, and what carries them on."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import torch

Role = Literal["producer", "carrier", "consumer"]
Transfer = Literal["identity", "homogeneous", "affine", "mixing", "other"]
Units: TypeAlias = npt.NDArray[np.int64]


def weakest(transfers: Iterable[Transfer]) -> Transfer:
    """The class of a path: that of its least structured step (identity is the most structured)."""
    order = get_args(Transfer)
    return max(transfers, key=order.index, default="identity")


@dataclass(frozen=True)
class Step:
    """One operation between producer and consumer, the module it runs in, its transfer class, and whether every way
    from producer to consumer leads through it, ``once``.

    identity: passes values on, or adds up several channels of the group; homogeneous: f(s·v) = s·f(v) for s > 0 (ReLU,
    max-pool); affine: per channel (BatchNorm); mixing: linear within a channel (average pool, flatten); other: none of
    these.
    """

    op: str
    module: str
    transfer: Transfer
    once: bool = True


@dataclass(frozen=True, eq=False)
class View:
    """Where to read the representation of a group: the value of one node of the captured graph.

    ``units`` broadcasts to the value's shape and says which unit an element belongs to, -1 for none. Dimension 0 of
    the value holds ``rows`` rows of every sample (0: it does not hold samples), over which the units may vary too.
    ``elements`` of a sample are the group's.
    """

    node: str
    units: Units
    rows: int
    elements: int

    def read(self, value: torch.Tensor, count: int, batch: int) -> torch.Tensor:
        """The representation ``[batch, units, positions]`` from a value of ``batch`` samples; always a new tensor.

        ValueError if dimension 0 of the value does not hold the samples.
        """
        self._require_samples(value, batch)
        samples = value.detach().reshape(batch, -1)
        apart = self.units.ndim == value.dim() > 1 and self.units.shape[1] == self.units.size == count
        if apart and self.rows == 1 and np.array_equal(self.units.ravel(), np.arange(count)):
            return samples.clone().reshape(batch, count, -1)  # units lie one after another: nothing is to be gathered
        owners = np.broadcast_to(self.units, (self.rows, *value.shape[1:])).ravel()
        order = np.argsort(owners, kind="stable")
        order = order[owners[order] >= 0]
        return samples[:, torch.from_numpy(order).to(value.device)].reshape(batch, count, -1)

    @property
    def owners(self) -> Units:
        """The unit of every column of :meth:`table`, ascending."""
        return np.sort(self.units[self.units >= 0])

    def table(self, value: torch.Tensor, batch: int) -> torch.Tensor:
        """Positions as rows: ``[batch · positions, columns]``, sample by sample; always a new tensor.

        A column is an entry along the dimensions in which the units vary: a channel, of which a unit may have several
        (a head). ValueError if dimension 0 of the value does not hold the samples.
        """
        self._require_samples(value, batch)
        if self.units.shape[0] > 1:
            value = torch.unflatten(value, 0, (batch, self.rows))
        units = self.units.reshape((1,) * (value.dim() - self.units.ndim) + self.units.shape)
        varying = [dim for dim, size in enumerate(units.shape) if size > 1]
        last = list(range(value.dim() - len(varying), value.dim()))
        owners = self.units.ravel()
        order = np.argsort(owners, kind="stable")[(owners < 0).sum() :]
        rows = value.detach().movedim(varying, last).reshape(-1, len(owners))
        return rows[:, torch.from_numpy(order).to(value.device)]

    def _require_samples(self, value: torch.Tensor, batch: int) -> None:
        if not self.rows or value.shape[0] != self.rows * batch or self.units.shape[0] not in (1, self.rows):
            shape = tuple(value.shape)
            raise ValueError(f"node {self.node!r} of shape {shape} does not hold {batch} samples along dimension 0")


@dataclass(frozen=True, eq=False)
class Slot:
    """Where the units of a group lie along one dimension of a parameter or buffer.

    ``units [size]`` holds the unit at every position, -1 where the position belongs to no unit of the group.
    ``steps`` are the operations on the way from the producers to a consumer, ``reads`` the values that it reads.
    ``plain`` says that a producer or consumer uses the tensor as it is, not what is computed from it.
    """

    role: Role
    tensor: str
    dim: int
    units: Units
    steps: tuple[Step, ...] = ()
    reads: tuple[View, ...] = ()
    plain: bool = True

    @property
    def module(self) -> str:
        """Path of the module that owns the tensor."""
        return self.tensor.rpartition(".")[0]

    @property
    def transfer(self) -> Transfer:
        """Transfer class of the path from the producers to this slot."""
        return weakest(step.transfer for step in self.steps)

    def positions(self, units: Iterable[int]) -> Units:
        """The positions along ``dim``, ascending, that belong to any of ``units``."""
        return np.flatnonzero(np.isin(self.units, np.asarray(list(units), dtype=np.int64)))


@dataclass(frozen=True, eq=False)
class SizeAttribute:
    """An integer attribute of a module (entry ``index`` of a tuple) that repeats a number of channels.

    It equals ``len(units)`` and loses one for every position whose unit is removed.
    """

    module: str
    attribute: str
    index: int | None
    units: Units


@dataclass(frozen=True, eq=False)
class Total:
    """An operation that reads the units without a weight: ``node`` of the captured graph, over ``dim`` of its input.

    ``units [size]`` holds the unit at every position, -1 where there is none of the group. ``kept`` says that it is a
    statistic of the units that are there, as a mean is; a sum has zeros in the place of those that are not.
    """

    node: str
    module: str
    dim: int
    units: Units
    kept: bool


@dataclass(frozen=True, eq=False)
class Index:
    """A buffer of numbers of channels, which count ``len(units)`` of them: channel -> unit, -1 for none."""

    tensor: str
    units: Units


@dataclass(frozen=True, eq=False)
class Extent:
    """A run of the group's units along a dimension of the value of ``op`` in ``module``: a size its code may hold."""

    op: str
    module: str
    units: Units


@dataclass(frozen=True, eq=False)
class Group:
    """Channels that are removed together: the layers that compute them, what carries them, the layers that read them.

    ``units`` is their number, ``kind`` the operation of the first producing layer. ``approximate`` says why removal is
    not exactly masking (None: it is), ``frozen`` why no unit may be removed (None: they may). ``post`` and ``pre`` are
    where the representation is read: after the last activation before the first consumer, and before that activation.
    ``params`` and ``macs`` are what removing one unit alone saves; multiply-adds are for one sample.
    """

    name: str
    kind: str
    units: int
    slots: tuple[Slot, ...]
    sizes: tuple[SizeAttribute, ...]
    totals: tuple[Total, ...]
    indices: tuple[Index, ...]
    extents: tuple[Extent, ...]
    post: View | None
    pre: View | None
    params: int
    macs: int
    approximate: str | None
    frozen: str | None

    def having(self, role: Role) -> tuple[Slot, ...]:
        """The slots of one role."""
        return tuple(slot for slot in self.slots if slot.role == role)

    @property
    def producers(self) -> tuple[Slot, ...]:
        """Slots of the layers that compute the units (weights, biases, embeddings)."""
        return self.having("producer")

    @property
    def carriers(self) -> tuple[Slot, ...]:
        """Slots of per-channel tensors on the way (normalisation, PReLU, depthwise convolutions)."""
        return self.having("carrier")

    @property
    def consumers(self) -> tuple[Slot, ...]:
        """Slots of the layers that read the units."""
        return self.having("consumer")

    @property
    def transfer(self) -> Transfer:
        """Transfer class of the least structured path from producers to a consumer."""
        return weakest(slot.transfer for slot in self.consumers)


@dataclass(frozen=True, eq=False)
class Work:
    """Multiply-adds of one operation over the whole example: ``rest`` times the size of every run.

    A run says for every place which unit of which group (by its index in the graph) it belongs to, -1 for none.
    """

    rest: int
    runs: tuple[tuple[Units, Units], ...]


@dataclass(frozen=True, eq=False)
class ChannelGraph:
    """The groups of a model in the order in which they run, and the multiply-adds of its linear operations.

    ``batch`` is the number of samples of the example it was traced with, ``nodes`` the names of the operations.
    """

    groups: tuple[Group, ...]
    work: tuple[Work, ...]
    batch: int
    nodes: tuple[str, ...]

    @property
    def prunable(self) -> tuple[Group, ...]:
        """Groups from which units may be removed."""
        return tuple(group for group in self.groups if group.frozen is None)

    @property
    def frozen(self) -> dict[str, str]:
        """Layer name -> the reason why its units stay."""
        return {group.name: group.frozen for group in self.groups if group.frozen is not None}

    def macs(self, removed: Mapping[str, Collection[int]] | None = None) -> int:
        """Multiply-adds per sample once units (by group name) are removed."""
        gone = removed or {}
        kept = [np.ones(group.units + 1, dtype=np.bool_) for group in self.groups]
        for group, left in zip(self.groups, kept, strict=True):
            left[list(gone.get(group.name, ()))] = False
        if not kept:
            return sum(one.rest for one in self.work) // self.batch
        starts = np.cumsum([0, *(len(left) for left in kept)])
        stays = np.concatenate(kept)
        total = 0
        for one in self.work:
            sizes = [int(stays[np.where(groups < 0, starts[1] - 1, starts[groups] + units)].sum())
                     for groups, units in one.runs]  # fmt: skip
            total += one.rest * math.prod(sizes)
        return total // self.batch

    def explain(self) -> str:
        """A few lines per group: its layers, its units, the paths to its consumers, why it is frozen if it is."""
        return "\n".join(_lines(group) for group in self.groups)


def _lines(group: Group) -> str:
    head = f"{group.name or 'the model'} ({group.kind}, {group.units} units)"
    if group.frozen is not None:
        return f"{head}: frozen: {group.frozen}"
    makers = _modules(group.producers)
    if len(makers) > 1:
        head += f", coupled with {', '.join(makers[1:])}"
    lines = [f"{head}: {'exact' if group.approximate is None else f'approximate: {group.approximate}'}"]
    for slot in group.consumers:
        ops = [step.op for step in slot.steps]
        path = " > ".join(ops if len(ops) <= 8 else [*ops[:4], f"{len(ops) - 7} more", *ops[-3:]]) or "directly"
        lines.append(f"  -> {path} -> {slot.module or slot.tensor}; transfer {slot.transfer}")
    lines += [
        f"  -> {'averaged' if total.kept else 'added up'} by {total.node!r} in {total.module or 'the model'}"
        for total in group.totals
    ]
    return "\n".join(lines)


def _modules(slots: Iterable[Slot]) -> list[str]:
    return list(dict.fromkeys(slot.module or slot.tensor for slot in slots))
