"""Unit products by channel group: what the layers that compute a unit together contribute."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from ....graph import Group, preserved_rng
from ....graph.channels import Units
from ...scores.ranking import FloatArray, Subject
from ..network import Network
from .supervision import Loss, supervised
from .unit_gradients import unit_products


def by_group(subject: Subject, counts: Mapping[str, int], loss: Loss, who: str) -> Iterator[dict[str, FloatArray]]:
    """For every batch, by group, ``mean over positions of a·∂L_n/∂a [n, units]``, summed over the group's layers.

    Raises as :func:`~simkit.pruning.sparse.scores.unit_gradients.unit_products`.
    """
    groups = [group for group in subject.groups if group.name in counts]
    owners = {group.name: _owners(group) for group in groups}
    layers = dict.fromkeys(layer for found in owners.values() for layer in found)
    network = Network(subject.model, (), {}, subject.data, None)
    with preserved_rng():
        batches = list(supervised(network, who))
    for found in unit_products(subject.model, layers, loss, batches):
        sums: dict[str, FloatArray] = {}
        for group in groups:
            total = None
            for layer, units in owners[group.name].items():
                products = (found[layer].products / found[layer].positions).cpu().numpy()
                if products.shape[1] != len(units):
                    raise NotImplementedError(
                        f"layer {layer!r} has {products.shape[1]} outputs for {len(units)} units: it is grouped"
                    )
                mine = np.zeros((len(products), group.units))
                np.add.at(mine.T, units[units >= 0], products.T[units >= 0])
                total = mine if total is None else total + mine
            if total is not None:
                sums[group.name] = total
        yield sums


def _owners(group: Group) -> dict[str, Units]:
    """Layer -> the unit of each of its output channels, -1 for those of other groups; the group's producers."""
    found: dict[str, Units] = {}
    for slot in group.producers:
        if slot.tensor.rpartition(".")[2] == "weight":
            found.setdefault(slot.module, slot.units)
    if not found:
        raise NotImplementedError(f"group {group.name!r} has no layer of its own to take gradients of")
    return found
