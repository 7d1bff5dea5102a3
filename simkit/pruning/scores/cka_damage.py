"""CKA damage: units whose removal changes the layer's representation least, by CKA(original, kept), go first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from ...graph import Group
from ...kernels import as_integer
from ...metrics.greedy import Elimination, greedy_cka
from ..representations import Source, representations, take
from .ranking import Ranking, Subject

Reduce = Literal["flatten", "positions"]
Mode = Literal["greedy", "oneshot"]
Estimator = Literal["biased", "debiased"]
Activation = Literal["post", "pre"]


@dataclass(frozen=True)
class CKADamage:
    """Remove units, one at a time, so that linear CKA between the layer's outputs before and after stays highest.

    The score of a removed unit is the damage 1 - CKA(original, kept) that has accumulated once it is gone. The
    representation is the layer's output after the BatchNorm and the activation that follow it, on the first ``samples``
    samples of the data; where several layers are coupled, the value that their first reader reads, before pooling.

    Args:
        reduce: ``"flatten"``: a channel is its h·w columns, a row is a sample. ``"positions"``: a channel is one
            column, every position of every sample is a row.
        samples: at most so many samples are used.
        mode: ``"greedy"`` scores again after every removal; ``"oneshot"`` ranks once.
        estimator: of HSIC inside CKA; biased, as the procedure was published.
        activation: ``"post"`` or ``"pre"``: the output after or before the last activation on that way.

    Source: "Representation Aware Pruning with Centered Kernel Alignment", in closed form (see ``greedy_cka``).
    """

    reduce: Reduce = "flatten"
    samples: int = 2000
    mode: Mode = "greedy"
    estimator: Estimator = "biased"
    activation: Activation = "post"

    def __post_init__(self) -> None:
        for option, value, allowed in (
            ("reduce", self.reduce, get_args(Reduce)),
            ("mode", self.mode, get_args(Mode)),
            ("estimator", self.estimator, get_args(Estimator)),
            ("activation", self.activation, get_args(Activation)),
        ):
            if value not in allowed:
                raise ValueError(f"{option} must be one of {', '.join(allowed)}, not {value!r}")
        samples = as_integer(self.samples)
        if samples is None or samples < 4:
            raise ValueError(f"samples must be an integer of at least 4, not {self.samples!r}")
        object.__setattr__(self, "samples", samples)

    @property
    def name(self) -> str:
        """The criterion with its options, as the plan reports it."""
        return repr(self)

    @property
    def comparable(self) -> bool:
        """The damage of one layer says nothing about that of another."""
        return False

    def rank(self, subject: Subject, counts: Mapping[str, int]) -> dict[str, Ranking]:
        """The first ``counts[name]`` removals of each group; ValueError for missing data or a constant layer."""
        if subject.data is None:
            raise ValueError("CKADamage needs data=: a tensor, a DataLoader or an iterable of batches")
        groups = [group for group in subject.groups if group.name in counts]
        found: dict[str, Ranking] = {}
        views = {group.name: group.post if self.activation == "post" else group.pre for group in groups}
        source = Source(subject.model, subject.graph, subject.example_inputs)
        for group, values in representations(source, groups, views, take(subject.data, self.samples, source.inputs)):
            found[group.name] = _ranking(self._eliminate(group, values, counts[group.name]))
        return found

    def _eliminate(self, group: Group, values: Tensor, count: int) -> Elimination:
        n, units, positions = values.shape
        if self.reduce == "positions":
            table, blocks = values.movedim(1, 2).reshape(n * positions, units), None
        else:
            table, blocks = values.reshape(n, units * positions), units if positions > 1 else None
        layer: dict[str, Elimination] = greedy_cka(
            {group.name: table}, units=blocks, estimator=self.estimator, mode=self.mode, count=count
        )
        return layer[group.name]


def _ranking(elimination: Elimination) -> Ranking:
    return Ranking(
        tuple(int(unit) for unit in elimination.order), tuple(float(damage) for damage in elimination.damage)
    )
