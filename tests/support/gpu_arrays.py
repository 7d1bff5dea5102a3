"""Arrays on a GPU without a framework: memory from the driver, described by ``__cuda_array_interface__``."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]


@cache
def driver() -> Any:
    """The CUDA driver, with device 0 made current."""
    cuda = ctypes.CDLL("libcuda.so.1")
    call(cuda.cuInit, 0)
    call(cuda.cuCtxSetCurrent, _context(cuda, 0))
    return cuda


@cache
def _context(cuda: Any, device: int) -> ctypes.c_void_p:
    """The primary context of a device, which the runtime shares."""
    context = ctypes.c_void_p()
    call(cuda.cuDevicePrimaryCtxRetain, ctypes.byref(context), device)
    return context


@contextmanager
def current(device: int) -> Iterator[Any]:
    """The driver, with another device made current."""
    cuda = driver()
    call(cuda.cuCtxSetCurrent, _context(cuda, device))
    try:
        yield cuda
    finally:
        call(cuda.cuCtxSetCurrent, _context(cuda, 0))


def call(function: Any, *arguments: Any) -> None:
    """Call the driver, and raise what it returns."""
    status = function(*arguments)
    if status:
        raise RuntimeError(f"{function.__name__} returns {status}")


def new_stream(device: int = 0) -> ctypes.c_void_p:
    """A stream that does not wait for the default one."""
    stream = ctypes.c_void_p()
    with current(device) as cuda:
        call(cuda.cuStreamCreate, ctypes.byref(stream), 1)
    return stream


def bounds(values: Array) -> tuple[int, int]:
    """The first address of an array's memory, and the one behind its last."""
    spans = [(length - 1) * stride for length, stride in zip(values.shape, values.strides, strict=True)]
    first = int(values.ctypes.data)
    return first + sum(min(span, 0) for span in spans), first + sum(max(span, 0) for span in spans) + values.itemsize


class OnGpu:
    """A copy of ``values`` on a device, with the strides that it has on the host."""

    def __init__(
        self, values: Array, *, typestr: str | None = None, stream: int | None = None, device: int = 0
    ) -> None:
        low, high = bounds(values)
        self.pointer, self.device = ctypes.c_uint64(), device
        with current(device) as cuda:
            call(cuda.cuMemAlloc_v2, ctypes.byref(self.pointer), ctypes.c_size_t(high - low))
            call(cuda.cuMemcpyHtoD_v2, self.pointer, ctypes.c_void_p(low), ctypes.c_size_t(high - low))
        self.values, self.shape, self.dtype = values, values.shape, values.dtype
        self.stream = stream
        self.at = self.pointer.value + values.ctypes.data - low
        self.typestr = typestr or values.dtype.str

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        place = {"data": (self.at, False), "strides": self.values.strides, "stream": self.stream, "version": 3}
        return {"shape": self.shape, "typestr": self.typestr, **place}

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.device

    def get(self) -> Array:
        raise AssertionError("an array on the device was copied to the host")

    def __del__(self) -> None:
        with current(self.device) as cuda:
            cuda.cuMemFree_v2(self.pointer)
