"""Criteria for single weights, one family per file; each is a frozen dataclass with a ``weights`` method."""

from .magnitude import Distribution, Magnitude
from .protocol import Reviser, WeightScore

__all__ = ["Distribution", "Magnitude", "Reviser", "WeightScore"]
