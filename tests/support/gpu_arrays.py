"""Arrays on a GPU without a framework: memory from the driver, described by ``__cuda_array_interface__``."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]


@cache
def driver() -> Any:
    """The CUDA driver, with the primary context of device 0, which the runtime shares, made current."""
    cuda = ctypes.CDLL("libcuda.so.1")
    context = ctypes.c_void_p()
    call(cuda.cuInit, 0)
    call(cuda.cuDevicePrimaryCtxRetain, ctypes.byref(context), 0)
    call(cuda.cuCtxSetCurrent, context)
    return cuda


def call(function: Any, *arguments: Any) -> None:
    """Call the driver, and raise what it returns."""
    status = function(*arguments)
    if status:
        raise RuntimeError(f"{function.__name__} returns {status}")


def new_stream() -> ctypes.c_void_p:
    """A stream that does not wait for the default one."""
    stream = ctypes.c_void_p()
    call(driver().cuStreamCreate, ctypes.byref(stream), 1)
    return stream


def bounds(values: Array) -> tuple[int, int]:
    """The first address of an array's memory, and the one behind its last."""
    spans = [(length - 1) * stride for length, stride in zip(values.shape, values.strides, strict=True)]
    first = int(values.ctypes.data)
    return first + sum(min(span, 0) for span in spans), first + sum(max(span, 0) for span in spans) + values.itemsize


class OnGpu:
    """A copy of ``values`` on device 0, with the strides that it has on the host."""

    def __init__(self, values: Array, *, typestr: str | None = None, stream: int | None = None) -> None:
        low, high = bounds(values)
        self.pointer = ctypes.c_uint64()
        call(driver().cuMemAlloc_v2, ctypes.byref(self.pointer), ctypes.c_size_t(high - low))
        call(driver().cuMemcpyHtoD_v2, self.pointer, ctypes.c_void_p(low), ctypes.c_size_t(high - low))
        self.values, self.shape, self.dtype = values, values.shape, values.dtype
        self.stream = stream
        self.at = self.pointer.value + values.ctypes.data - low
        self.typestr = typestr or values.dtype.str

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        place = {"data": (self.at, False), "strides": self.values.strides, "stream": self.stream, "version": 3}
        return {"shape": self.shape, "typestr": self.typestr, **place}

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def get(self) -> Array:
        raise AssertionError("an array on the device was copied to the host")

    def __del__(self) -> None:
        driver().cuMemFree_v2(self.pointer)
