"""Kernels k(x_i, x_j) as frozen data; the backends know how to evaluate them.

Source for the use of kernels in similarity: Kornblith et al. 2019, "Similarity of Neural Network Representations
Revisited".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TypeAlias


def as_number(value: object) -> float:
    """An option as a Python number, of NumPy's too, so that equal options read the same; NaN for what is none."""
    if isinstance(value, bool):
        return math.nan
    if isinstance(value, int):
        return value
    return float(value) if isinstance(value, Real) else math.nan


def as_integer(value: object) -> int | None:
    """An option as a Python integer, of NumPy's too; None for what is none."""
    if isinstance(value, bool):
        return None
    return int(value) if isinstance(value, Integral) else None


def _positive(value: float, what: str) -> float:
    number = as_number(value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{what} must be a positive number, not {value!r}")
    return number


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
        object.__setattr__(self, "bandwidth", _positive(self.bandwidth, "RBF(bandwidth=)"))


@dataclass(frozen=True)
class Laplacian:
    """k(x, y) = exp(-‖x - y‖₂ / (t √m)), with the t and m of :class:`RBF` (Euclidean, not city-block, distance)."""

    bandwidth: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "bandwidth", _positive(self.bandwidth, "Laplacian(bandwidth=)"))


@dataclass(frozen=True)
class Polynomial:
    """k(x, y) = (γ x·y + c)^d on the raw rows; ``gamma=None`` is 1/p (as scikit-learn's ``polynomial_kernel``)."""

    degree: int = 3
    gamma: float | None = None
    coef0: float = 1.0

    def __post_init__(self) -> None:
        degree = as_integer(self.degree)
        if degree is None or degree < 1:
            raise ValueError(f"Polynomial(degree=) must be a positive integer, not {self.degree!r}")
        if not math.isfinite(as_number(self.coef0)):
            raise ValueError(f"Polynomial(coef0=) must be a finite number, not {self.coef0!r}")
        object.__setattr__(self, "degree", degree)
        object.__setattr__(self, "coef0", as_number(self.coef0))
        if self.gamma is not None:
            object.__setattr__(self, "gamma", _positive(self.gamma, "Polynomial(gamma=)"))


Kernel: TypeAlias = Linear | Cosine | RBF | Laplacian | Polynomial


def check_kernel(kernel: object) -> Kernel:
    """Return ``kernel``, or raise TypeError with the value when it is not a kernel object."""
    if isinstance(kernel, Linear | Cosine | RBF | Laplacian | Polynomial):
        return kernel
    hint = f"; write simkit.{kernel.__name__}()" if isinstance(kernel, type) else ""
    raise TypeError(f"kernel must be a kernel object such as simkit.Linear() or simkit.RBF(0.5), not {kernel!r}{hint}")
