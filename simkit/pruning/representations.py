"""The representations of a model's layers on a sample of data, in memory, without touching the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..graph import ChannelGraph, Group, View, preserved_rng
from ..graph.capture import Captured, as_inputs, capture, plain_attention

BATCH = 256
HELD_BYTES = 2**30  # representations kept at once; more layers mean more passes over the inputs


@dataclass(frozen=True)
class Source:
    """A model (a copy in eval mode), its channel graph and the inputs with which that was traced."""

    model: nn.Module
    graph: ChannelGraph
    example_inputs: Any

    @property
    def inputs(self) -> int:
        """How many inputs the model reads."""
        return len(tree_leaves(as_inputs(self.example_inputs)))

    def sized(self, batch: int) -> tuple[Any, ...]:
        """The example inputs with ``batch`` samples; inputs without samples as they are."""
        count = self.graph.batch

        def repeated(value: Any) -> Any:
            samples = isinstance(value, Tensor) and value.shape[:1] == (count,)
            return value[torch.arange(batch) % count] if samples else value

        sized: tuple[Any, ...] = tree_map(repeated, as_inputs(self.example_inputs))
        return sized

    def captured(self, batch: int) -> Captured:
        """The model captured for batches of that size, or of the example's where the graph would be another one."""
        try:
            found = capture(self.model, self.sized(batch))
        except (ValueError, NotImplementedError):
            found = None
        if found is None or tuple(node.name for node in found.nodes) != self.graph.nodes:
            found = capture(self.model, self.example_inputs)
        return found


def representations(
    source: Source, groups: Sequence[Group], views: Mapping[str, View | None], inputs: Sequence[Tensor]
) -> Iterator[tuple[Group, Tensor]]:
    """Yield (group, its representation ``[n, units, positions]``) for all samples of ``inputs``, one tensor per input.

    The captured operations are run, not the model. Layers are recorded together as long as they fit in memory.
    ValueError for a group whose value does not hold samples along its first dimension.
    """
    missing = next((group.name for group in groups if views[group.name] is None), None)
    if missing is not None:
        raise ValueError(f"layer {missing!r} has no representation that could be read")
    first = inputs[0]
    captured = source.captured(min(BATCH, len(first)))
    fixed = tuple(tree_leaves(source.sized(captured.batch))[len(inputs) :])
    for batch in _passes(groups, views, len(first), first.element_size() if first.is_floating_point() else 4):
        recorded = _record(captured, batch, views, inputs, fixed)
        for group in batch:
            yield group, recorded.pop(group.name)


def take(data: object, samples: int, count: int = 1) -> tuple[Tensor, ...]:
    """The first ``samples`` samples of a tensor or of batches: tensors, or tuples and dicts that start with the inputs.

    What a batch holds after its ``count`` inputs (labels) is left out.

    Raises:
        TypeError: data that yields no tensors.
        ValueError: no samples at all; inputs of different numbers of samples.
    """
    if isinstance(data, Tensor) or (isinstance(data, (tuple, list)) and 0 < count == len(data) and count > 1):
        taken = tuple(value[:samples] for value in _inputs(data, count))
    else:
        if not isinstance(data, Iterable):
            raise TypeError(f"data must be a tensor or an iterable of batches, not {type(data).__name__}")
        with preserved_rng():  # a DataLoader draws from the global generator
            taken = _gather(data, samples, count)
    if len(taken[0]) == 0:
        raise ValueError("data holds no samples")
    lengths = [len(value) for value in taken]
    if len(set(lengths)) > 1:
        raise ValueError(f"data holds inputs of {lengths} samples")
    return tuple(value.detach() for value in taken)


def _gather(batches: Iterable[Any], samples: int, count: int) -> tuple[Tensor, ...]:
    parts: list[tuple[Tensor, ...]] = []
    held = 0
    for batch in batches:
        parts.append(tuple(value[: samples - held] for value in _inputs(batch, count)))
        held += len(parts[-1][0])
        if held >= samples:
            break
    if not parts:
        raise ValueError("data yields no batches")
    return tuple(torch.cat(pieces) for pieces in zip(*parts, strict=True))


def _inputs(batch: Any, count: int) -> tuple[Tensor, ...]:
    found: Sequence[Any] = [batch]
    if isinstance(batch, Mapping):
        found = list(batch.values())[:count] or [None]
    elif isinstance(batch, (tuple, list)) and batch:
        found = batch[:count]
    for value in found:
        if not isinstance(value, Tensor):
            raise TypeError(f"data must yield tensors or tuples that start with one, not {type(value).__name__}")
    return tuple(found)


def _passes(
    groups: Sequence[Group], views: Mapping[str, View | None], samples: int, itemsize: int
) -> Iterator[list[Group]]:
    current: list[Group] = []
    size = 0
    for group in groups:
        view = views[group.name]
        need = (0 if view is None else view.elements) * samples * itemsize
        if current and size + need > HELD_BYTES:
            yield current
            current, size = [], 0
        current.append(group)
        size += need
    if current:
        yield current


class _Recorder(fx.Interpreter):
    """Runs a captured model and keeps copies of some values: an operation in place may overwrite them next."""

    def __init__(self, captured: Captured, wanted: Iterable[str]) -> None:
        super().__init__(captured.module)
        self.wanted = frozenset(wanted)
        self.found: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.wanted:
            self.found[n.name] = value.detach().clone()
        return value


def _record(
    captured: Captured,
    groups: Sequence[Group],
    views: Mapping[str, View | None],
    inputs: Sequence[Tensor],
    fixed: tuple[Any, ...],
) -> dict[str, Tensor]:
    chosen = {group.name: view for group in groups if (view := views[group.name]) is not None}
    parts: dict[str, list[Tensor]] = {name: [] for name in chosen}
    device = next(iter(captured.constants.values())).device
    with torch.no_grad(), preserved_rng(), plain_attention():
        for start in range(0, len(inputs[0]), captured.batch):
            chunk = [value[start : start + captured.batch] for value in inputs]
            full = [_padded(value, captured.batch).to(device) for value in chunk]
            found = _run(captured, {view.node for view in chosen.values()}, (*full, *fixed))
            for group in groups:
                view = chosen[group.name]
                value = view.read(found[view.node], group.units, captured.batch)
                parts[group.name].append(value[: len(chunk[0])].cpu())
    return {name: torch.cat(pieces) for name, pieces in parts.items()}


def _padded(values: Tensor, batch: int) -> Tensor:
    """The last row repeated, up to the size for which the model was captured; always a copy."""
    return values[torch.arange(batch).clamp(max=len(values) - 1)]


def _run(captured: Captured, wanted: Iterable[str], inputs: tuple[Any, ...]) -> dict[str, Tensor]:
    recorder = _Recorder(captured, wanted)
    recorder.run(*captured.arguments(inputs), enable_io_processing=False)
    return recorder.found
