"""Arrays that say they lie on a CUDA device and lie on the host: as CuPy's, JAX's and torch's say it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from simkit.devices import LEGACY_STREAM

Array = npt.NDArray[Any]


class OnDevice:
    """As a CuPy array: strides of its own, a stream, and ``get`` for a copy on the host."""

    def __init__(self, values: Array, device: int = 0, stream: int | None = 77, version: int = 3) -> None:
        self.values, self.device, self.stream, self.version, self.copies = values, device, stream, version, 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.values.dtype

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        v = self.values
        interface = {"shape": v.shape, "typestr": v.dtype.str, "data": (v.ctypes.data, False), "version": self.version}
        interface["strides"] = None if v.flags.c_contiguous else v.strides
        return interface | ({"stream": self.stream} if self.version >= 3 else {})

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.device

    def reshape(self, *shape: int) -> OnDevice:
        return OnDevice(self.values.reshape(*shape), self.device, self.stream, self.version)

    def get(self) -> Array:
        self.copies += 1
        return self.values


class Capsuled(OnDevice):
    """As an array that offers DLPack alone."""

    __cuda_array_interface__ = None  # type: ignore[assignment]

    def __dlpack__(self, *, stream: int) -> object:
        assert stream == LEGACY_STREAM  # the owner makes this stream wait for its own
        return self.values.__dlpack__()


class Tensor:
    """What is asked of a torch CUDA tensor."""

    def __init__(self, values: Array, kind: str = "float32", index: int = 1) -> None:
        self.values, self.dtype = values, f"torch.{kind}"
        self.device = SimpleNamespace(type="cuda", index=index)
        self.layout, self.is_quantized, self.is_nested = "strided", False, False
        self.ndim, self.shape = values.ndim, values.shape

    def __len__(self) -> int:
        return len(self.values)

    def detach(self) -> Tensor:
        return self

    resolve_conj = resolve_neg = detach

    def reshape(self, *shape: int) -> Tensor:
        return Tensor(self.values.reshape(*shape), self.dtype.removeprefix("torch."), self.device.index)

    def numel(self) -> int:
        return self.values.size

    def element_size(self) -> int:
        return self.values.itemsize

    def stride(self, axis: int) -> int:
        return self.values.strides[axis] // self.values.itemsize

    def data_ptr(self) -> int:
        return int(self.values.ctypes.data)
