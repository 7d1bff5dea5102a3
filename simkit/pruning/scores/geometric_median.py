"""Distance to the other filters of the layer: those nearest to the geometric median, which others can stand for, go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...graph import Group
from .ranking import FloatArray, Ranking, Scope, Subject, ascending

CANCELS = 1e-4  # of the squared lengths: below, a product leaves a squared distance fewer than 11 digits
HELD = 2**24  # differences formed at once


def _sums(subject: Subject, group: Group) -> FloatArray:
    total = np.zeros(group.units)
    for filters in subject.filters(group):
        # Of equal filters one is measured, so that they tie exactly whatever the order of additions is.
        rows, which, counts = np.unique(filters, axis=0, return_inverse=True, return_counts=True)
        total += (_distances(rows) @ counts)[which.ravel()]
    return total


def _distances(rows: FloatArray) -> FloatArray:
    """Between all rows ``[n, n]``: by products, where these cancel by differences."""
    centred = rows - rows.mean(axis=0)
    squares = (centred * centred).sum(axis=1)
    largest = squares[:, None] + squares
    found: FloatArray = np.maximum(largest - 2.0 * (centred @ centred.T), 0.0)
    first, second = np.nonzero(np.triu(found < CANCELS * largest, 1))
    for start in range(0, len(first), step := max(1, HELD // rows.shape[1])):
        i, j = first[start : start + step], second[start : start + step]
        found[i, j] = found[j, i] = np.square(rows[i] - rows[j]).sum(axis=1)
    np.fill_diagonal(found, 0.0)
    np.sqrt(found, out=found)
    return found


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
