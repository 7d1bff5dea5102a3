from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_F64 = npt.NDArray[np.float64]
_I64 = npt.NDArray[np.int64]

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
    @property
    def pointer(self) -> int: ...
    @staticmethod
    def copied(*, x: npt.NDArray[Any], dtype: str, device: int) -> Array: ...
    @staticmethod
    def on_host(*, x: npt.NDArray[Any], dtype: str, device: int) -> Array: ...

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

class Units:
    def __init__(
        self, *, x: Array, columns: npt.NDArray[np.int64], shift: _F64 | None, scale: float, unit: float, double: bool
    ) -> None: ...

class Candidates:
    def __init__(
        self,
        *,
        units: Units,
        offsets: npt.NDArray[np.int64],
        kernel: str,
        length: float,
        coef0: float,
        degree: int,
        debiased: bool,
        centre: _F64,
        small_centre: bool,
        at_once: int,
        packed: int,
        bytes: int,
    ) -> None: ...
    def sums(
        self,
        *,
        kept: npt.NDArray[np.int64],
        candidates: npt.NDArray[np.int64],
        levels: _F64,
        small: bool,
        rows: bool,
    ) -> tuple[_F64, _F64, _F64, _F64, _F64 | None]: ...
    @property
    def nbytes(self) -> int: ...

class Bits:
    @staticmethod
    def copied(*, bits: npt.NDArray[np.uint64], device: int) -> Bits: ...
    @property
    def shape(self) -> tuple[int, int, int]: ...
    @property
    def device(self) -> int: ...
    def graph(self, at: int) -> Bits: ...
    def fetch(self) -> npt.NDArray[np.uint64]: ...

class Moments:
    def __init__(
        self, *, device: int, left: Sequence[int], right: Sequence[int], blocks: int, tensor: bool
    ) -> None: ...
    @property
    def count(self) -> int: ...
    def set(self, shift: _F64, scale: _F64, numbers: _F64) -> None: ...
    def numbers(self) -> _F64: ...
    def keep(self, layers: list[Array], *, first: int, count: int, at: int) -> None: ...
    def set_stage(self, rows: _F64) -> None: ...
    def stage(self, count: int) -> _F64: ...
    def rows(self, layers: list[Array], *, first: int, rows: int, staged: bool) -> _F64: ...
    def take(self, rows: npt.NDArray[np.int64], *, stream: int) -> _F64: ...
    def put(self, z: _F64, norms: _F64, *, stream: int) -> None: ...
    def add(self, first: int, rows: int, *, stream: int) -> None: ...

def largest_entries(matrices: list[Array]) -> list[float]: ...
def device_report() -> tuple[list[str], str]: ...
def current_device() -> int: ...
def capability(device: int | None) -> tuple[int, int]: ...
def memory_info(device: int) -> tuple[int, int]: ...
def column_stats(*, x: Array, row_scale: _F64 | None) -> tuple[_F64, _F64, float, float, int, int, int]: ...
def row_norms(block: Block) -> _F64: ...
def distance_median(block: Block) -> float: ...
def column_products(
    block: Block, sum_sq_dev: _F64, *, exact: bool, tensor: bool, squared: bool, bytes: int
) -> Array: ...
def gather_columns(x: Array, index: npt.NDArray[np.int64]) -> Array: ...
def unit_sums(
    block: Block,
    offsets: npt.NDArray[np.int64],
    *,
    debiased: bool,
    sample_space: bool,
    double_products: bool,
    tensor: bool,
    bytes: int,
) -> tuple[Array, _F64, _F64]: ...
def host(a: Array) -> _F64: ...
def total(a: Array) -> float: ...
def pair_sums(
    *,
    rows: list[Block],
    columns: list[Block],
    debiased: bool,
    sample_space: bool,
    double_products: bool,
    tensor: bool,
    halves: bool,
    bytes: int,
    apart: list[bool],
) -> tuple[_F64, _F64, _F64]: ...
def eliminate(
    matrices: list[Array], *, greedy: bool, counts: list[int], min_cka: float
) -> list[tuple[npt.NDArray[np.int64], _F64, float, bool]]: ...
def nearest_rows(
    *,
    x: Array,
    norms: _F64,
    last: _F64 | None,
    residues: _F64 | None,
    same_sign: bool,
    balance: float,
    rows: npt.NDArray[np.int64],
    others: npt.NDArray[np.int64],
    k: int,
) -> tuple[npt.NDArray[np.int64], _F64, _F64]: ...
def adjacency(*, x: Array, squared: list[float]) -> tuple[bool, float, float, _I64, Bits]: ...
def components(bits: Bits) -> tuple[_I64, _I64]: ...
def cover(bits: Bits) -> list[tuple[_I64, _I64, float]]: ...
def column_stats_in_strips(
    *, x: Array, row_scale: _F64 | None, resident: int, passing: int, bytes: int, threads: int
) -> tuple[_F64, _F64, float, float, int, int, int]: ...
def row_norms_in_strips(block: Block, *, resident: int, passing: int, bytes: int, threads: int) -> _F64: ...
def distance_median_in_strips(block: Block, *, resident: int, passing: int, bytes: int, threads: int) -> float: ...
def column_products_in_strips(
    block: Block,
    sum_sq_dev: _F64,
    *,
    exact: bool,
    tensor: bool,
    squared: bool,
    resident: int,
    passing: int,
    bytes: int,
    threads: int,
) -> Array: ...
def pair_sums_in_strips(
    *,
    rows: list[Block],
    columns: list[Block],
    debiased: bool,
    sample_space: bool,
    double_products: bool,
    tensor: bool,
    resident: int,
    passing: int,
    bytes: int,
    threads: int,
) -> tuple[_F64, _F64, _F64]: ...
