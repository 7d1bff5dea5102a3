from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_F64 = npt.NDArray[np.float64]

without_cuda: str

class Block:
    def __init__(
        self,
        *,
        x: npt.NDArray[Any],
        dtype: str,
        mapped: bool,
        shift: _F64,
        row_scale: _F64 | None,
        scale: float,
        kernel: str,
        length: float,
        coef0: float,
        degree: int,
        function: int = ...,
        owner: object = ...,
    ) -> None: ...

def candidate_sums(
    *,
    z: npt.NDArray[Any],
    offsets: npt.NDArray[np.int64],
    kept: npt.NDArray[np.int64],
    candidates: npt.NDArray[np.int64],
    kernel: str,
    length: float,
    coef0: float,
    degree: int,
    debiased: bool,
    levels: _F64,
    small: bool,
    centre: _F64 | None,
    small_centre: bool,
    function: int,
    packed: npt.NDArray[Any] | None,
    threads: int,
) -> tuple[tuple[_F64, _F64, _F64] | None, tuple[float, float, float] | None]: ...
def pack_centred(
    *,
    z: npt.NDArray[Any],
    offsets: npt.NDArray[np.int64],
    kernel: str,
    length: float,
    coef0: float,
    degree: int,
    centre: _F64,
    small_centre: bool,
    function: int,
    threads: int,
) -> tuple[npt.NDArray[Any] | None, tuple[float, float, float] | None]: ...
def pair_sums(
    *,
    rows: list[Block],
    columns: list[Block],
    debiased: bool,
    sample_space: bool,
    double_products: bool,
    tile: int,
    threads: int,
    shared: bool,
    apart: list[bool] = ...,
) -> tuple[_F64, _F64, _F64, None] | tuple[None, None, None, tuple[int, float, float, float]]: ...
def row_norms(block: Block, threads: int) -> _F64: ...
def distance_median(block: Block, threads: int, room: int) -> float: ...
def column_stats(
    *, x: npt.NDArray[Any], dtype: str, mapped: bool, row_scale: _F64 | None, threads: int
) -> tuple[_F64, _F64, float, float, int, int, int]: ...
def column_products(block: Block, sum_sq_dev: _F64, *, exact: bool, threads: int) -> _F64: ...
def eliminate(a: _F64, *, greedy: bool, count: int, min_cka: float) -> tuple[npt.NDArray[np.int64], _F64, float]: ...
def adjacency(
    *,
    x: npt.NDArray[Any],
    dtype: str,
    mapped: bool,
    squared: list[float],
    bits: npt.NDArray[np.uint64],
    tile: int,
    threads: int,
) -> tuple[bool, float, float, npt.NDArray[np.int64]]: ...
def components(
    bits: npt.NDArray[np.uint64], *, threads: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]: ...
def cover(
    bits: npt.NDArray[np.uint64], *, threads: int
) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], float]]: ...
def largest_entries(matrices: Sequence[tuple[npt.NDArray[Any], str]], *, threads: int) -> list[float]: ...
def moments_rows(sides: Sequence[dict[str, Any]], *, threads: int) -> list[_F64]: ...
def moments_add(
    rows: int, *, left: dict[str, Any], right: dict[str, Any] | None, sums: dict[str, _F64], threads: int
) -> None: ...
