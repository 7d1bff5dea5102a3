"""The representations of a model's layers on data, in memory or as a stream, without touching the model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..errors import first_line
from ..graph import ChannelGraph, Group, View, preserved_rng
from ..graph.capture import Captured, as_inputs, capture, plain_attention
from ..graph.channels import Units
from ..streaming.covariance import Covariance, CovarianceStream

BATCH = 256
HELD_BYTES = 2**30  # representations kept at once; more layers mean more passes over the inputs
HELD_THERE = 0.25  # of what is free on a device: a pass keeps several layers, and the orders of their units need some
Inputs: TypeAlias = tuple[Tensor, ...]
Reader: TypeAlias = Callable[[Group, View, Tensor, int], Tensor]
Keeper: TypeAlias = Callable[[Tensor, int], None]  # rows, sample by sample, and of how many samples


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


def by_sample(group: Group, view: View, value: Tensor, batch: int) -> Tensor:
    """A row per sample: ``[batch, units, positions]``."""
    return view.read(value, group.units, batch)


def by_position(group: Group, view: View, value: Tensor, batch: int) -> Tensor:
    """A row per position of every sample: ``[batch · positions, columns]``; :func:`columns_of` says whose they are."""
    if columns_of(group, view) is None:
        return view.read(value, group.units, batch).movedim(1, 2).reshape(-1, group.units)
    return view.table(value, batch)


def columns_of(group: Group, view: View) -> Units | None:
    """The unit of every column of :func:`by_position`; None where unit and column are the same.

    A unit has a column for each of its channels, except where the value mixes these with positions (flattened maps).
    """
    wide = int((group.producers[0].units >= 0).sum())
    return view.owners if wide > group.units and wide == len(view.owners) else None


def representations(
    source: Source,
    groups: Sequence[Group],
    views: Mapping[str, View | None],
    inputs: Sequence[Tensor],
    read: Reader = by_sample,
) -> Iterator[tuple[Group, Tensor]]:
    """Yield (group, its representation as ``read`` has it) for all samples of ``inputs``, one tensor per input.

    The captured operations are run, not the model. Layers are recorded together as long as they fit in memory.
    ValueError for a group whose value does not hold samples along its first dimension.
    """
    chosen = {group.name: _required(group, views[group.name]) for group in groups}
    first = inputs[0]
    captured = source.captured(min(BATCH, len(first)))
    for batch in _passes(groups, chosen, len(first), first.element_size() if first.is_floating_point() else 4):
        held = {group.name: _Held(len(first)) for group in batch}
        wanted = [(group, chosen[group.name], held[group.name].take) for group in batch]
        with preserved_rng():
            _run(source, wanted, [tuple(inputs)], read, captured)
        wanted.clear()  # so that a layer is let go as soon as it has been handed on
        for group in batch:
            yield group, held.pop(group.name).values


def stream(
    source: Source,
    wanted: Sequence[tuple[Group, View | None, Keeper]],
    data: object,
    samples: int | None,
) -> None:
    """Run all data, or its first ``samples`` samples, in one pass, and hand on the rows :func:`by_position` of values.

    ``wanted`` says of which group, where they are read, and what takes them. Raises as :func:`take` and
    :func:`representations`.
    """
    listed = [(group, _required(group, view), keep) for group, view, keep in wanted]
    with preserved_rng():  # a DataLoader draws from the global generator
        _run(source, listed, _pieces(data, samples, source.inputs), by_position)


class Moments:
    """Takes rows of any width, which the first tell, into a :class:`CovarianceStream`."""

    def __init__(self) -> None:
        self._stream: CovarianceStream | None = None

    @property
    def rows(self) -> int:
        """Rows so far."""
        return 0 if self._stream is None else self._stream.rows

    def take(self, rows: Tensor, samples: int) -> None:
        """Add the rows ``[k, columns]`` of some samples."""
        if self._stream is None:
            self._stream = CovarianceStream(rows.shape[1])
        self._stream.update(rows.to(torch.float64).cpu().numpy())

    def result(self) -> Covariance:
        """Of all rows so far; ValueError if there were none."""
        if self._stream is None:
            raise ValueError("no rows have been seen")
        return self._stream.result()


def take(data: object, samples: int, count: int = 1) -> Inputs:
    """The first ``samples`` samples of a tensor or of batches: tensors, or tuples and dicts that start with the inputs.

    What a batch holds after its ``count`` inputs (labels) is left out; (inputs, targets) are one batch.

    Raises:
        TypeError: data that yields no tensors.
        ValueError: no samples at all; inputs of different numbers of samples, or of samples that differ in shape; a
            pair of tensors which may be two batches as well as inputs and targets.
    """
    with preserved_rng():
        parts = list(_pieces(data, samples, count))
    return _joined(parts)


def _pieces(data: object, samples: int | None, count: int) -> Iterator[Inputs]:
    """The batches of the data up to ``samples`` samples, inputs only; an error where there is nothing."""
    whole = isinstance(data, Tensor) or _is_batch(data, count)
    if not whole and not isinstance(data, Iterable):
        raise TypeError(f"data must be a tensor or an iterable of batches, not {type(data).__name__}")
    batches: Iterable[Any] = [data] if whole else data  # type: ignore[assignment]
    seen = held = 0
    for batch in batches:
        seen += 1
        inputs = _inputs(batch, count)
        lengths = [len(value) if value.ndim else 0 for value in inputs]
        if len(set(lengths)) > 1:
            raise ValueError(f"data holds inputs of {lengths} samples")
        left = lengths[0] if samples is None else min(samples - held, lengths[0])
        held += left
        if left:
            yield tuple(value[:left].detach() for value in inputs)
        if held == samples:
            break
    if not held:
        raise ValueError("data holds no samples" if seen else "data yields no batches")


def _is_batch(data: object, count: int) -> bool:
    """Whether a tuple or list of tensors is one batch: inputs, and what follows them. Else its tensors are batches.

    Of a model of one input, tensors of one type and number of dimensions are batches, as ``x.split(n)`` gives, and
    others are inputs and targets. Two of as many samples may be either, but for a list of two of one shape.
    """
    if not isinstance(data, (tuple, list)) or len(data) < 2 or not all(isinstance(part, Tensor) for part in data):
        return False
    if count > 1:
        return len(data) >= count
    shapes, kinds = [list(part.shape) for part in data], {(part.dtype, part.ndim) for part in data}
    same_length = len({tuple(shape[:1]) for shape in shapes}) == 1
    other = next((shape for shape in shapes if shape[:1] != shapes[0][:1]), shapes[1])
    what = f"data is a {type(data).__name__} of tensors {shapes[0]} and {other}"
    if len(kinds) > 1:
        if not same_length:
            raise ValueError(f"{what}: inputs and targets must be of as many samples")
        return True
    if len(data) == 2 and same_length and (isinstance(data, tuple) or shapes[0] != shapes[1]):
        raise ValueError(f"{what}: pass [(inputs, targets)], or a list of batches of one shape")
    return False


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


def _required(group: Group, view: View | None) -> View:
    """The view; ValueError where there is none."""
    if view is None:
        raise ValueError(f"layer {group.name!r} has no representation that could be read")
    if not view.rows:
        why = f"{view.node!r} does not hold samples along dimension 0"
        raise ValueError(f"layer {group.name!r} has no representation by sample: {why}")
    return view


class _Held:
    """Takes the rows of ``samples`` samples into one tensor, on their device or on the host: see :func:`home_of`."""

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.values = torch.empty(0)
        self._filled = 0

    def take(self, rows: Tensor, samples: int) -> None:
        """Add the rows of some samples."""
        if not self._filled:
            shape = (len(rows) // samples * self.samples, *rows.shape[1:])
            home = home_of(rows.device, rows.nbytes // samples * self.samples)
            try:
                self.values = rows.new_empty(shape, device=home)
            except torch.OutOfMemoryError:
                self.values = rows.new_empty(shape, device="cpu")
        self.values[self._filled : self._filled + len(rows)] = rows
        self._filled += len(rows)


def home_of(device: torch.device, size: int) -> torch.device:
    """Where so many bytes of rows are kept: on their CUDA device where they take a quarter of what is free at most."""
    room = torch.cuda.mem_get_info(device)[0] * HELD_THERE if device.type == "cuda" else 0
    return device if size <= room else torch.device("cpu")


def _passes(groups: Sequence[Group], views: Mapping[str, View], samples: int, itemsize: int) -> Iterator[list[Group]]:
    current: list[Group] = []
    size = 0
    for group in groups:
        need = views[group.name].elements * samples * itemsize
        if current and size + need > HELD_BYTES:
            yield current
            current, size = [], 0
        current.append(group)
        size += need
    if current:
        yield current


class _Recorder(fx.Interpreter):
    """Runs a captured model up to the last of the wanted nodes, and hands on their values at once: an operation in
    place may overwrite them next."""

    def __init__(
        self, captured: Captured, wanted: Collection[str], keep: Callable[[str, Tensor], None], data: str
    ) -> None:
        super().__init__(captured.module)
        self.data = data
        self.extra_traceback = False  # messages stay one sentence
        self.left = set(wanted)
        self.keep = keep

    def run_node(self, n: fx.Node) -> Any:
        if not self.left:
            return None
        try:
            value = super().run_node(n)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, IndexError) as error:
            raise ValueError(f"the model does not run on data of {self.data}: {first_line(error)}") from error
        if n.name in self.left:
            self.left.remove(n.name)
            self.keep(n.name, value)
        return value


def _run(
    source: Source,
    wanted: Sequence[tuple[Group, View, Keeper]],
    pieces: Iterable[Inputs],
    read: Reader,
    captured: Captured | None = None,
) -> None:
    """Run the pieces in batches of one size; every keeper gets its rows, of nothing but the pieces' samples."""
    at: dict[str, list[tuple[Group, View, Keeper]]] = {}
    for one in wanted:
        at.setdefault(one[1].node, []).append(one)
    with torch.no_grad(), plain_attention():
        for chunk in _batches(pieces, BATCH):
            captured = captured or source.captured(len(chunk[0]))
            fixed = tuple(tree_leaves(source.sized(captured.batch))[len(chunk) :])
            for start in range(0, len(chunk[0]), captured.batch):
                part = [value[start : start + captured.batch] for value in chunk]
                count, batch = len(part[0]), captured.batch

                def hand_on(name: str, value: Tensor, count: int = count, batch: int = batch) -> None:
                    for group, view, keep in at[name]:
                        rows = read(group, view, value, batch)
                        keep(rows[: len(rows) // batch * count], count)

                device = next(iter(captured.constants.values())).device
                given = (*(_padded(value, batch).to(device) for value in part), *fixed)
                found = ", ".join(f"{value.dtype} {list(value.shape)}" for value in part)
                recorder = _Recorder(captured, at, hand_on, found)
                recorder.run(*captured.arguments(given), enable_io_processing=False)


def _batches(pieces: Iterable[Inputs], size: int) -> Iterator[Inputs]:
    """The same samples, ``size`` at a time; the last batch may be smaller."""
    waiting: list[Inputs] = []
    held = 0
    for piece in pieces:
        waiting.append(piece)
        held += len(piece[0])
        if held < size:
            continue
        joined = _joined(waiting)
        for start in range(0, held - held % size, size):
            yield tuple(value[start : start + size] for value in joined)
        waiting, held = [tuple(value[held - held % size :] for value in joined)], held % size
    if held:
        yield _joined(waiting)


def _joined(parts: Sequence[Inputs]) -> Inputs:
    if len(parts) == 1:
        return parts[0]
    for pieces in zip(*parts, strict=True):
        shapes = {tuple(piece.shape[1:]): None for piece in pieces}
        if len(shapes) > 1:
            raise ValueError(f"data holds batches whose samples have shapes {' and '.join(map(str, shapes))}")
    return tuple(torch.cat(pieces) for pieces in zip(*parts, strict=True))


def _padded(values: Tensor, batch: int) -> Tensor:
    """The last row repeated, up to the size for which the model was captured; always a copy."""
    return values[torch.arange(batch).clamp(max=len(values) - 1)]
