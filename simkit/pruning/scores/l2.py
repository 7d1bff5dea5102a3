"""L2 norm of a unit's incoming weights: the smallest go first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...graph import Group
from .ranking import FloatArray, Ranking, Scope, Subject, ascending


@dataclass(frozen=True)
class L2:
    """Euclidean norm of the incoming weights of a unit, ``√Σw²``, biases left out.

    Where several layers compute the unit, their norms add up.

    Args:
        normalize: divide the norms of a layer by the root of the sum of their squares. Norms grow with the fan-in and
            the scale of a layer's weights, so only normalised ones are compared across layers (``scope="global"``).

    Source: He et al., "Soft Filter Pruning" (2018); the normalisation is that of Molchanov et al., "Pruning
    Convolutional Neural Networks for Resource Efficient Inference" (2017), section 2.2.
    """

    normalize: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.normalize, bool):
            raise ValueError(f"normalize must be True or False, not {self.normalize!r}")

    @property
    def name(self) -> str:
        """The criterion with its options, as the plan reports it."""
        return repr(self)

    @property
    def scopes(self) -> tuple[Scope, ...]:
        """Both for normalised norms, else within layers only."""
        return ("layer", "global") if self.normalize else ("layer",)

    def rank(self, subject: Subject, counts: Mapping[str, int]) -> dict[str, Ranking]:
        """All units of the counted groups, smallest norm first; a non-finite weight raises ValueError."""
        return {group.name: ascending(self._norms(subject, group)) for group in subject.groups if group.name in counts}

    def _norms(self, subject: Subject, group: Group) -> FloatArray:
        total = np.zeros(group.units)
        for filters in subject.filters(group):
            total += np.linalg.norm(filters, axis=1)
        length = float(np.linalg.norm(total))
        return total / length if self.normalize and length > 0.0 else total
