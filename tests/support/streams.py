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

AWKWARD: dict[str, Callable[[np.random.Generator, Array], Array]] = {
    "far from zero": lambda r, x: x + 1e6,
    "tiny": lambda r, x: x * 1e-20,
    "huge": lambda r, x: x * 1e20,
    "a first block of another kind": lambda r, x: np.where(np.arange(len(x))[:, None] < 512, 1e-3 * x + 50, x),
    "a first block that is constant": lambda r, x: np.where(np.arange(len(x))[:, None] < 512, 3.0, x),
    "a first block that is dead but for a row": lambda r, x: np.where(
        (np.arange(len(x))[:, None] < 512) & (np.arange(len(x))[:, None] != 7), 0.0, x
    ),
    "a drift": lambda r, x: x + np.linspace(0, 100, len(x))[:, None],
    "jumps": lambda r, x: x + 1000.0 * (np.arange(len(x)) // 600)[:, None],
    "sparse samples": lambda r, x: x * (r.random((len(x), 1)) < 0.01),
    "heavy-tailed": lambda r, x: r.standard_cauchy(x.shape) + x,
    "rows of many sizes": lambda r, x: x * np.exp(3 * r.standard_normal((len(x), 1))),
}
ROWS = {
    "first": [0],
    "in the tail": [1090],
    "in the second block": [700],
    "four": [3, 600, 601, 1099],
    "forty": list(range(0, 1100, 35)),
}


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
