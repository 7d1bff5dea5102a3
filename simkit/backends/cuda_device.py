"""The module ``_cuda``: whether it is there, which devices it sees, views of memory for its ops and copies for them."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Iterable, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from ..arrays import DeviceMatrix, Matrix
from .base import Block, Input, kernel_options, matrices_of

SHARE = 0.8  # of the memory that is free, where no bound is given: others may want some, and pieces get lost between
SHARE_IN_WORDS = f"{SHARE:.0%} of what is free"

_held: dict[int, dict[int, tuple[Any, int]]] = {}  # id of a matrix -> device -> its copy and the bytes
_holding = threading.Lock()  # of what is in it


@cache
def load() -> tuple[ModuleType | None, str]:
    """The compiled module, or why there is none."""
    try:
        from . import _cuda
    except ImportError as error:
        return None, f"this build has no CUDA code ({_what_the_build_said() or error})"
    return _cuda, ""


def _what_the_build_said() -> str:
    """Why it left CUDA out; empty where it did not, or nothing was built."""
    try:
        from . import _core
    except ImportError:
        return ""
    return _core.without_cuda


def cuda() -> Any:
    """The compiled module, where there is one."""
    return load()[0]


@cache
def device_report() -> tuple[bool, list[str], str]:
    """(built with CUDA, the devices seen, why there are none)."""
    module, why = load()
    return (False, [], why) if module is None else (True, *module.device_report())


def place_of(inputs: Sequence[Input]) -> int:
    """The device of the inputs, or the current one where all lie on the host."""
    devices = [matrix.device for matrix in matrices_of(inputs) if matrix.device is not None]
    return devices[0] if devices else int(cuda().current_device())


def capability_of(inputs: Sequence[Input]) -> tuple[int, int]:
    """The compute capability of the inputs' device, or the current one; (0, 0) where there is none, or no CUDA."""
    module = cuda()
    if module is None:
        return 0, 0
    devices = [matrix.device for matrix in matrices_of(inputs) if matrix.device is not None]
    major, minor = module.capability(devices[0] if devices else None)
    return major, minor


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
# for as long as somebody holds the Matrix, so that it outlives an op and ends with the call. Threads share copies, so
# that one of them uploads and the others wait. A finalizer takes no lock: it may run wherever Python collects garbage,
# within the lock too, and what it removes, at once, is of a matrix that nobody has.


def bytes_of(matrix: Matrix) -> int:
    """What the entries take."""
    return matrix.n * matrix.p * matrix.itemsize


def _uploaded(matrix: Matrix, device: int) -> Any:
    """The copy of a host matrix on a device, made when it is first asked for."""
    with _holding:
        if id(matrix) not in _held:
            _held[id(matrix)] = {}
            weakref.finalize(matrix, _held.pop, id(matrix), None).atexit = False
        copies = _held[id(matrix)]
        if device not in copies:
            array = cuda().Array.copied(x=np.ascontiguousarray(matrix.values), dtype=matrix.dtype, device=device)
            copies[device] = array, bytes_of(matrix)
        return copies[device][0]


def release(matrices: Iterable[Matrix], device: int) -> None:
    """Frees the copies of matrices on a device."""
    with _holding:
        for matrix in matrices:
            _held.get(id(matrix), {}).pop(device, None)


def held_bytes(device: int, matrices: Iterable[Matrix] | None = None) -> int:
    """Bytes of copies on a device: of these matrices, or of all."""
    wanted = None if matrices is None else {id(matrix) for matrix in matrices}
    with _holding:
        copies = [of[device] for key, of in list(_held.items()) if device in of and (wanted is None or key in wanted)]
    return sum(size for _, size in copies)


def free_memory(device: int) -> int:
    """Bytes that nobody has taken on a device."""
    free, _ = cuda().memory_info(device)
    return int(free)


def room_on(device: int, memory: int | None, matrices: Iterable[Matrix]) -> int:
    """Bytes that work on these matrices, their copies included, may take on a device.

    ``memory`` says it, or a share of what is free, and of what copies that are there already have taken.
    """
    if memory is not None:
        return memory
    return int(SHARE * (free_memory(device) + held_bytes(device, matrices)))


def may_stay(matrix: Matrix, device: int, memory: int | None) -> bool:
    """Whether a copy of the whole matrix leaves half of the room to what else is there."""
    room = room_on(device, memory, [matrix])
    here = held_bytes(device, [matrix])
    return bool(here) or 2 * (held_bytes(device) * (memory is not None) + bytes_of(matrix)) <= room
