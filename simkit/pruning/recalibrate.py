"""BatchNorm statistics of a cut model, estimated again: they were those of the dense one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..graph import preserved_rng
from ..graph.preserve import own_copy
from .representations import take

BATCH = 256
_NORMS = (nn.modules.batchnorm._BatchNorm,)


def recalibrated(model: nn.Module, data: object, *, samples: int = 2000) -> nn.Module:
    """A copy of the model whose BatchNorm layers have the mean and variance of ``data`` (inputs, or batches of them).

    Only these layers run in train mode, all others in eval mode; every batch counts by its number of samples. Nothing
    else changes, the copy is in the mode of ``model``.

    Raises:
        ValueError: the model has no BatchNorm layer that keeps statistics; no samples.
    """
    small = own_copy(model)
    norms = [one for one in small.modules() if isinstance(one, _NORMS) and one.running_mean is not None]
    if not norms:
        raise ValueError(f"{type(model).__name__} has no BatchNorm layer that keeps running statistics")
    (inputs,) = take(data, samples)
    device = next(small.parameters()).device
    with _estimating(small, norms), torch.no_grad(), preserved_rng():
        for index, start in enumerate(range(0, len(inputs), BATCH)):
            batch = inputs[start : start + BATCH]
            if index and len(batch) < 2:
                break  # one sample has no variance
            for norm in norms:
                norm.momentum = len(batch) / (start + len(batch))
            small(batch.to(device))
    return small


@contextmanager
def _estimating(model: nn.Module, norms: list[Any]) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.train()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
