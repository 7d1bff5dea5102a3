"""Moments of a stream in the units of another: the same sums over the same rows with another shift and scale, exactly.

With z' = (x - c') · s' = z · s'/s + (c - c') · s' every sum of z' is a polynomial in the step d = (c - c') · s' whose
coefficients are sums of z.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..arrays import FloatArray
from ..backends.moment_sums import MomentSums, SideSums


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
    probes = None if sums.probes is None else _across(sums.probes, x, y, n, sums.right is None)
    if sums.right is None:
        return MomentSums(new_x, None, np.triu(cross), new_ab, new_ay, sums.sum_bx, probes)
    return MomentSums(new_x, new_y, cross, new_ab, new_ay, new_bx, probes)


def _across(probes: FloatArray, x: _Moved, y: _Moved, n: int, alone: bool) -> FloatArray:
    """As the sums of products move, times the signs."""
    moved = np.zeros_like(probes)
    for j, span in enumerate(y.spans):
        end = span.stop if alone else len(x.step)
        for k in range(len(moved[j])):
            moved[j, k, :end] = _probed(probes[j, k, :end], slice(end), x, y, span, k, n)
    return moved


def _probed(probes: FloatArray, columns: slice, x: _Moved, y: _Moved, layer: slice, k: int, n: int) -> FloatArray:
    """Columns of x under the probes of a layer of y."""
    assert y.old.signs is not None
    signs = y.old.signs[k, layer]
    step, z = float(y.step[layer] @ signs), float(y.sum_z[layer] @ signs)
    moved: FloatArray = probes * x.ratio[columns] * y.ratio[layer.start]
    return moved + x.sum_z[columns] * step + x.step[columns] * z + n * x.step[columns] * step


class _Moved:
    """One side's sums in the new scale, and the step d from the old shift to the new one."""

    def __init__(self, old: SideSums, new: SideSums) -> None:
        self.old, self.new = old, new
        self.spans = old.spans
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
        probes = None if self.old.probes is None else np.zeros_like(self.old.probes)
        if probes is not None and self.old.probes is not None:
            for s in self.spans:
                for k in range(len(probes)):
                    probes[k, s] = _probed(self.old.probes[k, s], s, self, self, s, k, n)
        return replace(
            self.new,
            sum_z=self.sum_z + n * self.step,
            sum_az=sum_az,
            sum_a=sum_a,
            sum_aa=sum_aa,
            gram=tuple(kept),
            rounded=None if self.old.rounded is None else self.old.rounded * self.ratio**2,
            probes=probes,
        )


def rebased_rows(z: FloatArray, old: SideSums, new: SideSums) -> FloatArray:
    """Rows ``z [k, p]`` in the units of ``old`` -> in those of ``new``."""
    return z * (new.scale / old.scale) + (old.shift - new.shift) * new.scale
