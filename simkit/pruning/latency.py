"""How long a model takes, on the device that it is on."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..graph import preserved_rng, quiet_copy
from ..graph.capture import as_inputs
from ..kernels import as_integer
from .apply import apply
from .decisions import PruningPlan

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
    return latencies([model], example_inputs, passes=passes)[0]


def latencies(models: Sequence[nn.Module], example_inputs: Any, *, passes: int = 7) -> tuple[float, ...]:
    """:func:`latency` of several models that take turns, so that a busy machine slows all of them."""
    count = as_integer(passes)
    if count is None or count < 5:
        raise ValueError(f"passes must be an integer of at least 5, not {passes!r}")
    inputs = as_inputs(example_inputs)
    device = _device(inputs)
    times: list[tuple[nn.Module, list[float]]] = [(quiet_copy(model), []) for model in models]
    with torch.no_grad(), preserved_rng():
        for _ in range(WARM_UP + count):
            for ready, taken in times:
                _settle(device)
                start = time.perf_counter()
                ready(*inputs)
                _settle(device)
                taken.append(time.perf_counter() - start)
    return tuple(statistics.median(taken[WARM_UP:]) for _, taken in times)


def with_latency(model: nn.Module, plan: PruningPlan, example_inputs: Any, *, passes: int = 7) -> PruningPlan:
    """The plan with the measured latency of ``model`` and of the cut model, which take turns, and the device's name.

    Raises:
        ValueError: too few passes; the plan does not fit the model.
    """
    small = apply(model, plan, example_inputs, verify=False)
    before, after = latencies([model, small], example_inputs, passes=passes)
    return replace(plan, latency_before=before, latency_after=after, latency_device=device_name(example_inputs))


def device_name(example_inputs: Any) -> str:
    """What the model runs on: a GPU by its name, or the CPU with the number of threads that torch takes."""
    device = _device(as_inputs(example_inputs))
    if device.type == "cuda":
        return f"{device}, {torch.cuda.get_device_name(device)}"
    threads = torch.get_num_threads()
    return f"{device}, {threads} thread{'s' * (threads > 1)}"


def _device(inputs: Sequence[Any]) -> torch.device:
    return next((tensor.device for tensor in inputs if isinstance(tensor, torch.Tensor)), torch.device("cpu"))


def _settle(device: torch.device) -> None:
    """Wait for what a device still computes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
