"""The module ``_cuda`` without a device: its functions over the emulator of ``tests/native``, for the host's memory.

What Python hands over is passed on as it is, so that ``native_cuda`` and everything above it runs end to end.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
NATIVE = Path(__file__).parents[1] / "native"
OPTIONS = ("-O2", "-ffp-contract=off")  # no fused products: the device is told which ones it must not fuse
SANITIZE = "SIMKIT_TEST_SANITIZE"  # environment: what programs are compiled with, such as address,undefined
DTYPES = ("float16", "bfloat16", "float32", "float64")
KERNELS = ("linear", "rbf", "laplacian", "polynomial")
RAISED = {1: RuntimeError, 2: ValueError, 3: MemoryError}  # as `emulated.hpp` numbers them


class Matrix(ctypes.Structure):
    """A matrix and what its kernel needs, as ``cuda_programs.cpp`` declares it."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("cols", ctypes.c_int64),
        ("row_stride", ctypes.c_int64),
        ("col_stride", ctypes.c_int64),
        ("dtype", ctypes.c_int),
        ("shift", ctypes.c_void_p),
        ("row_scale", ctypes.c_void_p),
        ("scale", ctypes.c_double),
        ("kernel", ctypes.c_int),
        ("length", ctypes.c_double),
        ("coef0", ctypes.c_double),
        ("degree", ctypes.c_int),
    )


def compile_programs(folder: Path, source: str = "cuda_programs") -> Any:
    """A file of ``tests/native`` with CUDA programs on the emulator, compiled once in ``folder``; None: no compiler."""
    loaded = compile_native(folder, source, *OPTIONS)
    if loaded is not None:
        loaded.last_error.restype = ctypes.c_char_p
    return loaded


def compile_native(folder: Path, source: str, *options: str) -> Any:
    """A file of ``tests/native``, compiled once in ``folder`` with these options; None: there is no compiler."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        return None
    if folder.name.startswith("popen-"):  # of one of several workers, who share what they compile
        folder = folder.parent
        # While another one compiles this, the first file that nobody has begun.
        if _compile_once(compiler, folder, source, options, wait=False) == "busy":
            others = (path.stem for path in sorted(NATIVE.glob("cuda_*programs.cpp")))
            for other in others:
                if _compile_once(compiler, folder, other, OPTIONS, wait=False) == "made":
                    break
    _compile_once(compiler, folder, source, options)
    return ctypes.CDLL(str(folder / f"{source}.so"))


def _compile_once(
    compiler: str, folder: Path, source: str, options: Sequence[str], *, wait: bool = True
) -> Literal["there", "made", "busy"]:
    """Compile a file, unless that was done; without ``wait`` not where another process does it, which is busy."""
    library = folder / f"{source}.so"
    with (folder / f"{source}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return "busy"
        sources = [path for of in (NATIVE, NATIVE.parents[1] / "csrc") for path in of.rglob("*.[ch]pp")]
        if library.exists() and library.stat().st_mtime >= max(path.stat().st_mtime for path in sources):
            return "there"
        _compile(compiler, source, library, options)
        return "made"


def _compile(compiler: str, source: str, library: Path, options: Sequence[str]) -> None:
    options = ["-std=c++20", "-Wall", "-Wextra", "-shared", "-fPIC", *options]
    sanitizers = os.environ.get(SANITIZE, "")
    if sanitizers:  # warnings, with which sanitizers are free, stay warnings
        options += [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1"]
    else:
        options += ["-Werror"]
    includes = ["-I", str(NATIVE.parents[1] / "csrc"), "-I", str(NATIVE)]
    draft = library.with_suffix(".draft")
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # of the tests alone
    command = [compiler, *options, *includes, str(NATIVE / f"{source}.cpp"), "-o", str(draft)]
    subprocess.run(command, check=True, env=environment)
    draft.replace(library)


def address(array: npt.NDArray[Any] | None) -> ctypes.c_void_p | None:
    """Where an array's first element lies."""
    return None if array is None else ctypes.c_void_p(array.ctypes.data)


def run(programs: Any, name: str, *arguments: Any) -> None:
    """Call a program, which fails as the module's function would; integers become int, arrays their addresses."""
    passed = [address(a) if isinstance(a, np.ndarray) else a for a in arguments]
    raise_of(programs, getattr(programs, name)(*passed))


