"""Solved atoms -> groups: units with the same places, their slots, the paths between them, what they cost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
from torch import fx

from .capture import Captured, opname, where
from .channels import ChannelGraph, Extent, Group, Index, SizeAttribute, Slot, Step, Total, Units, View, Work
from .flow import Flow, Use, shape_of
from .labels import Label, line, support
from .places import Place, places_of
from .samples import by_sample
from .solve import Solution

UNREAD = "nothing reads its units"
COUPLED = "all its channels are coupled"


@dataclass(frozen=True)
class _Units:
    """Root -> index of its group and number within it, -1 for none."""

    group: Label
    number: Label

    def of(self, group: int, roots: Label) -> Units:
        """The unit numbers of one group, -1 elsewhere."""
        return np.where(self.group[roots] == group, self.number[roots], -1)


def form(captured: Captured, flow: Flow, solution: Solution) -> ChannelGraph:
    """The groups in the order in which they run, frozen layers among them."""
    order = {node: index for index, node in enumerate(captured.nodes)}
    places = places_of(captured, flow)
    signatures = _signatures(places, flow, solution)
    members = [roots for roots in signatures if len(roots) > 1]
    single = {int(roots[0]) for roots in signatures if len(roots) == 1}
    first = [_first(places, solution, roots, order) for roots in members]
    ranked = sorted(range(len(members)), key=lambda index: (first[index][0], int(members[index].min())))
    units = _number(solution, places, [members[index] for index in ranked], [first[index][1] for index in ranked])
    builder = _Builder(flow, solution, places, units, order)
    live = [builder.group(index, places[first[old][1]]) for index, old in enumerate(ranked)]
    stays = list(_frozen_layers(captured, places, solution, units, single, order))
    moments = [first[index][0] for index in ranked] + [moment for moment, _ in stays]
    groups = [*live, *(group for _, group in stays)]
    # Groups of units keep their index among themselves: runs of work refer to it.
    sequence = sorted(range(len(groups)), key=lambda index: moments[index])
    renumbered = {old: new for new, old in enumerate(sequence)}
    work = tuple(builder.work(renumbered))
    return ChannelGraph(
        _numbered([groups[index] for index in sequence]),
        work,
        captured.batch,
        tuple(node.name for node in captured.nodes),
    )


def _signatures(places: list[Place], flow: Flow, solution: Solution) -> list[Label]:
    """Sets of roots that lie equally often in the same places; of roots that may go at all."""
    roots = solution.roots
    count = int(roots.max()) + 1 if len(roots) else 0
    made, read, free = (np.zeros(count, dtype=np.bool_) for _ in range(3))
    owned = np.zeros(flow.count, dtype=np.bool_)
    for place in places:
        owned[place.atoms] = True
    for flags, uses in ((made, flow.produced), (read, [*flow.consumed, *flow.summed, *flow.averaged])):
        for use in uses:
            flags[roots[use.atoms[owned[use.atoms]] if flags is made else use.atoms]] = True
    free[:] = made & read
    free[list(solution.reason)] = False
    if not free.any():
        return []
    # Sums without a weight are no places, but tell units apart as these do.
    kinds = [*(place.atoms for place in places), *(use.atoms for use in (*flow.summed, *flow.averaged))]
    where_ = np.repeat(np.arange(len(kinds)), [len(atoms) for atoms in kinds])
    theirs = roots[np.concatenate(kinds)]
    where_, theirs = where_[free[theirs]], theirs[free[theirs]]
    pairs, counts = np.unique(theirs * len(kinds) + where_, return_counts=True)
    owners, slots = pairs // len(kinds), pairs % len(kinds)
    starts = np.flatnonzero(np.diff(owners, prepend=-1))
    found: dict[bytes, list[int]] = {}
    for start, stop in zip(starts, [*starts[1:], len(owners)], strict=True):
        key = slots[start:stop].tobytes() + counts[start:stop].tobytes()
        found.setdefault(key, []).append(int(owners[start]))
    return [np.array(one, dtype=np.int64) for one in found.values()]


def _first(places: list[Place], solution: Solution, roots: Label, order: dict[fx.Node, int]) -> tuple[int, int]:
    """When the first layer that computes the units runs, and the index of the place of its weight."""
    found = [
        (min(order[use.node] for use in place.made), place.dims < 2, index)
        for index, place in enumerate(places)
        if place.made and np.isin(solution.roots[place.atoms], roots).any()
    ]
    moment, _, index = min(found)
    return moment, index


def _number(solution: Solution, places: list[Place], members: list[Label], first: list[int]) -> _Units:
    """Units are counted in the order of the first producing layer."""
    count = int(solution.roots.max()) + 1 if len(solution.roots) else 0
    group, number = (np.full(count, -1, dtype=np.int64) for _ in range(2))
    for index, (roots, place) in enumerate(zip(members, first, strict=True)):
        theirs = solution.roots[places[place].atoms]
        theirs = theirs[np.isin(theirs, roots)]
        ordered = theirs[np.sort(np.unique(theirs, return_index=True)[1])]
        group[ordered] = index
        number[ordered] = np.arange(len(ordered))
    return _Units(group, number)


def _layer_name(place: Place) -> str:
    name = place.name(place.made[0].node)
    return name.removesuffix("weight").removesuffix(".") if name.rpartition(".")[2] == "weight" else name


def _numbered(groups: list[Group]) -> tuple[Group, ...]:
    """Names are layers' paths, numbered where one layer computes the units of several groups."""
    plain = [group.name for group in groups]
    return tuple(
        dataclasses.replace(group, name=f"{group.name}#{plain[: index + 1].count(group.name)}")
        if plain.count(group.name) > 1
        else group
        for index, group in enumerate(groups)
    )


