"""Layers that share a signal, streamed in batches of any sizes, and the scores that all rows at once have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import oracles

import simkit as sk

Array = npt.NDArray[Any]
Layers = Mapping[str, Array]
Estimator = Literal["debiased", "biased"]

ESTIMATORS: tuple[Estimator, ...] = ("debiased", "biased")


def features(n: int, widths: Sequence[int], seed: int = 0, dtype: Any = np.float32) -> dict[str, Array]:
    r = np.random.default_rng([seed, n])
    z = r.standard_normal((n, 4))
    return {
        f"l{i}": np.maximum(z @ r.standard_normal((4, p)) + r.standard_normal((n, p)) + i, 0).astype(dtype)
        for i, p in enumerate(widths)
    }


def rows_of(layers: Layers, rows: Any) -> dict[str, Array]:
    return {name: x[rows] for name, x in layers.items()}


def placed(
    layers: Layers | None, rows: slice = slice(None), *, kind: Callable[[Array], object]
) -> dict[str, object] | None:
    """Rows of the layers, where ``kind`` puts them."""
    return None if layers is None else {name: kind(x[rows]) for name, x in layers.items()}


def streamed(
    layers: Layers,
    others: Layers | None = None,
    sizes: Sequence[int] = (),
    *,
    kind: Callable[[Array], object] = np.asarray,
    **options: Any,
) -> sk.StreamingCKA:
    """The stream of these rows in batches of these sizes, or in one."""
    n, at = len(next(iter(layers.values()))), 0
    stream = sk.StreamingCKA(**options)
    for size in sizes or [n]:
        rows = slice(at, at + size)
        stream.update(placed(layers, rows, kind=kind), placed(others, rows, kind=kind))
        at += size
    assert at == n
    return stream


def split(n: int, seed: int) -> list[int]:
    """Batches of 1 to 90 rows."""
    r, sizes = np.random.default_rng(seed), []
    while sum(sizes) < n:
        sizes.append(int(min(r.integers(1, 90), n - sum(sizes))))
    return sizes


def truth(layers: Layers, others: Layers | None, estimator: Estimator) -> Array:
    xs = list(layers.values())
    return oracles.cka_matrix(xs, xs if others is None else list(others.values()), estimator=estimator)


def same_state(a: Mapping[str, Array], b: Mapping[str, Array]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)
