"""A layer's features by rows, in the units of its kernel, on the host: what candidates leave out."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ..arrays import Matrix
from ..kernels import RBF, CustomKernel, Laplacian, Polynomial
from .base import Block, UnitFeatures

VALUES = 2**15  # of columns that become rows at a time, but for those of a single one


def kernel_unit(block: Block) -> float:
    """The length in z's units that makes the kernel 2^-‖·‖² (RBF) or 2^-‖·‖ (Laplacian); 1 for the others."""
    if isinstance(block.kernel, RBF):
        return math.sqrt(block.length * math.log(2))
    return block.length * math.log(2) if isinstance(block.kernel, Laplacian) else 1.0


def strip_of(n: int) -> int:
    """The number of columns that become rows at a time."""
    return max(1, VALUES // n)


def host_features(block: Block, columns: npt.NDArray[np.int64], *, double: bool) -> UnitFeatures:
    """``columns [p]`` of a block as rows ``[p, n]``; raw ones for a custom kernel."""
    rows = np.empty((len(columns), block.n), dtype=np.float64 if double else np.float32)
    squares = np.empty(len(columns))
    strip = strip_of(block.n)
    for start in range(0, len(columns), strip):
        some = slice(start, start + strip)
        rows[some] = _rows(block, columns[some])
        deviations = rows[some].astype(np.float64)
        deviations -= rows[some].mean(axis=1, dtype=np.float64)[:, None]
        squares[some] = np.einsum("ij,ij->i", deviations, deviations)
    return UnitFeatures(rows, squares)


def _rows(block: Block, columns: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    matrix = block.matrix
    z = Matrix(matrix.name, matrix.values[:, columns].T, matrix.dtype, matrix.origin).float64()
    if not isinstance(block.kernel, CustomKernel):
        # Distances do not depend on what is subtracted; from the mean, one outlier would leave the others few digits.
        z -= (block.shift[columns] if isinstance(block.kernel, Polynomial) else np.median(z, axis=1))[:, None]
        np.ldexp(z, -block.exponent, out=z)
    if isinstance(block.kernel, RBF | Laplacian):
        z /= kernel_unit(block)
    return z
