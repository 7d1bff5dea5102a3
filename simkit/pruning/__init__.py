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
    OBD,
    OBS,
    SNIP,
    Agreement,
    Cubic,
    Distribution,
    Exponential,
    FineTune,
    Fisher,
    GradientMagnitude,
    GraSP,
    Iterative,
    LinearSteps,
    Magnitude,
    OneShot,
    Oracle,
    Reinit,
    RewindLR,
    RewindWeights,
    Shuffled,
    SparseRound,
    Sparsifier,
    Stage,
    SynFlow,
    Taylor,
    Threshold,
    UnitMagnitude,
    Zhou,
    agreement,
    kept_share,
    masks,
    masks_of,
    rounds,
    supermask,
    updated,
    without_dead_units,
)
from .storage import load, save

__all__ = [
    "L1",
    "L2",
    "OBD",
    "OBS",
    "PRESETS",
    "SNIP",
    "Agreement",
    "BNScale",
    "CKADamage",
    "ChannelGraph",
    "Cubic",
    "Distribution",
    "Exponential",
    "FineTune",
    "Fisher",
    "FrozenLayer",
    "GeometricMedian",
    "GraSP",
    "GradientMagnitude",
    "Iterative",
    "LayerPlan",
    "LeastSquares",
    "LinearSteps",
    "LiveBias",
    "Magnitude",
    "Merge",
    "OneShot",
    "Oracle",
    "Preset",
    "PruningPlan",
    "Random",
    "Redundancy",
    "Reinit",
    "RewindLR",
    "RewindWeights",
    "Round",
    "Shuffled",
    "SparseRound",
    "Sparsifier",
    "Stage",
    "SynFlow",
    "Taylor",
    "Threshold",
    "UnitMagnitude",
    "Zhou",
    "agreement",
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
    "supermask",
    "trace",
    "updated",
    "with_latency",
    "without_dead_units",
]
