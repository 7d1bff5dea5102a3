"""Streaming states <-> named arrays: what is saved, sent and summed is plain data, checked when it is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray
from ..backends.base import Precision
from ..backends.moment_sums import PROBES, MomentRows, MomentSums, SideSums
from . import minibatch, moments
from .apart import LIMIT, Apart
from .signs import signs_of

Arrays = Mapping[str, npt.NDArray[Any]]


def pack_moments(state: moments.Moments) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an exact stream."""
    out: dict[str, npt.NDArray[Any]] = {
        "n": np.array([state.n, state.staged], dtype=np.int64),
        "stage.left": state.left_stage[: state.staged].copy(),
    }
    if state.right_stage is not None:
        out["stage.right"] = state.right_stage[: state.staged].copy()
    sums = state.sums
    if sums is None:
        return out
    for key in ("cross", "sum_ab", "sum_ay", "sum_bx"):
        out[key] = getattr(sums, key).copy()
    if sums.probes is not None:
        out["probes"] = sums.probes.copy()
        out["multiplied"] = np.array([state.multiplied], dtype=np.int64)
    for name, side in (("left", sums.left), ("right", sums.right)):
        if side is None:
            continue
        out.update({f"{name}.{key}": array for key, array in _side_arrays(side).items()})
    for name, rows in (("left", state.apart.left), ("right", state.apart.right)):
        if rows is not None and len(rows.z):
            out[f"{name}.apart.z"], out[f"{name}.apart.a"] = rows.z.copy(), rows.a.copy()
    return out


def unpack_moments(
    arrays: Arrays, left: Sequence[int], right: Sequence[int] | None, products: Precision
) -> moments.Moments:
    """An exact stream from its arrays.

    Raises:
        ValueError: a missing array or a wrong shape.
    """
    state = moments.empty(left, right, products)
    n, staged = (int(v) for v in _take(arrays, "n", (2,), np.int64))
    apart = len(np.asarray(arrays["left.apart.z"])) if "left.apart.z" in arrays else 0
    if n < 0 or (n + apart) % moments.STAGE or not 0 <= staged < moments.STAGE or apart > LIMIT:
        raise ValueError(f"n = {n}, {apart} rows apart and {staged} staged rows cannot be")
    state.n, state.staged = n, staged
    state.left_stage[:staged] = _take(arrays, "stage.left", (staged, sum(left)))
    if state.right_stage is not None and right is not None:
        state.right_stage[:staged] = _take(arrays, "stage.right", (staged, sum(right)))
    if n == 0:
        return state
    alone = right is None
    p, q = sum(left), sum(left if right is None else right)
    layers, others = len(left), len(left if right is None else right)
    state.sums = MomentSums(
        _side(arrays, "left", left, alone, products),
        None if right is None else _side(arrays, "right", right, False, products),
        _take(arrays, "cross", (p, q)),
        _take(arrays, "sum_ab", (layers, others)),
        _take(arrays, "sum_ay", (layers, q)),
        _take(arrays, "sum_bx", (0, 0) if alone else (others, p)),
        _take(arrays, "probes", (others, PROBES, p)) if products == "float32" else None,
    )
    if products == "float32":
        state.multiplied = int(_take(arrays, "multiplied", (1,), np.int64)[0])
    if apart:
        state.apart = Apart(
            _apart(arrays, "left", apart, p, layers), None if alone else _apart(arrays, "right", apart, q, others)
        )
    return state


def pack_estimate(state: minibatch.Estimate) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a minibatch stream."""
    out: dict[str, npt.NDArray[Any]] = {
        "values": state.values.copy(),
        "own_rows": state.own_rows.copy(),
        "own_columns": state.own_columns.copy(),
        "counts": np.array([state.pairs, state.samples, state.batches], dtype=np.int64),
    }
    out.update({f"waiting.{i}": rows.copy() for i, rows in enumerate(state.waiting)})
    return out


def unpack_estimate(
    arrays: Arrays, exponents: Sequence[int | None], left: Sequence[int], right: Sequence[int] | None
) -> minibatch.Estimate:
    """A minibatch stream from its arrays and the exponents of its layers.

    Raises:
        ValueError: a missing array, a wrong shape, or another number of exponents.
    """
    pairs, samples, batches = (int(v) for v in _take(arrays, "counts", (3,), np.int64))
    rows, columns = len(left), len(left if right is None else right)
    if len(exponents) != len([*left, *(right or ())]):
        raise ValueError(f"{len(exponents)} exponents for {len([*left, *(right or ())])} layers")
    waiting: list[FloatArray] = []
    if "waiting.0" in arrays:
        held = int(np.asarray(arrays["waiting.0"]).shape[0])
        waiting = [_take(arrays, f"waiting.{i}", (held, w)) for i, w in enumerate([*left, *(right or ())])]
    return minibatch.Estimate(
        _take(arrays, "values", (rows, columns)),
        _take(arrays, "own_rows", (rows,)),
        _take(arrays, "own_columns", (columns,)),
        [None if exponent is None else int(exponent) for exponent in exponents],
        pairs,
        samples,
        batches,
        waiting,
    )


def _apart(arrays: Arrays, name: str, count: int, p: int, layers: int) -> MomentRows:
    return MomentRows(
        _take(arrays, f"{name}.apart.z", (count, p)),
        _take(arrays, f"{name}.apart.a", (count, layers)),
    )


def _side_arrays(side: SideSums) -> dict[str, npt.NDArray[Any]]:
    out = {key: getattr(side, key).copy() for key in ("shift", "scale", "sum_z", "sum_az", "sum_a", "sum_aa")}
    for key in ("rounded", "probes"):  # the signs follow from the widths
        if (array := getattr(side, key)) is not None:
            out[key] = array.copy()
    return out | {f"gram.{i}": gram.copy() for i, gram in enumerate(side.gram)}


def _side(arrays: Arrays, name: str, widths: Sequence[int], alone: bool, products: Precision) -> SideSums:
    offsets = tuple(int(v) for v in np.concatenate([[0], np.cumsum(widths)]))
    p, layers = offsets[-1], len(widths)
    grams = () if alone else tuple(_take(arrays, f"{name}.gram.{i}", (w, w)) for i, w in enumerate(widths))
    sizes = {"shift": p, "scale": p, "sum_z": p, "sum_az": p, "sum_a": layers, "sum_aa": layers}
    vectors = {key: _take(arrays, f"{name}.{key}", (size,)) for key, size in sizes.items()}
    if products == "float64":
        return SideSums(offsets, gram=grams, **vectors)
    rounded = _take(arrays, f"{name}.rounded", (p,))
    probes = None if alone else _take(arrays, f"{name}.probes", (PROBES, p))
    return SideSums(offsets, gram=grams, rounded=rounded, signs=signs_of(widths), probes=probes, **vectors)


def _take(arrays: Arrays, key: str, shape: tuple[int, ...], dtype: Any = np.float64) -> npt.NDArray[Any]:
    if key not in arrays:
        raise ValueError(f"{key} is missing")
    array = np.array(arrays[key], dtype=dtype, order="C")
    if array.shape != shape:
        raise ValueError(f"{key} has shape {array.shape}, not {shape}")
    if dtype is np.float64 and not np.isfinite(array).all():
        raise ValueError(f"{key} is not finite")
    return array
