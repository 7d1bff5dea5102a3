"""The hazard battery: every row on every path gives the float64 value of its case, or the named outcome."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt
import oracles
import pytest
from backend_lists import CHOSEN
from streams import streamed
from tolerance import assert_close

import simkit as sk
from simkit.arrays import as_matrix
from simkit.kernels import Kernel
from simkit.metrics.cka import ForcedRoute, normalised
from simkit.metrics.prepare import prepare

Array = npt.NDArray[np.generic]

CASES = {case.name: case for case in oracles.hazard_battery()}
ESTIMATORS = ["debiased", "biased"]
CUSTOM = [sk.CustomKernel(lambda product, d: d - product)] if importlib.util.find_spec("numba") else []
ROUTES = {
    "as planned": ForcedRoute(),
    "sample space": ForcedRoute(route="sample"),
    "sample space, float64": ForcedRoute(route="sample", products="float64"),
    "sample space, tiles of 8": ForcedRoute(route="sample", tile=8),
    "sample space, tiles of 100, 3 threads": ForcedRoute(route="sample", tile=100, threads=3),
    "feature space": ForcedRoute(route="feature"),
    "feature space, tiles of 24, 3 threads": ForcedRoute(route="feature", tile=24, threads=3),
    "mixed": ForcedRoute(route="mixed"),
    "mixed, tiles of 24, 3 threads": ForcedRoute(route="mixed", tile=24, threads=3),
}
SPLITS: dict[str, Callable[[int], list[int]]] = {
    "one at a time": lambda n: [1] * n,
    "sevens": lambda n: [7] * (n // 7) + [n % 7] * (n % 7 > 0),
    "blocks of 512": lambda n: [512] * (n // 512) + [n % 512] * (n % 512 > 0),
    "all at once": lambda n: [n],
    "first batch of one row": lambda n: [1, n - 1],
    "last batch of four rows": lambda n: [n - 4, 4],
}


@cache
def hsic_of(name: str, estimator: str) -> tuple[float, float, float]:
    """HSIC of (x, y), (x, x) and (y, y)."""
    table = oracles.hsic_matrix([CASES[name].x, CASES[name].y], estimator=estimator)
    return float(table[0, 1]), float(table[0, 0]), float(table[1, 1])


def truth(name: str, estimator: str) -> float:
    xy, xx, yy = hsic_of(name, estimator)
    return xy / math.sqrt(xx) / math.sqrt(yy)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> oracles.Hazard:
    return CASES[request.param]


def close(got: float, case: oracles.Hazard, estimator: str, op: str = "cka", known_digits: int = 6) -> None:
    n, p = case.x.shape
    assert_close(got, truth(case.name, estimator), op, case.x.dtype, n, p)  # type: ignore[arg-type]
    known = getattr(case, estimator)
    if known is not None:
        assert abs(got - known) < 0.5 * 10.0**-known_digits + 1e-7


@pytest.mark.parametrize("backend", CHOSEN)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_cka(case: oracles.Hazard, estimator: str, backend: str | None) -> None:
    close(sk.cka(case.x, case.y, estimator=estimator, backend=backend), case, estimator)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", CHOSEN)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_hsic(case: oracles.Hazard, estimator: str, backend: str | None) -> None:
    xy, xx, yy = hsic_of(case.name, estimator)
    got = sk.hsic(case.x, case.y, estimator=estimator, backend=backend)  # type: ignore[arg-type]
    n, p = case.x.shape
    assert_close(got, xy, "hsic", case.x.dtype, n, p, scale=math.sqrt(xx) * math.sqrt(yy))
    own = sk.hsic(case.x, case.x, estimator=estimator, backend=backend)  # type: ignore[arg-type]
    assert_close(own, xx, "hsic", case.x.dtype, n, p, scale=xx)


@pytest.mark.parametrize("backend", CHOSEN)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_matrix(case: oracles.Hazard, estimator: str, backend: str | None) -> None:
    layers, measure = {"x": case.x, "y": case.y}, sk.CKA(estimator=estimator)  # type: ignore[arg-type]
    square = sk.similarity_matrix(layers, measure=measure, backend=backend)
    across = sk.similarity_matrix(layers, {"y": case.y, "x": case.x}, measure=measure, backend=backend)
    assert not square.degenerate
    assert not across.degenerate
    for got in (square["x", "y"], square["y", "x"], across["x", "y"], across["y", "x"]):
        close(got, case, estimator)
    for own in (square["x", "x"], square["y", "y"], across["x", "x"], across["y", "y"]):
        assert_close(own, 1.0, "cka", case.x.dtype, *case.x.shape)


@pytest.mark.parametrize("forced", ROUTES.values(), ids=ROUTES.keys())
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_routes(case: oracles.Hazard, estimator: str, forced: ForcedRoute) -> None:
    x, y = (prepare(as_matrix(values, name="x"), sk.Linear()) for values in (case.x, case.y))
    scores = normalised([x], [y], estimator, forced)  # type: ignore[arg-type]
    assert forced.route is None or scores.plan.steps[0].route.startswith(forced.route)
    close(float(scores.values[0, 0]), case, estimator)


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS.keys())
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_stream(case: oracles.Hazard, estimator: str, split: Callable[[int], list[int]]) -> None:
    got = _stream(case.x, case.y, estimator, split(len(case.x)))
    close(got, case, estimator, "stream" if len(case.x) >= 512 else "cka")


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_stream_of_more_than_one_block(case: oracles.Hazard, estimator: str) -> None:
    """The same rows again in another order, so that blocks and a tail meet: 1,124 rows where the battery has 512."""
    order = np.random.default_rng(0).permutation(len(case.x))[: len(case.x) - 12]
    x, y = (np.concatenate([a, a[order], a[:112]])[:, :200] for a in (case.x, case.y))
    x, y = (np.concatenate([a] * (1 if len(a) > 512 else 6)) for a in (x, y))
    want = oracles.cka(x, y, estimator=estimator)
    for split in (SPLITS["sevens"], SPLITS["all at once"]):
        assert_close(_stream(x, y, estimator, split(len(x))), want, "stream", x.dtype, *x.shape)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_stream_on_the_reference_backend(case: oracles.Hazard, estimator: str) -> None:
    got = _stream(case.x, case.y, estimator, SPLITS["sevens"](len(case.x)), backend="reference")
    close(got, case, estimator, "stream" if len(case.x) >= 512 else "cka")


def _stream(x: Array, y: Array, estimator: str, sizes: list[int], backend: str | None = None) -> float:
    result = streamed({"x": x}, {"y": y}, sizes, estimator=estimator, backend=backend).compute()
    assert result.samples == len(x)
    assert not result.degenerate
    return result["x", "y"]


@pytest.mark.parametrize("backend", CHOSEN)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_order_of_samples_does_not_matter(estimator: str, backend: str | None) -> None:
    """Sorted by class, as a loader without shuffling yields, against shuffled: the same number to the last digits."""
    plain, by_class = CASES["plain"], CASES["sorted by class"]
    for path in (
        lambda c: sk.cka(c.x, c.y, estimator=estimator, backend=backend),  # type: ignore[arg-type]
        lambda c: _stream(c.x, c.y, estimator, [100] * 5 + [12], backend),
        lambda c: _stream(c.x, c.y, estimator, [508, 4], backend),
    ):
        assert path(plain) == pytest.approx(path(by_class), abs=1e-12)


GREEDY_SCALE = ["plain", "+100", "+1000", "+1e5, float64", "×0.0001", "×10000", "×1e+06", "×1e-20", "first row ×10000"]


@pytest.mark.parametrize("name", GREEDY_SCALE)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_greedy(name: str, estimator: str) -> None:
    x = CASES[name].x[:120, :10]
    found = sk.greedy_cka(x, estimator=estimator)  # type: ignore[arg-type]
    units = [np.array([k]) for k in range(10)]
    brute = oracles.greedy_by_evaluation(x, units, estimator=estimator, choices=found.order.tolist())
    allowed = 1e-6 if x.dtype == np.float32 else 1e-9
    assert np.allclose(found.cka, brute.cka, rtol=0, atol=allowed, equal_nan=True)
    for pick, scores in zip(found.order.tolist()[:-1], brute.scores[:-1], strict=True):
        assert scores[pick] >= max(scores.values()) - allowed


# Degenerate layers: functions raise and say which and why; matrices and streams give NaN and name it.

CONSTANTS = {
    "constant": np.full((600, 3), np.float32(0.1)),
    "constant by column": np.tile(np.array([[1e5, -3.3, 1e-7]]), (600, 1)),
    "dead": np.zeros((600, 3), dtype=np.float32),
    "huge constant": np.full((600, 2), 3e38, dtype=np.float32),
    "integers": np.full((600, 2), 7),
}
CONSTANT = "every feature is constant over the samples"


@pytest.fixture(params=CONSTANTS)
def flat(request: pytest.FixtureRequest) -> Array:
    values: Array = CONSTANTS[request.param]
    return values


@pytest.fixture(scope="module")
def other() -> Array:
    return np.random.default_rng(5).standard_normal((600, 4)).astype(np.float32)


@pytest.mark.parametrize("backend", CHOSEN)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kernel", [sk.Linear(), sk.RBF(), sk.Laplacian(), *CUSTOM])
def test_a_constant_layer_is_an_error_that_names_it(
    flat: Array, other: Array, kernel: Kernel, estimator: str, backend: str | None
) -> None:
    options = {"kernel": kernel, "estimator": estimator, "backend": backend}
    with pytest.raises(ValueError, match=f"^x is degenerate: {CONSTANT}$"):
        sk.cka(flat, other, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"^y is degenerate: {CONSTANT}$"):
        sk.cka(other, flat, **options)  # type: ignore[arg-type]
    assert sk.hsic(flat, other, **options) == sk.hsic(other, flat, **options) == 0.0  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", CHOSEN)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_constant_layer_is_a_named_nan_in_a_matrix(
    flat: Array, other: Array, estimator: str, backend: str | None
) -> None:
    layers = {"a": other, "flat": flat, "b": other[:, :2]}
    measure = sk.CKA(estimator=estimator)  # type: ignore[arg-type]
    square = sk.similarity_matrix(layers, measure=measure, backend=backend)
    assert square.degenerate == {("row", "flat"): CONSTANT, ("column", "flat"): CONSTANT}
    assert np.isnan(square.values[1]).all()
    assert np.isnan(square.values[:, 1]).all()
    assert np.isfinite(square.values[np.ix_([0, 2], [0, 2])]).all()
    across = sk.similarity_matrix({"a": other, "b": other[:, :2]}, layers, measure=measure, backend=backend)
    assert across.degenerate == {("column", "flat"): CONSTANT}
    assert np.array_equal(np.isnan(across.values), [[False, True, False]] * 2)
    alone = sk.similarity_matrix({"flat": flat}, measure=measure, backend=backend)
    assert np.isnan(alone.values).all()
    assert alone.degenerate == {("row", "flat"): CONSTANT, ("column", "flat"): CONSTANT}


@pytest.mark.parametrize("backend", CHOSEN)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("n", [100, 512, 600])
def test_a_constant_layer_is_a_named_nan_on_a_stream(
    flat: Array, other: Array, n: int, estimator: str, backend: str | None
) -> None:
    for others, rows in ((None, ["a", "flat"]), ({"flat": flat[:n], "a": other[:n]}, ["flat", "a"])):
        stream = sk.StreamingCKA(estimator=estimator, backend=backend)  # type: ignore[arg-type]
        for part in np.array_split(np.arange(n), 5):
            columns = None if others is None else {name: values[part] for name, values in others.items()}
            stream.update({"a": other[part], "flat": flat[part]}, columns)
        result = stream.compute()
        assert result.columns == tuple(rows)
        assert result.degenerate == {("row", "flat"): CONSTANT, ("column", "flat"): CONSTANT}
        assert np.isnan(result.values[1]).all()
        assert np.isnan(result.values[:, rows.index("flat")]).all()
        assert result["a", "a"] == pytest.approx(1.0, abs=1e-12)


def test_greedy_of_a_constant_layer_is_an_error_that_names_it(flat: Array) -> None:
    with pytest.raises(ValueError, match=f"^x is degenerate: {CONSTANT}$"):
        sk.greedy_cka(flat)
    with pytest.raises(ValueError, match=f"^conv3 is degenerate: {CONSTANT}$"):
        sk.greedy_cka({"conv3": flat})


@pytest.mark.parametrize("n", [4, 7, 63, 64, 65, 200, 513])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("backend", CHOSEN)
def test_samples_that_are_all_equally_far_apart_have_no_debiased_hsic(
    n: int, dtype: type[np.floating], backend: str | None
) -> None:
    """One-hot samples: K off its diagonal is constant, so its debiased HSIC is zero; what rounding leaves is not it."""
    for x in (np.eye(n, dtype=dtype), np.eye(n, dtype=dtype)[:, :1], 5 * np.eye(n, dtype=dtype) + 1000):
        with pytest.raises(
            ValueError, match=r"^x is degenerate: its debiased HSIC with itself is zero within rounding$"
        ):
            sk.cka(x, np.arange(n, dtype=dtype)[:, None], backend=backend)
        with pytest.raises(
            ValueError, match=r"^y is degenerate: its debiased HSIC with itself is zero within rounding$"
        ):
            sk.hsic(np.arange(n, dtype=dtype)[:, None], x, backend=backend)
        assert_close(sk.cka(x, x, estimator="biased", backend=backend), 1.0, "cka", dtype, n, n)
    if n > 500 and backend is None:
        stream = sk.StreamingCKA()
        stream.update({"x": np.eye(n, dtype=dtype)})
        result = stream.compute()
        assert np.isnan(result["x", "x"])
        assert "zero within rounding" in result.degenerate["row", "x"]


@pytest.mark.parametrize("backend", CHOSEN)
@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_integers_and_booleans_are_exact(dtype: str, backend: str | None) -> None:
    rng = np.random.default_rng(3)
    top = 2 if dtype == "bool" else min(2**40, np.iinfo(dtype).max)
    x, y = (rng.integers(0, top, (70, 9)).astype(dtype) for _ in range(2))
    got = sk.cka(x, y, backend=backend)
    assert_close(got, oracles.cka(x, y, estimator="debiased"), "cka", "float32", 70, 9)
    assert got == pytest.approx(sk.cka(x.astype(np.float64), y.astype(np.float64), backend=backend), abs=1e-6)


def test_features_beyond_float64s_squares() -> None:
    """Squares of 1e200 overflow and those of 1e-200 vanish; powers of two keep both from happening."""
    plain = CASES["plain"]
    x, y = plain.x.astype(np.float64), plain.y.astype(np.float64)
    for a, b in ((1e200, 1e-200), (1e299, 1e299), (1e-300, 1e-290)):
        assert_close(sk.cka(a * x, b * y), truth("plain", "debiased"), "cka", "float64", 512, 64)
        assert_close(_stream(a * x, b * y, "debiased", [512]), truth("plain", "debiased"), "stream", "float64", 512, 64)
    with pytest.raises(OverflowError, match=r"^hsic is larger than float64 can hold: rescale the features$"):
        sk.hsic(1e200 * x, 1e200 * y)
    with pytest.raises(ValueError, match=r"^x holds 8e[+]307, too large to centre in float64: rescale its features$"):
        sk.cka(np.array([[8e307], [-8e307], [0.0], [1.0]]), y[:4])
