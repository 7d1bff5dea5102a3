"""Exact one-pass HSIC of linear kernels from float64 moments: any number of rows in memory that does not grow.

With z = (x - c) · scale, a_i = |z_i|², μ, ν the means of two layers' z and C = Σ x yᵀ (all in z's units):

    T = ‖C - n μνᵀ‖²
    S = Σ |x_i - μ|² |y_i - ν|²
      = Σab - 2ν·Σa y + |ν|²Σa - 2μ·Σb x + 4μᵀCν + |μ|²Σb - 3n|μ|²|ν|²
    n(n-3) HSIC_debiased = T - n/(n-2) S + (Σa - n|μ|²)(Σb - n|ν|²) / ((n-1)(n-2))
    (n-1)² HSIC_biased   = T

Rows are staged into blocks of 512 whatever the caller's batches are, so any split of one order gives the same bits.
The shift c is the mean of the first block. States add; states with different shifts are re-based exactly. Derived
from Song et al. 2012, eq. 5, with K̃1 = -diag(K) for centred features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from ..arrays import FloatArray, Matrix
from ..backends.base import Estimator, MomentSums, PairSums, SideSums
from ..backends.choose import choose

STAGE = 512  # rows added at a time


@dataclass
class Moments:
    """The state of a stream: sums over ``n`` rows, and up to 511 rows that wait for their block to fill."""

    left_widths: tuple[int, ...]
    right_widths: tuple[int, ...] | None  # None: the left side with itself
    n: int
    sums: MomentSums | None
    staged: int
    left_stage: FloatArray  # [512, p_left]
    right_stage: FloatArray | None  # [512, p_right]

    @property
    def samples(self) -> int:
        """Rows seen."""
        return self.n + self.staged


def state_bytes(left_widths: Sequence[int], right_widths: Sequence[int] | None) -> int:
    """Bytes of the sums and the stage."""
    p, q = sum(left_widths), sum(right_widths or ())
    if right_widths is None:
        return 8 * (p * p + STAGE * p)
    own = sum(width * width for width in [*left_widths, *right_widths])
    return 8 * (p * q + own + STAGE * (p + q))


def empty(left_widths: Sequence[int], right_widths: Sequence[int] | None) -> Moments:
    """The state of a stream that has seen nothing."""
    right = None if right_widths is None else np.empty((STAGE, sum(right_widths)))
    return Moments(
        tuple(left_widths),
        None if right_widths is None else tuple(right_widths),
        0,
        None,
        0,
        np.empty((STAGE, sum(left_widths))),
        right,
    )


def update(
    state: Moments, left: Sequence[Matrix], right: Sequence[Matrix] | None, *, backend: str | None, threads: int
) -> None:
    """Add the rows of one batch, in place."""
    rows, at = left[0].n, 0
    while at < rows:
        take = min(STAGE - state.staged, rows - at)
        part = slice(at, at + take)
        place = slice(state.staged, state.staged + take)
        _copy_rows(state.left_stage, place, left, part)
        if right is not None and state.right_stage is not None:
            _copy_rows(state.right_stage, place, right, part)
        state.staged += take
        at += take
        if state.staged == STAGE:
            _flush(state, backend, threads)


def merge(state: Moments, other: Moments, *, backend: str | None, threads: int) -> None:
    """Add another stream's rows, in place: its sums re-based to this shift, then its staged rows."""
    if other.sums is not None:
        if state.sums is None:
            state.sums = _copy_sums(other.sums)
        else:
            left = _like(other.sums.left, state.sums.left)
            right = None
            if other.sums.right is not None and state.sums.right is not None:
                right = _like(other.sums.right, state.sums.right)
            _add(state.sums, rebase(other.sums, other.n, left, right))
        state.n += other.n
    if other.staged:
        rows = slice(0, other.staged)
        left_rows = _split(other.left_stage[rows], other.left_widths)
        right_rows = (
            None
            if other.right_stage is None or other.right_widths is None
            else _split(other.right_stage[rows], other.right_widths)
        )
        update(state, left_rows, right_rows, backend=backend, threads=threads)


