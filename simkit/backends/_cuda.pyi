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
        mean: float,
        at_once: int,
        packed: int,
        bytes: int,
    ) -> None: ...
    def sums(
        self, *, kept: npt.NDArray[np.int64], candidates: npt.NDArray[np.int64], level: float, rows: bool
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

def device_report() -> tuple[list[str], str]: ...
def current_device() -> int: ...
def column_stats(*, x: Array, row_scale: _F64 | None) -> tuple[_F64, _F64, float, float, int, int, int]: ...
def row_norms(block: Block) -> _F64: ...
def distance_median(block: Block) -> float: ...
def column_products(block: Block, sum_sq_dev: _F64, *, exact: bool) -> _F64: ...
def pair_sums(
    *, rows: list[Block], columns: list[Block], debiased: bool, sample_space: bool, double_products: bool, bytes: int
) -> tuple[_F64, _F64, _F64]: ...
def eliminate(
    a: _F64, *, greedy: bool, count: int, min_cka: float, device: int, stream: int
) -> tuple[npt.NDArray[np.int64], _F64, float]: ...
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
