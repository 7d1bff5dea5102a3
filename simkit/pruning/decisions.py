"""A pruning plan: which units go, why, and what that saves. Plain data with a strict JSON round trip."""

from __future__ import annotations

import base64
import binascii
import json
import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, TypeAdapter, ValidationError

FORMAT = "simkit pruning plan 2"
Ranges: TypeAlias = tuple[tuple[int, int], ...]
_FORBID = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def as_ranges(positions: Iterable[int]) -> Ranges:
    """Ascending positions as half-open ranges."""
    found: list[tuple[int, int]] = []
    for position in positions:
        if found and found[-1][1] == position:
            found[-1] = (found[-1][0], int(position) + 1)
        else:
            found.append((int(position), int(position) + 1))
    return tuple(found)


def _proper(ranges: Ranges, size: int) -> bool:
    """Whether the ranges are ascending, apart, not empty, and leave something of ``size``."""
    inside = all(0 <= start < stop <= size for start, stop in ranges)
    apart = all(first[1] < second[0] for first, second in pairwise(ranges))
    return inside and apart and 0 < sum(stop - start for start, stop in ranges) < size


@dataclass(frozen=True)
class SlotPlan:
    """What goes from one dimension, of length ``size``, of a parameter or buffer: half-open ranges of positions.

    Masking zeroes these positions of the consumers; cutting removes them from every slot.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _FORBID

    role: Literal["producer", "carrier", "consumer"]
    tensor: str
    dim: int
    size: int
    removed: Ranges

    def __post_init__(self) -> None:
        if self.dim < 0 or not self.tensor or not _proper(self.removed, self.size):
            raise ValueError(f"a plan has the impossible slot {self!r}")

    @property
    def module(self) -> str:
        """Path of the module that owns the tensor."""
        return self.tensor.rpartition(".")[0]

    @property
    def positions(self) -> tuple[int, ...]:
        """The positions along ``dim`` that go, ascending."""
        return tuple(position for start, stop in self.removed for position in range(start, stop))

    @property
    def kept(self) -> tuple[int, ...]:
        """The positions along ``dim`` that stay, ascending."""
        gone = set(self.positions)
        return tuple(position for position in range(self.size) if position not in gone)


@dataclass(frozen=True)
class SizePlan:
    """An integer attribute of a module (entry ``index`` of a tuple) of value ``size`` that loses one per position."""

    __pydantic_config__: ClassVar[ConfigDict] = _FORBID

    module: str
    attribute: str
    index: int | None
    size: int
    removed: Ranges

    def __post_init__(self) -> None:
        named = self.attribute.isidentifier() and not self.attribute.startswith("__")
        if not named or (self.index is not None and self.index < 0) or not _proper(self.removed, self.size):
            raise ValueError(f"a plan has the impossible size attribute {self!r}")

    @property
    def count(self) -> int:
        """By how much the attribute shrinks."""
        return sum(stop - start for start, stop in self.removed)


@dataclass(frozen=True)
class TotalPlan:
    """Terms that go from a sum without a weight: over ``dim`` of the input of ``node``, as capturing names it.

    ``kept``: from a statistic of the terms that are there, such as a mean.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _FORBID

    node: str
    dim: int
    size: int
    removed: Ranges
    kept: bool = False

    def __post_init__(self) -> None:
        if self.dim < 0 or not self.node or not _proper(self.removed, self.size):
            raise ValueError(f"a plan has the impossible sum {self!r}")


@dataclass(frozen=True)
class IndexPlan:
    """A buffer of numbers of ``size`` channels, of which some go: those that stay are counted anew."""

    __pydantic_config__: ClassVar[ConfigDict] = _FORBID

    tensor: str
    size: int
    removed: Ranges

    def __post_init__(self) -> None:
        if not self.tensor or not _proper(self.removed, self.size):
            raise ValueError(f"a plan has the impossible numbering {self!r}")

    @property
    def positions(self) -> tuple[int, ...]:
        """The channels that go, ascending."""
        return tuple(position for start, stop in self.removed for position in range(start, stop))


