"""A layer's features by rows, in the units of its kernel, on the host: what candidates leave out."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ..kernels import RBF, CustomKernel, Laplacian, Polynomial
from .base import Block, UnitFeatures


def kernel_unit(block: Block) -> float:
    """The length in z's units that makes the kernel 2^-‖·‖² (RBF) or 2^-‖·‖ (Laplacian); 1 for the others."""
    if isinstance(block.kernel, RBF):
        return math.sqrt(block.length * math.log(2))
    return block.length * math.log(2) if isinstance(block.kernel, Laplacian) else 1.0


def host_features(block: Block, columns: npt.NDArray[np.int64], *, double: bool) -> UnitFeatures:
    """``columns [p]`` of a block as rows ``[p, n]``; raw ones for a custom kernel."""
    z = block.matrix.float64()
    if not isinstance(block.kernel, CustomKernel):
        # Distances do not depend on what is subtracted; from the mean, one outlier would leave the others few digits.
        z -= block.shift if isinstance(block.kernel, Polynomial) else np.median(z, axis=0)
        np.ldexp(z, -block.exponent, out=z)
    if isinstance(block.kernel, RBF | Laplacian):
        z /= kernel_unit(block)
    rows = np.ascontiguousarray(z[:, columns].T, dtype=np.float64 if double else np.float32)
    deviations = rows.astype(np.float64) - rows.mean(axis=1, dtype=np.float64)[:, None]
    return UnitFeatures(rows, np.asarray(np.einsum("ij,ij->i", deviations, deviations)))