def raise_of(programs: Any, status: int) -> None:
    """What the binding raises of the error that a program ended with, if any."""
    if status:
        raise RAISED[status](programs.last_error().decode())


class Array:
    """As ``_cuda.Array``."""

    def __init__(
        self, *, pointer: int, shape: Sequence[int], strides: Sequence[int], dtype: str, device: int, stream: int
    ) -> None:
        self.pointer, self.shape, self.strides, self.dtype = pointer, shape, strides, dtype
        self.device, self.stream, self.held = device, stream, None

    @staticmethod
    def copied(*, x: npt.NDArray[Any], dtype: str, device: int) -> Array:
        array = Array(pointer=x.ctypes.data, shape=x.shape, strides=x.strides, dtype=dtype, device=device, stream=0)
        array.held = x
        return array

    def matrix(self, shift: Floats | None = None, row_scale: Floats | None = None, scale: float = 1.0) -> Matrix:
        """The array with what belongs to it, which the caller keeps alive."""
        kind = DTYPES.index(self.dtype)
        return Matrix(self.pointer, *self.shape, *self.strides, kind, address(shift), address(row_scale), scale)


class Block:
    """As ``_cuda.Block``."""

    def __init__(
        self,
        *,
        x: Array,
        shift: Floats,
        row_scale: Floats | None,
        scale: float,
        kernel: str,
        length: float,
        coef0: float,
        degree: int,
    ) -> None:
        self.x, self.shift, self.row_scale = x, shift, row_scale
        self.matrix = x.matrix(shift, row_scale, scale)
        self.matrix.kernel, self.matrix.length = KERNELS.index(kernel), length
        self.matrix.coef0, self.matrix.degree = coef0, degree


def column_stats(programs: Any, order: int, *, x: Array, row_scale: Floats | None) -> tuple[Any, ...]:
    p = x.shape[1]
    mean, squares, most, bad = np.empty(p), np.empty(p), np.empty(2), np.empty(3, dtype=np.int64)
    matrix = x.matrix(np.zeros(p), row_scale)
    run(programs, "column_stats", ctypes.byref(matrix), order, mean, squares, most, bad)
    return mean, squares, *most.tolist(), *bad.tolist()


def row_norms(programs: Any, order: int, block: Block) -> Floats:
    norms = np.empty(block.x.shape[0])
    run(programs, "row_norms", ctypes.byref(block.matrix), order, norms)
    return norms


def distance_median(programs: Any, order: int, block: Block, most: int = 2**20) -> float:
    median = np.empty(1)
    run(programs, "distance_median", ctypes.byref(block.matrix), ctypes.c_int64(most), order, median)
    return float(median[0])


def pair_sums(
    programs: Any,
    order: int,
    *,
    rows: Sequence[Block],
    columns: Sequence[Block],
    debiased: bool,
    sample_space: bool,
    double_products: bool,
    tensor: bool,
    bytes: int,
    halves: bool,
    apart: Sequence[bool],
) -> tuple[Floats, Floats, Floats]:
    m, left = len(rows) + len(columns), len(rows)
    values, own, raw = np.empty((left, len(columns) or left)), np.empty(m), np.empty(m)
    table = (Matrix * m)(*(block.matrix for block in (*rows, *columns)))
    sizes = (
        ctypes.c_int64(m),
        ctypes.c_int64(left),
        int(debiased),
        int(sample_space),
        int(double_products),
        int(tensor),
        int(halves),
        ctypes.c_int64(bytes),
    )
    flags = np.array(apart, dtype=np.uint8)
    run(programs, "pair_sums", table, *sizes, address(flags) if apart else None, order, values, own, raw)
    return values, own, raw


def module(programs: Any, order: int = 0, capability: tuple[int, int] = (7, 5)) -> Any:
    """As ``_cuda``, with the threads of a block in this order: 0 upwards, 1 downwards, 2 shuffled at every step; of a
    device that has no tensor cores, unless its capability says so."""
    functions = (column_stats, row_norms, distance_median, pair_sums)
    bound = {function.__name__: partial(function, programs, order) for function in functions}
    return SimpleNamespace(
        Array=Array,
        Block=Block,
        current_device=lambda: 0,
        capability=lambda device: capability,
        memory_info=lambda device: (2**37, 2**37),
        device_report=lambda: (["an emulator"], ""),
        **bound,
    )
