"""All workers on one tile: sums of many layers are those of a tile for each worker, up to the order of additions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends import native_cpu
from simkit.backends.base import Block, Estimator
from simkit.backends.routes import SHARED, plan_pair_sums, sample_workspace
from simkit.kernels import Kernel
from simkit.metrics.prepare import prepare

Array = npt.NDArray[Any]


def many(count: int, n: int, kernel: Kernel, dtype: type[np.floating] = np.float32) -> list[Block]:
    r = np.random.default_rng(count)
    common = r.standard_normal((n, 3))
    features = [
        np.maximum(common @ r.standard_normal((3, p)) + r.standard_normal((n, p)), -0.5).astype(dtype)
        for p in r.integers(1, 12, count)
    ]
    return [prepare(as_matrix(x, name=f"l{i}"), kernel) for i, x in enumerate(features)]


def test_many_layers_share_their_tiles() -> None:
    for count in (1, 2, SHARED - 1, SHARED, SHARED + 1):
        assert plan_pair_sums(many(count, 90, sk.Linear()), None, route="sample").shared == (count >= SHARED)
    blocks = many(SHARED, 90, sk.Linear())
    assert plan_pair_sums(blocks[:40], blocks[40:], route="sample").shared


def test_a_shared_panel_is_counted_once() -> None:
    alone, together = (sample_workspace(m, 2000, 256, 192, "float32", None) for m in (SHARED - 1, SHARED))
    panel = SHARED * 192 * 192 * 4
    assert alone.each > panel * (SHARED - 1) / SHARED
    assert together.each < panel == together.shared
    assert together.total(2) < alone.total(2)


@pytest.mark.parametrize("kernel", [sk.Linear(), sk.RBF(), sk.Cosine()])
@pytest.mark.parametrize("estimator", ["debiased", "biased"])
@pytest.mark.parametrize("split", [None, 3, 66])  # the columns begin here; None: pairs of all layers
def test_sums_are_those_of_a_tile_each(kernel: Kernel, estimator: Estimator, split: int | None) -> None:
    for n, tile in ((50, 64), (131, 48), (131, 24)):
        blocks = many(70, n, kernel)
        rows, columns = (blocks, None) if split is None else (blocks[:split], blocks[split:])
        plan = plan_pair_sums(rows, columns, route="sample", tile=tile)
        assert plan.shared
        own = native_cpu.pair_sums(rows, columns, estimator=estimator, route=replace(plan, shared=False))
        first = native_cpu.pair_sums(rows, columns, estimator=estimator, route=replace(plan, threads=1))
        for threads in (1, 2, 3, 100):
            found = native_cpu.pair_sums(rows, columns, estimator=estimator, route=replace(plan, threads=threads))
            assert np.array_equal(found.values, first.values)  # threads change no bit
            for name in ("values", "self_rows", "self_columns", "raw_rows", "raw_columns"):
                a, b = getattr(found, name), getattr(own, name)
                assert np.abs(a - b).max() <= 1e-13 * np.abs(own.raw_rows).max(), name


@pytest.mark.parametrize("kernel", [sk.Linear(), sk.RBF()])
@pytest.mark.parametrize("estimator", ["debiased", "biased"])
@pytest.mark.parametrize("split", [None, 5])
def test_pieces_of_a_large_tile_add_in_order(kernel: Kernel, estimator: Estimator, split: int | None) -> None:
    """A tile of several pieces: other roundings than in one piece, and the same bits for any number of threads."""
    blocks = many(66, 300, kernel)
    rows, columns = (blocks, None) if split is None else (blocks[:split], blocks[split:])
    plan = plan_pair_sums(rows, columns, route="sample", tile=208)
    one = native_cpu.pair_sums(rows, columns, estimator=estimator, route=replace(plan, threads=1))
    for threads in (2, 3, 20):
        more = native_cpu.pair_sums(rows, columns, estimator=estimator, route=replace(plan, threads=threads))
        assert np.array_equal(one.values, more.values)
        assert np.array_equal(one.self_columns, more.self_columns)
    alone = native_cpu.pair_sums(rows, columns, estimator=estimator, route=replace(plan, shared=False))
    scale = np.sqrt(np.outer(alone.self_rows, alone.self_columns))
    assert (np.abs(one.values - alone.values) / scale).max() <= (1e-6 if isinstance(kernel, sk.Linear) else 1e-12)


def test_an_order_of_many_units_is_that_of_the_reference() -> None:
    r = np.random.default_rng(5)
    x = np.maximum(r.standard_normal((150, 3)) @ r.standard_normal((3, 70 * 4)) + r.standard_normal((150, 280)), 0)
    native = sk.greedy_cka(x, units=70, backend="native_cpu")
    reference = sk.greedy_cka(x, units=70, backend="reference")
    assert np.array_equal(native.order, reference.order)
    assert np.allclose(native.cka[:-1], reference.cka[:-1], rtol=0, atol=1e-12)
