"""What a measure is: prepare once per representation, score once per pair.

A measure is a frozen dataclass of its options. Measures whose all-pairs form is cheaper than the loop (CKA) also
offer ``pairs``; the others offer ``need``, so that a budget can be kept to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ..arrays import FloatArray, Matrix
from ..backends.base import Plan, Step
from ..errors import TooLittleMemory


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
class Need:
    """Bytes that a measure takes for one representation: ``held`` once prepared, ``working`` while it is prepared or
    scored (the larger, the result included)."""

    held: int
    working: int


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


def check_memory(measure: Measure, layers: Sequence[Matrix], memory: int | None, *, pages: int = 0) -> int | None:
    """The bytes that the loop over prepared ``layers`` takes at most; None for a measure that does not say.

    ``pages`` are of files that the layers are not in yet.

    Raises:
        TooLittleMemory: more than ``memory``.
    """
    need = getattr(measure, "need", None)
    if need is None:
        return None
    needs: list[Need] = [need(layer) for layer in layers]
    needed = sum(one.held for one in needs) + max(one.working for one in needs) + pages
    if memory is not None and needed > memory:
        work = f"comparing {len(layers)} layers of {layers[0].n} samples by {measure!r}"
        raise TooLittleMemory(f"{memory} bytes", work, needed)
    return needed


def score_pairs(
    measure: Measure, rows: Sequence[Matrix], columns: Sequence[Matrix] | None, *, memory: int | None = None
) -> Scores:
    """Scores of every row against every column (``None``: against the rows) by the plain double loop.

    Degenerate layers give NaN in their row or column and are named. The plan says so when a measure does not tell
    what it needs, so that ``memory`` could not be kept to.

    Raises:
        ValueError: the prepared layers need more than ``memory`` bytes.
    """
    needed = check_memory(measure, [*rows, *(columns or ())], memory)
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
    name = type(measure).__name__
    unknown = memory is not None and needed is None
    notes = (f"memory={memory} is not kept to: {name} does not say what it needs",) if unknown else ()
    copied = any(x.device is not None for x in [*rows, *(columns or ())])
    reason = f"{name} has one backend" + ("; copied from the device to the host" if copied else "")
    return Scores(values, degenerate, Plan((Step("score", "numpy", reason, bytes=needed or 0),), notes))
