"""Distance to the other filters of the layer: those nearest to the geometric median, which others can stand for, go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from ...graph import Group
from .ranking import FloatArray, Ranking, Scope, Subject, ascending


def _sums(subject: Subject, group: Group) -> FloatArray:
    total = np.zeros(group.units)
    for filters in subject.filters(group):
        rows = torch.from_numpy(filters)
        # By differences: products would give equal filters a distance that is not zero, and so break ties.
        distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
        total += distances.sum(dim=1).numpy()
    return total


@dataclass(frozen=True)
class GeometricMedian:
    """Sum of the Euclidean distances between a unit's incoming weights and those of all units of the layer.

    The smallest go first, as the most replaceable; a large filter far from the others stays. Biases are left out. Where
    several layers compute the unit, their sums add up. The sums grow with the width and the scale of a layer, so they
    do not compare across layers; the source removes one share from every layer.

    Source: He et al., "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration" (2019).
    """

    @property
    def name(self) -> str:
        """The criterion as the plan reports it."""
        return "GeometricMedian()"

    @property
    def scopes(self) -> tuple[Scope, ...]:
        """Within layers only."""
        return ("layer",)

    def rank(self, subject: Subject, counts: Mapping[str, int]) -> dict[str, Ranking]:
        """All units of the counted groups, smallest sum first; a non-finite weight raises ValueError."""
        return {group.name: ascending(_sums(subject, group)) for group in subject.groups if group.name in counts}
