"""Neuron merging: which kept unit of a layer absorbs each pruned one, and what it must carry.

A pruned unit n whose weights are nearly s times those of a kept unit m is absorbed by it: the next layer's column of m
gains S times the column of n. Exact where w_n = s w_m, s > 0, and the path to the next layer is positively homogeneous.

    bias        rows are [w, b]; the score is 1 - cosine; S = s = ‖[w_n, b_n]‖ / ‖[w_m, b_m]‖
    BatchNorm   y = γ (u - μ) / σ + β, σ = √(var + eps), s = ‖w_n‖ / ‖w_m‖, so that y_n = S y_m + B with
                S = s (γ_n / γ_m) (σ_m / σ_n),   B = (γ_n / σ_n) [s (μ_m - σ_m β_m / γ_m) - μ_n] + β_n
                score = λ (1 - cos) + (1 - λ) minmax over kept m of |B| / S, among the m with S > 0;
                where these differ by rounding alone, minmax is 0: the cosine decides

The published code has γ, β, μ and σ of n and m exchanged, takes the variance for σ, drops eps and admits S < 0:
``bn_scale="reference"`` does as it did, to reproduce its tables. A unit whose chosen partner has a cosine below the
threshold is absorbed by none, as are zero weights and units that BatchNorm makes constant (γ = 0).

Source: Kim et al. 2020 (Neuron Merging), algorithms 1-3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, Matrix, as_filters, on_host
from ..backends.base import Plan, Step
from ..backends.choose import choose
from ..backends.nearest import Indices, Residues
from .partners import Partners, best_partners, row_norms
from .prepare import LARGEST, checked_stats

THRESHOLD_BIAS, THRESHOLD_BATCH_NORM = 0.45, 0.1
SCALES = ("exact", "reference")


@dataclass(frozen=True)
class BatchNorm:
    """The per-unit parameters and statistics of a BatchNorm layer, each ``[units]``: γ, β, running mean, variance.

    Raises:
        ValueError: not one-dimensional or not finite; different lengths; a negative variance or eps.
    """

    gamma: npt.ArrayLike
    beta: npt.ArrayLike
    mean: npt.ArrayLike
    var: npt.ArrayLike
    eps: float = 1e-5

    def __post_init__(self) -> None:
        units = _vector(self.gamma, "gamma").size
        for name in ("gamma", "beta", "mean", "var"):
            values = _vector(getattr(self, name), name, units)
            if name == "var" and (values < 0.0).any():
                raise ValueError(f"var has the negative entry {values.min():.3g}: it is a variance")
            object.__setattr__(self, name, values)
        if not 0.0 <= self.eps < np.inf:
            raise ValueError(f"eps must be at least 0 and finite, not {self.eps!r}")

    @property
    def units(self) -> int:
        """Number of units."""
        return int(np.size(self.gamma))


@dataclass(frozen=True)
class Merging:
    """Who absorbs whom in one layer; all arrays are over the pruned units, ascending.

    Attributes:
        pruned: unit numbers ``[k]``.
        partner: the kept unit that absorbs it, or -1.
        scale: S > 0 (of either sign under ``bn_scale="reference"``), by which the next layer's columns of the pruned
            unit are multiplied before they are added to its partner's; 0 without a partner.
        residue: B, what y_n - S y_m is where the weights are parallel; 0 without a partner or without BatchNorm.
        cosine, score: of the best candidate, also where it stays below the threshold; NaN where there is no candidate.
        plan: what ran.
    """

    pruned: Indices
    partner: Indices
    scale: FloatArray
    residue: FloatArray
    cosine: FloatArray
    score: FloatArray
    plan: Plan

    @property
    def backend(self) -> str:
        """The backends that ran."""
        return self.plan.backend

    def matrix(self, kept: npt.ArrayLike) -> FloatArray:
        """Z ``[kept, units]``: the next layer's weights ``W [out, units]`` become ``W Zᵀ`` (columns of kept units).

        ``kept [units]`` is the mask that :func:`merging` was given.

        Raises:
            TypeError: not boolean. ValueError: another mask.
        """
        mask = _boolean(kept)
        if mask.ndim != 1 or not np.array_equal(np.flatnonzero(~mask), self.pruned):
            raise ValueError(f"kept {mask.shape} is not the mask of which these {len(self.pruned)} units were pruned")
        place = np.cumsum(mask) - 1
        z = np.zeros((int(mask.sum()), len(mask)))
        z[place[mask], np.flatnonzero(mask)] = 1.0
        found = self.partner >= 0
        z[place[self.partner[found]], self.pruned[found]] = self.scale[found]
        return z


def merging(
    weight: object,
    kept: npt.ArrayLike,
    *,
    bias: npt.ArrayLike | None = None,
    batch_norm: BatchNorm | None = None,
    threshold: float | None = None,
    balance: float = 0.85,
    bn_scale: Literal["exact", "reference"] = "exact",
    backend: str | None = None,
) -> Merging:
    """The kept unit that absorbs each pruned unit of a layer, by weights alone.

    ``weight [units, ...]`` is a row of weights a unit (a convolution's filters are flattened), ``kept [units]`` a
    boolean mask. Without ``batch_norm`` the ``bias [units]`` is one more weight; with it, it shifts the running mean.
    ``threshold`` in [-1, 1] is the least cosine of a partner (0.45, or 0.1 with BatchNorm), ``balance`` in [0, 1] the
    share λ of the cosine in the score. Ties within 1e-12 go to the lowest unit; who absorbs whom does not depend on the
    number of threads or the device. Weights on a CUDA device are read there.

    Raises:
        ValueError: non-finite weights; lengths that differ from the number of units; ``threshold``, ``balance``,
            ``bn_scale`` or ``backend`` out of range; weights or a bias beyond 2^1000. TypeError: ``kept`` is not
            boolean; weights that are not numeric. NotImplementedError: the named backend cannot run an op, with its
            reasons.

    Source: Kim et al. 2020, with the BatchNorm algebra put right.
    """
    w = as_filters(weight)
    mask = _checked(w, kept, threshold, balance, bn_scale)
    shift = None if bias is None else _vector(bias, "bias", w.n)
    if batch_norm is not None and batch_norm.units != w.n:
        raise ValueError(f"batch_norm has {batch_norm.units} units and weight has {w.n}")
    last = shift if batch_norm is None else None  # one more weight
    if last is not None and np.abs(last).max() > LARGEST:
        raise ValueError(f"bias holds {np.abs(last).max():.3g}, too large to square in float64: rescale its units")
    if threshold is None:
        threshold = THRESHOLD_BIAS if batch_norm is None else THRESHOLD_BATCH_NORM
    norms = row_norms(w, checked_stats(w, backend=backend).max_abs, last=last, backend=backend)
    affine = None if batch_norm is None else _Affine.of(batch_norm, shift, norms, exact=bn_scale == "exact")
    pruned, others = np.flatnonzero(~mask), np.flatnonzero(mask)
    residues = None if affine is None else affine.residues()
    best = best_partners(w, norms, pruned, others, last=last, residues=residues, balance=balance, backend=backend)
    found = _absorbed(best, threshold)
    note = f"{np.count_nonzero(found)} of {len(pruned)} pruned units have a partner of cosine {threshold} or more"
    products = len(pruned) * len(others) * (w.p + (last is not None))
    return _result(pruned, best, found, norms, affine, Plan(_steps(w, best.route, products, backend), (note,)))


@dataclass(frozen=True)
class _Affine:
    """BatchNorm as y = a u + d for each unit, in either algebra."""

    slope: FloatArray  # a = γ / σ
    offset: FloatArray  # d = β - a μ
    norms: FloatArray
    exact: bool

    @staticmethod
    def of(norm: BatchNorm, bias: FloatArray | None, norms: FloatArray, *, exact: bool) -> _Affine:
        gamma, beta, mean, var = (np.asarray(v) for v in (norm.gamma, norm.beta, norm.mean, norm.var))
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            slope = gamma / (np.sqrt(var + norm.eps) if exact else var)
            offset = beta - slope * (mean if bias is None else mean - bias)
        return _Affine(slope, offset, norms, exact)

    def residues(self) -> Residues:
        """|B| / S as a term of low rank: in the exact algebra |a_m d_n ‖w_m‖ / (a_n ‖w_n‖) - d_m|."""
        a, d, zero = self.slope, self.offset, np.zeros(len(self.slope))
        sign = np.where(np.isfinite(a), np.sign(a), 0.0)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            if self.exact:
                return Residues(sign, zero, -d, d / (a * self.norms), a * self.norms, same_sign=True)
            return Residues(sign, -d, zero, a / self.norms, d * self.norms / a, same_sign=False)

    def terms(self, n: Indices, m: Indices) -> tuple[FloatArray, FloatArray]:
        """(S, B) of the pairs; the reference's algebra has a and d of n and m exchanged, but not the norms."""
        s = self.norms[n] / self.norms[m]
        if not self.exact:
            n, m = m, n
        scale = s * self.slope[n] / self.slope[m]
        return scale, self.offset[n] - scale * self.offset[m]


def _absorbed(best: Partners, threshold: float) -> npt.NDArray[np.bool_]:
    with np.errstate(invalid="ignore"):
        return np.asarray((best.partner >= 0) & (best.cosine >= threshold))


def _result(
    pruned: Indices,
    best: Partners,
    found: npt.NDArray[np.bool_],
    norms: FloatArray,
    affine: _Affine | None,
    plan: Plan,
) -> Merging:
    scale, residue = np.zeros(len(pruned)), np.zeros(len(pruned))
    n, m = pruned[found], best.partner[found]
    if affine is None:
        scale[found] = norms[n] / norms[m]
    else:
        scale[found], residue[found] = affine.terms(n, m)
    partner = np.where(found, best.partner, -1)
    return Merging(pruned, partner, scale, residue, best.cosine, best.score, plan)


def _steps(w: Matrix, route: str, products: int, backend: str | None) -> tuple[Step, ...]:
    """What ran; ``route``: of the search, empty where nobody looked for a partner."""
    choices = {op: choose(op, backend=backend, inputs=[w]) for op in ("column_stats", "row_norms", "nearest_rows")}
    *before, search = (Step(op, choice.backend, choice.reason) for op, choice in choices.items())
    return (*before, replace(search, route=route, multiply_adds=products)) if route else tuple(before)


def _checked(
    w: Matrix, kept: npt.ArrayLike, threshold: float | None, balance: float, bn_scale: str
) -> npt.NDArray[np.bool_]:
    mask = _boolean(kept)
    if mask.shape != (w.n,):
        raise ValueError(f"kept has shape {mask.shape} and weight has {w.n} units")
    if threshold is not None and not -1.0 <= threshold <= 1.0:
        raise ValueError(f"threshold must lie in [-1, 1], not {threshold!r}")
    if not 0.0 <= balance <= 1.0:
        raise ValueError(f"balance must lie in [0, 1], not {balance!r}")
    if bn_scale not in SCALES:
        raise ValueError(f'bn_scale must be "exact" or "reference", not {bn_scale!r}')
    return mask


def _boolean(kept: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    mask = on_host(kept, "kept")
    if mask.dtype != np.bool_:
        raise TypeError(f"kept must be a boolean mask of the units, not an array of {mask.dtype}")
    return mask


def _vector(values: npt.ArrayLike, name: str, units: int | None = None) -> FloatArray:
    vector = np.array(on_host(values, name), dtype=np.float64)
    if vector.ndim != 1 or (units is not None and len(vector) != units):
        raise ValueError(f"{name} has shape {vector.shape}: it must be [{'units' if units is None else units}]")
    if not np.isfinite(vector).all():
        raise ValueError(f"{name} has a non-finite entry, the first at {int(np.argmin(np.isfinite(vector)))}")
    return vector
