"""Features of a run on a device, without one: what is copied, where to, and what is not read at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import simkit as sk
from simkit.arrays import DeviceMatrix, Matrix, as_matrix
from simkit.compare import collect
from simkit.errors import TooLittleMemory

Array = npt.NDArray[Any]


class There:
    """As an array of CuPy's on a device, which the host may not have."""

    def __init__(self, values: Array) -> None:
        self.values, self.shape, self.dtype = values, values.shape, values.dtype

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        v = self.values
        where = {"data": (v.ctypes.data, False), "strides": v.strides, "stream": 7, "version": 3}
        return {"shape": v.shape, "typestr": v.dtype.str, **where}

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def copy(self) -> There:
        return type(self)(self.values.copy())

    def get(self) -> Array:
        raise AssertionError("an array on the device was copied to the host")


class Capsuled(There):
    """As an array that offers DLPack alone."""

    __cuda_array_interface__ = None  # type: ignore[assignment]

    def __dlpack__(self, *, stream: int) -> object:
        return self.values.__dlpack__()


@pytest.mark.parametrize("measure", [sk.CKA(), sk.CKA(sk.RBF(0.5)), sk.NBS()])
def test_features_are_not_read_to_plan_what_follows(measure: Any) -> None:
    x = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    layers = [as_matrix(There(x), name="a"), as_matrix(There(x[:, :3].copy()), name="b")]
    half = [Matrix("h", np.zeros((40, 6), np.uint16), "bfloat16")]
    for left, right in ((layers, None), (layers, layers), (half, layers)):
        collect.check_engine(left, right, 5000, measure, 10**9)
    with pytest.raises(TooLittleMemory):
        collect.check_engine(layers, None, 5000, measure, 10)


@pytest.mark.parametrize("kind", [There, Capsuled])
def test_a_copy_lies_where_the_features_lay(kind: type[There]) -> None:
    """Whatever way an array says where it lies; it stays of the same origin."""
    x = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    features = DeviceMatrix("a", as_matrix(kind(x)).view, "elsewhere")  # type: ignore[attr-defined]
    again = collect.copied(features)
    assert isinstance(again, DeviceMatrix)
    assert (again.name, again.origin, again.device, again.n, again.p) == ("a", "elsewhere", 0, 40, 6)
    assert again.view.pointer != features.view.pointer
    assert np.array_equal(again.view.array.values, x)
    assert again.view.array.values.ctypes.data == again.view.pointer
