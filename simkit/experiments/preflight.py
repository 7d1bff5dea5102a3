"""What a pruning run would only find out after the training, tried on the untrained network."""

from __future__ import annotations

import warnings

from torch import nn

from .. import pruning as P
from ..errors import NothingPruned, first_line
from ..pruning.plan import kept_layers
from ..pruning.sparse.network import open_weights
from .config import PruneConfig
from .measured import similarity
from .workbench import Workbench


def check_pruning(bench: Workbench, options: PruneConfig) -> None:
    """Refuse what cannot be pruned or compared.

    Raises:
        ValueError: a network whose units cannot be followed, names in ``keep`` or ``compare.layers`` that it does not
            have, a criterion that lacks a BatchNorm, too little memory for a measure, or too few samples.
    """
    model = bench.network(bench.config.run.seeds[0])
    try:
        if options.kind == "structured":
            _check_units(model, bench, options)
        else:
            open_weights(model, options.keep)
    except (ValueError, NotImplementedError) as error:
        raise ValueError(f"[prune] {first_line(error)}") from error
    try:
        similarity(model, model, bench, bench.config.compare)
    except (ValueError, NotImplementedError) as error:
        raise ValueError(f"[compare] {first_line(error)}") from error


def _check_units(model: nn.Module, bench: Workbench, options: PruneConfig) -> None:
    kept_layers(P.trace(model, bench.example), options.keep)
    score = P.BNScale() if "bn-scale" in options.methods else P.L1()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the runs themselves say it
        try:
            P.plan(model, bench.example, score=score, amount=0.5, keep=options.keep)
        except NothingPruned:  # of too few units for half of one
            return
