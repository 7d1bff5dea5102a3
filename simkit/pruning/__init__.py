"""Pruning: score -> plan -> apply. ``from simkit import pruning as P``.

Decisions are data (:class:`PruningPlan`); :func:`apply` carries them out on a copy of the model.
"""

from ..graph import ChannelGraph
from .apply import apply, masked
from .decisions import FrozenLayer, LayerPlan, PruningPlan
from .plan import plan
from .probe import trace
from .scores import L1, CKADamage, Random
from .storage import load, save

__all__ = [
    "L1",
    "CKADamage",
    "ChannelGraph",
    "FrozenLayer",
    "LayerPlan",
    "PruningPlan",
    "Random",
    "apply",
    "load",
    "masked",
    "plan",
    "save",
    "trace",
]
