"""Criteria: what makes a unit removable. One per file; each is a frozen dataclass with a ``rank`` method."""

from .cka_damage import CKADamage
from .l1 import L1
from .random import Random
from .ranking import Ranking, Score, Subject

__all__ = ["L1", "CKADamage", "Random", "Ranking", "Score", "Subject"]
