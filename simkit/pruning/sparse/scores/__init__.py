"""Criteria for single weights, one family per file; each is a frozen dataclass with a ``weights`` method."""

from .fisher import Fisher
from .gradient_magnitude import SNIP, GradientMagnitude
from .grasp import GraSP
from .magnitude import Distribution, Magnitude
from .obd import OBD
from .obs import OBS
from .oracle import Oracle
from .protocol import Reviser, Updater, WeightScore
from .synflow import SynFlow
from .taylor import Taylor
from .unit_magnitude import UnitMagnitude
from .zhou import Zhou, supermask

__all__ = [
    "OBD",
    "OBS",
    "SNIP",
    "Distribution",
    "Fisher",
    "GraSP",
    "GradientMagnitude",
    "Magnitude",
    "Oracle",
    "Reviser",
    "SynFlow",
    "Taylor",
    "UnitMagnitude",
    "Updater",
    "WeightScore",
    "Zhou",
    "supermask",
]
