"""Physical removal of what masks have emptied: units that emit nothing, or that nobody reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ...errors import NothingPruned
from ...graph import ChannelGraph, Group, Slot
from ..apply import apply, cut
from ..plan import plan
from ..probe import trace
from ..scores.ranking import Ranking, Scope, Subject
from ..sizes import named_tensors
from ..verify import require_equal

_KEEPS_ZERO = ("identity", "homogeneous", "affine", "mixing")  # transfer classes that leave a channel of zeros at 0
_FACTORS = ("weight", "running_var")  # of what a channel of zeros may pass; what is added must be 0


@dataclass(frozen=True)
class _Named:
    """A criterion that names the units to go."""

    units: Mapping[str, tuple[int, ...]]
    name: str = "units that are zero or never read"
    scopes: tuple[Scope, ...] = ("layer",)

    def rank(self, subject: Subject, counts: Mapping[str, int]) -> dict[str, Ranking]:
        """The named units, in order."""
        return {name: Ranking(self.units[name], (0.0,) * len(self.units[name])) for name in counts}


def without_dead_units(model: nn.Module, example_inputs: Any) -> nn.Module:
    """A smaller model that computes the same: units go whose removal changes nothing, by the weights that are 0.

    A unit is dead if all weights that read it are 0; or if all weights and biases that compute it are 0, and whatever
    it passes on the way (a shift of a BatchNorm) leaves it at 0. Removing some may leave others dead, until none is.
    Every layer keeps a unit. A unit behind a BatchNorm whose shift or running mean is not 0 emits a constant: it stays,
    unless nobody reads it.

    Args:
        model: with zeros in its weights, as :class:`Sparsifier` leaves it; it is not changed.
        example_inputs: a tensor, or a tuple of tensors, that the model runs on. The outputs of the smaller model are
            compared with those of the model on them.

    Raises:
        NothingPruned: no unit is dead.
        ValueError: no layer has units that can be removed, or the outputs differ.
        NotImplementedError: a model that cannot be captured.
    """
    current = model
    while units := _dead_units(current, trace(current, example_inputs)):
        sizes = {group.name: group.units for group in trace(current, example_inputs).prunable}
        decided = plan(
            current,
            example_inputs,
            score=_Named(units),
            amount={name: len(dead) / sizes[name] for name, dead in units.items()},
        )
        require_equal(current, decided.layers, example_inputs, mask=_as_it_is, cut=cut)
        current = apply(current, decided, example_inputs, verify=False)
    if current is model:
        raise NothingPruned("no unit of the model is dead: each computes something that is read")
    return current


def _dead_units(model: nn.Module, graph: ChannelGraph) -> dict[str, tuple[int, ...]]:
    """Group -> its dead units, all but one at most; groups without any are left out."""
    tensors = named_tensors(model)
    found: dict[str, tuple[int, ...]] = {}
    for group in graph.prunable:
        if group.approximate is not None or group.totals or not group.consumers:
            continue
        dead = tuple(unit for unit in range(group.units) if _is_dead(tensors, group, unit))[: group.units - 1]
        if dead:
            found[group.name] = dead
    return found


def _is_dead(tensors: Mapping[str, Tensor], group: Group, unit: int) -> bool:
    def empty(slot: Slot) -> bool:
        tensor = tensors[slot.tensor].detach()
        return not tensor[(slice(None),) * slot.dim + (slot.positions([unit]),)].any()

    if all(empty(slot) for slot in group.consumers):
        return True
    added = [slot for slot in group.carriers if slot.tensor.rpartition(".")[2] not in _FACTORS]
    silent = all(slot.transfer in _KEEPS_ZERO for slot in group.consumers)
    return silent and all(empty(slot) for slot in (*group.producers, *added))


def _as_it_is(model: nn.Module, layers: object) -> nn.Module:
    """What the smaller model must equal: nothing masked beyond what is 0 already."""
    return model
