"""CUDA arrays where they lie: pointer, strides, device and stream, read from the objects that own them.

torch tensors say it themselves; CuPy arrays through ``__cuda_array_interface__``, version 3; others, JAX's among them,
through DLPack. No framework is imported, nothing is copied, and nobody is made to wait. An array that does not say by
``__dlpack_device__`` where it lies, such as Numba's, is none of these: its own ``__array__`` copies it to the host.
"""

from __future__ import annotations

import ctypes
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

_STREAMS_SAID = 3  # the version of __cuda_array_interface__ from which on it says when values are ready
LEGACY_STREAM = 1  # the handle of CUDA's legacy default stream, as both protocols write it
_CUDA, _CUDA_MANAGED = 2, 13  # DLPack's kDLCUDA, kDLCUDAManaged
_FLOATS = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True)
class DeviceView:
    """A matrix ``[n, p]`` in the memory of a CUDA device. ``owner`` keeps that memory alive."""

    pointer: int
    shape: tuple[int, int]
    strides: tuple[int, int]  # bytes
    dtype: str  # float16, bfloat16, float32 or float64
    device: int  # ordinal
    stream: int  # on which the values are, or will be, ready
    owner: object

    @property
    def array(self) -> Any:
        """The array that owns the memory: what DLPack shares stands beside its capsule."""
        return self.owner[0] if isinstance(self.owner, tuple) else self.owner

    def columns(self, start: int, stop: int) -> DeviceView:
        """Columns ``start:stop`` of the same memory."""
        pointer = self.pointer + start * self.strides[1]
        return replace(self, pointer=pointer, shape=(self.shape[0], stop - start))


def device_view(x: Any) -> DeviceView | None:
    """``x [n, ...]`` as a view ``[n, p]``; None for what does not lie on a CUDA device or is no matrix of floats.

    Trailing dimensions that no strides can join are joined by the array's own ``reshape``: a copy, on its device.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        return _of_torch(x, torch)
    if type(x).__module__ == "numpy":
        return None
    kind, device = dlpack_device(x)
    if kind not in (_CUDA, _CUDA_MANAGED):
        return None
    shape = getattr(x, "shape", None)
    if shape is None or len(shape) < 2 or 0 in shape:
        return None
    with _visited(x):
        if len(shape) > 2:
            x = x.reshape(shape[0], -1)
        interface = None if _type_name(x) == "bfloat16" else getattr(x, "__cuda_array_interface__", None)
        if interface is None or (interface.get("version", 0) < _STREAMS_SAID and hasattr(x, "__dlpack__")):
            return _of_dlpack(x, device)
        return _of_interface(x, interface, device)


def dlpack_device(x: Any) -> tuple[int, int]:
    """DLPack's (device type, ordinal) of an array; (0, 0) for one that does not say, or lies on several devices."""
    ask = getattr(x, "__dlpack_device__", None)
    try:
        kind, ordinal = (0, 0) if ask is None else ask()
    except (BufferError, RuntimeError, ValueError):
        return 0, 0
    return int(kind), int(ordinal)


def on_device(x: Any) -> bool:
    """Whether an array says that it lies on anything but the host."""
    return dlpack_device(x)[0] > 1


def _visited(x: Any) -> AbstractContextManager[Any]:
    """The device of a CuPy array as the current one: whichever that is, the array names its stream and copies there."""
    where: Any = getattr(x, "device", None)
    return where if hasattr(type(where), "__exit__") else nullcontext()


def _type_name(x: Any) -> str:
    return str(getattr(x, "dtype", "")).rpartition(".")[2]


def _of_torch(x: Any, torch: Any) -> DeviceView | None:
    dtype = _type_name(x)
    dense = x.layout == torch.strided and not x.is_quantized and not x.is_nested
    if x.device.type != "cuda" or torch.version.hip or not dense or dtype not in _FLOATS or x.ndim < 2 or not x.numel():
        return None
    x = x.detach().resolve_conj().resolve_neg().reshape(len(x), -1)
    size = x.element_size()
    strides = x.stride(0) * size, x.stride(1) * size
    stream = torch.cuda.current_stream(x.device).cuda_stream or LEGACY_STREAM
    return DeviceView(x.data_ptr(), tuple(x.shape), strides, dtype, x.device.index, stream, x)


def _of_interface(x: Any, interface: dict[str, Any], device: int) -> DeviceView | None:
    """By ``__cuda_array_interface__``; a stream of None means that nobody needs to wait.

    Before version 3 it says nothing of streams: an array that has it alone is read after the legacy default stream.
    One that speaks DLPack too does not come here, for its streams may not be ordered with that one (JAX).
    """
    dtype = np.dtype(interface["typestr"])
    if dtype.name not in _FLOATS or not dtype.isnative or interface.get("mask") is not None:
        return None
    n, p = interface["shape"]
    strides = interface.get("strides") or (p * dtype.itemsize, dtype.itemsize)
    stream = LEGACY_STREAM if interface.get("stream") is None else interface["stream"]
    if not isinstance(stream, int) or stream < 1:
        raise ValueError(
            f"the array's __cuda_array_interface__ names stream {stream!r}: it must be None, 1 (the legacy default "
            f"stream), 2 (the one of a thread) or a stream's handle"
        )
    return DeviceView(interface["data"][0], (n, p), tuple(strides), dtype.name, device, stream, x)


class _Tensor(ctypes.Structure):
    """DLPack's DLTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_CODES = {(2, 16): "float16", (2, 32): "float32", (2, 64): "float64", (4, 16): "bfloat16"}


def _of_dlpack(x: Any, device: int) -> DeviceView | None:
    """By DLPack: the array's own stream is made to precede the legacy default one, on which the values are used.

    The capsule is not consumed but kept: when it goes, its destructor returns the array.
    """
    capsule = x.__dlpack__(stream=LEGACY_STREAM)
    read = ctypes.pythonapi.PyCapsule_GetPointer
    read.restype, read.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    tensor = _Tensor.from_address(read(capsule, b"dltensor"))
    dtype = _CODES.get((tensor.code, tensor.bits)) if tensor.lanes == 1 else None
    if dtype is None or tensor.ndim != 2:
        return None
    n, p = tensor.shape[:2]
    size = tensor.bits // 8
    strides = (tensor.strides[0] * size, tensor.strides[1] * size) if tensor.strides else (p * size, size)
    pointer = (tensor.data or 0) + tensor.byte_offset
    return DeviceView(pointer, (n, p), strides, dtype, device, LEGACY_STREAM, (x, capsule))
