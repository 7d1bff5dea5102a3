"""What loaders yield -> calls of a model: inputs, labels and sample ids told apart, batches counted and paired.

One batch is

* a tensor or array ``[n, ...]``: the only input;
* a tuple or list: its first entry is the input (as many leading entries as ``forward`` has required parameters), the
  rest are labels; an entry that is itself a tuple gives several positional inputs, a mapping keyword inputs;
* a mapping (dict, Hugging Face ``BatchEncoding``): keyword inputs, ``attention_mask`` among them; keys that ``forward``
  does not take are dropped and reported. ``{"image": x, "label": y}`` is one input whatever ``forward`` calls it.

Dimension 0 of the first input tensor is the samples. A *pair* of loaders must also yield sample ids, unique integers
or strings: under the key ``"sample_id"``, ``"sample_ids"``, ``"id"``, ``"ids"``, ``"index"`` or ``"idx"`` of a mapping,
or as the last entry of a tuple.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

ID_KEYS = ("sample_id", "sample_ids", "id", "ids", "index", "idx")
LABEL_KEYS = ("label", "labels", "target", "targets", "y", *ID_KEYS)
BATCH = 128  # samples a batch when the data is one tensor
_REMEMBERED_IDS = 4096
_END = object()


@dataclass(frozen=True)
class Call:
    """Arguments for one forward pass over ``samples`` samples."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    samples: int


@dataclass(frozen=True)
class Signature:
    """What a model's ``forward`` takes."""

    required: int
    names: frozenset[str]
    any_keyword: bool


def signature_of(root: nn.Module) -> Signature:
    """The parameters of ``forward``; anything goes when they cannot be inspected."""
    try:
        parameters = list(inspect.signature(root.forward).parameters.values())
    except (TypeError, ValueError):
        return Signature(1, frozenset(), True)
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = sum(p.kind in positional and p.default is inspect.Parameter.empty for p in parameters)
    named = frozenset(p.name for p in parameters if p.kind in (*positional[1:], inspect.Parameter.KEYWORD_ONLY))
    return Signature(required, named, any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters))


