"""CKA damage: units whose removal changes the layer's representation least, by CKA(original, kept), go first."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from torch import Tensor

from ...compare.on_device import LACKING, with_all_memory
from ...errors import DegenerateWarning
from ...graph import Group, View
from ...graph.channels import Units
from ...kernels import Kernel, Linear, as_integer, as_number, check_kernel
from ...metrics.greedy import Elimination, greedy_cka, greedy_cka_of_covariance
from ...metrics.measure import Degenerate
from ...metrics.prepare import CONSTANT
from ..representations import Moments, Source, by_position, by_sample, columns_of, representations, stream, take
from .ranking import Ranking, Scope, Subject

Reduce = Literal["flatten", "positions"]
Mode = Literal["greedy", "oneshot"]
Estimator = Literal["biased", "debiased"]
Activation = Literal["post", "pre"]
SAMPLES = 2000
Order: TypeAlias = Callable[..., Elimination]  # mode, count and min_cka are left open
NOTHING = 1e-12  # damage within the rounding of CKA, as of a unit that is constant
KERNEL_SAMPLES = 256  # every candidate of a kernel that is not linear costs the square of the samples


def _columns(group: Group, view: View | None) -> Units | None:
    return None if view is None else columns_of(group, view)


def _order_of(name: str, rows: Tensor, **options: Any) -> Elimination:
    """On the host where the device of the rows has no memory left for it."""

    def order(rows: Tensor) -> Elimination:
        layers: dict[str, Elimination] = greedy_cka({name: rows}, **options)
        return layers[name]

    if rows.device.type != "cpu":
        try:
            return with_all_memory(lambda: order(rows))
        except LACKING:
            rows = rows.cpu()
    return order(rows)


@dataclass(frozen=True)
class CKADamage:
    """Remove units, one at a time, so that CKA between the layer's outputs before and after stays highest.

    The score of a removed unit is the damage 1 - CKA(original, kept) that has accumulated once it is gone. The
    representation is the layer's output after the BatchNorm and the activation that follow it; where several layers are
    coupled, the value that their first reader reads, before pooling.

    In ``scope="global"`` layers are compared by the damage that their next unit adds to their own CKA: the unit with
    the least damage for what it saves goes first, per unit, per parameter or per multiply-add as the plan's ``budget``
    counts (per multiply-add for latency). That takes the same loss of CKA to be as harmful in every layer.

    Args:
        reduce: ``"flatten"``: a channel is its h·w columns, a row is a sample. ``"positions"``: a channel is one
            column, every position of every sample is a row; linear and biased, it streams: one pass over all the data,
            of which nothing but a [channels, channels] matrix per layer is kept.
        samples: at most so many samples are used, the first. None: all of them where they stream; else 2000, or 256 for
            a kernel that is not linear.
        mode: ``"greedy"`` scores again after every removal; ``"oneshot"`` ranks once.
        estimator: of HSIC inside CKA; biased, as the procedure was published.
        activation: ``"post"`` or ``"pre"``: the output after or before the last activation on that way.
        kernel: of CKA, as in :func:`simkit.greedy_cka`; kernels that are not linear take ``reduce="flatten"``.
        min_cka: a layer stops losing units before its CKA(original, kept) falls below this, in either scope and
            whatever the plan asks; its reason in the plan says at which CKA it stopped.

    Units that are constant over the data do no damage and go first, by index.

    Source: "Representation Aware Pruning with Centered Kernel Alignment", in closed form (see ``greedy_cka``).
    """

    reduce: Reduce = "flatten"
    samples: int | None = None
    mode: Mode = "greedy"
    estimator: Estimator = "biased"
    activation: Activation = "post"
    kernel: Kernel = Linear()
    min_cka: float | None = None

    def __post_init__(self) -> None:
        for option, value, allowed in (
            ("reduce", self.reduce, get_args(Reduce)),
            ("mode", self.mode, get_args(Mode)),
            ("estimator", self.estimator, get_args(Estimator)),
            ("activation", self.activation, get_args(Activation)),
        ):
            if value not in allowed:
                raise ValueError(f"{option} must be one of {', '.join(allowed)}, not {value!r}")
        linear = isinstance(check_kernel(self.kernel), Linear)
        if self.reduce == "positions" and not linear:
            raise ValueError(f"kernel={self.kernel!r} takes reduce='flatten', not 'positions'")
        if self.min_cka is not None and not 0.0 <= as_number(self.min_cka) <= 1.0:
            raise ValueError(f"min_cka must be a number from 0 to 1, not {self.min_cka!r}")
        if self.samples is not None:
            samples = as_integer(self.samples)
            if samples is None or samples < 4:
                raise ValueError(f"samples must be an integer of at least 4, not {self.samples!r}")
            object.__setattr__(self, "samples", samples)
        elif not self._streams:
            object.__setattr__(self, "samples", SAMPLES if linear else KERNEL_SAMPLES)

    @property
    def name(self) -> str:
        """The criterion with its options, as the plan reports it."""
        return repr(self)

    @property
    def scopes(self) -> tuple[Scope, ...]:
        """Both."""
        return "layer", "global"

    @property
    def _streams(self) -> bool:
        return self.reduce == "positions" and self.estimator == "biased"

    def rank(self, subject: Subject, counts: Mapping[str, int]) -> dict[str, Ranking]:
        """The first ``counts[name]`` removals of each group.

        Raises:
            ValueError: missing data; every layer is constant over the data; CKA is undefined for a layer that is not.

        Warns:
            DegenerateWarning: a layer that is constant over the data: its units cost nothing and go by index.
        """
        if subject.data is None:
            raise ValueError("CKADamage needs data=: a tensor, a DataLoader or an iterable of batches")
        groups = [group for group in subject.groups if group.name in counts]
        views = {group.name: group.post if self.activation == "post" else group.pre for group in groups}
        source = Source(subject.model, subject.graph, subject.example_inputs)
        orders = self._streamed if self._streams else self._held
        found: dict[str, Ranking] = {}
        constant: list[Degenerate] = []
        for group, order in orders(source, groups, views, subject.data) if groups else ():
            wanted = counts[group.name]
            try:
                found[group.name] = self._ranking(order(mode=self.mode, count=wanted, min_cka=self.min_cka), wanted)
            except Degenerate as error:
                if error.reason != CONSTANT:
                    raise
                constant.append(error)
                found[group.name] = Ranking(tuple(range(wanted)), (0.0,) * wanted, idle=wanted)
        if constant and len(constant) == len(groups):
            raise constant[0]
        for dead in constant:
            sentence = f"no unit of layer {dead.name!r} varies on the data: CKA is undefined, and units go by index"
            warnings.warn(sentence, DegenerateWarning, stacklevel=2)
        return found

    def allocate(
        self, subject: Subject, rankings: Mapping[str, Ranking], cost: Callable[[str], float]
    ) -> Iterator[str]:
        """The layer whose next unit adds the least damage for what it saves; of equals the first."""
        added = {name: np.diff(ranking.scores, prepend=0.0) for name, ranking in rankings.items()}
        taken = dict.fromkeys(rankings, 0)
        while True:
            best, found = np.inf, None
            for name, steps in added.items():
                saves = cost(name) if taken[name] < len(steps) else 0.0
                if saves > 0.0 and steps[taken[name]] / saves < best:  # what saves nothing stays
                    best, found = steps[taken[name]] / saves, name
            if found is None:
                return
            taken[found] += 1
            yield found

    def _streamed(
        self, source: Source, groups: Sequence[Group], views: Mapping[str, View | None], data: object
    ) -> Iterator[tuple[Group, Order]]:
        collected = {group.name: Moments() for group in groups}
        wanted = [(group, views[group.name], collected[group.name].take) for group in groups]
        stream(source, wanted, data, self.samples)
        for group in groups:
            units = _columns(group, views[group.name])
            yield (
                group,
                partial(greedy_cka_of_covariance, collected.pop(group.name).result(), units=units, name=group.name),
            )

    def _held(
        self, source: Source, groups: Sequence[Group], views: Mapping[str, View | None], data: object
    ) -> Iterator[tuple[Group, Order]]:
        inputs = take(data, self.samples or SAMPLES, source.inputs)
        flat = self.reduce == "flatten"
        for group, values in representations(source, groups, views, inputs, by_sample if flat else by_position):
            units = (group.units if values.shape[2] > 1 else None) if flat else _columns(group, views[group.name])
            options: dict[str, Any] = {"units": units, "kernel": self.kernel, "estimator": self.estimator}
            yield group, partial(_order_of, group.name, values.flatten(1), **options)

    def _ranking(self, found: Elimination, wanted: int) -> Ranking:
        order, damage = found.order.tolist(), found.damage.tolist()
        stopped = None
        if len(order) < wanted:
            stopped = f"CKA would fall from {1.0 - (damage or [0.0])[-1]:.6g} below {self.min_cka}"
        idle = next((place for place, value in enumerate(damage) if not abs(value) < NOTHING), len(damage))
        return Ranking(tuple(order), tuple(damage), stopped, idle)
