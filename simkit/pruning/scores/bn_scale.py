"""Scale of the batch normalisation that follows: channels that it makes small go first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import nn

from ...graph import Group
from .ranking import FloatArray, Ranking, Scope, Subject, ascending, require_finite

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def _scales(subject: Subject, group: Group) -> FloatArray:
    total = np.zeros(group.units)
    seen: set[int] = set()
    for slot in group.carriers:
        module = subject.model.get_submodule(slot.module)
        if not isinstance(module, BATCH_NORMS) or slot.tensor.rpartition(".")[2] != "weight" or id(module) in seen:
            continue
        seen.add(id(module))
        here = slot.units >= 0
        scales = module.weight.detach().abs().double().cpu().numpy()
        np.add.at(total, slot.units[here], scales[here])
    if not seen:
        raise ValueError(f"layer {group.name!r} has no BatchNorm with a scale after it, so BNScale cannot rank it")
    require_finite(group, total)
    return total


@dataclass(frozen=True)
class BNScale:
    """The absolute scale ``|γ|`` of a unit in the BatchNorm that follows its layer; the smallest go first.

    Where a unit passes several BatchNorms (of coupled layers, or one after another), their scales add up. Scales of all
    layers are ranked together in ``scope="global"``, as the source does after training with an L1 penalty on γ.

    Source: Liu et al., "Learning Efficient Convolutional Networks through Network Slimming" (2017).
    """

    @property
    def name(self) -> str:
        """The criterion as the plan reports it."""
        return "BNScale()"

    @property
    def scopes(self) -> tuple[Scope, ...]:
        """Both: scales act on normalised values."""
        return "layer", "global"

    def rank(self, subject: Subject, counts: Mapping[str, int]) -> dict[str, Ranking]:
        """All units of the counted groups; ValueError for a layer without a BatchNorm, or a scale that is infinite."""
        return {group.name: ascending(_scales(subject, group)) for group in subject.groups if group.name in counts}