class Caller:
    """Turns the batches meant for one model into calls on its device; ``dropped`` lists the keys left out."""

    def __init__(self, root: nn.Module, device: torch.device, dtype: torch.dtype, what: str) -> None:
        self.dropped: set[str] = set()
        self._signature = signature_of(root)
        self._device, self._dtype, self._what = device, dtype, what

    def __call__(self, batch: object) -> Call:
        """The call for one batch; tensors are copied, so that no model can write into the caller's data.

        Raises:
            TypeError: a batch without tensors. ValueError: a mapping none of whose keys ``forward`` takes.
        """
        args, kwargs = self._arguments(batch)
        moved = _moved((args, kwargs), self._device, self._dtype)
        return Call(moved[0], moved[1], count_samples((args, kwargs), batch))

    def count(self, batch: object) -> int:
        """The number of samples in one batch."""
        return count_samples(self._arguments(batch), batch)

    def _arguments(self, batch: object) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if isinstance(batch, Mapping):
            return self._keywords(batch)
        if isinstance(batch, tuple | list) and not isinstance(batch, PackedSequence):
            if not batch:
                raise TypeError("data yielded an empty tuple: the first entry is the model's input")
            first = batch[0]
            if isinstance(first, Mapping):
                return self._keywords(first)
            if isinstance(first, tuple | list) and not isinstance(first, PackedSequence):
                return tuple(first), {}
            return tuple(batch[: max(1, self._signature.required)]), {}
        return (batch,), {}

    def _keywords(self, batch: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        takes = self._signature
        kept = {
            key: value
            for key, value in batch.items()
            if key in takes.names or (takes.any_keyword and key not in LABEL_KEYS)
        }
        inputs = [key for key in batch if key not in LABEL_KEYS]
        if not kept and len(inputs) == 1 and takes.required <= 1:
            return (batch[inputs[0]],), {}
        self.dropped.update(str(key) for key in batch if key not in kept)
        if not kept:
            raise ValueError(
                f"a batch has the keys {sorted(map(str, batch))} and {self._what}'s forward takes "
                f"{sorted(takes.names)}: none match"
            )
        return (), kept


def _moved(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A copy of nested inputs on ``device``; NumPy floats take the model's type, tensors keep theirs."""
    if isinstance(value, Tensor):
        return value.detach().to(device, copy=True)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        tensor = torch.from_numpy(np.array(value))
        return tensor.to(device, dtype if tensor.is_floating_point() else None)
    if isinstance(value, PackedSequence):
        return value.to(device)  # type: ignore[arg-type]
    if isinstance(value, Mapping):
        return {key: _moved(entry, device, dtype) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        entries = [_moved(entry, device, dtype) for entry in value]
        return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    return value


def arrays_in(value: object) -> Iterator[Tensor | np.ndarray[Any, Any]]:
    """The tensors and arrays nested in a batch, depth first."""
    if isinstance(value, Tensor | np.ndarray):
        yield value
    elif isinstance(value, PackedSequence):
        yield value.batch_sizes[:1].new_empty((int(value.batch_sizes[0]), 0))
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from arrays_in(entry)
    elif isinstance(value, tuple | list):
        for entry in value:
            yield from arrays_in(entry)


def count_samples(inputs: object, batch: object) -> int:
    """Dimension 0 of the first input tensor, or TypeError when there is none."""
    first = next((array for array in arrays_in(inputs) if array.ndim), None)
    if first is None:
        raise TypeError(f"data yielded a {type(batch).__name__} without any tensor [n, ...] to run a model on")
    return int(first.shape[0])


@dataclass(frozen=True)
class Data:
    """Checked ``data=``: one iterable of batches, or a pair. ``samples``: how many to expect, None if unknown."""

    first: Iterable[Any]
    second: Iterable[Any] | None
    samples: int | None

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        """The batches for the two models; the same object twice for a single loader.

        Raises:
            ValueError: a pair that differs in length or in sample ids, or has none.
        """
        if self.second is None:
            for batch in self.first:
                yield batch, batch
            return
        ids = _Ids()
        for number, (a, b) in enumerate(zip_longest(self.first, self.second, fillvalue=_END)):
            if a is _END or b is _END:
                raise ValueError(f"the loader of model_{'a' if a is _END else 'b'} ended first, after {number} batches")
            ids.check(number, a, b)
            yield a, b


class _Ids:
    """Checks that two loaders yield the same samples in the same order."""

    def __init__(self) -> None:
        self._early: set[Any] = set()

    def check(self, number: int, a: object, b: object) -> None:
        left, right = sample_ids(a), sample_ids(b)
        if left is None or right is None:
            raise ValueError(
                f"batch {number} of model_{'a' if left is None else 'b'}'s loader has no sample ids: a pair of loaders "
                'must yield unique integers or strings under a key such as "sample_id" or as the last entry of a tuple'
            )
        sizes = [len(left), len(right), count_samples(a, a), count_samples(b, b)]
        if len(set(sizes)) > 1:
            raise ValueError(
                f"batch {number} has {sizes[2]} samples and {sizes[0]} ids for model_a, "
                f"{sizes[3]} samples and {sizes[1]} ids for model_b"
            )
        for place, (x, y) in enumerate(zip(left, right, strict=True)):
            if x != y:
                raise ValueError(
                    f"the loaders differ at sample {place} of batch {number}: id {x!r} for model_a, {y!r} for model_b"
                )
        known = set(left)
        if len(known) < len(left) or known & self._early:
            repeated = next(x for i, x in enumerate(left) if x in self._early or x in left[:i])
            raise ValueError(
                f"the sample id {repeated!r} repeats in batch {number}: ids must be unique, labels are not"
            )
        if len(self._early) < _REMEMBERED_IDS:
            self._early |= known


def sample_ids(batch: object) -> list[int | str] | None:
    """The ids in one batch, or None when it has none."""
    if isinstance(batch, Mapping):
        key = next((key for key in ID_KEYS if key in batch), None)
        found = None if key is None else batch[key]
    elif isinstance(batch, tuple | list) and len(batch) > 1:
        found = batch[-1]
    else:
        return None
    if isinstance(found, Tensor):
        found = found.detach().cpu().numpy()
    if isinstance(found, np.ndarray):
        found = found.tolist() if found.ndim == 1 and found.dtype.kind in "iuUSO" else None
    if not isinstance(found, tuple | list) or not all(isinstance(entry, int | str) for entry in found):
        return None
    return None if any(isinstance(entry, bool) for entry in found) else list(found)


def open_data(data: object, *, paired: bool) -> Data:
    """Check ``data=`` and see how many samples to expect.

    Raises:
        TypeError: nothing that yields batches. ValueError: a pair of loaders for one model, a pair of tensors.
    """
    if isinstance(data, tuple):
        if len(data) != 2:
            raise ValueError(
                f"data is a tuple of {len(data)}: pass one loader, a list of batches, or a pair of loaders"
            )
        if any(isinstance(part, Tensor | np.ndarray | Mapping) for part in data):
            raise ValueError("data is a pair of arrays: a pair must be two loaders that yield sample ids")
        if not paired:
            raise ValueError("data is a pair of loaders but there is no model_b")
        first, second = _batches(data[0]), _batches(data[1])
        sizes = [size for size in (expected_samples(first), expected_samples(second)) if size is not None]
        return Data(first, second, min(sizes, default=None))
    single = _batches(data)
    return Data(single, None, expected_samples(single))


def _batches(data: object) -> Iterable[Any]:
    if isinstance(data, Tensor | np.ndarray | Mapping):
        return _Slices(data)
    if isinstance(data, torch.utils.data.Dataset) and not isinstance(data, torch.utils.data.IterableDataset):
        raise TypeError(f"data is a {type(data).__name__}: wrap it in torch.utils.data.DataLoader(..., batch_size=128)")
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        raise TypeError(f"data must be a loader that yields batches, or a tensor [n, ...], not {type(data).__name__}")
    return data


class _Slices:
    """A tensor, array or mapping of them ``[n, ...]``, cut into batches."""

    def __init__(self, data: Tensor | np.ndarray[Any, Any] | Mapping[str, Any]) -> None:
        self._data = data
        self.samples = count_samples(data, data)
        lengths = {len(array) for array in arrays_in(data) if array.ndim}
        if len(lengths) > 1:
            raise ValueError(f"data holds arrays of different lengths: {sorted(lengths)}")

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, self.samples, BATCH):
            rows = slice(start, start + BATCH)
            if isinstance(self._data, Mapping):
                yield {key: value[rows] for key, value in self._data.items()}
            else:
                yield self._data[rows]


def expected_samples(data: object) -> int | None:
    """The number of samples a loader says it holds, or None; an expectation, never relied upon."""
    if isinstance(data, _Slices):
        return data.samples
    if isinstance(data, torch.utils.data.DataLoader):
        try:
            if data.batch_size is None:
                return len(data.dataset)  # type: ignore[arg-type]
            size = len(data.sampler)  # type: ignore[arg-type]
            return size - size % data.batch_size if data.drop_last else size
        except TypeError:
            return None
    if isinstance(data, list):
        try:
            return sum(count_samples(batch, batch) for batch in data)
        except TypeError:
            return None
    return None


def expected_from_length(data: object, batch: int) -> int | None:
    """``len(data)`` batches of ``batch`` samples, for loaders other than torch's that know their length."""
    if not isinstance(data, Sized) or isinstance(data, torch.utils.data.DataLoader):
        return None
    try:
        return len(data) * batch
    except TypeError:
        return None
