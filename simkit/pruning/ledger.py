"""What units save, exactly: parameters and multiply-adds are sums of products of sizes, and units shorten the sizes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from torch import nn

from ..graph import ChannelGraph, Group
from .sizes import named_tensors

Counts: TypeAlias = npt.NDArray[np.int64]
Product: TypeAlias = tuple[int, list[int]]  # a factor, and the sizes it is multiplied with
Part: TypeAlias = tuple[int, int, Counts]  # product, which of its sizes, positions of every unit of the group there


class Ledger:
    """Units go one at a time, each group's in its order; what they save is exact at every moment."""

    def __init__(
        self, products: Iterable[Product], parts: Mapping[str, Sequence[Part]], orders: Mapping[str, Sequence[int]]
    ) -> None:
        listed = list(products)
        self._rests = [rest for rest, _ in listed]
        self._sizes = [sizes for _, sizes in listed]
        self._orders = orders
        self._parts: dict[str, dict[int, list[tuple[int, Counts]]]] = {}
        for name in orders:
            by_product = self._parts.setdefault(name, {})
            for product, size, positions in parts.get(name, ()):
                by_product.setdefault(product, []).append((size, positions))
        self._gone = dict.fromkeys(orders, 0)
        self.total = sum(rest * math.prod(sizes) for rest, sizes in zip(self._rests, self._sizes, strict=True))
        self.saved = 0

    def cost(self, name: str) -> int:
        """What the next unit of a group saves."""
        unit = self._orders[name][self._gone[name]]
        return sum(
            self._rests[product] * (math.prod(self._sizes[product]) - math.prod(self._without(product, runs, unit)))
            for product, runs in self._parts[name].items()
        )

    def take(self, name: str) -> None:
        """The next unit of a group goes."""
        self.saved += self.cost(name)
        unit = self._orders[name][self._gone[name]]
        for product, runs in self._parts[name].items():
            self._sizes[product] = self._without(product, runs, unit)
        self._gone[name] += 1

    def saved_by(self, counts: Mapping[str, int]) -> int:
        """What the first ``counts[name]`` units of the groups save together, whatever has gone."""
        change: dict[int, list[int]] = {}
        for name, count in counts.items():
            now = list(self._orders[name][self._gone[name] : count])
            back = list(self._orders[name][count : self._gone[name]])
            for product, runs in self._parts[name].items():
                sizes = change.setdefault(product, list(self._sizes[product]))
                for size, positions in runs:
                    sizes[size] += int(positions[back].sum()) - int(positions[now].sum())
        return self.saved + sum(
            self._rests[product] * (math.prod(self._sizes[product]) - math.prod(sizes))
            for product, sizes in change.items()
        )

    def _without(self, product: int, runs: Sequence[tuple[int, Counts]], unit: int) -> list[int]:
        sizes = list(self._sizes[product])
        for size, positions in runs:
            sizes[size] -= int(positions[unit])
        return sizes


def units_ledger(groups: Sequence[Group], orders: Mapping[str, Sequence[int]]) -> Ledger:
    """Counts the units of the groups."""
    products = [(1, [group.units]) for group in groups]
    parts = {group.name: [(place, 0, np.ones(group.units, np.int64))] for place, group in enumerate(groups)}
    return Ledger(products, parts, orders)


def macs_ledger(graph: ChannelGraph, orders: Mapping[str, Sequence[int]]) -> Ledger:
    """Counts the multiply-adds of the whole example, not of one sample."""
    products = [(one.rest, [len(groups) for groups, _ in one.runs]) for one in graph.work]
    parts: dict[str, list[Part]] = {}
    for product, one in enumerate(graph.work):
        for size, (groups, units) in enumerate(one.runs):
            for index in np.unique(groups[groups >= 0]):
                group = graph.groups[index]
                positions = np.bincount(units[groups == index], minlength=group.units)
                parts.setdefault(group.name, []).append((product, size, positions))
    return Ledger(products, parts, orders)


def params_ledger(model: nn.Module, groups: Sequence[Group], orders: Mapping[str, Sequence[int]]) -> Ledger:
    """Counts the parameters, a tied one once; buffers are none."""
    tensors = named_tensors(model)
    own = list(model.parameters())
    place = {id(tensor): index for index, tensor in enumerate(own)}
    parts: dict[str, list[Part]] = {}
    for group in groups:
        slots = {(id(tensors[slot.tensor]), slot.dim): slot.units for slot in group.slots}
        parts[group.name] = [
            (place[tensor], dim, np.bincount(units[units >= 0], minlength=group.units))
            for (tensor, dim), units in slots.items()
            if tensor in place
        ]
    return Ledger([(1, list(tensor.shape)) for tensor in own], parts, orders)
