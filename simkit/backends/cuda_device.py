"""The module ``_cuda``: whether it is there, which devices it sees, views of memory for its ops and copies for them."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from ..arrays import DeviceMatrix, Matrix
from .base import Block, kernel_options, matrices_of

SHARE = 0.8  # of the memory that is free, where no bound is given: others may want some, and pieces get lost between

_held: dict[tuple[int, int], tuple[Any, int]] = {}  # (id of a matrix, device) -> its copy and the bytes


@cache
def load() -> tuple[ModuleType | None, str]:
    """The compiled module, or why there is none."""
    try:
        from . import _cuda
    except ImportError as error:
        missing = "No module named" in str(error) or "cannot import name" in str(error)
        why = "SIMKIT_CUDA=OFF, or no nvcc was found" if missing else str(error)
        return None, f"this build has no CUDA code ({why})"
    return _cuda, ""


def cuda() -> Any:
    """The compiled module, where there is one."""
    return load()[0]


@cache
def device_report() -> tuple[bool, list[str], str]:
    """(built with CUDA, the devices seen, why there are none)."""
    module, why = load()
    return (False, [], why) if module is None else (True, *module.device_report())


def place_of(inputs: Sequence[Matrix | Block]) -> int:
    """The device of the inputs, or the current one where all lie on the host."""
    devices = [matrix.device for matrix in matrices_of(inputs) if matrix.device is not None]
    return devices[0] if devices else int(cuda().current_device())


def array_on(matrix: Matrix, device: int) -> Any:
    """The matrix as the ops take it: where it lies, or its copy on the device."""
    if isinstance(matrix, DeviceMatrix):
        view = matrix.view
        return cuda().Array(
            pointer=view.pointer,
            shape=view.shape,
            strides=view.strides,
            dtype=view.dtype,
            device=view.device,
            stream=view.stream,
        )
    return _uploaded(matrix, device)


def block_on(block: Block, device: int) -> Any:
    """The block as the ops take it."""
    return bound_block(block, array_on(block.matrix, device))


def bound_block(block: Block, array: Any) -> Any:
    """A block of an array that the compiled module has."""
    return cuda().Block(
        x=array,
        shift=np.ascontiguousarray(block.shift, dtype=np.float64),
        row_scale=block.row_scale,
        scale=math.ldexp(1.0, -block.exponent),
        length=block.length,
        **kernel_options(block.kernel),
    )


# Copies of host arrays. A public call admits every array once and hands the same Matrix to all its ops: a copy is there
# for as long as somebody holds the Matrix, so that it outlives an op and ends with the call.


def bytes_of(matrix: Matrix) -> int:
    """What the entries take."""
    return matrix.n * matrix.p * matrix.values.itemsize


def _uploaded(matrix: Matrix, device: int) -> Any:
    """The copy of a host matrix on a device, made when it is first asked for."""
    key = id(matrix), device
    if key not in _held:
        array = cuda().Array.copied(x=np.ascontiguousarray(matrix.values), dtype=matrix.dtype, device=device)
        _held[key] = array, bytes_of(matrix)
        weakref.finalize(matrix, _held.pop, key, None).atexit = False
    return _held[key][0]


def release(matrices: Iterable[Matrix], device: int) -> None:
    """Frees the copies of matrices on a device."""
    for matrix in matrices:
        _held.pop((id(matrix), device), None)


def held_bytes(device: int, matrices: Iterable[Matrix] | None = None) -> int:
    """Bytes of copies on a device: of these matrices, or of all."""
    wanted = None if matrices is None else {id(matrix) for matrix in matrices}
    return sum(
        size for (key, on), (_, size) in list(_held.items()) if on == device and (wanted is None or key in wanted)
    )


def room_on(device: int | None, memory: int | None, matrices: Iterable[Matrix]) -> int | None:
    """Bytes that work on these matrices, with their copies, may take on a device (None: the current one).

    ``memory`` says it, or a share of what is free, and of what copies that are there already have taken. None: nobody
    knows, for there is no device.
    """
    if memory is not None or cuda() is None:
        return memory
    try:
        where = int(cuda().current_device()) if device is None else device
        free, _ = cuda().memory_info(where)
    except RuntimeError:  # there is no device, but plans can be made
        return None
    return int(SHARE * (free + held_bytes(where, matrices)))


def may_stay(matrix: Matrix, device: int, memory: int | None) -> bool:
    """Whether a copy of the whole matrix leaves half of the room to what else is there."""
    room = room_on(device, memory, [matrix])
    here = held_bytes(device, [matrix])
    return bool(here) or room is None or 2 * (held_bytes(device) * (memory is not None) + bytes_of(matrix)) <= room
