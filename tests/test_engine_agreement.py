"""The engine against float64 definitions: sizes around every edge, both routes, kernels, shapes of problem, families.

float32 input within 1e-6 and float64 input within 1e-10, as the table says. Big sizes are marked slow.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import oracles
import pytest
from tolerance import assert_close

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends.routes import TILES, feature_tile
from simkit.kernels import Kernel
from simkit.metrics.cka import ForcedRoute, normalised
from simkit.metrics.prepare import prepare

Array = npt.NDArray[np.floating]
Estimator = Literal["debiased", "biased"]

ESTIMATORS: tuple[Estimator, ...] = ("debiased", "biased")
DTYPES = (np.float32, np.float64)
LINEAR = sk.Linear()


def edges(tile: int) -> list[int]:
    """Sizes at which a loop over tiles may go wrong."""
    return [1, tile - 1, tile, tile + 1, 3 * tile + 2]


def pair(n: int, p: int, q: int, seed: int = 0) -> tuple[Array, Array]:
    """ReLU features that share a few factors, so that their CKA is neither 0 nor 1."""
    r = np.random.default_rng([seed, n, p, q])
    z = r.standard_normal((n, 4))
    x, y = (np.maximum(z @ r.standard_normal((4, w)) + r.standard_normal((n, w)), -0.25) for w in (p, q))
    x[0] += 0.01 * np.arange(p) + 0.5  # no column is constant, however few samples
    y[-1] += 0.02 * np.arange(q) + 0.5
    return x, y


def engine(
    xs: Sequence[Array],
    ys: Sequence[Array] | None,
    estimator: Estimator,
    forced: ForcedRoute,
    kernel: Kernel = LINEAR,
) -> npt.NDArray[np.float64]:
    def blocks(layers: Sequence[Array]) -> list:
        return [prepare(as_matrix(layer, name=f"layer{i}"), kernel) for i, layer in enumerate(layers)]

    scores = normalised(blocks(xs), None if ys is None else blocks(ys), estimator, forced)
    assert not scores.degenerate
    return scores.values


def check(x: Array, y: Array, forced: ForcedRoute, *, estimators: Sequence[Estimator] = ESTIMATORS) -> None:
    n, p = len(x), max(x.shape[1], y.shape[1])
    for dtype, estimator in itertools.product(DTYPES, estimators):
        a, b = x.astype(dtype), y.astype(dtype)
        want = oracles.cka_matrix([a], [b], estimator=estimator)
        assert_close(engine([a], [b], estimator, forced), want, "cka", dtype, n, p)


# Sizes.


@pytest.mark.parametrize("n", sorted({4, 5, 6, 63, 64, 65, *(max(n, 4) for n in edges(32)), *edges(64)[1:]}))
@pytest.mark.parametrize("route", ["sample", "feature"])
def test_numbers_of_samples(n: int, route: Literal["sample", "feature"]) -> None:
    tile = 32 if route == "sample" else None
    for p, q in ((1, 1), (3, 40), (90, 2)):
        check(*pair(n, p, q), ForcedRoute(route=route, tile=tile))


@pytest.mark.parametrize("n", [511, 512, 513, 1025])
def test_numbers_of_samples_around_a_chunk_of_rows(n: int) -> None:
    check(*pair(n, 5, 33), ForcedRoute(route="feature"), estimators=("debiased",))
    check(*pair(n, 5, 33), ForcedRoute(), estimators=("biased",))


@pytest.mark.parametrize("p", sorted({*edges(32), *edges(64), 511, 512, 513}))
@pytest.mark.parametrize("route", ["sample", "feature"])
def test_numbers_of_features(p: int, route: Literal["sample", "feature"]) -> None:
    for n, q in ((70, 1), (70, p), (9, 3)):
        check(*pair(n, p, q), ForcedRoute(route=route))


@pytest.mark.parametrize("tile", [1, 2, 7, 16, 100, 256, 4096])
@pytest.mark.parametrize("route", ["sample", "feature"])
def test_tiles_of_any_width(tile: int, route: Literal["sample", "feature"]) -> None:
    check(*pair(75, 37, 150), ForcedRoute(route=route, tile=tile, threads=2))


@pytest.mark.parametrize("n", edges(336)[1:])
def test_edges_of_the_widest_sample_tile(n: int) -> None:
    assert TILES[0] == 336
    check(*pair(n, 30, 20), ForcedRoute(route="sample", tile=336), estimators=("debiased",))


@pytest.mark.parametrize("p", [255, 256, 257, 770])
def test_edges_of_the_widest_feature_tile(p: int) -> None:
    assert feature_tile(10_000) == 256
    check(*pair(20, p, 300), ForcedRoute(route="feature", tile=256), estimators=("debiased",))


@pytest.mark.parametrize(("n", "p", "q"), [(4, 20_000, 3), (70, 5_000, 1), (64, 1, 20_000)])
def test_many_more_features_than_samples(n: int, p: int, q: int) -> None:
    check(*pair(n, p, q), ForcedRoute())


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_four_samples_at_great_offsets(estimator: Estimator) -> None:
    """Where the smallest samples, a mean that is rounded at 1e5 and the debiased sums meet."""
    for seed, p, offset in itertools.product(range(60), (1, 2, 5), (0.0, 1e3, 1e5)):
        r = np.random.default_rng([seed, p])
        x, y = (r.standard_normal((4 + seed % 3, p)) + offset for _ in range(2))
        want = oracles.cka_matrix([x], [y], estimator=estimator)
        for route in ("sample", "feature"):
            got = engine([x], [y], estimator, ForcedRoute(route=route))  # type: ignore[arg-type]
            assert_close(got, want, "cka", np.float64, len(x), p)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "p", "q"), [(4000, 1, 4000), (4000, 513, 64), (3999, 2000, 5000), (2000, 20_000, 300)])
def test_great_sizes(n: int, p: int, q: int) -> None:
    x, y = pair(n, p, q)
    check(x, y, ForcedRoute(), estimators=("debiased",))
    check(x, y, ForcedRoute(route="sample"), estimators=("biased",))


@pytest.mark.slow
@pytest.mark.parametrize("n", [n for tile in TILES for n in edges(tile) if n >= 4])
def test_edges_of_every_tile(n: int) -> None:
    for tile in TILES:
        if n in edges(tile):
            check(*pair(n, 60, 7), ForcedRoute(route="sample", tile=tile, threads=3))
            check(*pair(20, n, n + 3), ForcedRoute(route="feature", tile=tile, threads=3))


# Shapes of problem.

WIDTHS = [1, 7, 64, 33, 300, 2]


@pytest.mark.parametrize(
    "forced", [ForcedRoute(route="sample", tile=24), ForcedRoute(route="feature", tile=40), ForcedRoute()]
)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_mixed_widths_square_and_across(dtype: type[np.floating], estimator: Estimator, forced: ForcedRoute) -> None:
    n = 90
    layers = [pair(n, p, 1, seed)[0].astype(dtype) for seed, p in enumerate(WIDTHS)]
    want = oracles.cka_matrix(layers, layers, estimator=estimator)
    square = engine(layers, None, estimator, forced)
    assert_close(square, want, "cka", dtype, n, 300)
    assert np.array_equal(square, square.T)
    for left, right in (([0], [1, 2, 3, 4, 5]), ([5, 4, 3], [0, 1, 2]), ([2, 3], [3, 2, 2])):
        got = engine([layers[i] for i in left], [layers[i] for i in right], estimator, forced)
        assert_close(got, want[np.ix_(left, right)], "cka", dtype, n, 300)


def test_mixed_precision_is_float64() -> None:
    x, y = pair(80, 12, 30)
    a, b = x.astype(np.float32), y
    want = oracles.cka_matrix([a, b], [a, b], estimator="debiased")
    assert_close(engine([a, b], None, "debiased", ForcedRoute(route="sample")), want, "cka", np.float64, 80, 30)


def test_many_layers() -> None:
    layers = [pair(66, 1 + seed % 9, 1, seed)[0] for seed in range(70)]
    want = oracles.cka_matrix(layers, layers, estimator="debiased")
    for route in ("sample", "feature"):
        got = engine(layers, None, "debiased", ForcedRoute(route=route, threads=2))  # type: ignore[arg-type]
        assert_close(got, want, "cka", np.float64, 66, 9)


NON_LINEAR: dict[str, tuple[Kernel, oracles.GramOf]] = {
    "cosine": (sk.Cosine(), oracles.cosine),
    "rbf": (sk.RBF(0.4), oracles.rbf(0.4)),
    "laplacian": (sk.Laplacian(0.6), oracles.laplacian(0.6)),
    "polynomial": (sk.Polynomial(2, None, 1.0), oracles.polynomial(2, None, 1.0)),
}


@pytest.mark.parametrize("name", NON_LINEAR)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("n", [31, 32, 33, 98, 300])
def test_kernels_around_tiles_and_the_pilot(n: int, estimator: Estimator, name: str) -> None:
    """300 samples are more than the 256 rows that estimate the row means of a non-linear kernel."""
    kernel, gram = NON_LINEAR[name]
    x, y = pair(n, 9, 21)
    for dtype in DTYPES:
        a, b = x.astype(dtype), y.astype(dtype)
        want = oracles.cka_matrix([a, b], [a, b], estimator=estimator, gram=gram)
        for forced in (ForcedRoute(route="sample", tile=32, threads=2), ForcedRoute(route="sample")):
            assert_close(engine([a, b], None, estimator, forced, kernel), want, "cka", dtype, n, 21)


@pytest.mark.slow
@pytest.mark.parametrize("name", NON_LINEAR)
def test_kernels_on_thousands_of_samples(name: str) -> None:
    kernel, gram = NON_LINEAR[name]
    x, y = pair(3000, 40, 7)
    for dtype in DTYPES:
        a, b = x.astype(dtype), y.astype(dtype)
        for estimator in ESTIMATORS:
            want = oracles.cka_matrix([a], [b], estimator=estimator, gram=gram)
            assert_close(engine([a], [b], estimator, ForcedRoute(), kernel), want, "cka", dtype, 3000, 40)


# Families of features on which float32 products, or sums that cancel, could fail.


def _active(r: np.random.Generator, n: int, p: int) -> Array:
    """A tenth of the samples switch every feature on: the others are all alike, and round alike."""
    rows = r.random((n, 1)) < 0.1
    rows[:4] = True
    return rows * np.abs(r.standard_normal((n, p)))


FAMILIES: dict[str, Callable[[np.random.Generator, int, int], Array]] = {
    "few active samples": _active,
    "few active samples, one pattern": lambda r, n, p: (_active(r, n, 1) > 0) * np.abs(r.standard_normal((1, p))),
    "sparse": lambda r, n, p: np.maximum(r.standard_normal((n, p)) - 1.3, 0),
    "binary": lambda r, n, p: (r.random((n, p)) < 0.3).astype(float),
    "one-hot": lambda r, n, p: np.eye(max(p, 2))[r.integers(0, max(p, 2), n)],
    "one direction": lambda r, n, p: r.standard_normal((n, 1)) * r.standard_normal((1, p)),
    "heavy-tailed": lambda r, n, p: r.standard_cauchy((n, p)),
    "lognormal": lambda r, n, p: np.exp(2 * r.standard_normal((n, p))),
    "rows of many sizes": lambda r, n, p: np.exp(2 * r.standard_normal((n, 1))) * r.standard_normal((n, p)),
    "columns of many sizes": lambda r, n, p: np.exp(4 * r.standard_normal((1, p))) * r.standard_normal((n, p)),
    "far from zero": lambda r, n, p: r.standard_normal((n, p)) + 1e3 * r.standard_normal((1, p)),
    "an outlying row": lambda r, n, p: r.standard_normal((n, p)) * np.where(np.arange(n) == n // 2, 1e5, 1)[:, None],
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_families(name: str, estimator: Estimator) -> None:
    sizes = [(64, 1), (64, 3), (64, 40), (101, 300), (200, 25)]
    for seed, (n, p), dtype in itertools.product(range(3), sizes, DTYPES):
        r = np.random.default_rng([seed, n, p])
        x, y = (FAMILIES[name](r, n, p).astype(dtype) for _ in range(2))
        y = (y + 0.5 * x[:, : y.shape[1]]).astype(dtype)
        table = oracles.hsic_matrix([x, y], estimator=estimator)
        want = table[0, 1] / math.sqrt(table[0, 0] * table[1, 1])
        for forced in (ForcedRoute(route="sample"), ForcedRoute(threads=1)):  # as planned: often feature space
            assert_close(engine([x], [y], estimator, forced)[0, 0], want, "cka", dtype, n, p)


def test_panels_of_equal_elements() -> None:
    """Samples alike give equal elements of K; 2,048 of them added in float32 moved CKA by 2e-6."""
    worst = 0.0
    for seed, n, p in itertools.product(range(12), (64, 100), (1, 3, 50, 700)):
        r = np.random.default_rng([seed, n, p])
        x, y = (_active(r, n, p).astype(np.float32) for _ in range(2))
        want = oracles.cka_matrix([x], [y], estimator="biased")
        got = engine([x], [y], "biased", ForcedRoute(route="sample", products="float32"))
        worst = max(worst, assert_close(got, want, "cka", np.float32, n, p))
    assert worst < 4e-7
