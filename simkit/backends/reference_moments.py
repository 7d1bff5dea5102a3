"""The specification of a stream's sums, in NumPy float64: ops of :mod:`simkit.backends.reference`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..arrays import FloatArray
from .moment_sums import MomentRows, MomentSums, MomentUnits, SideSums


def moments_rows(units: Sequence[MomentUnits], *, threads: int = 1) -> list[MomentRows]:
    """Each side's raw layers as z = (x - shift) · scale, written where the units say, with |z|² per layer."""
    out = []
    for each in units:
        norms = []
        for layer, span in zip(each.layers, each.side.spans, strict=True):
            with np.errstate(over="ignore"):  # infinite in float32, and so is its norm
                each.z[:, span] = (layer.float64() - each.side.shift[span]) * each.side.scale[span]
            z = each.z[:, span].astype(np.float64)
            norms.append(np.einsum("ij,ij->i", z, z))
        out.append(MomentRows(each.z, np.stack(norms, axis=1)))
    return out


def moments_add(sums: MomentSums, left: MomentRows, right: MomentRows | None, *, threads: int = 1) -> bool:
    """Add rows, in the units of the sums, to a stream's moments, in place; whether they were multiplied in float32.

    Float32 rows may be (:class:`.moment_sums.SideSums`); here they are not.
    """
    for side, rows in ((sums.left, left), (sums.right, right)):
        if side is not None and rows is not None and side.rounded is not None and rows.z.dtype == np.float32:
            side.rounded[...] += (rows.z.astype(np.float64) ** 2).sum(axis=0)
    left = MomentRows(left.z.astype(np.float64, copy=False), left.a)
    right = None if right is None else MomentRows(right.z.astype(np.float64, copy=False), right.a)
    sums.add_norms(left.a, None if right is None else right.a)
    _add_side(sums.left, left)
    other = left
    if sums.right is not None and right is not None:
        _add_side(sums.right, right)
        sums.sum_bx[...] += right.a.T @ left.z
        other = right
    sums.cross[...] += np.triu(left.z.T @ left.z) if sums.right is None else left.z.T @ other.z
    sums.sum_ay[...] += left.a.T @ other.z
    if sums.probes is not None:
        _add_probes(sums, left, other)
    return False


def _add_probes(sums: MomentSums, left: MomentRows, right: MomentRows) -> None:
    """``right`` is ``left`` where that side meets itself."""
    assert sums.probes is not None
    other = sums.right or sums.left
    for layer, span in enumerate(other.spans):
        end = sums.left.offsets[-1] if sums.right is not None else span.stop
        sums.probes[layer][:, :end] += _probes(other, right, span).T @ left.z[:, :end]
    for side, rows in ((sums.left, left), (other, right)):
        if side.probes is None:
            continue
        for span in side.spans:
            side.probes[:, span] += _probes(side, rows, span).T @ rows.z[:, span]


def _probes(side: SideSums, rows: MomentRows, span: slice) -> FloatArray:
    """h = z·g ``[rows, PROBES]`` of a layer."""
    assert side.signs is not None
    found: FloatArray = rows.z[:, span] @ side.signs[:, span].T
    return found


def _add_side(side: SideSums, rows: MomentRows) -> None:
    side.sum_z[...] += rows.z.sum(axis=0)
    for layer, span in enumerate(side.spans):
        z = rows.z[:, span]
        side.sum_az[span] += rows.a[:, layer] @ z
        if side.gram:
            side.gram[layer][...] += np.triu(z.T @ z)
