"""What the tests of the mixed route share, on a processor and on a device."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends.base import Block, PairSums, Route
from simkit.kernels import Kernel

LINEAR = sk.Linear()


def unread(
    n: int, widths: Sequence[int], dtype: type[np.floating] = np.float32, kernel: Kernel = LINEAR
) -> list[Block]:
    """Blocks for a plan, which reads no features."""
    zero = np.zeros((1, 1), dtype)
    return [Block(as_matrix(np.broadcast_to(zero, (n, p))), kernel, np.empty(0), 0) for p in widths]


def subsets(m: int) -> list[tuple[bool, ...]]:
    """Which of m layers are wide: some, not all."""
    return [wide for wide in itertools.product((False, True), repeat=m) if any(wide) and not all(wide)]


def check_every_subset(plan: Callable[[Any], Route], sums: Callable[[Route], PairSums], layers: int) -> None:
    """Whichever layers are wide: own sums, and what they were subtracted from, are those of the half of each layer."""
    found = {name: sums(plan(name)) for name in ("sample", "feature")}
    mixed = plan("mixed")
    assert mixed.split is not None
    for wide in subsets(layers):
        route = replace(mixed, split=replace(mixed.split, wide=wide))
        got = sums(route)
        assert got.table == pytest.approx(found["sample"].table, rel=1e-9, abs=1e-9 * got.self_rows.max())
        for side, on_columns in (("rows", False), ("columns", True)):
            sample = route.in_sample_space(len(getattr(got, f"self_{side}")), columns=on_columns)
            for what in ("self", "raw"):
                halves = [getattr(found[name], f"{what}_{side}") for name in ("sample", "feature")]
                assert getattr(got, f"{what}_{side}") == pytest.approx(np.where(sample, *halves), rel=1e-11)