def finish(state: Moments, estimator: Estimator) -> tuple[PairSums, list[int], list[int]]:
    """(sums, exponents of the rows' and of the columns' layers); leaves the state as it is.

    A layer's Gram matrix is 2^(2·exponent) times that of z. The state must hold at least one full block.
    """
    sums = state.sums
    if sums is None:
        raise ValueError("a stream of fewer than 512 rows has no sums yet")
    left = _with_tail(sums.left, state.left_stage[: state.staged])
    right = left if sums.right is None else _with_tail(sums.right, _right_tail(state))
    n = state.samples
    cross = sums.cross
    if sums.right is None:
        cross = cross + np.triu(cross, 1).T
    values = np.empty((len(left.spans), len(right.spans)))
    tails_ab = sums.sum_ab + left.tail_a.T @ right.tail_a
    tails_ay = sums.sum_ay + left.tail_a.T @ right.tail_z
    tails_bx = tails_ay if sums.right is None else sums.sum_bx + right.tail_a.T @ left.tail_z
    for i, s in enumerate(left.spans):
        for j, t in enumerate(right.spans):
            c = cross[s, t] + left.tail_z[:, s].T @ right.tail_z[:, t]
            x = _Layer(left.sum_z[s] / n, left.sum_a[i])
            y = _Layer(right.sum_z[t] / n, right.sum_a[j])
            values[i, j] = _pair(n, x, y, c, tails_ab[i, j], tails_ay[i, t], tails_bx[j, s], estimator)[0]
    own_left, raw_left = _own(left, n, estimator, cross if sums.right is None else None)
    own_right, raw_right = (own_left, raw_left) if right is left else _own(right, n, estimator, None)
    return PairSums(values, own_left, own_right, raw_left, raw_right), left.exponents, right.exponents


@dataclass(frozen=True)
class _Tailed:
    """One side's sums with the staged rows added."""

    side: SideSums
    spans: list[slice]
    tail_z: FloatArray
    tail_a: FloatArray
    sum_z: FloatArray
    sum_az: FloatArray
    sum_a: FloatArray
    sum_aa: FloatArray

    @property
    def exponents(self) -> list[int]:
        return [1 - math.frexp(float(self.side.scale[span.start]))[1] for span in self.spans]


@dataclass(frozen=True)
class _Layer:
    mean: FloatArray
    sum_a: float


def _pair(
    n: int,
    x: _Layer,
    y: _Layer,
    c: FloatArray,
    ab: float,
    ay: FloatArray,
    bx: FloatArray,
    estimator: Estimator,
) -> tuple[float, float]:
    """(the centred inner product, the inner product before the debiasing terms)."""
    mu, nu = x.mean, y.mean
    mm, nn = float(mu @ mu), float(nu @ nu)
    centred = c - n * np.outer(mu, nu)
    total = float(np.vdot(centred, centred))
    if estimator == "biased":
        return total, total
    diagonals = (
        ab - 2 * float(nu @ ay) + nn * x.sum_a - 2 * float(mu @ bx) + 4 * float(mu @ c @ nu) + mm * y.sum_a
    ) - 3 * n * mm * nn
    traces = (x.sum_a - n * mm) * (y.sum_a - n * nn)
    return total - n / (n - 2) * diagonals + traces / ((n - 1) * (n - 2)), total - diagonals


def _own(side: _Tailed, n: int, estimator: Estimator, cross: FloatArray | None) -> tuple[FloatArray, FloatArray]:
    own, raw = np.empty(len(side.spans)), np.empty(len(side.spans))
    for i, s in enumerate(side.spans):
        tail = side.tail_z[:, s]
        if cross is None:
            gram = side.side.gram[i]
            gram = gram + np.triu(gram, 1).T
        else:
            gram = cross[s, s]
        layer = _Layer(side.sum_z[s] / n, side.sum_a[i])
        az = side.sum_az[s]
        own[i], raw[i] = _pair(n, layer, layer, gram + tail.T @ tail, side.sum_aa[i], az, az, estimator)
    return own, raw


def _with_tail(side: SideSums, rows: FloatArray) -> _Tailed:
    z = (rows - side.shift) * side.scale
    spans = spans_of(side.offsets)
    a = np.stack([np.einsum("ij,ij->i", z[:, s], z[:, s]) for s in spans], axis=1)
    az = np.concatenate([a[:, i] @ z[:, s] for i, s in enumerate(spans)])
    return _Tailed(
        side,
        spans,
        z,
        a,
        side.sum_z + z.sum(axis=0),
        side.sum_az + az,
        side.sum_a + a.sum(axis=0),
        side.sum_aa + (a * a).sum(axis=0),
    )


