from typing import Any

import numpy as np
import numpy.typing as npt

_F64 = npt.NDArray[np.float64]

class Array:
    def __init__(
        self,
        *,
        pointer: int,
        shape: tuple[int, int],
        strides: tuple[int, int],
        dtype: str,
        device: int,
        stream: int,
    ) -> None: ...
    @staticmethod
    def copied(*, x: npt.NDArray[Any], dtype: str, device: int) -> Array: ...

class Block:
    def __init__(
        self,
        *,
        x: Array,
        shift: _F64,
        row_scale: _F64 | None,
        scale: float,
        kernel: str,
        length: float,
        coef0: float,
        degree: int,
    ) -> None: ...

def device_report() -> tuple[list[str], str]: ...
def current_device() -> int: ...
def capability(device: int | None) -> tuple[int, int]: ...
def column_stats(*, x: Array, row_scale: _F64 | None) -> tuple[_F64, _F64, float, float, int, int, int]: ...
def row_norms(block: Block) -> _F64: ...
def distance_median(block: Block) -> float: ...
def column_products(block: Block, sum_sq_dev: _F64, *, exact: bool, tensor: bool) -> _F64: ...
def pair_sums(
    *,
    rows: list[Block],
    columns: list[Block],
    debiased: bool,
    sample_space: bool,
    double_products: bool,
    tensor: bool,
    bytes: int,
) -> tuple[_F64, _F64, _F64]: ...
def eliminate(
    a: _F64, *, greedy: bool, count: int, min_cka: float, device: int, stream: int
) -> tuple[npt.NDArray[np.int64], _F64, float]: ...
