"""L1 norm of a unit's incoming weights: the smallest go first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...graph import Group
from .ranking import Ranking, Subject, ascending


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
    def comparable(self) -> bool:
        """Weights of all layers are on one scale."""
        return True

    def rank(self, subject: Subject, counts: Mapping[str, int]) -> dict[str, Ranking]:
        """All units of the counted groups, smallest norm first; a non-finite weight raises ValueError."""
        return {group.name: self._norms(subject, group) for group in subject.groups if group.name in counts}

    def _norms(self, subject: Subject, group: Group) -> Ranking:
        norms = np.zeros(group.units)
        for rows, units in subject.weights(group):
            np.add.at(norms, units[units >= 0], np.abs(rows).sum(axis=1)[units >= 0])
        bad = np.flatnonzero(~np.isfinite(norms))
        if bad.size:
            raise ValueError(f"unit {bad[0]} of layer {group.name!r} has a non-finite weight")
        return ascending(norms)