@dataclass(frozen=True)
class Packed:
    """An array as text: its type, its shape, and its bytes (little-endian, row-major), compressed, in base 64."""

    __pydantic_config__: ClassVar[ConfigDict] = _FORBID

    dtype: Literal["int64", "float64"]
    shape: tuple[int, ...]
    data: str

    @classmethod
    def of(cls, values: npt.NDArray[np.int64] | npt.NDArray[np.float64]) -> Packed:
        """Pack an array."""
        kind: Literal["int64", "float64"] = "int64" if values.dtype == np.int64 else "float64"
        raw = np.ascontiguousarray(values, dtype=f"<{kind[0]}8").tobytes()
        return cls(kind, values.shape, base64.b64encode(zlib.compress(raw)).decode())

    def array(self) -> npt.NDArray[Any]:
        """The array; ValueError where text, type and shape contradict each other or a number is not finite."""
        size = 8 * math.prod(self.shape)
        try:
            pipe = zlib.decompressobj()
            raw = pipe.decompress(base64.b64decode(self.data, validate=True), size + 1)
        except (binascii.Error, zlib.error) as error:
            raise ValueError(f"a packed array does not unpack: {error}") from None
        if min(self.shape, default=1) < 0 or len(raw) != size:
            raise ValueError(f"a packed array of shape {self.shape} does not have {size} bytes")
        values = np.frombuffer(raw, dtype=f"<{self.dtype[0]}8").reshape(self.shape)
        if not np.isfinite(values).all():
            raise ValueError("a packed array holds a number that is not finite")
        return values


@dataclass(frozen=True)
class Repair:
    """How one consumer makes up for the removed units, before they are cut.

    Along ``dim`` of ``tensor`` the entries at ``kept [m, w]`` (unit, position within the unit) gain ``mixing [r, m]``
    times those at ``removed [r, w]``. ``offset [r]`` is what stays constant of a removed unit; what the consumer makes
    of it is added to ``constant`` (a bias), or subtracted if that is a running mean; None: it is dropped. ``before``
    and ``after`` are mean squared errors of the consumer's output without and with this, where data told them;
    ``held_out`` is the latter on samples apart, of what the other samples alone would have told.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _FORBID

    tensor: str
    dim: int
    removed: Packed
    kept: Packed
    mixing: Packed
    offset: Packed
    constant: str | None
    before: float | None
    after: float | None
    note: str
    held_out: float | None = None

    def __post_init__(self) -> None:
        gone, stays, mixing, offset = (part.array() for part in (self.removed, self.kept, self.mixing, self.offset))
        fits = gone.ndim == stays.ndim == 2 and gone.shape[1] == stays.shape[1] and offset.shape == gone.shape[:1]
        if self.dim < 0 or not fits or mixing.shape != (len(gone), len(stays)):
            raise ValueError(
                f"a repair of {self.tensor!r} mixes {stays.shape} positions into {gone.shape} by {mixing.shape}"
            )
        both = np.concatenate([gone.ravel(), stays.ravel()])
        if both.dtype != np.int64 or len(np.unique(both)) != len(both) or both.min(initial=0) < 0:
            raise ValueError(f"a repair of {self.tensor!r} names positions that are no distinct numbers")


@dataclass(frozen=True)
class LayerPlan:
    """The decision for one layer and all that is coupled with it.

    ``removed`` lists the units in the order of removal, ``scores`` what the criterion gave each (for CKA damage, the
    accumulated damage). ``slots`` and ``sizes`` say what that takes from which tensors and attributes, ``totals`` from
    which sums, ``indices`` which channels are counted anew. ``approximate`` is the reason why cutting is not exactly
    masking, or None. ``repairs`` are changes of the consumers that make up for the removed units, ``compensation`` what
    was done in that way, or why nothing.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _FORBID

    name: str
    units: int
    removed: tuple[int, ...]
    scores: tuple[float, ...]
    slots: tuple[SlotPlan, ...]
    sizes: tuple[SizePlan, ...]
    totals: tuple[TotalPlan, ...]
    approximate: str | None
    reason: str
    indices: tuple[IndexPlan, ...] = ()
    repairs: tuple[Repair, ...] = ()
    compensation: str = ""

    def __post_init__(self) -> None:
        if len(set(self.removed)) != len(self.removed) or any(not 0 <= unit < self.units for unit in self.removed):
            raise ValueError(
                f"layer {self.name!r} must remove distinct units below {self.units}, not {list(self.removed)}"
            )
        if not 0 < len(self.removed) < self.units:
            raise ValueError(
                f"layer {self.name!r} must lose some of its {self.units} units but not all, not {len(self.removed)}"
            )
        if len(self.scores) != len(self.removed):
            raise ValueError(f"layer {self.name!r} has {len(self.scores)} scores for {len(self.removed)} units")

    @property
    def kept(self) -> tuple[int, ...]:
        """The units that stay, ascending."""
        gone = set(self.removed)
        return tuple(unit for unit in range(self.units) if unit not in gone)


