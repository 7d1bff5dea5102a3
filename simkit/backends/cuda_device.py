"""The module ``_cuda``: whether it is there, which devices it sees, and views of memory for its ops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from ..arrays import DeviceMatrix, Matrix
from .base import Block, kernel_options, matrices_of


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


def capability_of(inputs: Sequence[Matrix | Block]) -> tuple[int, int]:
    """The compute capability of the inputs' device, or the current one; (0, 0) where there is none, or no CUDA."""
    module = cuda()
    if module is None:
        return 0, 0
    devices = [matrix.device for matrix in matrices_of(inputs) if matrix.device is not None]
    major, minor = module.capability(devices[0] if devices else None)
    return major, minor


def array_on(matrix: Matrix, device: int) -> Any:
    """The matrix as the ops take it: where it lies, or copied to the device."""
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
    return cuda().Array.copied(x=np.ascontiguousarray(matrix.values), dtype=matrix.dtype, device=device)


def block_on(block: Block, device: int) -> Any:
    """The block as the ops take it."""
    return cuda().Block(
        x=array_on(block.matrix, device),
        shift=np.ascontiguousarray(block.shift, dtype=np.float64),
        row_scale=block.row_scale,
        scale=math.ldexp(1.0, -block.exponent),
        length=block.length,
        **kernel_options(block.kernel),
    )
