"""Orthogonal Procrustes distances.

    size-and-shape  min_R ‖Xc R - Yc‖_F              = √(‖Xc‖² + ‖Yc‖² - 2‖XcᵀYc‖_*)          Schönemann 1966
    normalized      the same at unit Frobenius norms = √(2 - 2·NBS)
    angular         arccos(NBS)                                                              Williams et al. 2021

R runs over orthogonal maps; the side with fewer features is padded by zero columns. These are distances (metrics on
representations up to those maps): 0 for equal, at most √2 (normalized) and π/2 (angular). Units: size-and-shape has
those of the features, the angle is in radians. Invariant to orthogonal maps and translation; angular and normalized
also to isotropic scaling.

√(2 - 2·NBS) and arccos(NBS) lose half of the digits as the distance goes to zero, and a self-distance of 1e-8
instead of 0. So small distances are taken from the residual Xc R - Yc itself, and the angle is 2·asin(normalized/2).

Published code that differs: ``anatome`` returns 1 - NBS under this name. netrep's ``LinearMetric(alpha=1)`` is the
angular form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..arrays import FloatArray, Matrix, enough_samples
from .basis import Factor, both, factor_of, need_of
from .blas import cross, frobenius, product, svd
from .measure import Need
from .nbs import bures

FORMS = ("angular", "normalized", "size-and-shape")
NEARLY_EQUAL = 0.99  # NBS above which 2 - 2·NBS has lost two digits and the residual is formed
DEFLATION = 1e-4  # singular values below this share of the largest are decomposed again, on their own


@dataclass(frozen=True)
class Procrustes:
    """Orthogonal Procrustes distance as a measure object: ``Procrustes(form="normalized")``.

    Raises:
        ValueError: ``form`` is none of "angular", "normalized", "size-and-shape".
    """

    form: Literal["angular", "normalized", "size-and-shape"] = "angular"

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f'form must be "angular", "normalized" or "size-and-shape", not {self.form!r}')

    def prepare(self, x: Matrix) -> Factor:
        """The centred features of one representation, reduced to n columns where they are wide."""
        enough_samples(x.n, 2, "Procrustes distance")
        return factor_of(x)

    def need(self, x: Matrix) -> Need:
        """Bytes of the factor, and of finding it."""
        return need_of(x, held=x.n * min(x.n, x.p))

    def score(self, x: Factor, y: Factor) -> float:
        """The distance of two prepared representations."""
        shape = shape_distance(x, y)
        if self.form == "normalized":
            return shape
        if self.form == "angular":
            return 2.0 * math.asin(shape / 2.0)
        return _size_and_shape(x, y, shape)


def procrustes(x: object, y: object, *, form: Literal["angular", "normalized", "size-and-shape"] = "angular") -> float:
    """Orthogonal Procrustes distance of ``x [n, p]`` and ``y [n, q]``: 0 for equal up to rotation.

    Range: [0, π/2] radians (angular), [0, √2] (normalized), or at least 0 in the units of the features
    (size-and-shape). Invariant to orthogonal maps and translation of either side; angular and normalized also to
    isotropic scale. Symmetric, and a metric: the triangle inequality holds.

    Raises:
        ValueError: ``form`` unknown; different n; n < 2; NaN or infinite entries; a representation whose features
            are constant. TypeError: input that is not numeric.

    Source: Schönemann 1966; Williams et al. 2021 (angular); Ding et al. 2021.
    """
    measure = Procrustes(form)
    _, (a, b) = both(x, y, factor_of, "procrustes")
    return measure.score(a, b)


def shape_distance(x: Factor, y: Factor) -> float:
    """min over orthogonal R of ‖W_x R - W_y‖_F at unit norms, right to the last digits near zero too."""
    if x is y:
        return 0.0  # R = I leaves no residual
    similarity = bures(x, y)
    if similarity < NEARLY_EQUAL:
        return math.sqrt(2.0 - 2.0 * similarity)
    return _residual(x, y)


def _residual(x: Factor, y: Factor) -> float:
    """‖X U - Y V‖_F, U Σ Vᵀ = XᵀY, for X and Y of unit norm.

    One SVD finds the singular vectors of small singular values only to eps of the largest, an error of √eps in the
    distance. So they are rotated again by the SVD of their own cross-product, whose entries are small and hence
    exact to small errors, until nothing smaller is left.
    """
    width = max(x.values.shape[1], y.values.shape[1])
    u, v = _padded(x, width), _padded(y, width)  # X U and Y V, rotated in place
    start, largest = 0, 0.0
    while start < width:
        a, s, bt = svd(cross(u[:, start:], v[:, start:]))
        u[:, start:] = product(u[:, start:], a)
        v[:, start:] = product(v[:, start:], bt.T)
        largest = max(largest, float(s[0]))
        if s[0] <= np.finfo(np.float64).eps ** 2 * largest:
            break
        start += int(np.count_nonzero(s > DEFLATION * s[0]))
    return frobenius(u - v)


def _padded(w: Factor, width: int) -> FloatArray:
    padded = np.zeros((w.values.shape[0], width), order="F")  # by columns, whose ranges products take as they lie
    np.divide(w.values, w.norm, out=padded[:, : w.values.shape[1]])
    return padded


def _size_and_shape(x: Factor, y: Factor, shape: float) -> float:
    """√((‖X‖ - ‖Y‖)² + ‖X‖ ‖Y‖ shape²), scaled by a power of two."""
    exponent = max(x.exponent, y.exponent)
    a = math.ldexp(x.norm, x.exponent - exponent)
    b = math.ldexp(y.norm, y.exponent - exponent)
    return math.ldexp(math.hypot(a - b, math.sqrt(a) * math.sqrt(b) * shape), exponent)
