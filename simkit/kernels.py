"""Kernels k(x_i, x_j) as frozen data; the backends know how to evaluate them.

Source for the use of kernels in similarity: Kornblith et al. 2019, "Similarity of Neural Network Representations
Revisited".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias


def _positive(value: float, what: str) -> None:
    if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
        raise ValueError(f"{what} must be a positive number, not {value!r}")


@dataclass(frozen=True)
class Linear:
    """k(x, y) = x·y."""


@dataclass(frozen=True)
class Cosine:
    """k(x, y) = x·y / (‖x‖ ‖y‖), on the raw rows; a zero row has no direction and is an error."""


@dataclass(frozen=True)
class RBF:
    """k(x, y) = exp(-‖x - y‖² / (2 t² m)).

    ``bandwidth`` is t; m is the median of the full n × n matrix of squared distances, zero diagonal included
    (Kornblith et al. 2019, section 3).
    """

    bandwidth: float = 0.5

    def __post_init__(self) -> None:
        _positive(self.bandwidth, "RBF(bandwidth=)")


@dataclass(frozen=True)
class Laplacian:
    """k(x, y) = exp(-‖x - y‖₂ / (t √m)), with the t and m of :class:`RBF` (Euclidean, not city-block, distance)."""

    bandwidth: float = 0.5

    def __post_init__(self) -> None:
        _positive(self.bandwidth, "Laplacian(bandwidth=)")


@dataclass(frozen=True)
class Polynomial:
    """k(x, y) = (γ x·y + c)^d on the raw rows; ``gamma=None`` is 1/p (as scikit-learn's ``polynomial_kernel``)."""

    degree: int = 3
    gamma: float | None = None
    coef0: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.degree, int) or isinstance(self.degree, bool) or self.degree < 1:
            raise ValueError(f"Polynomial(degree=) must be a positive integer, not {self.degree!r}")
        if self.gamma is not None:
            _positive(self.gamma, "Polynomial(gamma=)")
        if not (isinstance(self.coef0, int | float) and math.isfinite(self.coef0)):
            raise ValueError(f"Polynomial(coef0=) must be a finite number, not {self.coef0!r}")


Kernel: TypeAlias = Linear | Cosine | RBF | Laplacian | Polynomial


def check_kernel(kernel: object) -> Kernel:
    """Return ``kernel``, or raise TypeError with the value when it is not a kernel object."""
    if isinstance(kernel, Linear | Cosine | RBF | Laplacian | Polynomial):
        return kernel
    hint = f"; write simkit.{kernel.__name__}()" if isinstance(kernel, type) else ""
    raise TypeError(f"kernel must be a kernel object such as simkit.Linear() or simkit.RBF(0.5), not {kernel!r}{hint}")
