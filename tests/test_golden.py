"""Golden values (np.random.seed(1337)), to all printed digits, on every path that offers the measure."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from backend_lists import ANY

import simkit as sk
from simkit.arrays import as_matrix
from simkit.metrics.cka import ForcedRoute, normalised
from simkit.metrics.prepare import prepare

FloatArray = npt.NDArray[np.float64]

GOLDEN = {
    "linear, biased": (sk.CKA(sk.Linear(), "biased"), 0.55761),
    "linear, debiased": (sk.CKA(sk.Linear(), "debiased"), 0.51346),
    "RBF(0.5), biased": (sk.CKA(sk.RBF(0.5), "biased"), 0.65483),
}


@pytest.fixture(scope="module")
def pair() -> tuple[FloatArray, FloatArray]:
    """The pair that the values were published for."""
    state = np.random.RandomState(1337)  # what np.random.seed(1337) draws, without touching the global state
    x = state.randn(100, 10)
    return x, state.randn(100, 10) + x


@pytest.fixture(params=GOLDEN.values(), ids=GOLDEN.keys())
def golden(request: pytest.FixtureRequest) -> tuple[sk.CKA, float]:
    """A measure and its value."""
    value: tuple[sk.CKA, float] = request.param
    return value


@pytest.mark.parametrize("backend", ANY)
def test_cka(pair: tuple[FloatArray, FloatArray], golden: tuple[sk.CKA, float], backend: str | None) -> None:
    measure, value = golden
    assert round(sk.cka(*pair, kernel=measure.kernel, estimator=measure.estimator, backend=backend), 5) == value


@pytest.mark.parametrize("backend", ANY)
def test_hsic(pair: tuple[FloatArray, FloatArray], golden: tuple[sk.CKA, float], backend: str | None) -> None:
    measure, value = golden

    def hsic(x: FloatArray, y: FloatArray) -> float:
        return sk.hsic(x, y, kernel=measure.kernel, estimator=measure.estimator, backend=backend)

    x, y = pair
    assert round(hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y)), 5) == value


def test_measure_object(pair: tuple[FloatArray, FloatArray], golden: tuple[sk.CKA, float]) -> None:
    measure, value = golden
    x, y = (measure.prepare(as_matrix(a, name=name)) for a, name in zip(pair, "xy", strict=True))
    assert round(measure.score(x, y), 5) == value


@pytest.mark.parametrize("backend", ANY)
def test_matrix(pair: tuple[FloatArray, FloatArray], golden: tuple[sk.CKA, float], backend: str | None) -> None:
    measure, value = golden
    x, y = pair
    square = sk.similarity_matrix({"x": x, "y": y}, measure=measure, backend=backend)
    assert np.round(square.values, 5).tolist() == [[1, value], [value, 1]]
    across = sk.similarity_matrix({"x": x}, {"y": y}, measure=measure, backend=backend)
    assert round(across["x", "y"], 5) == value


@pytest.mark.parametrize("route", ["sample", "feature"])
@pytest.mark.parametrize("name", ["linear, biased", "linear, debiased"])
def test_both_routes(pair: tuple[FloatArray, FloatArray], name: str, route: str) -> None:
    measure, value = GOLDEN[name]
    blocks = [prepare(as_matrix(a, name="x"), measure.kernel) for a in pair]
    forced = ForcedRoute(route=route)  # type: ignore[arg-type]
    assert round(float(normalised(blocks[:1], blocks[1:], measure.estimator, forced).values[0, 0]), 5) == value


@pytest.mark.parametrize("backend", ANY)
@pytest.mark.parametrize("name", ["linear, biased", "linear, debiased"])
@pytest.mark.parametrize("repeats", [1, 6])
def test_stream(pair: tuple[FloatArray, FloatArray], name: str, backend: str | None, repeats: int) -> None:
    """Once: fewer rows than a block. Six times over: blocks and a tail; the biased value does not change by copying."""
    measure, value = GOLDEN[name]
    stream = sk.StreamingCKA(estimator=measure.estimator, backend=backend)
    for _ in range(repeats):
        for rows in np.array_split(np.arange(100), 3):
            stream.update({"x": pair[0][rows]}, {"y": pair[1][rows]})
    got = stream.compute()["x", "y"]
    if repeats > 1 and measure.estimator == "debiased":  # copies of a sample are pairs of equal samples: another number
        assert got > value
    else:
        assert round(got, 5) == value


def test_the_draws_are_those_of_the_global_seed(pair: tuple[FloatArray, FloatArray]) -> None:
    """The first numbers of np.random.seed(1337); np.random.randn."""
    assert np.round(pair[0][0, :3], 6).tolist() == [-0.703187, -0.490282, -0.321814]