def _frozen_layers(
    captured: Captured,
    places: list[Place],
    solution: Solution,
    units: _Units,
    single: set[int],
    order: dict[fx.Node, int],
) -> Iterator[tuple[int, Group]]:
    """Layers none of whose units may go, with the reason."""
    for place in places:
        roots = solution.roots[place.atoms]
        if not place.made or place.dims < 2 or (units.group[roots] >= 0).any():
            continue
        node = min((use.node for use in place.made), key=lambda one: order[one])
        slot = Slot("producer", place.name(node), place.dim, np.arange(len(roots)))
        yield order[node], Group(
            name=_layer_name(place), kind=opname(node), units=len(roots), slots=(slot,), sizes=(), totals=(),
            indices=(), extents=(), post=None, pre=None, params=0, macs=0, approximate=None,
            frozen=_why(roots, solution, single),
        )  # fmt: skip


def _why(roots: Label, solution: Solution, single: set[int]) -> str:
    for root in roots:
        if int(root) in solution.reason:
            return solution.reason[int(root)]
    for root in roots:
        if int(root) in single or len(np.unique(roots)) == 1:
            note = solution.notes.get(int(root))
            return COUPLED if note is None else f"{COUPLED}: {note}"
    return UNREAD


@dataclass(frozen=True)
class _Ways:
    """Of all ways that lead to a value: the operations on any, and those that are once on each."""

    any: frozenset[fx.Node | str] = frozenset()
    once: frozenset[fx.Node | str] = frozenset()

    @classmethod
    def meeting(cls, branches: list[_Ways]) -> _Ways:
        """Where several values are put together."""
        if not branches:
            return cls()
        every, once = [one.any for one in branches], [one.once for one in branches]
        return cls(frozenset.union(*every), frozenset.intersection(*once))

    def through(self, node: fx.Node) -> _Ways:
        """Behind one more operation."""
        step = _step(node)
        return _Ways(self.any | {step}, self.once - {step} if step in self.any else self.once | {step})


def _step(node: fx.Node) -> fx.Node | str:
    """The operation; a norm by its module, whose one set of numbers acts wherever it runs."""
    return where(node) or node if opname(node) == "batch_norm" else node


