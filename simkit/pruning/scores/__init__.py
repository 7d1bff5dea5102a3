"""Criteria: what makes a unit removable. One per file; each is a frozen dataclass with a ``rank`` method."""

from .bn_scale import BNScale
from .cka_damage import CKADamage
from .geometric_median import GeometricMedian
from .l1 import L1
from .l2 import L2
from .random import Random
from .ranking import Allocator, Ranking, Scope, Score, Subject
from .redundancy import Redundancy

__all__ = [
    "L1",
    "L2",
    "Allocator",
    "BNScale",
    "CKADamage",
    "GeometricMedian",
    "Random",
    "Ranking",
    "Redundancy",
    "Scope",
    "Score",
    "Subject",
]
