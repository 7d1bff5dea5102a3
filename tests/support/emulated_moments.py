"""``_cuda.Moments`` and ``_cuda.largest_entries`` without a device: over the emulator of ``tests/native``."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from emulated_cuda import Array, Floats, Matrix, address, module, raise_of

_Index = ctypes.c_int64


class Moments:
    """As ``_cuda.Moments``; counts what comes to the host and what goes there."""

    def __init__(
        self,
        programs: Any,
        order: int,
        *,
        device: int,
        left: Sequence[int],
        right: Sequence[int],
        blocks: int,
        tensor: bool,
        calls: list[str] | None = None,
    ) -> None:
        self._programs, self.calls = programs, [] if calls is None else calls
        self._at, sizes = ctypes.c_void_p(), np.empty(4, np.int64)
        widths = np.array([*left, *right], dtype=np.int64)
        made = programs.moments_new(
            address(widths), _Index(len(left)), _Index(len(right)), _Index(blocks), int(tensor), order,
            ctypes.byref(self._at), address(sizes),
        )  # fmt: skip
        raise_of(programs, made)
        self._columns, self._layers, self._room, self.count = sizes.tolist()

    def __del__(self) -> None:
        if self._at:
            raise_of(self._programs, self._programs.moments_delete(self._at))

    def _call(self, name: str, *arguments: Any) -> None:
        self.calls.append(name)
        passed = [
            address(a) if isinstance(a, np.ndarray) else _Index(a) if isinstance(a, int) else a for a in arguments
        ]
        raise_of(self._programs, getattr(self._programs, f"moments_{name}")(self._at, *passed))

    def set(self, shift: Floats, scale: Floats, numbers: Floats) -> None:
        assert (shift.shape, scale.shape, numbers.shape) == ((self._columns,), (self._columns,), (self.count,))
        self._call("set", shift, scale, numbers)

    def numbers(self) -> Floats:
        out = np.empty(self.count)
        self._call("numbers", out)
        return out

    def keep(self, layers: list[Array], *, first: int, count: int, at: int) -> None:
        assert 0 < count <= 512 - at
        assert first + count <= layers[0].shape[0]
        self._call("keep", _table(layers), len(layers), first, count, at)

    def set_stage(self, rows: Floats) -> None:
        assert rows.flags.c_contiguous
        self._call("set_stage", rows, len(rows))

    def stage(self, count: int) -> Floats:
        assert 0 < count <= 512
        out = np.empty((count, self._columns))
        self._call("stage", out, count)
        return out

    def rows(self, layers: list[Array], *, first: int, rows: int, staged: bool) -> Floats:
        assert 0 < rows <= self._room
        assert first + rows - 512 * staged <= layers[0].shape[0]
        norms = np.empty((rows, 2, self._layers))
        self._call("rows", _table(layers), len(layers), first, rows, ctypes.c_int(staged), norms)
        return norms

    def take(self, rows: npt.NDArray[np.int64], *, stream: int) -> Floats:
        assert rows.dtype == np.int64
        assert (rows < self._room).all()
        out = np.empty((len(rows), self._columns))
        self._call("take", rows, len(rows), out)
        return out

    def put(self, z: Floats, norms: Floats, *, stream: int) -> None:
        assert z.flags.c_contiguous
        assert norms.flags.c_contiguous
        assert norms.shape == (len(z), 2, self._layers)
        self._call("put", z, norms, len(z))

    def add(self, first: int, rows: int, *, stream: int) -> None:
        assert first % 512 == 0
        assert 0 < rows <= self._room + 512 - first
        self._call("add", first, rows)


def _table(layers: Sequence[Array]) -> Any:
    return (Matrix * len(layers))(*(layer.matrix() for layer in layers))


def largest_entries(programs: Any, order: int, matrices: list[Array]) -> list[float]:
    found = np.empty(len(matrices))
    raise_of(programs, programs.largest_entries(_table(matrices), _Index(len(matrices)), order, address(found)))
    return [float(x) for x in found]


def module_with_moments(all_pairs: Any, programs: Any, order: int = 0, capability: tuple[int, int] = (7, 5)) -> Any:
    """As ``_cuda``; ``calls`` lists what was asked of its Moments."""
    made = module(all_pairs, order, capability)
    made.calls = []
    made.Moments = partial(Moments, programs, order, calls=made.calls)
    made.largest_entries = partial(largest_entries, programs, order)
    return made
