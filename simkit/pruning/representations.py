"""The representations of a model's layers on a sample of data, in memory, without touching the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..graph import Group, preserved_rng

BATCH = 256
HELD_BYTES = 2**30  # representations kept at once; more layers mean more passes over the inputs


def representations(
    model: nn.Module, groups: Sequence[Group], data: object, samples: int
) -> Iterator[tuple[Group, Tensor]]:
    """Yield (group, its representation ``[n, units, positions]``) for the first ``samples`` samples of ``data``.

    ``model`` is run as it is, so pass a copy in eval mode. Layers are recorded together as long as they fit in memory.
    """
    inputs = take(data, samples)
    for batch in _passes(groups, len(inputs), inputs.element_size() if inputs.is_floating_point() else 4):
        recorded = _record(model, batch, inputs)
        for group in batch:
            yield group, recorded.pop(group.name)


def take(data: object, samples: int) -> Tensor:
    """The first ``samples`` inputs of a tensor or of batches (tensors, or tuples and dicts whose first entry is one).

    Raises:
        TypeError: data that yields no tensors.
        ValueError: no samples at all.
    """
    if isinstance(data, Tensor):
        taken = data[:samples]
    else:
        if not isinstance(data, Iterable):
            raise TypeError(f"data must be a tensor or an iterable of batches, not {type(data).__name__}")
        with preserved_rng():  # a DataLoader draws from the global generator
            taken = _gather(data, samples)
    if len(taken) == 0:
        raise ValueError("data holds no samples")
    return taken.detach()


def _gather(batches: Iterable[Any], samples: int) -> Tensor:
    parts: list[Tensor] = []
    held = 0
    for batch in batches:
        inputs = _inputs(batch)
        parts.append(inputs[: samples - held])
        held += len(parts[-1])
        if held >= samples:
            break
    if not parts:
        raise ValueError("data yields no batches")
    return torch.cat(parts)


def _inputs(batch: Any) -> Tensor:
    found = batch
    if isinstance(batch, Mapping):
        found = next(iter(batch.values()), None)
    elif isinstance(batch, (tuple, list)) and batch:
        found = batch[0]
    if not isinstance(found, Tensor):
        raise TypeError(f"data must yield tensors or tuples that start with one, not {type(found).__name__}")
    return found


def _passes(groups: Sequence[Group], samples: int, itemsize: int) -> Iterator[list[Group]]:
    current: list[Group] = []
    size = 0
    for group in groups:
        need = group.view.elements * samples * itemsize
        if current and size + need > HELD_BYTES:
            yield current
            current, size = [], 0
        current.append(group)
        size += need
    if current:
        yield current


def _record(model: nn.Module, groups: Sequence[Group], inputs: Tensor) -> dict[str, Tensor]:
    parts: dict[str, list[Tensor]] = {group.name: [] for group in groups}

    def keep(group: Group, module: nn.Module, args: object, output: Tensor) -> None:
        # Read at once: an in-place activation may overwrite the output next.
        parts[group.name].append(group.view.read(output, group.units).cpu())

    device = next(model.parameters()).device
    handles = [model.get_submodule(group.view.module).register_forward_hook(partial(keep, group)) for group in groups]
    try:
        with torch.no_grad(), preserved_rng():
            for start in range(0, len(inputs), BATCH):
                model(inputs[start : start + BATCH].to(device))
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.cat(pieces) for name, pieces in parts.items()}
