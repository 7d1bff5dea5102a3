"""The hazard battery: every row on every path gives the float64 value of its case, or the named outcome."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt
import oracles
import pytest
from tolerance import assert_close

import simkit as sk
from simkit.arrays import as_matrix
from simkit.kernels import Kernel
from simkit.metrics.cka import ForcedRoute, normalised
from simkit.metrics.prepare import prepare

Array = npt.NDArray[np.generic]

CASES = {case.name: case for case in oracles.hazard_battery()}
ESTIMATORS = ["debiased", "biased"]
BACKENDS = [None, "reference"]
CUSTOM = [sk.CustomKernel(lambda product, d: d - product)] if importlib.util.find_spec("numba") else []
ROUTES = {
    "as planned": ForcedRoute(),
    "sample space": ForcedRoute(route="sample"),
    "sample space, float64": ForcedRoute(route="sample", products="float64"),
    "sample space, tiles of 8": ForcedRoute(route="sample", tile=8),
    "sample space, tiles of 100, 3 threads": ForcedRoute(route="sample", tile=100, threads=3),
    "feature space": ForcedRoute(route="feature"),
    "feature space, tiles of 24, 3 threads": ForcedRoute(route="feature", tile=24, threads=3),
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


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_cka(case: oracles.Hazard, estimator: str, backend: str | None) -> None:
    close(sk.cka(case.x, case.y, estimator=estimator, backend=backend), case, estimator)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_hsic(case: oracles.Hazard, estimator: str, backend: str | None) -> None:
    xy, xx, yy = hsic_of(case.name, estimator)
    got = sk.hsic(case.x, case.y, estimator=estimator, backend=backend)  # type: ignore[arg-type]
    n, p = case.x.shape
    assert_close(got, xy, "hsic", case.x.dtype, n, p, scale=math.sqrt(xx) * math.sqrt(yy))
    own = sk.hsic(case.x, case.x, estimator=estimator, backend=backend)  # type: ignore[arg-type]
    assert_close(own, xx, "hsic", case.x.dtype, n, p, scale=xx)


@pytest.mark.parametrize("backend", BACKENDS)
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
    assert forced.route is None or scores.plan.steps[0].route == f"{forced.route} space"
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
    stream, at = sk.StreamingCKA(estimator=estimator, backend=backend), 0  # type: ignore[arg-type]
    for size in sizes:
        stream.update({"x": x[at : at + size]}, {"y": y[at : at + size]})
        at += size
    result = stream.compute()
    assert result.samples == len(x) == at
    assert not result.degenerate
    return result["x", "y"]


@pytest.mark.parametrize("backend", BACKENDS)
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


@pytest.mark.parametrize("backend", BACKENDS)
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


@pytest.mark.parametrize("backend", BACKENDS)
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


@pytest.mark.parametrize("backend", BACKENDS)
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
@pytest.mark.parametrize("backend", BACKENDS)
def test_samples_that_are_all_equally_far_apart_have_no_debiased_hsic(
    n: int, dtype: type[np.floating], backend: str | None
) -> None:
    """One-hot samples: K off its diagonal is constant, so its debiased HSIC is zero; what rounding leaves is not it."""
    for x in (np.eye(n, dtype=dtype), np.eye(n, dtype=dtype)[:, :1], 5 * np.eye(n, dtype=dtype) + 1000):
        with pytest.raises(
            ValueError, match=r"^x is degenerate: its debiased HSIC with itself is zero within rounding$"
        ):
            sk.cka(x, np.arange(n, dtype=dtype)[:, None], backend=backend)
        assert_close(sk.cka(x, x, estimator="biased", backend=backend), 1.0, "cka", dtype, n, n)
    if n > 500 and backend is None:
        stream = sk.StreamingCKA()
        stream.update({"x": np.eye(n, dtype=dtype)})
        result = stream.compute()
        assert np.isnan(result["x", "x"])
        assert "zero within rounding" in result.degenerate["row", "x"]


# What no path accepts.


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_entries_that_are_not_finite(bad: float, dtype: type[np.floating], backend: str | None) -> None:
    x = np.random.default_rng(0).standard_normal((600, 300)).astype(dtype)
    good = x.copy()
    x[17, 299] = bad
    one = re.escape("has 1 non-finite entry, the first at row 17, column 299")
    with pytest.raises(ValueError, match=f"^y {one}$"):
        sk.cka(good, x, backend=backend)
    with pytest.raises(ValueError, match=f"^x {one}$"):
        sk.hsic(x, good, backend=backend)
    with pytest.raises(ValueError, match=f"^fc2 {one}$"):
        sk.similarity_matrix({"fc1": good}, {"fc2": x}, backend=backend)
    with pytest.raises(ValueError, match=f"^fc2 {one}$"):
        sk.greedy_cka({"fc2": x}, backend=backend)
    for kernel in (sk.RBF(), sk.Cosine(), sk.Polynomial(), *CUSTOM):
        with pytest.raises(ValueError, match=f"^x {one}$"):
            sk.cka(x, good, kernel=kernel, backend=backend)
    x[17, 3] = x[599, 0] = bad
    with pytest.raises(ValueError, match=r"^x has 3 non-finite entries, the first at row 17, column 3$"):
        sk.cka(x, good, backend=backend)


@pytest.mark.parametrize("mode", ["exact", "minibatch"])
def test_entries_that_are_not_finite_on_a_stream(mode: str) -> None:
    """The row is counted from the start of the stream, and the batch leaves no trace."""
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((1300, 5)) for _ in range(2))
    stream, clean = (sk.StreamingCKA(mode=mode) for _ in range(2))  # type: ignore[arg-type]
    for rows in np.array_split(np.arange(1300), 13):
        if rows[0] == 700:
            for side, name in ((0, "enc"), (1, "dec")):
                batch = [x[rows].copy(), y[rows].copy()]
                batch[side][33, 2] = math.nan
                batch[side][90, 4] = math.inf
                with pytest.raises(
                    ValueError, match=f"^{name} has 2 non-finite entries, the first at row 733, column 2$"
                ):
                    stream.update({"enc": batch[0]}, {"dec": batch[1]})
        for s in (stream, clean):
            s.update({"enc": x[rows]}, {"dec": y[rows]})
    assert stream.compute().values.tolist() == clean.compute().values.tolist()


@pytest.mark.parametrize("backend", BACKENDS)
def test_too_few_samples(backend: str | None) -> None:
    x = np.random.default_rng(0).standard_normal((5, 3))
    for n in (1, 2, 3):
        for call in (
            lambda a: sk.cka(a, a, backend=backend),
            lambda a: sk.hsic(a, a, backend=backend),
            lambda a: sk.similarity_matrix({"x": a}, backend=backend),
            lambda a: sk.greedy_cka(a, estimator="debiased", backend=backend),
            lambda a: _stream(a, a, "debiased", [len(a)], backend),
        ):
            with pytest.raises(ValueError, match=f"^the debiased estimator needs at least 4 samples, not {n}$"):
                call(x[:n])
    with pytest.raises(ValueError, match=r"^the biased estimator needs at least 2 samples, not 1$"):
        sk.cka(x[:1], x[:1], estimator="biased", backend=backend)
    assert math.isfinite(sk.cka(x[:2], x[:2], estimator="biased", backend=backend))
    assert math.isfinite(sk.cka(x[:4], x[:4], backend=backend))


def test_different_numbers_of_samples() -> None:
    x = np.zeros((6, 2))
    sentence = "x has 6 samples and y has 5: similarity needs the same samples in the same order"
    for call in (sk.cka, sk.hsic):
        with pytest.raises(ValueError, match=f"^{sentence}$"):
            call(x, x[:5])
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        sk.similarity_matrix({"x": x}, {"y": x[:5]})
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        sk.StreamingCKA().update({"x": x, "y": x[:5]})


BAD = {
    "one dimension": (np.zeros(6), ValueError, r"has shape \(6,\): a representation is \[n, p\], .*x\[:, None\]"),
    "no dimension": (np.float64(3.0), ValueError, r"has shape \(\): a representation is \[n, p\]"),
    "no samples": (np.zeros((0, 3)), ValueError, r"has shape \(0, 3\): it is empty"),
    "no features": (np.zeros((6, 0)), ValueError, r"has shape \(6, 0\): it is empty"),
    "complex": (np.zeros((6, 2), dtype=np.complex64), TypeError, "has dtype complex64: similarity of complex features"),
    "objects": (np.array([["a", 1]] * 6, dtype=object), TypeError, "holds Python objects: numbers are needed$"),
    "text": (np.array([["a", "b"]] * 6), TypeError, "holds text: numbers are needed$"),
    "dates": (np.zeros((6, 2), dtype="datetime64[s]"), TypeError, "holds dates: numbers are needed$"),
    "masked": (np.ma.zeros((6, 2)), TypeError, "is a masked array: fill or drop its masked entries first"),
    "None": (None, TypeError, r"is a NoneType: an array \[n, p\] is needed"),
    "a word": ("features", TypeError, r"is a str: an array \[n, p\] is needed"),
    "ragged": ([[1.0, 2.0], [3.0]], TypeError, "cannot be read as an array"),
    "extended": (np.zeros((6, 2), dtype=np.longdouble), TypeError, r"has dtype \w+: float64 is the widest supported"),
    "large integers": (np.full((6, 2), 2**53 + 1), ValueError, f"holds the integer {2**53 + 1}, which float64 cannot"),
}


@pytest.mark.parametrize(("bad", "error", "sentence"), BAD.values(), ids=BAD.keys())
def test_what_is_no_representation(bad: object, error: type[Exception], sentence: str) -> None:
    good = np.random.default_rng(0).standard_normal((6, 2))
    for call in (sk.cka, sk.hsic):
        with pytest.raises(error, match=f"^x {sentence}"):
            call(bad, good)
        with pytest.raises(error, match=f"^y {sentence}"):
            call(good, bad)
    with pytest.raises(error, match=f"^enc.3 {sentence}"):
        sk.similarity_matrix({"enc.3": bad})
    with pytest.raises(error, match=f"^enc.3 {sentence}"):
        sk.StreamingCKA().update({"enc.3": bad})
    with pytest.raises(error, match=f"^enc.3 {sentence}"):
        sk.greedy_cka({"enc.3": bad})


@pytest.mark.parametrize("backend", BACKENDS)
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
