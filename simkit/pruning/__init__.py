"""Pruning: score -> plan -> apply. ``from simkit import pruning as P``.

Decisions are data (:class:`PruningPlan`); :func:`apply` carries them out on a copy of the model. Single weights, which
leave the model's shape as it is, are the business of ``sparse``: score -> mask -> schedule -> retrain.
"""

from ..graph import ChannelGraph
from .apply import apply, masked
from .compensate import compensated, merge
from .compensation import LeastSquares, LiveBias, Merge
from .decisions import FrozenLayer, LayerPlan, PruningPlan
from .latency import latency, with_latency
from .optimizer import rebind
from .plan import plan
from .presets import PRESETS, Preset
from .probe import trace
from .recalibrate import recalibrated
from .rounds import Round, shares, structured_rounds
from .scores import L1, L2, BNScale, CKADamage, GeometricMedian, Random, Redundancy
from .sparse import (
    Cubic,
    Distribution,
    Exponential,
    FineTune,
    Iterative,
    LinearSteps,
    Magnitude,
    OneShot,
    Reinit,
    RewindLR,
    RewindWeights,
    SparseRound,
    Sparsifier,
    Stage,
    Threshold,
    kept_share,
    masks,
    masks_of,
    rounds,
)
from .storage import load, save

__all__ = [
    "L1",
    "L2",
    "PRESETS",
    "BNScale",
    "CKADamage",
    "ChannelGraph",
    "Cubic",
    "Distribution",
    "Exponential",
    "FineTune",
    "FrozenLayer",
    "GeometricMedian",
    "Iterative",
    "LayerPlan",
    "LeastSquares",
    "LinearSteps",
    "LiveBias",
    "Magnitude",
    "Merge",
    "OneShot",
    "Preset",
    "PruningPlan",
    "Random",
    "Redundancy",
    "Reinit",
    "RewindLR",
    "RewindWeights",
    "Round",
    "SparseRound",
    "Sparsifier",
    "Stage",
    "Threshold",
    "apply",
    "compensated",
    "kept_share",
    "latency",
    "load",
    "masked",
    "masks",
    "masks_of",
    "merge",
    "plan",
    "rebind",
    "recalibrated",
    "rounds",
    "save",
    "shares",
    "structured_rounds",
    "trace",
    "with_latency",
]
