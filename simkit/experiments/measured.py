"""What is measured of a network: accuracy, size, work, time, and the similarity of its layers to another's."""

from __future__ import annotations

import math
import warnings
from typing import Any

from torch import nn

from .. import pruning as P
from ..compare.models import compare
from ..errors import SimkitWarning
from ..train import evaluate
from .config import CompareConfig
from .measures import MEASURES
from .workbench import Workbench, fixed_sample

LATENCY_BATCH = 32  # samples of a timed pass


def performance(model: nn.Module, bench: Workbench) -> dict[str, Any]:
    """Test accuracy (0 to 1) and loss, parameters, multiply-adds a sample (None where the model cannot be captured),
    and the median seconds of a pass over 32 samples."""
    tested = evaluate(model, bench.data.test)
    try:
        macs: int | None = P.trace(model, bench.example).macs()
    except NotImplementedError:
        macs = None
    return {
        "accuracy": tested.accuracy,
        "loss": tested.loss,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "macs": macs,
        "latency": P.latency(model, bench.data.test_x[:LATENCY_BATCH].to(bench.device)),
    }


def similarity(
    dense: nn.Module, pruned: nn.Module, bench: Workbench, options: CompareConfig
) -> dict[str, dict[str, float | None]]:
    """Measure -> layer -> similarity of the layer in both networks on test samples; None where it is undefined."""
    found: dict[str, dict[str, float | None]] = {}
    for name in options.measures:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SimkitWarning)  # a layer without information is None here
            matrix = compare(
                dense,
                pruned,
                data=bench.data.test_x[fixed_sample(len(bench.data.test_x), options.samples)],
                layers=list(options.layers) or None,
                measure=MEASURES[name],
                reduce=options.reduce,
                memory=options.memory,
                progress=False,
            )
        columns = {layer: index for index, layer in enumerate(matrix.columns)}
        scores = {
            layer: float(matrix.values[row, columns[layer]])
            for row, layer in enumerate(matrix.rows)
            if layer in columns
        }
        found[name] = {layer: None if math.isnan(score) else score for layer, score in scores.items()}
    return found