def rebase(sums: MomentSums, n: int, left: SideSums, right: SideSums | None) -> MomentSums:
    """The same sums over the same n rows, with the shifts and scales of ``left`` and ``right``."""
    x = _Moved(sums.left, left)
    y = x if sums.right is None or right is None else _Moved(sums.right, right)
    cross = sums.cross + np.triu(sums.cross, 1).T if sums.right is None else sums.cross
    cross = cross * x.ratio[:, None] * y.ratio[None, :]
    ab = sums.sum_ab * (x.layer_ratio**2)[:, None] * (y.layer_ratio**2)[None, :]
    ay = sums.sum_ay * (x.layer_ratio**2)[:, None] * y.ratio[None, :]
    bx = ay if sums.right is None else sums.sum_bx * (y.layer_ratio**2)[:, None] * x.ratio[None, :]
    new_ay, new_bx, new_ab = ay.copy(), bx.copy(), ab.copy()
    grams_x = [cross[s, s] for s in x.spans] if sums.right is None else None
    new_x = x.moved(n, grams_x)
    new_y = new_x if y is x else y.moved(n, None)
    for i, s in enumerate(x.spans):
        d, dd = x.step[s], x.step_norm[i]
        new_ay[i] += dd * y.sum_z + new_x.sum_a[i] * y.step + 2 * (d @ cross[s])
        for j, t in enumerate(y.spans):
            e, ee = y.step[t], y.step_norm[j]
            new_ab[i, j] += (
                2 * float(e @ ay[i, t])
                + ee * x.sum_a[i]
                + 2 * float(d @ bx[j, s])
                + 4 * float(d @ cross[s, t] @ e)
                + 2 * ee * float(d @ x.sum_z[s])
                + dd * y.sum_a[j]
                + 2 * dd * float(e @ y.sum_z[t])
                + n * dd * ee
            )
    if sums.right is not None:
        for j, t in enumerate(y.spans):
            e, ee = y.step[t], y.step_norm[j]
            new_bx[j] += ee * x.sum_z + new_y.sum_a[j] * x.step + 2 * (cross[:, t] @ e)
    cross = cross + np.outer(x.sum_z, y.step) + np.outer(x.step, y.sum_z) + n * np.outer(x.step, y.step)
    if sums.right is None:
        return MomentSums(new_x, None, np.triu(cross), new_ab, new_ay, sums.sum_bx)
    return MomentSums(new_x, new_y, cross, new_ab, new_ay, new_bx)


class _Moved:
    """One side's sums in the new scale, and the step d from the old shift to the new one."""

    def __init__(self, old: SideSums, new: SideSums) -> None:
        self.old, self.new = old, new
        self.spans = spans_of(old.offsets)
        self.ratio = new.scale / old.scale
        self.layer_ratio = np.array([self.ratio[s.start] for s in self.spans])
        self.step = (old.shift - new.shift) * new.scale
        self.step_norm = np.array([float(self.step[s] @ self.step[s]) for s in self.spans])
        self.sum_z = old.sum_z * self.ratio
        self.sum_a = old.sum_a * self.layer_ratio**2
        self.sum_aa = old.sum_aa * self.layer_ratio**4
        self.sum_az = old.sum_az * self.ratio**3

    def moved(self, n: int, grams: list[FloatArray] | None) -> SideSums:
        kept = []
        sum_a, sum_aa, sum_az = self.sum_a.copy(), self.sum_aa.copy(), self.sum_az.copy()
        for i, s in enumerate(self.spans):
            d, dd, z = self.step[s], self.step_norm[i], self.sum_z[s]
            if grams is None:
                gram = self.old.gram[i] * self.layer_ratio[i] ** 2
                gram = gram + np.triu(gram, 1).T
            else:
                gram = grams[i]
            dz = float(d @ z)
            sum_a[i] += 2 * dz + n * dd
            sum_aa[i] += (
                4 * float(d @ self.sum_az[s])
                + 2 * dd * self.sum_a[i]
                + 4 * float(d @ gram @ d)
                + 4 * dd * dz
                + n * dd * dd
            )
            sum_az[s] += 2 * (gram @ d) + dd * z + sum_a[i] * d
            if grams is None:
                kept.append(np.triu(gram + np.outer(z, d) + np.outer(d, z) + n * np.outer(d, d)))
        return replace(
            self.new, sum_z=self.sum_z + n * self.step, sum_az=sum_az, sum_a=sum_a, sum_aa=sum_aa, gram=tuple(kept)
        )


