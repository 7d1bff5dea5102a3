"""What a layer returned -> its features ``[n, p]``: the tensor, its samples checked, reduced, where it lies."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from ..arrays import Matrix, as_matrix

Reduce: TypeAlias = Literal["flatten", "mean", "positions"] | Callable[[Tensor], Any]

REDUCTIONS = ("flatten", "mean", "positions")
_PREFERRED = ("last_hidden_state", "logits")
_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
)
_CHANNELS_LAST = (
    nn.Linear,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.Embedding,
    nn.modules.rnn.RNNBase,
    nn.MultiheadAttention,
)


class NoSamples(ValueError):
    """A layer's output does not hold one entry per sample; the sentence names the layer and the shape."""


def first_tensor(output: object) -> Tensor | None:
    """The tensor that stands for a layer's output, or None.

    A tensor is itself. A mapping (dict, Hugging Face ``ModelOutput``) gives ``last_hidden_state``, else ``logits``,
    else its first entry that holds a tensor; a tuple, list or dataclass its first entry that holds one, depth first.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        keys = [key for key in _PREFERRED if key in output]
        entries: list[Any] = [output[key] for key in keys] + list(output.values())
    elif isinstance(output, tuple | list):
        entries = list(output)
    elif dataclasses.is_dataclass(output):
        entries = [getattr(output, field.name) for field in dataclasses.fields(output)]
    else:
        return None
    return next((found for entry in entries if (found := first_tensor(entry)) is not None), None)


def check_reduce(reduce: object) -> None:
    """Raise ValueError for a reduction that is neither a known name nor callable."""
    if not callable(reduce) and reduce not in REDUCTIONS:
        raise ValueError(f"reduce must be {', '.join(map(repr, REDUCTIONS))} or a callable, not {reduce!r}")


def samples_of(output: object, n: int, layer: str) -> Tensor:
    """The tensor ``[n, ...]`` of an output whose dimension 0 is the batch.

    Raises:
        NoSamples: no tensor in it, or another dimension 0 (a time-major RNN, a position embedding).
    """
    tensor = first_tensor(output)
    if tensor is None:
        raise NoSamples(f"{layer} returned {type(output).__name__} without any tensor")
    shape = tuple(tensor.shape)
    if not shape or shape[0] != n:
        hint = "dimension 0 must be the samples"
        if time_major(tensor, n):
            hint += " (dimension 1 has them: time-major?)"
        raise NoSamples(f"{layer} returned shape {shape} for a batch of {n} samples: {hint}")
    return tensor


def time_major(tensor: Tensor | None, n: int) -> bool:
    """Whether the samples seem to lie in dimension 1 instead of 0."""
    return tensor is not None and tensor.ndim >= 3 and tensor.shape[0] not in (1, n) and tensor.shape[1] == n


def channel_axis(module: nn.Module, ndim: int) -> int:
    """The dimension of the features: 1 for convolutions, their norms and pools; last for Linear, LayerNorm, RNNs.

    Where the module's type does not say: last for ``[n, t, d]`` (tokens), 1 for ``[n, c, h, w]`` (maps).
    """
    if ndim < 3 or isinstance(module, _CHANNELS_LAST):
        return ndim - 1
    if isinstance(module, _CHANNELS_FIRST):
        return 1
    return 2 if ndim == 3 else 1


def reduced(tensor: Tensor, reduce: Reduce, module: nn.Module, layer: str) -> Tensor:
    """``tensor [n, ...]`` -> features ``[n, p]``, or ``[n · positions, p]`` for ``"positions"``, sample by sample."""
    n = tensor.shape[0]
    if callable(reduce):
        return _custom(tensor, reduce, layer)
    if reduce == "flatten" or tensor.ndim < 3:
        return tensor.reshape(n, -1)
    axis = channel_axis(module, tensor.ndim)
    if reduce == "positions":
        return tensor.movedim(axis, -1).reshape(-1, tensor.shape[axis])
    over = [i for i in range(1, tensor.ndim) if i != axis]
    return tensor.mean(dim=over, dtype=tensor.dtype if tensor.is_complex() else _wide(tensor.dtype))


def _custom(tensor: Tensor, reduce: Callable[[Tensor], Any], layer: str) -> Tensor:
    out = reduce(tensor)
    result = out if isinstance(out, Tensor) else torch.as_tensor(out)
    if result.ndim < 1 or result.shape[0] != tensor.shape[0]:
        raise ValueError(
            f"reduce returned shape {tuple(result.shape)} for {layer} of shape {tuple(tensor.shape)}: "
            "dimension 0 must stay the samples"
        )
    return result.detach().reshape(tensor.shape[0], -1)


def admitted(features: Tensor, layer: str, *, first: int, positions: int) -> Matrix:
    """Features ``[rows, p]`` as a :class:`Matrix`, perhaps a view of the tensor, checked to be finite.

    Raises:
        ValueError: NaN or infinite entries (how many in this batch, and the first sample and feature), no features.
    """
    if features.numel() == 0:
        raise ValueError(f"{layer} has no features: shape {tuple(features.shape)}")
    # One pass without an intermediate: the sum is finite only if every entry is; where it overflowed, none is found.
    if features.is_floating_point() and not bool(features.sum(dtype=_wide(features.dtype)).isfinite()):
        bad = (~torch.isfinite(features)).nonzero()
        if len(bad):
            row, column = (int(i) for i in bad[0])
            count = "1 non-finite entry" if len(bad) == 1 else f"{len(bad)} non-finite entries"
            where = f"the first at sample {first + row // positions}, feature {column}"
            raise ValueError(f"{layer} has {count} in one batch, {where}")
    return as_matrix(features, name=layer)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The type that sums of a floating-point type are formed in."""
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32
