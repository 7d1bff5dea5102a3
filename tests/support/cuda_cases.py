"""What the tests of the CUDA programs share: inputs, blocks as the binding takes them, agreement with the reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import emulated_cuda
import numpy as np
import numpy.typing as npt
import pytest
from needed import torch_here
from tolerance import assert_close

import simkit as sk
from simkit.arrays import Matrix, as_matrix
from simkit.backends import cuda_device, native_cuda, reference
from simkit.backends.base import Block, kernel_options
from simkit.backends.routes import plan_pair_sums
from simkit.metrics.prepare import prepare_with_stats

Array = npt.NDArray[Any]
ORDERS = (0, 1, 2)  # of the threads: upwards, downwards, shuffled at every step


class There:
    """An array that says that it lies on a device, where the emulator finds it; the host may not have it."""

    def __init__(self, values: Array, device: int = 0, stream: int | None = 7) -> None:
        self.values, self.device, self.stream = values, device, stream
        self.shape, self.dtype = values.shape, values.dtype

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        v = self.values
        place = {"data": (v.ctypes.data, False), "strides": v.strides, "stream": self.stream, "version": 3}
        return {"shape": v.shape, "typestr": v.dtype.str, **place}

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.device

    def reshape(self, *shape: int) -> There:
        return There(self.values.reshape(*shape), self.device, self.stream)

    def get(self) -> Array:
        raise AssertionError("an array on the device was copied to the host")


def see_device(monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    """simkit sees one device, on which the emulated module runs, and nothing of what earlier tests left there."""
    monkeypatch.setattr(cuda_device, "_held", {})
    monkeypatch.setattr(cuda_device, "load", lambda: (module, ""))
    monkeypatch.setattr(native_cuda, "device_report", lambda: (True, ["an emulator"], ""))


def array_of(matrix: Matrix) -> Any:
    x = matrix.values
    return emulated_cuda.Array(
        pointer=x.ctypes.data, shape=x.shape, strides=x.strides, dtype=matrix.dtype, device=0, stream=0
    )


def bound(block: Block) -> Any:
    return emulated_cuda.Block(
        x=array_of(block.matrix),
        shift=block.shift,
        row_scale=block.row_scale,
        scale=math.ldexp(1.0, -block.exponent),
        length=block.length,
        **kernel_options(block.kernel),
    )


def every_order(compute: Callable[[int], Sequence[Array]]) -> Sequence[Array]:
    first, *others = (compute(order) for order in ORDERS)
    for other in others:
        for a, b in zip(first, other, strict=True):
            assert a.tobytes() == b.tobytes()
    return first


def relu(n: int, p: int, seed: int = 0) -> Array:
    r = np.random.default_rng([seed, n, p])
    x = np.maximum(r.standard_normal((n, 4)) @ r.standard_normal((4, p)) + r.standard_normal((n, p)), -0.25)
    x[0] += 0.01 * np.arange(p) + 0.5  # no column is constant
    return x


def layouts(x: Array) -> list[Array]:
    padded = np.zeros((2 * x.shape[0], 3 * x.shape[1]), dtype=x.dtype)
    padded[::2, ::3] = x
    return [x, np.asfortranarray(x), padded[::2, ::3], x[::-1, ::-1].copy()[::-1, ::-1]]


def block_of(x: Array, kernel: Any = None, name: str = "x") -> tuple[Block, Any]:
    return prepare_with_stats(as_matrix(x, name=name), kernel or sk.Linear(), backend="reference")


def moved(block: Block, place: Callable[[Array], Any]) -> Block:
    """The block with its matrix on a device: in the same units, which a preparation there need not choose."""
    return replace(block, matrix=as_matrix(place(block.matrix.values)))


def half(x: Array, kind: str) -> Any:
    if kind == "bfloat16":
        return torch_here().from_numpy(np.ascontiguousarray(x, dtype=np.float32)).bfloat16()
    return x.astype(kind)


def pair_sums(
    programs: Any,
    rows: Sequence[Block],
    columns: Sequence[Block],
    debiased: bool,
    wide: bool,
    room: int,
    *,
    sample: bool = True,
    tensor: bool = False,
    halves: bool = False,
    apart: Sequence[bool] = (),
) -> Callable[[int], Sequence[Array]]:
    def compute(order: int) -> Sequence[Array]:
        return emulated_cuda.pair_sums(
            programs,
            order,
            rows=[bound(block) for block in rows],
            columns=[bound(block) for block in columns],
            debiased=debiased,
            sample_space=sample,
            double_products=wide,
            bytes=room,
            tensor=tensor,
            halves=halves,
            apart=apart,
        )

    return compute


def agrees(got: Sequence[Array], rows: Sequence[Block], columns: Sequence[Block], debiased: bool, wide: bool) -> None:
    route = plan_pair_sums(rows, columns or None, route="sample")
    estimator: Any = "debiased" if debiased else "biased"
    want = reference.pair_sums(rows, columns or None, estimator=estimator, route=route)
    values, own, _ = got
    left, n, p = len(rows), rows[0].n, max(block.p for block in [*rows, *columns])
    dtype = "float64" if wide else "float32"
    others = own[left:] if columns else own
    assert_close(own[:left], want.self_rows, "hsic", dtype, n, p, scale=want.self_rows)
    assert_close(others, want.self_columns, "hsic", dtype, n, p, scale=want.self_columns)
    assert_close(values, want.values, "hsic", dtype, n, p, scale=np.sqrt(np.outer(want.self_rows, want.self_columns)))
