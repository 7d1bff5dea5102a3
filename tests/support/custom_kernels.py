"""Kernels of a user in each of the forms that CustomKernel takes, and features to try them on."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends.base import Estimator
from simkit.kernels import Kernel
from simkit.metrics.cka import ForcedRoute, normalised
from simkit.metrics.prepare import prepare

Array = npt.NDArray[Any]

BACKENDS = ["native_cpu", "reference"]
ESTIMATORS: list[Estimator] = ["debiased", "biased"]
NUMBERS = numba.types.CPointer(numba.types.float64)
SIGNATURE = numba.types.void(NUMBERS, NUMBERS, NUMBERS, numba.types.intp)


def mixed(product: float, squared_distance: float) -> float:
    return 1 / (1 + squared_distance / 8) + math.tanh(product / 4)


def product_alone(product: float, squared_distance: float) -> float:
    return product


def distance_alone(product: float, squared_distance: float) -> float:
    return -squared_distance / 2


@numba.njit
def jitted(product: float, squared_distance: float) -> float:
    return 1 / (1 + squared_distance / 8) + math.tanh(product / 4)


@numba.cfunc(SIGNATURE)
def tiled(products: Any, squared_distances: Any, values: Any, count: int) -> None:
    p, d, out = numba.carray(products, count), numba.carray(squared_distances, count), numba.carray(values, count)
    for i in range(count):
        out[i] = 1 / (1 + d[i] / 8) + math.tanh(p[i] / 4)


MIXED = sk.CustomKernel(mixed)
PRODUCT = sk.CustomKernel(product_alone)
DISTANCE = sk.CustomKernel(distance_alone)


def pair(n: int, p: int, q: int, dtype: Any = np.float64, seed: int = 0) -> tuple[Array, Array]:
    r = np.random.default_rng([seed, n, p, q])
    z = r.standard_normal((n, 3))
    x = np.maximum(z @ r.standard_normal((3, p)) + r.standard_normal((n, p)), -0.5)
    y = np.maximum(z @ r.standard_normal((3, q)) + r.standard_normal((n, q)), -0.5)
    return x.astype(dtype), y.astype(dtype)


def engine(layers: list[Array], kernel: Kernel, estimator: Estimator, forced: ForcedRoute) -> Array:
    blocks = [prepare(as_matrix(x), kernel) for x in layers]
    return normalised(blocks, None, estimator, forced).values
