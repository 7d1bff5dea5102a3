"""L1 norm of a unit's incoming weights: the smallest go first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...graph import Group
from .ranking import FloatArray, Ranking, Scope, Subject, ascending


def norms(subject: Subject, group: Group) -> FloatArray:
    """The L1 norm of every unit ``[units]``."""
    total = np.zeros(group.units)
    for filters in subject.filters(group):
        total += np.abs(filters).sum(axis=1)
    return total


@dataclass(frozen=True)
class L1:
    """Sum of the absolute incoming weights of a unit, ``Σ|w|``, over all layers that compute it, biases left out.

    Source: Li et al., "Pruning Filters for Efficient ConvNets" (2017). In ``scope="global"`` the plain sums of all
    layers are compared, so layers with a small fan-in lose more.
    """

    @property
    def name(self) -> str:
        """The criterion as the plan reports it."""
        return "L1()"

    @property
    def scopes(self) -> tuple[Scope, ...]:
        """Both: weights of all layers are on one scale."""
        return "layer", "global"

    def rank(self, subject: Subject, counts: Mapping[str, int]) -> dict[str, Ranking]:
        """All units of the counted groups, smallest norm first; a non-finite weight raises ValueError."""
        return {group.name: ascending(norms(subject, group)) for group in subject.groups if group.name in counts}
