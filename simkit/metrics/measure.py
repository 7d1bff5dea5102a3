"""What a measure is: prepare once per representation, score once per pair.

A measure is a frozen dataclass of its options. Measures whose all-pairs form is cheaper than the loop (CKA) also
offer ``pairs``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ..arrays import FloatArray, Matrix
from ..backends.base import Plan, Step


class Degenerate(ValueError):
    """A representation for which a measure is undefined; the sentence names it and says why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} is degenerate: {reason}")
        self.name = name
        self.reason = reason


@runtime_checkable
class Measure(Protocol):
    """A similarity measure or distance between two representations of the same samples."""

    def prepare(self, x: Matrix) -> Any:
        """Everything that depends on one representation alone; raises :class:`Degenerate`."""

    def score(self, x: Any, y: Any) -> float:
        """The number for two prepared representations."""


@dataclass(frozen=True)
class Scores:
    """All-pairs scores ``[L, M]`` with the degenerate layers named and what ran."""

    values: FloatArray
    degenerate: dict[tuple[str, str], str] = field(default_factory=dict)
    plan: Plan = Plan()


def check_measure(measure: object) -> Measure:
    """Return ``measure``, or raise TypeError when it is no measure object."""
    if isinstance(measure, type) or not isinstance(measure, Measure):
        raise TypeError(f"measure must be a measure object such as simkit.CKA(), not {measure!r}")
    return measure


def score_pairs(measure: Measure, rows: Sequence[Matrix], columns: Sequence[Matrix] | None) -> Scores:
    """Scores of every row against every column (``None``: against the rows) by the plain double loop.

    Degenerate layers give NaN in their row or column and are named.
    """
    degenerate: dict[tuple[str, str], str] = {}

    def prepared(side: str, layers: Sequence[Matrix]) -> list[Any]:
        out = []
        for layer in layers:
            try:
                out.append(measure.prepare(layer))
            except Degenerate as error:
                degenerate[side, layer.name] = error.reason
                out.append(None)
        return out

    left = prepared("row", rows)
    right = left if columns is None else prepared("column", columns)
    if columns is None:
        degenerate.update({("column", name): reason for (_, name), reason in list(degenerate.items())})
    values = np.full((len(left), len(right)), math.nan)
    for i, x in enumerate(left):
        for j, y in enumerate(right):
            if x is not None and y is not None:
                values[i, j] = measure.score(x, y)
    return Scores(values, degenerate, Plan((Step("score", "numpy", f"{type(measure).__name__} has one backend"),)))
