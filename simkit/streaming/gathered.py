"""All rows of a stream, layer by layer: its sums with the rows that wait, and the rows kept apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..arrays import FloatArray
from ..backends.moment_sums import MomentRows, SideSums
from .apart import Apart, outlying
from .moments import Moments, staged_layers
from .units import Held, fit, loosen


@dataclass(frozen=True)
class Layer:
    """One layer over the n rows of the sums, and its rows apart."""

    span: slice
    tail: FloatArray  # [r, p_l] rows that wait, in z's units
    mean: FloatArray
    sum_a: float
    sum_aa: float
    sum_az: FloatArray
    apart: FloatArray  # [k, p_l] less the mean
    off: FloatArray  # [k, k] their products, zero diagonal
    gram: FloatArray  # [p_l, p_l] z zᵀ without the rows that wait
    rounded: FloatArray | None  # [p_l] as in SideSums
    signs: FloatArray | None  # [PROBES, p_l]
    own_probes: FloatArray | None  # [PROBES, p_l] of z under its own probes


@dataclass(frozen=True)
class Cross:
    """Sums over two layers: x yᵀ, a b, a y, b x."""

    c: FloatArray
    ab: float
    ay: FloatArray
    bx: FloatArray


@dataclass(frozen=True)
class GatheredSide:
    """The layers of one side."""

    side: SideSums
    tail: MomentRows
    layers: list[Layer]


@dataclass(frozen=True)
class Gathered:
    """Both sides over n rows, and the sums across them; one object for both where a side meets itself."""

    n: int
    left: GatheredSide
    right: GatheredSide
    cross: FloatArray  # [p_left, p_right] without the rows that wait
    ab: FloatArray
    ay: FloatArray
    bx: FloatArray
    probes: FloatArray | None  # as in MomentSums

    def across(self, i: int, j: int) -> Cross:
        """The sums of layer i of the left and j of the right side."""
        x, y = self.left.layers[i], self.right.layers[j]
        c = self.cross[x.span, y.span] + x.tail.T @ y.tail
        return Cross(c, self.ab[i, j], self.ay[i, y.span], self.bx[j, x.span])

    def probed(self, i: int, j: int) -> FloatArray:
        """Layer i of the left under the probes of layer j of the right side ``[PROBES, p_i]``."""
        assert self.probes is not None
        found: FloatArray = self.probes[j][:, self.left.layers[i].span]
        return found


def own(layer: Layer) -> Cross:
    """The sums of a layer with itself."""
    return Cross(layer.gram + layer.tail.T @ layer.tail, layer.sum_aa, layer.sum_az, layer.sum_az)


def gather(state: Moments) -> Gathered:
    """All rows; leaves the state as it is, which must hold at least one full block."""
    sums = state.sums
    if sums is None:
        raise ValueError("a stream of fewer than 512 rows has no sums yet")
    raw = [stage[: state.staged] for stage in (state.left_stage, state.right_stage) if stage is not None]
    held = loosen(Held(sums, state.n, state.apart), staged_layers(state))
    sides = [_tail(side, rows) for (side, _), rows in zip(held.sides(), raw, strict=True)]
    held, tail = fit(held, Apart(sides[0], sides[1] if len(sides) > 1 else None))
    sums = held.sums
    far = outlying(*tail.norms, sums, state.n)
    apart, tail = held.apart.join(tail.take(far)), tail.take(~far)
    n = state.n + tail.count
    cross = sums.cross if sums.right is not None else sums.cross + np.triu(sums.cross, 1).T
    alone = sums.right is None
    left = _side(sums.left, tail.left, apart.left, n, cross if alone else None, sums.probes if alone else None)
    right = left
    if sums.right is not None and tail.right is not None and apart.right is not None:
        right = _side(sums.right, tail.right, apart.right, n, None, None)
    ay = sums.sum_ay + left.tail.a.T @ right.tail.z
    bx = ay if right is left else sums.sum_bx + right.tail.a.T @ left.tail.z
    return Gathered(n, left, right, cross, sums.sum_ab + left.tail.a.T @ right.tail.a, ay, bx, sums.probes)


def _tail(side: SideSums, rows: FloatArray) -> MomentRows:
    z = (rows - side.shift) * side.scale
    return MomentRows(z, np.stack([np.einsum("ij,ij->i", z[:, s], z[:, s]) for s in side.spans], axis=1))


def _side(
    side: SideSums,
    tail: MomentRows,
    apart: MomentRows,
    n: int,
    cross: FloatArray | None,
    probes: FloatArray | None,
) -> GatheredSide:
    """``cross`` and ``probes``: those of a side alone, where its own lie."""
    layers = []
    for i, span in enumerate(side.spans):
        z, a = tail.z[:, span], tail.a[:, i]
        mean = (side.sum_z[span] + z.sum(axis=0)) / n
        far = apart.z[:, span] - mean
        off = far @ far.T
        own_probes = side.probes if probes is None else probes[i]
        np.fill_diagonal(off, 0.0)
        layers.append(
            Layer(
                span,
                z,
                mean,
                float(side.sum_a[i] + a.sum()),
                float(side.sum_aa[i] + (a * a).sum()),
                side.sum_az[span] + a @ z,
                far,
                off,
                side.gram[i] + np.triu(side.gram[i], 1).T if cross is None else cross[span, span],
                None if side.rounded is None else side.rounded[span],
                None if side.signs is None else side.signs[:, span],
                None if own_probes is None else own_probes[:, span],
            )
        )
    return GatheredSide(side, tail, layers)
