"""BatchNorm statistics of a cut model, estimated again: they were those of the dense one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import first_line
from ..graph import preserved_rng
from ..graph.preserve import own_copy
from ..kernels import as_integer
from .representations import take

BATCH = 256
RECALIBRATED = "simkit_recalibrated"


class _Pooled:
    """Number, mean and squared deviations of what a BatchNorm layer reads, over all its calls (Chan et al. 1983)."""

    def __init__(self) -> None:
        self.n = 0
        self.mean: Tensor = torch.zeros(())
        self.deviations: Tensor = torch.zeros(())

    def hook(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        values = inputs[0].detach().double().movedim(1, -1).flatten(0, -2)
        n, mean = len(values), values.mean(dim=0)
        deviations = (values - mean).square().sum(dim=0)
        total, apart = self.n + n, mean - self.mean
        self.deviations = self.deviations + deviations + apart.square() * (self.n * n / total)
        self.mean = self.mean + apart * (n / total)
        self.n = total


def recalibrated(model: nn.Module, data: object, *, samples: int = 2000) -> nn.Module:
    """A copy of the model whose BatchNorm layers have the mean and variance of what they read on ``data``.

    ``data``: inputs ``[n, ...]`` of a model of one input, or batches of them. While it runs, these layers normalise
    every batch of 256 by itself, as in training, and all others are in eval mode; the variance written is that of all
    values together. Nothing else changes; the copy is in the mode of ``model``, and has the number of samples in the
    attribute ``simkit_recalibrated``, which :func:`save` stores.

    Raises:
        ValueError: the model has no BatchNorm layer that keeps statistics, or one that reads a single value; fewer than
            two samples; ``samples`` is not an integer of at least 2; the model does not run on the data alone.
    """
    count = as_integer(samples)
    if count is None or count < 2:
        raise ValueError(f"samples must be an integer of at least 2, not {samples!r}")
    small = own_copy(model)
    norms = {
        name: one
        for name, one in small.named_modules()
        if isinstance(one, nn.modules.batchnorm._BatchNorm) and one.running_mean is not None
    }
    if not norms:
        raise ValueError(f"{type(model).__name__} has no BatchNorm layer that keeps running statistics")
    (inputs,) = take(data, count)
    if len(inputs) < 2:
        raise ValueError(f"statistics need at least 2 samples, not {len(inputs)}")
    pooled = {name: _Pooled() for name in norms}
    device = next(iter(norms.values())).running_mean.device  # type: ignore[union-attr]
    with _reading(small, norms, pooled), torch.no_grad(), preserved_rng():
        batches = [batch for batch in torch.split(inputs, BATCH) if len(batch) > 1]  # one sample has no variance
        for batch in batches:
            _run(small, batch.to(device))
    for name, norm in norms.items():
        _write(name, norm, pooled[name])
    setattr(small, RECALIBRATED, sum(map(len, batches)))
    return small


def _run(small: nn.Module, batch: Tensor) -> None:
    try:
        small(batch)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        found = f"{batch.dtype} {list(batch.shape)}"
        raise ValueError(f"{type(small).__name__} does not run on data of {found}: {first_line(error)}") from error


def _write(name: str, norm: nn.modules.batchnorm._BatchNorm, found: _Pooled) -> None:
    if found.n == 0:
        return  # it never ran
    if found.n < 2:
        raise ValueError(f"{name} reads a single value, which has no variance")
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(found.mean)
    norm.running_var.copy_(found.deviations / (found.n - 1))


@contextmanager
def _reading(model: nn.Module, norms: dict[str, Any], pooled: dict[str, _Pooled]) -> Iterator[None]:
    """The layers in train mode, their own statistics put back afterwards, what they read pooled."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for norm in norms.values() for buffer in norm.buffers(recurse=False)]
    model.eval()
    handles = [norm.register_forward_pre_hook(pooled[name].hook) for name, norm in norms.items()]
    for norm in norms.values():
        norm.train()
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
        for buffer, before in buffers:
            buffer.copy_(before)
