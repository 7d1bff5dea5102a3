"""What a compensation is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from ..decisions import Repair
from ..scores import Subject


@dataclass(frozen=True)
class Answer:
    """The repairs of a layer's consumers, and what was done, or why nothing, in a sentence."""

    repairs: tuple[Repair, ...]
    note: str


class Compensation(Protocol):
    """Changes of the consumers that make up for removed units."""

    @property
    def name(self) -> str:
        """The method with its options, as the plan reports it."""

    def answers(self, subject: Subject, removed: Mapping[str, tuple[int, ...]]) -> dict[str, Answer]:
        """For every group named in ``removed``: how its consumers make up for these units."""
