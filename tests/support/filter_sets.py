"""Filters of which some are near others, and their graph without its warnings."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

import simkit as sk

Array = npt.NDArray[Any]


def filters(n: int, d: int, seed: int = 0) -> Array:
    """A third of the filters are near some other."""
    r = np.random.default_rng([seed, n, d])
    w = r.standard_normal((n, d))
    near = r.random(n) < 1 / 3
    w[near] = w[r.integers(0, n, n)][near] + r.uniform(0, 1, (n, 1))[near] * w[near]
    return w


def quiet(w: object, **options: Any) -> Any:
    """The graph, whether degenerate or not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sk.DegenerateWarning)
        return sk.filter_graph(w, **options)