def spans_of(offsets: Sequence[int]) -> list[slice]:
    """The columns of each layer."""
    return [slice(a, b) for a, b in pairwise(offsets)]


def _copy_rows(stage: FloatArray, place: slice, layers: Sequence[Matrix], part: slice) -> None:
    at = 0
    for layer in layers:
        values = layer.float64(part) if layer.dtype == "bfloat16" else layer.values[part]
        stage[place, at : at + layer.p] = values
        at += layer.p


def _flush(state: Moments, backend: str | None, threads: int) -> None:
    if state.sums is None:
        state.sums = _first_sums(state)
    add = choose("moments_add", backend=backend).function
    add(state.sums, state.left_stage, state.right_stage, threads=threads)
    state.n += state.staged
    state.staged = 0


def _first_sums(state: Moments) -> MomentSums:
    alone = state.right_widths is None or state.right_stage is None
    left = _first_side(state.left_stage, state.left_widths, alone)
    right = None
    if state.right_widths is not None and state.right_stage is not None:
        right = _first_side(state.right_stage, state.right_widths, False)
    other = right or left
    p, q = left.offsets[-1], other.offsets[-1]
    layers, others = len(left.offsets) - 1, len(other.offsets) - 1
    return MomentSums(
        left,
        right,
        np.zeros((p, q)),
        np.zeros((layers, others)),
        np.zeros((layers, q)),
        np.zeros((others, p) if right is not None else (0, 0)),
    )


def _first_side(stage: FloatArray, widths: Sequence[int], alone: bool) -> SideSums:
    offsets = tuple(int(v) for v in np.concatenate([[0], np.cumsum(widths)]))
    shift = stage[0] + (stage - stage[0]).mean(axis=0)
    largest = np.abs(stage - shift).max(axis=0)
    scale = np.empty(offsets[-1])
    for s in spans_of(offsets):
        exponent = math.frexp(float(largest[s].max()))[1]
        scale[s] = math.ldexp(1.0, -max(-1000, min(1000, exponent)))
    p, layers = offsets[-1], len(widths)
    grams = () if alone else tuple(np.zeros((width, width)) for width in widths)
    return SideSums(offsets, shift, scale, np.zeros(p), np.zeros(p), np.zeros(layers), np.zeros(layers), grams)


def _right_tail(state: Moments) -> FloatArray:
    assert state.right_stage is not None
    return state.right_stage[: state.staged]


def _split(rows: FloatArray, widths: Sequence[int]) -> list[Matrix]:
    ends = np.cumsum(widths)
    return [Matrix("staged", rows[:, e - w : e], "float64") for w, e in zip(widths, ends, strict=True)]


def _like(side: SideSums, other: SideSums) -> SideSums:
    return replace(side, shift=other.shift, scale=other.scale)


def _side_arrays(side: SideSums) -> list[FloatArray]:
    return [side.sum_z, side.sum_az, side.sum_a, side.sum_aa, *side.gram]


def _arrays(sums: MomentSums) -> list[FloatArray]:
    right = [] if sums.right is None else _side_arrays(sums.right)
    return [*_side_arrays(sums.left), *right, sums.cross, sums.sum_ab, sums.sum_ay, sums.sum_bx]


def _add(sums: MomentSums, other: MomentSums) -> None:
    for mine, theirs in zip(_arrays(sums), _arrays(other), strict=True):
        np.add(mine, theirs, out=mine)


def _copy_sums(sums: MomentSums) -> MomentSums:
    def side(s: SideSums) -> SideSums:
        return SideSums(
            s.offsets,
            s.shift.copy(),
            s.scale.copy(),
            s.sum_z.copy(),
            s.sum_az.copy(),
            s.sum_a.copy(),
            s.sum_aa.copy(),
            tuple(g.copy() for g in s.gram),
        )

    return MomentSums(
        side(sums.left),
        None if sums.right is None else side(sums.right),
        sums.cross.copy(),
        sums.sum_ab.copy(),
        sums.sum_ay.copy(),
        sums.sum_bx.copy(),
    )
