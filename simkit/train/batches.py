"""Batches from tensors in memory, by index; a DataLoader is slow on small samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias, TypeGuard

import torch
from torch import Tensor

Data: TypeAlias = tuple[Tensor, Tensor] | Iterable[Any]


def batches(data: Data, size: int, generator: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """(inputs, labels) in batches; a pair of tensors is shuffled by ``generator``, or in order without one.

    A last batch of one sample joins the one before it, unless all are of one. Anything else that is iterable (a
    DataLoader) yields its own batches, whose first two entries are taken.

    Raises:
        TypeError: data that is neither.
        ValueError: inputs and labels of different lengths; a ``size`` below 1.
    """
    if not _is_pair(data):
        yield from map(_checked, data)
        return
    inputs, labels = data
    if len(inputs) != len(labels):
        raise ValueError(f"data has {len(inputs)} inputs and {len(labels)} labels")
    order = None if generator is None else torch.randperm(len(inputs), generator=generator).to(inputs.device)
    for start, stop in _spans(len(inputs), size):
        where = slice(start, stop) if order is None else order[start:stop]
        yield inputs[where], labels[where]


def count(data: Data, size: int) -> int | None:
    """Number of batches, or None where the data does not know."""
    if _is_pair(data):
        return len(_spans(len(data[0]), size))
    try:
        return len(data)  # type: ignore[arg-type]
    except TypeError:
        return None


def _is_pair(data: Data) -> TypeGuard[tuple[Tensor, Tensor]]:
    return isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)


def _checked(batch: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, (tuple, list)) or len(batch) < 2 or not all(isinstance(p, Tensor) for p in batch[:2]):
        raise TypeError(f"data must yield (inputs, labels) tensors, not {type(batch).__name__}")
    return batch[0], batch[1]


def _spans(samples: int, size: int) -> list[tuple[int, int]]:
    if size < 1:
        raise ValueError(f"batch_size must be at least 1, not {size!r}")
    starts = list(range(0, samples, size))
    if size > 1 and len(starts) > 1 and samples - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], samples], strict=True)) if starts else []