@dataclass(frozen=True)
class FrozenLayer:
    """A layer whose units all stay, and why."""

    __pydantic_config__: ClassVar[ConfigDict] = _FORBID

    name: str
    units: int
    reason: str


@dataclass(frozen=True)
class PruningPlan:
    """Everything that was decided. ``macs`` are multiply-adds of convolutions and matrix products for one sample.

    ``amount`` is a share of what ``budget`` names. ``exact`` says whether cutting equals masking, ``exact_reason`` why
    (or why not). Latencies in seconds are those that were measured to meet a budget, or by :func:`with_latency`, on
    ``latency_device``. ``compensate`` says what makes up for the removed units.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _FORBID

    layers: tuple[LayerPlan, ...]
    frozen: tuple[FrozenLayer, ...]
    score: str
    amount: float | dict[str, float]
    scope: Literal["layer", "global"]
    round_to: int
    params_before: int
    params_after: int
    macs_before: int
    macs_after: int
    exact: bool
    exact_reason: str
    budget: Literal["units", "params", "macs", "latency"] = "units"
    latency_before: float | None = None
    latency_after: float | None = None
    latency_device: str | None = None
    compensate: str | None = None

    def __post_init__(self) -> None:
        names = [layer.name for layer in self.layers] + [layer.name for layer in self.frozen]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"layer {twice[0]!r} is decided twice")
        if not self.layers:
            raise ValueError("a plan must remove at least one unit")
        if self.exact != all(layer.approximate is None for layer in self.layers):
            raise ValueError(f"exact={self.exact} contradicts what the layers say")

    def __getitem__(self, name: str) -> LayerPlan:
        """The decision for one layer; KeyError if the plan leaves it whole."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    @property
    def removed(self) -> Mapping[str, tuple[int, ...]]:
        """Layer name -> removed units, in the order of removal."""
        return {layer.name: layer.removed for layer in self.layers}

    def to_json(self) -> str:
        """The plan as JSON; :meth:`from_json` gives an equal plan back."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> PruningPlan:
        """Read a plan and check all of it; ValueError says what is wrong and where."""
        try:
            data: Any = json.loads(text)
        except ValueError as error:
            raise ValueError(f"a pruning plan must be JSON: {error}") from None
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
            raise ValueError(f"a pruning plan must be a JSON object with format {FORMAT!r}")
        try:
            return _PLAN.validate_json(json.dumps(data))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"]) or "plan"
            raise ValueError(f"the pruning plan is invalid at {place}: {first['msg']}") from None

    def explain(self) -> str:
        """The plan in words: what goes from each layer and at what score, what stays and why, what it saves."""
        share = "per layer" if self.scope == "layer" else "over all layers"
        counted = "" if self.budget == "units" else f" of the {self.budget}"
        made_up = "" if self.compensate is None else f", {self.compensate}"
        lines = [f"{self.score}, amount {self.amount}{counted} {share}{made_up}"]
        lines += [_line(layer) for layer in self.layers]
        lines += [f"  {layer.name}: all {layer.units} units stay: {layer.reason}" for layer in self.frozen]
        lines.append(f"parameters {_change(self.params_before, self.params_after)}")
        lines.append(f"MACs per sample {_change(self.macs_before, self.macs_after)}")
        if self.latency_before is not None and self.latency_after is not None:
            change = self.latency_after / self.latency_before - 1
            lines.append(
                f"latency {1e3 * self.latency_before:.3g} -> {1e3 * self.latency_after:.3g} ms ({change:+.1%}) "
                f"on {self.latency_device or 'an unknown device'}"
            )
        lines.append(f"{'exact' if self.exact else 'approximate'}: {self.exact_reason}")
        return "\n".join(lines)


def _line(layer: LayerPlan) -> str:
    gone = len(layer.removed)
    scores = f"scores {min(layer.scores):.4g} to {max(layer.scores):.4g}"
    line = f"  {layer.name}: {gone} of {layer.units} units removed, {scores}: {layer.reason}"
    return f"{line}\n    {layer.compensation}" if layer.compensation else line


def _change(before: int, after: int) -> str:
    return f"{before:,} -> {after:,} ({after / before - 1:+.1%})"


_PLAN: TypeAdapter[PruningPlan] = TypeAdapter(PruningPlan)