class _Builder:
    """Everything that is asked of the walk while a group is put together."""

    def __init__(
        self, flow: Flow, solution: Solution, places: list[Place], units: _Units, order: dict[fx.Node, int]
    ) -> None:
        self.flow, self.roots, self.places, self.units, self.order = flow, solution.roots, places, units, order
        self.samples = by_sample(flow.captured)
        self.present = {
            node: frozenset(int(g) for label in labels for g in np.unique(units.group[self.roots[label]]) if g >= 0)
            for node, labels in flow.values.items()
        }
        self.made: dict[fx.Node, set[int]] = {}
        for use in flow.produced:
            self.made.setdefault(use.node, set()).update(self._groups(use.atoms))
        self.runs = [
            tuple((units.group[self.roots[run]], units.number[self.roots[run]]) for run in one.runs)
            for one in flow.work
        ]

    def _groups(self, atoms: Label) -> set[int]:
        return {int(group) for group in np.unique(self.units.group[self.roots[atoms]]) if group >= 0}

    def group(self, index: int, first: Place) -> Group:
        """One group of units."""
        mine = [place for place in self.places if index in self._groups(place.atoms)]
        slots = tuple(slot for place in mine for slot in self._slots(index, place))
        summed, averaged = (
            [use for use in uses if index in self._groups(use.atoms)] for uses in (self.flow.summed, self.flow.averaged)
        )
        uses = [*(use for place in mine for use in place.read), *summed]
        reads = sorted(uses or averaged, key=lambda use: self.order[use.node])
        post, pre = self._views(index, reads)
        members = self.units.group[self.roots] == index
        return Group(
            name=_layer_name(first),
            kind=opname(min((use.node for use in first.made), key=lambda node: self.order[node])),
            units=int(self.units.number[self.roots[members]].max()) + 1,
            slots=slots,
            sizes=tuple(self._sizes(index)),
            totals=tuple(
                total
                for uses, kept in ((summed, False), (averaged, True))
                for use in uses
                for total in self._totals(index, use, kept)
            ),
            indices=tuple(self._indices(index)),
            extents=tuple(self._extents(index)),
            post=post,
            pre=pre,
            params=self._params(index, mine),
            macs=self._macs(index),
            approximate=next((why for atoms, why in self.flow.approximate if members[atoms].any()), None),
            frozen=None,
        )

    def _slots(self, index: int, place: Place) -> Iterator[Slot]:
        numbers = self.units.of(index, self.roots[place.atoms])
        if place.made:
            plain = place.plain(self.flow, place.made)
            yield Slot("producer", place.name(place.made[0].node), place.dim, numbers, plain=plain)
        for name in dict.fromkeys(place.name(use.node) for use in place.read):
            uses = [use for use in place.read if place.name(use.node) == name]
            sources = dict.fromkeys(use.source for use in uses if use.source is not None)
            found = (self._view(index, self._by_sample(source)) for source in sources)
            reads = tuple(view for view in found if view is not None)
            plain = place.plain(self.flow, uses)
            yield Slot("consumer", name, place.dim, numbers, self._steps(index, uses), reads, plain)
        if not place.made and not place.read:
            yield Slot("carrier", place.names[0], place.dim, numbers)

    def _steps(self, index: int, uses: list[Use]) -> tuple[Step, ...]:
        paths = [self._path(index, use) for use in uses]
        passed = sorted(set().union(*(nodes for nodes, _ in paths)), key=lambda node: self.order[node])
        ways = {node: _Ways() for _, ends in paths for node in ends}
        for node in passed:
            branches = [ways[one] for one in node.all_input_nodes if one in ways]
            ways[node] = _Ways.meeting(branches).through(node)
        last = _Ways.meeting([ways[use.source] for use in uses if use.source in ways])
        return tuple(
            Step(opname(node), where(node), self.flow.transfer[node], _step(node) in last.once)
            for node in passed
            if opname(node) != "getitem"
        )

    def _path(self, index: int, use: Use) -> tuple[set[fx.Node], set[fx.Node]]:
        """Nodes between the producers of a group and an operation that reads it, and the producing nodes."""
        passed: set[fx.Node] = set()
        ends: set[fx.Node] = set()
        waiting = [] if use.source is None else [use.source]
        while waiting:
            node = waiting.pop()
            if node in passed or node.op == "placeholder":
                continue
            if index in self.made.get(node, ()):
                ends.add(node)
            elif index in self.present[node] or node in self.flow.parts:
                passed.add(node)
                waiting.extend(node.all_input_nodes)
        return passed, ends

    def _views(self, index: int, reads: list[Use]) -> tuple[View | None, View | None]:
        """After the last activation before the first consumer, and before that activation."""
        made = [self.order[node] for node, groups in self.made.items() if index in groups]
        later = [use for use in reads if use.source is not None and self.order[use.node] > min(made)]
        nodes = sorted(set().union(*self._path(index, later[0])) if later else (), key=lambda node: self.order[node])
        steps = [(node, self.flow.kind[node]) for node in nodes if self.flow.kind[node] not in ("pool", "shape")]
        if not steps:
            return None, None
        last = max((place for place, (_, kind) in enumerate(steps) if kind == "activation"), default=len(steps))
        before = [node for node, kind in steps[:last] if kind != "activation"]
        post, pre = steps[-1][0], before[-1] if before else steps[-1][0]
        return self._view(index, self._by_sample(post, nodes)), self._view(index, self._by_sample(pre, nodes))

    def _by_sample(self, node: fx.Node, nodes: Collection[fx.Node] = ()) -> fx.Node:
        """The same values where dimension 0 holds the samples: before the reshapes that led here, or after the next."""
        for backwards in (True, False):
            found = node
            while found not in self.samples:
                near = found.all_input_nodes[:1] if backwards else [user for user in found.users if user in nodes]
                further = [one for one in near if self._only_moves(found, one)]
                if not further:
                    break
                found = further[0]
            if found in self.samples:
                return found
        return node

    def _only_moves(self, one: fx.Node, other: fx.Node) -> bool:
        """Whether of two operations that follow each other the later only reshapes what the other puts out."""
        later = max(one, other, key=lambda node: self.order[node])
        moves = self.flow.kind.get(later) == "shape" and self.flow.transfer[later] == "identity"
        return moves and math.prod(shape_of(one)) == math.prod(shape_of(other))

    def _view(self, index: int, node: fx.Node) -> View | None:
        for label in self.flow.values[node]:
            numbers = self.units.of(index, self.roots[label])
            if (numbers >= 0).any():
                share = int((numbers >= 0).sum()) / numbers.size
                shape, batch = shape_of(node), self.flow.captured.batch
                rows = shape[0] // batch if node in self.samples else 0
                if rows > 1 and bool((numbers == np.tile(numbers[:rows], (batch, *[1] * (len(shape) - 1)))).all()):
                    numbers = numbers[: min(rows, len(numbers))]
                return View(node.name, numbers, rows, round(share * math.prod(shape)) // batch)
        return None

    def _sizes(self, index: int) -> Iterator[SizeAttribute]:
        seen: set[tuple[str, str, int | None]] = set()
        for one in self.flow.sized:
            numbers = self.units.of(index, self.roots[one.atoms])
            key = (one.module, one.attribute, one.index)
            if (numbers >= 0).any() and key not in seen:  # a module that is called twice
                seen.add(key)
                yield SizeAttribute(*key, numbers)

    def _indices(self, index: int) -> Iterator[Index]:
        for tensor, atoms in self.flow.renumbered.items():
            numbers = self.units.of(index, self.roots[atoms])
            if (numbers >= 0).any():
                yield Index(tensor, numbers)

    def _totals(self, index: int, use: Use, kept: bool) -> Iterator[Total]:
        for label in self.flow.values[use.source] if use.source is not None else ():
            numbers = self.units.of(index, self.roots[label])
            if (numbers >= 0).any():
                (dim,) = support(label)
                yield Total(use.node.name, where(use.node), dim, numbers.ravel(), kept)

    def _extents(self, index: int) -> Iterator[Extent]:
        seen: set[tuple[str, bytes]] = set()
        for node, groups in self.present.items():
            if index not in groups or node.op == "placeholder":
                continue
            for label in self.flow.values[node]:
                for dim in support(label):
                    numbers = self.units.of(index, self.roots[line(label, dim)])
                    key = (where(node), numbers.tobytes())
                    if len(np.unique(numbers)) > 1 and key not in seen:
                        seen.add(key)
                        yield Extent(opname(node), where(node), numbers)

    def _params(self, index: int, mine: list[Place]) -> int:
        """Parameters that go with one unit (buffers are none)."""
        model = self.flow.captured.model
        own = dict(model.named_parameters())
        total = 0
        for tensor in dict.fromkeys(place.tensor for place in mine if place.tensor in own):
            left = math.prod(own[tensor].shape)
            for place in mine:
                if place.tensor == tensor:
                    gone = int((self.units.of(index, self.roots[place.atoms]) == 0).sum())
                    left = left // len(place.atoms) * (len(place.atoms) - gone)
            total += math.prod(own[tensor].shape) - left
        return total

    def _macs(self, index: int) -> int:
        """Multiply-adds per sample that go with one unit."""
        total = 0
        for one, runs in zip(self.flow.work, self.runs, strict=True):
            gone = [int(((groups == index) & (numbers == 0)).sum()) for groups, numbers in runs]
            if any(gone):
                sizes = [len(groups) for groups, _ in runs]
                left = math.prod(size - less for size, less in zip(sizes, gone, strict=True))
                total += one.rest * (math.prod(sizes) - left)
        return total // self.flow.captured.batch

    def work(self, renumbered: dict[int, int]) -> Iterator[Work]:
        """The multiply-adds of all operations, with the final numbers of the groups."""
        table = np.array([renumbered[old] for old in sorted(renumbered)] + [-1], dtype=np.int64)
        for one, runs in zip(self.flow.work, self.runs, strict=True):
            yield Work(one.rest, tuple((table[groups], numbers) for groups, numbers in runs))
