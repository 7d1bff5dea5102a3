"""How long a model takes, on the device that it is on."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import nn

from ..graph import preserved_rng, quiet_copy
from ..graph.capture import as_inputs
from ..kernels import as_integer

WARM_UP = 3  # passes that are not counted: memory is claimed, kernels are chosen


def latency(model: nn.Module, example_inputs: Any, *, passes: int = 7) -> float:
    """Median time of a forward pass in seconds.

    A copy of the model runs in eval mode without gradients and hooks, on the device and with the threads that torch
    uses now; three passes go before those that count.

    Args:
        model: any module; it is not touched.
        example_inputs: a tensor, or a tuple of tensors, on the model's device.
        passes: how many are timed, at least 5.

    Raises:
        ValueError: too few passes.
    """
    count = as_integer(passes)
    if count is None or count < 5:
        raise ValueError(f"passes must be an integer of at least 5, not {passes!r}")
    ready, inputs = quiet_copy(model), as_inputs(example_inputs)
    device = next((tensor.device for tensor in inputs if isinstance(tensor, torch.Tensor)), torch.device("cpu"))
    times = []
    with torch.no_grad(), preserved_rng():
        for _ in range(WARM_UP + count):
            _settle(device)
            start = time.perf_counter()
            ready(*inputs)
            _settle(device)
            times.append(time.perf_counter() - start)
    return statistics.median(times[WARM_UP:])


def _settle(device: torch.device) -> None:
    """Wait for what a device still computes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
