"""Pruning: score -> plan -> apply. ``from simkit import pruning as P``.

Decisions are data (:class:`PruningPlan`); :func:`apply` carries them out on a copy of the model.
"""

from ..graph import ChannelGraph
from .apply import apply, masked
from .compensate import compensated, merge
from .compensation import LeastSquares, LiveBias, Merge
from .decisions import FrozenLayer, LayerPlan, PruningPlan
from .latency import latency
from .optimizer import rebind
from .plan import plan
from .presets import PRESETS, Preset
from .probe import trace
from .recalibrate import recalibrated
from .rounds import Round, shares, structured_rounds
from .scores import L1, L2, BNScale, CKADamage, GeometricMedian, Random, Redundancy
from .storage import load, save

__all__ = [
    "L1",
    "L2",
    "PRESETS",
    "BNScale",
    "CKADamage",
    "ChannelGraph",
    "FrozenLayer",
    "GeometricMedian",
    "LayerPlan",
    "LeastSquares",
    "LiveBias",
    "Merge",
    "Preset",
    "PruningPlan",
    "Random",
    "Redundancy",
    "Round",
    "apply",
    "compensated",
    "latency",
    "load",
    "masked",
    "merge",
    "plan",
    "rebind",
    "recalibrated",
    "save",
    "shares",
    "structured_rounds",
    "trace",
]
