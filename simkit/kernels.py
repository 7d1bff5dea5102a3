"""Kernels k(x_i, x_j) as frozen data; the backends know how to evaluate them.

Source for the use of kernels in similarity: Kornblith et al. 2019, "Similarity of Neural Network Representations
Revisited".
"""

from __future__ import annotations

import ctypes
import importlib
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

LARGEST = 1e144  # of a custom kernel: squares are summed


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
        if degree >= 2**31:
            raise ValueError(f"Polynomial(degree=) must be below 2**31, not {self.degree!r}")
        if not math.isfinite(as_number(self.coef0)):
            raise ValueError(f"Polynomial(coef0=) must be a finite number, not {self.coef0!r}")
        object.__setattr__(self, "degree", degree)
        object.__setattr__(self, "coef0", as_number(self.coef0))
        if self.gamma is not None:
            object.__setattr__(self, "gamma", _positive(self.gamma, "Polynomial(gamma=)"))


@dataclass(frozen=True, repr=False)
class CustomKernel:
    """k(x, y) = f(x·y, ‖x - y‖²), any kernel of the product and the squared distance of two raw rows, by numba.

    A plain Python or ``numba.njit`` function of two float64 numbers is compiled, with its globals and the variables
    that it closes over as they are now, into a loop over a tile of sample pairs; the rational quadratic kernel::

        def rational_quadratic(product, squared_distance):
            return 1 / (1 + squared_distance / 2)

        sk.cka(x, y, kernel=sk.CustomKernel(rational_quadratic))

    A ``numba.cfunc`` is taken as it is. It gets many pairs a call and fills ``values[:count]``::

        tile = types.void(*3 * [types.CPointer(types.float64)], types.intp)

        @numba.cfunc(tile)
        def rational_quadratic(products, squared_distances, values, count):
            distances, out = numba.carray(squared_distances, count), numba.carray(values, count)
            for i in range(count):
                out[i] = 1 / (1 + distances[i] / 2)

    Products and distances are those of the rows as given, neither centred nor scaled; equal rows are at distance 0
    exactly. f is called from several threads at once, without the GIL, and must be finite and below 1e144 in size for
    every pair of samples, each with itself included. An exception in it counts as NaN. A kernel equals another made
    from the same function, even where a global that it reads has another value by then.

    Raises:
        TypeError: f is not callable, a cfunc of another signature, or nothing that numba compiles to a number.
        ImportError: numba is not installed.
    """

    f: Callable[..., Any]
    compiled: Any = field(init=False, compare=False)  # the cfunc; its code is gone when it is

    def __post_init__(self) -> None:
        object.__setattr__(self, "compiled", _compiled(self.f))

    def __repr__(self) -> str:
        return f"CustomKernel({_name_of(self.f)})"

    def __copy__(self) -> CustomKernel:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> CustomKernel:
        return self

    def __reduce__(self) -> tuple[type[CustomKernel], tuple[Any]]:
        if self.f is self.compiled:
            raise TypeError(f"{self!r} cannot be pickled: it holds a cfunc, which is machine code of this process")
        if not hasattr(self.f, "py_func") and _found_by_name(self.f) is not self.f:
            raise TypeError(f"{self!r} cannot be pickled: its function is not at the top level of a module")
        return CustomKernel, (self.f,)

    @property
    def address(self) -> int:
        """Where the compiled code is."""
        return int(self.compiled.address)

    def __call__(
        self, products: npt.NDArray[np.float64], squared_distances: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        """The kernel's values, elementwise, in the products' shape."""
        pair = np.broadcast_arrays(products, squared_distances)
        arrays = [np.array(a, dtype=np.float64, order="C") for a in pair]  # copies: f may write to what it gets
        arrays.append(np.full(arrays[0].shape, math.nan))
        pointers = [a.ctypes.data_as(ctypes.POINTER(ctypes.c_double)) for a in arrays]
        self.compiled.ctypes(*pointers, arrays[0].size)
        return arrays[2]

    def out_of_range(self, layer: str, product: float, squared_distance: float, value: float) -> ValueError:
        """The error for a pair of samples of ``layer`` whose kernel is ``value``."""
        return ValueError(
            f"{self!r} is {float(value)} for {layer}, at product={float(product)} and "
            f"squared_distance={float(squared_distance)}: a kernel must be finite, and below {LARGEST} in size"
        )


def _compiled(f: object) -> Any:
    """``f`` as a cfunc over arrays."""
    if not callable(f):
        raise TypeError(f"CustomKernel(f=) must be a function of product and squared_distance, not {f!r}")
    try:
        numba: Any = importlib.import_module("numba")
        ccallback: Any = importlib.import_module("numba.core.ccallback")
    except ImportError as error:
        raise ImportError(f"CustomKernel needs numba ({error}): pip install 'simkit[numba]'") from None
    number, array = numba.types.float64, numba.types.CPointer(numba.types.float64)
    signature = numba.types.void(array, array, array, numba.types.intp)
    if isinstance(f, ccallback.CFunc):
        theirs = getattr(f, "_sig", None)
        if theirs != signature:
            raise TypeError(f"CustomKernel(f={_name_of(f)}) has the signature {theirs}, and must have {signature}")
        return f
    try:
        scalar = f if numba.extending.is_jitted(f) else numba.njit(f, error_model="numpy")

        def one(product: float, squared_distance: float) -> Any:
            return scalar(product, squared_distance)

        probe: Any = numba.njit(one)
        probe.compile((number, number))
    except Exception as error:  # numba raises what its passes and Python's own objects raise
        raise TypeError(f"numba cannot compile CustomKernel(f={_name_of(f)}): {_first_line(error)}") from error
    result = probe.overloads[number, number].signature.return_type
    if not isinstance(result, numba.types.Float | numba.types.Integer | numba.types.Boolean):
        raise TypeError(f"CustomKernel(f={_name_of(f)}) must return a real number, not {result}")
    carray = numba.carray

    def fill(products: Any, squared_distances: Any, values: Any, count: int) -> None:
        left, right, out = carray(products, count), carray(squared_distances, count), carray(values, count)
        for i in range(count):
            out[i] = scalar(left[i], right[i])

    return numba.cfunc(signature, error_model="numpy")(fill)


def _name_of(f: object) -> str:
    name = getattr(f, "__qualname__", None) or getattr(f, "__name__", None)
    return str(name) if name else f"a {type(f).__name__}"


def _found_by_name(f: Callable[..., Any]) -> object:
    found: object = sys.modules.get(f.__module__)
    for part in f.__qualname__.split("."):
        found = getattr(found, part, None)
    return found


def _first_line(error: Exception) -> str:
    """What numba says first, without the pass that it failed in and without colours."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines()
    told = [line.strip() for line in lines if line.strip() and not line.startswith("Failed in ")]
    return told[0] if told else type(error).__name__


Kernel: TypeAlias = Linear | Cosine | RBF | Laplacian | Polynomial | CustomKernel


def check_kernel(kernel: object) -> Kernel:
    """Return ``kernel``, or raise TypeError with the value when it is not a kernel object."""
    if isinstance(kernel, Linear | Cosine | RBF | Laplacian | Polynomial | CustomKernel):
        return kernel
    hint = f"; write simkit.{kernel.__name__}()" if isinstance(kernel, type) else ""
    if callable(kernel) and (not hint or kernel is CustomKernel):
        hint = "; write simkit.CustomKernel(f) for a function f of product and squared_distance"
    raise TypeError(f"kernel must be a kernel object such as simkit.Linear() or simkit.RBF(0.5), not {kernel!r}{hint}")
