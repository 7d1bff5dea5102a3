"""The ops on one matrix: column statistics, norms of rows, products of columns, medians of distances."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import oracles
import pytest
from backend_lists import NAMED
from tolerance import assert_close, tolerance

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends.base import Block
from simkit.backends.choose import choose
from simkit.backends.damage_room import ProductsRoom

Array = npt.NDArray[np.floating]


def block_of(x: Array, shift: float = 0.0, exponent: int = 0) -> Block:
    return Block(as_matrix(x), sk.Linear(), np.full(x.shape[1], shift), exponent)


@pytest.mark.parametrize("n", [513, 2049, 1_046_528, 1_046_529, 1_049_599, 1_214_209])
@pytest.mark.parametrize("exact", [True, False])
def test_every_row_is_multiplied_once(n: int, exact: bool) -> None:
    """Rows are multiplied in equal groups, of which none may be empty: from a million rows on, their number matters."""
    x = np.random.default_rng(0).standard_normal((n, 2)).astype(np.float32)
    matrix = as_matrix(x)
    op = choose("column_stats", backend="native_cpu").function
    stats = op(matrix, threads=2)
    wide = x - x.mean(axis=0, dtype=np.float64)
    want = wide.T @ wide
    for threads in (1, 2):
        block = Block(matrix, sk.Linear(), stats.mean, 0)
        op = choose("column_products", backend="native_cpu").function
        got = op(block, stats, exact=exact, room=ProductsRoom(threads, 0))
        assert np.abs(got - want).max() <= (1e-12 if exact else 1e-6) * want.max()


@pytest.mark.parametrize("backend", NAMED)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (9, 1), (300, 511), (300, 513), (3000, 100), (5, 70_000)])
def test_column_stats(shape: tuple[int, int], dtype: type[np.floating], backend: str) -> None:
    rng = np.random.default_rng(0)
    x = (100 + rng.standard_normal(shape)).astype(dtype)
    x[:, 0] = 0.1
    wide = x.astype(np.longdouble)
    layouts = (x, np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2])
    for threads, values in ((1, x), *((3, values) for values in layouts)):
        stats = choose("column_stats", backend=backend).function(as_matrix(values), threads=threads)
        assert_close(
            stats.mean, wide.mean(axis=0), "mean", dtype if dtype != np.float16 else "float16", *shape, scale=100
        )
        deviations = wide - wide.mean(axis=0)
        assert np.allclose(stats.sum_sq_dev, (deviations**2).sum(axis=0).astype(float), rtol=1e-10, atol=1e-20)
        assert stats.max_abs == np.abs(x).max()
        largest = float(np.abs(deviations).max())
        assert largest * (1 - 1e-10) - 1e-12 <= stats.max_dev <= 4 * largest + 1e-12
        assert stats.mean[0] == x[0, 0]  # exactly, so that a constant column is one
        assert stats.sum_sq_dev[0] == 0.0
        assert (stats.nonfinite, stats.first_nonfinite) == (0, None)


@pytest.mark.parametrize("backend", NAMED)
def test_column_stats_of_scaled_rows(backend: str) -> None:
    rng = np.random.default_rng(1)
    x, scale = rng.standard_normal((400, 6)), rng.random(400) + 0.5
    stats = choose("column_stats", backend=backend).function(as_matrix(x), row_scale=scale, threads=2)
    scaled = x * scale[:, None]
    assert np.allclose(stats.mean, scaled.mean(axis=0), atol=1e-14)
    assert np.allclose(stats.sum_sq_dev, ((scaled - scaled.mean(axis=0)) ** 2).sum(axis=0), rtol=1e-12)
    assert stats.max_abs == np.abs(scaled).max()


@pytest.mark.parametrize("backend", NAMED)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_column_stats_count_what_is_not_finite(dtype: type[np.floating], backend: str) -> None:
    """Across pieces of work, with infinities that could cancel; the first comes first with any number of threads."""
    x = np.zeros((4000, 300), dtype=dtype)
    x[3999, 299], x[2500, 7], x[2500, 3], x[1200, 290] = np.nan, np.inf, -np.inf, np.nan
    for values in (x, np.asfortranarray(x), x[::-1], x[:, ::-1]):
        wrong = np.argwhere(~np.isfinite(values))
        for threads in (1, 2, 5):
            stats = choose("column_stats", backend=backend).function(as_matrix(values), threads=threads)
            assert stats.nonfinite == 4
            assert stats.first_nonfinite == tuple(wrong[0])


@pytest.mark.parametrize("backend", NAMED)
@pytest.mark.parametrize("p", [1, 511, 512, 513, 1500])
def test_row_norms(p: int, backend: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, p)).astype(np.float32)
    want = (((x.astype(np.float64) - 0.25) / 8) ** 2).sum(axis=1)
    for threads in (1, 3):
        got = choose("row_norms", backend=backend).function(block_of(x, 0.25, 3), threads=threads)
        assert_close(got, want, "norms", np.float32, 300, p, scale=want)


@pytest.mark.parametrize("backend", NAMED)
@pytest.mark.parametrize("shape", [(2, 1), (5, 9), (1023, 31), (1025, 65), (2100, 130), (40, 513), (40, 1030)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_column_products(shape: tuple[int, int], dtype: type[np.floating], backend: str) -> None:
    """float32 products of ReLU features, of columns far from zero and of columns that rarely move, in one matrix."""
    n, p = shape
    rng = np.random.default_rng(p)
    x = np.maximum(rng.standard_normal(shape), 0)
    x[:, ::3] += 50
    x[:, ::4] *= 1e-3
    x[:, ::5] = rng.random((n, len(range(0, p, 5)))) < 0.9
    x[0], x[-1] = 0.1, 0.2  # no column is constant
    matrix = as_matrix(x.astype(dtype))
    stats = choose("column_stats", backend=backend).function(matrix, threads=1)
    z = oracles.centred_features(matrix.values)
    want = z.T @ z
    size = np.sqrt(np.outer(np.diag(want), np.diag(want)))
    for exact in (True, False) if dtype == np.float32 else (True,):
        for threads in (1, 2, 3):
            block = Block(matrix, sk.Linear(), stats.mean, 2)
            op = choose("column_products", backend=backend).function
            room = ProductsRoom(threads, 0)
            got = np.asarray(op(block, stats, exact=exact, room=room))  # of a device: its copy on the host
            assert np.array_equal(got, got.T)
            entry = "device products" if backend == "native_cuda" else "products"
            assert_close(16 * got, want, entry, np.float64 if exact else np.float32, n, p, scale=size)


@pytest.mark.parametrize("backend", NAMED)
@pytest.mark.parametrize("n", [2, 3, 4, 5, 30, 31, 257])
def test_the_median_is_of_the_whole_matrix(n: int, backend: str) -> None:
    median = choose("distance_median", backend=backend).function
    rng = np.random.default_rng(n)
    draws = {
        "spread": rng.standard_normal((n, 6)),
        "one column": rng.standard_normal((n, 1)),
        "ties": rng.integers(0, 2, (n, 3)).astype(float),
        "two far groups": rng.standard_normal((n, 2)) + 1e4 * (np.arange(n) % 2)[:, None],
        "an outlier": rng.standard_normal((n, 4)) * np.where(np.arange(n) == 0, 1e4, 1)[:, None],
    }
    for x in draws.values():
        want = float(np.median(oracles.squared_distances(x)))
        centre = float(x.mean())
        for threads in (1, 3):
            got = median(block_of(x, centre), threads=threads)
            assert abs(got - want) <= tolerance("median", "float64", n, x.shape[1]) * want
        scaled = median(block_of(x, centre, 3))
        assert scaled == pytest.approx(want / 64, rel=1e-9, abs=0)


@pytest.mark.parametrize("kind", ["spread", "ties", "mostly equal", "float32"])
def test_the_median_of_more_distances_than_are_gathered(kind: str) -> None:
    """Above 1,448 samples the native median is found by histogram passes."""
    n = 1600
    rng = np.random.default_rng(0)
    x = {
        "spread": rng.standard_normal((n, 3)),
        "ties": rng.integers(0, 2, (n, 4)).astype(float),
        "mostly equal": np.where(rng.random((n, 2)) < 0.999, 1.0, rng.standard_normal((n, 2))),
        "float32": rng.standard_normal((n, 5)).astype(np.float32),
    }[kind]
    want = float(np.median(oracles.squared_distances(x)))
    got = {choose("distance_median", backend="native_cpu").function(block_of(x), threads=t) for t in (1, 2, 3)}
    assert len(got) == 1
    assert got.pop() == pytest.approx(want, rel=1e-10, abs=0)


def test_the_median_between_two_histogram_cells() -> None:
    """An even number of distances, the two in the middle far apart."""
    n = 1600
    x = np.zeros((n, 1))
    x[: n // 2 + 20, 0] = np.linspace(0, 1e-3, n // 2 + 20)
    x[n // 2 + 20 :, 0] = 1e3 + np.linspace(0, 1e-3, n - n // 2 - 20)
    want = float(np.median(oracles.squared_distances(x)))
    assert choose("distance_median", backend="native_cpu").function(block_of(x), threads=2) == pytest.approx(
        want, rel=1e-10
    )
