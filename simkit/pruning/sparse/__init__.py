"""Sparsity of single weights: score -> mask -> schedule -> retrain, four separate things.

* A **score** says what each weight is worth (``weights(network)``, one family per file of ``scores``).
* A **mask** keeps exactly the best k of them: :func:`masks`, frozen decisions by parameter name.
* A **schedule** says how much is left after every round: :class:`Schedule`, frozen data.
* **Retraining** says where the network goes on from: :class:`FineTune`, :class:`RewindLR`, :class:`RewindWeights`,
  :class:`Reinit`.

:class:`Sparsifier` keeps masked weights at 0 while any optimiser trains, :func:`rounds` puts the four together. What a
sparse network promises is checked while it happens (:class:`~simkit.errors.InvariantError`). Only these two touch a
model: the Sparsifier the caller's, ``rounds`` a working copy.

Methods of pruning have five shapes. This package is the first; the others would plug in here without changing it:

* **penalty** (weight decay, Weigend elimination, group lasso, structured sparsity learning): a term of the loss, so a
  function of a model that ``train`` adds, followed by any score: ``rounds`` does not know of it.
* **trainable mask** (Piggyback, edge-popup, supermasks, variational dropout): parameters beside the weights, trained by
  a module that wraps a layer (:func:`torch.nn.utils.parametrize`), which afterwards hands its scores to a
  :class:`WeightScore`: the exact count, the masks and all checks stay those of :func:`masks`.
* **search** (genetic, particle, reinforcement): proposes amounts by layer, or masks; ``masks(amount={...})`` and
  ``Sparsifier`` carry a proposal out, and the search keeps what evaluates best.
* **grow and prune while training** (SET, DSR, sparse momentum, Deep-R, dynamic feedback): a schedule in optimiser steps
  that exchanges masks under a Sparsifier, which enforces whatever its mask buffers hold at each step. Growth is then
  wanted, so such a method checks a constant count in place of ``require_subset``.
"""

from .agreement import Agreement, agreement
from .control import Shuffled
from .enforcement import Sparsifier, masks_of
from .masks import kept_share, masks, updated
from .network import Masks, Network
from .removal import without_dead_units
from .retrain import FineTune, Reinit, RewindLR, RewindWeights
from .rounds import SparseRound, Stage, rounds
from .schedule import Cubic, Exponential, Iterative, LinearSteps, OneShot, Schedule, amounts
from .scores import (
    OBD,
    OBS,
    SNIP,
    Distribution,
    Fisher,
    GradientMagnitude,
    GraSP,
    Magnitude,
    Oracle,
    Reviser,
    SynFlow,
    Taylor,
    UnitMagnitude,
    Updater,
    WeightScore,
    Zhou,
    supermask,
)
from .selection import Threshold

__all__ = [
    "OBD",
    "OBS",
    "SNIP",
    "Agreement",
    "Cubic",
    "Distribution",
    "Exponential",
    "FineTune",
    "Fisher",
    "GraSP",
    "GradientMagnitude",
    "Iterative",
    "LinearSteps",
    "Magnitude",
    "Masks",
    "Network",
    "OneShot",
    "Oracle",
    "Reinit",
    "Reviser",
    "RewindLR",
    "RewindWeights",
    "Schedule",
    "Shuffled",
    "SparseRound",
    "Sparsifier",
    "Stage",
    "SynFlow",
    "Taylor",
    "Threshold",
    "UnitMagnitude",
    "Updater",
    "WeightScore",
    "Zhou",
    "agreement",
    "amounts",
    "kept_share",
    "masks",
    "masks_of",
    "rounds",
    "supermask",
    "updated",
    "without_dead_units",
]
