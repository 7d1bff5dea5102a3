"""Thresholds that are calibrated, graphs that say nothing, and arguments that are refused."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
from backend_lists import NAMED
from filter_sets import filters, quiet

import simkit as sk
from simkit.backends import _core
from simkit.metrics.thresholds import calibrated_cosine


def test_calibration_in_closed_form() -> None:
    """In the plane angles are uniform; in space cosines are (Archimedes)."""
    assert calibrated_cosine(1) == 1.0
    assert calibrated_cosine(2) == pytest.approx(math.cos(0.01 * math.pi), rel=1e-12)
    assert calibrated_cosine(3) == pytest.approx(0.98, rel=1e-12)
    assert calibrated_cosine(100_000) == pytest.approx(2.3263478740408408 / math.sqrt(100_000), rel=1e-4)  # normal


@pytest.mark.parametrize("d", [2, 5, 100])
@pytest.mark.parametrize("norm", ["distance", "cosine", "sqrt_fan_in"])
def test_random_filters_exceed_the_calibrated_cosine_once_in_a_hundred(d: int, norm: Any) -> None:
    graph = sk.filter_graph(np.random.default_rng(d).standard_normal((1500, d)).astype(np.float32), norm=norm)
    assert graph.edge_density == pytest.approx(0.01, abs=1e-3)
    assert graph.cosine == pytest.approx(calibrated_cosine(d), abs=1e-12)


def test_2048_random_filters_of_4608_weights() -> None:
    """The default calibration gives a graph that is neither empty nor complete, without a warning."""
    w = np.random.default_rng(0).standard_normal((2048, 512, 3, 3), dtype=np.float32)
    graph = sk.filter_graph(w)
    assert graph.edge_density == pytest.approx(0.01, abs=2e-4)
    assert 1 <= graph.components < 2048
    covering = graph.covering()
    assert 1 < covering.lower <= covering.upper < 2048


def warned(w: object, **options: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sk.filter_graph(w, **options)
    assert all(warning.category is sk.DegenerateWarning for warning in caught)
    assert all(warning.filename == __file__ for warning in caught)
    return [str(warning.message) for warning in caught]


def test_empty_and_complete_graphs_say_why() -> None:
    w = np.array([[1.0, 0, 0], [0.6, 0.8, 0], [0, 0, 2]])
    assert warned(w, threshold=1.0) == []
    assert warned(w, threshold=0.5) == [
        "the graph of weight is empty: an edge means cosine ≥ 0.875, and the closest two of its 3 filters have cosine "
        "0.6, distance 0.894"
    ]
    assert warned(w, threshold=0.0, norm="cosine") == [
        "the graph of weight is complete: an edge means cosine ≥ 0, and the farthest two of its 3 filters have cosine "
        "0, distance 1.41"
    ]
    assert warned(w, threshold=[0.1, 0.2, 1.0, 1.9, 2.0]) == [
        "the graph of weight is empty at 2 of 5 thresholds: an edge means cosine ≥ 0.98 to 0.995, and the closest two "
        "of its 3 filters have cosine 0.6, distance 0.894",
        "the graph of weight is complete at 2 of 5 thresholds: an edge means cosine ≥ -1 to -0.805, and the farthest "
        "two of its 3 filters have cosine 0, distance 1.41",
    ]


def test_the_published_threshold_is_complete() -> None:
    """0.023 on distance / √4608 is cosine ≥ -0.22: every pair of 512 filters of a 3×3 layer is near."""
    w = np.random.default_rng(0).standard_normal((512, 512, 3, 3), dtype=np.float32)
    (sentence,) = warned(w, threshold=0.023, norm="sqrt_fan_in")
    assert sentence.startswith("the graph of weight is complete: an edge means cosine ≥ -0.219, and the farthest two")


def test_degenerate_weights() -> None:
    duplicates = np.repeat([[1.0, 2, 3]], 4, axis=0) * [[1], [2], [0.3], [7]]
    assert warned(duplicates, threshold=0) == [
        "the graph of weight is complete: an edge means cosine ≥ 1, and the farthest two of its 4 filters have cosine "
        "1, distance 0"
    ]
    assert quiet(duplicates, threshold=1, norm="cosine").edge_density == 1
    zeros = np.array([[0.0, 0], [1, 0], [0, 0], [1, 0.1], [-0.0, 0]])
    assert warned(zeros, threshold=0.5) == [
        "weight has 3 zero filters, the first number 0: without a direction they count as duplicates of one another "
        "and unlike every other"
    ]
    graph = quiet(zeros, threshold=2)
    assert graph.labels.tolist() == [0, 1, 0, 1, 0]
    assert warned(np.zeros((3, 2)), threshold=0.1)[1:] == [
        "the graph of weight is complete: an edge means cosine ≥ 0.995, and its 3 filters are all zero"
    ]
    assert warned(np.array([[1.0, 2], [0, 0]]), threshold=2) == [
        "weight has 1 zero filter, the first number 1: without a direction they count as duplicates of one another "
        "and unlike every other",
        "the graph of weight is empty: an edge means cosine ≥ -1, and fewer than two of its filters are not zero",
    ]
    assert warned([[1.0, 2, 3]]) == ["weight has a single filter: its graph has no pair and says nothing of redundancy"]
    single = quiet([[1.0, 2, 3]])
    assert (single.components, single.edges, single.edge_density) == (1, 0, 0.0)
    assert (single.covering().lower, single.covering().upper, single.covering().exact) == (1, 1, True)


def test_filters_of_one_weight() -> None:
    w = np.array([[1.0], [-2], [3], [-0.1], [5]])
    (sentence,) = warned(w)
    assert sentence == (
        "weight has filters of one weight, whose cosines are -1 or 1: the threshold is calibrated to cosine 1, which "
        "joins filters of the same sign"
    )
    for graph in (quiet(w), quiet(w, norm="cosine"), quiet(w, norm="sqrt_fan_in"), quiet(w, threshold=1.9)):
        assert graph.labels.tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize("backend", NAMED)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_non_finite_weights_are_refused(dtype: str, backend: str) -> None:
    for bad in (np.nan, np.inf, -np.inf):
        w = filters(70, 30).astype(dtype)
        w[66, 7] = bad
        sentence = "^weight has 1 non-finite entry, the first at filter 66, entry 7$"
        with pytest.raises(ValueError, match=sentence):
            sk.filter_graph(w, backend=backend)
        w[3, 29] = bad
        with pytest.raises(ValueError, match=r"^weight has 2 non-finite entries, the first at filter 3, entry 29$"):
            sk.filter_graph(w.reshape(70, 5, 6), backend=backend)


def test_bad_arguments() -> None:
    w = filters(5, 3)
    for options, error, sentence in (
        ({"norm": "euclid"}, ValueError, "norm must be one of distance, cosine, sqrt_fan_in, not 'euclid'"),
        ({"threshold": -0.1}, ValueError, "a distance threshold must not be negative, as -0.1 is"),
        ({"threshold": -1, "norm": "sqrt_fan_in"}, ValueError, "a sqrt_fan_in threshold must not be negative, as -1.0"),
        ({"threshold": 1.5, "norm": "cosine"}, ValueError, "a cosine threshold must be from -1 to 1, not 1.5"),
        ({"threshold": math.nan}, ValueError, "a threshold must be finite, not nan"),
        ({"threshold": [0.5, math.inf]}, ValueError, "a threshold must be finite, not inf"),
        ({"threshold": []}, ValueError, "threshold is an empty sequence: give at least one"),
        ({"threshold": "0.5"}, TypeError, "a threshold must be a number, not '0.5'"),
        ({"threshold": True}, TypeError, "a threshold must be a number, not True"),
        ({"threshold": [0.5, None]}, TypeError, "a threshold must be a number, not None"),
        ({"threshold": [0.5, np.ones(2)]}, TypeError, r"a threshold must be a number, not an array of shape \(2,\)"),
        (
            {"threshold": np.ones((2, 2))},
            TypeError,
            r"threshold has shape \(2, 2\): it must be a number or a sequence of numbers",
        ),
        ({"threads": 0}, ValueError, "threads must be a positive integer, not 0"),
        (
            {"backend": "cuda"},
            ValueError,
            "backend must be None or one of native_cuda, native_cpu, reference, not 'cuda'",
        ),
    ):
        with pytest.raises(error, match=f"^{sentence}"):
            sk.filter_graph(w, **options)  # type: ignore[call-overload]
    for bad in (w[0], w[:0], w + 1j, np.array([["a"]])):
        with pytest.raises((ValueError, TypeError), match=r"^weight "):
            sk.filter_graph(bad)
    graph = quiet(w, threshold=0.5)
    for vertex in (5, -1):
        with pytest.raises(ValueError, match=f"^there is no vertex {vertex} in a graph of 5$"):
            graph.remove(vertex)
    for vertex in (1.0, True, None):
        with pytest.raises(TypeError, match=r"^a vertex is an integer, not"):
            graph.remove(vertex)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^vertex 0 is the last of its graph and cannot be removed$"):
        quiet(w[:1]).remove(0)


def test_the_binding_checks_what_it_is_given() -> None:
    core: Any = _core
    w = filters(9, 4).astype(np.float32)
    good = {"x": w, "dtype": "float32", "mapped": False, "squared": [1.0], "tile": 64, "threads": 1}
    good["bits"] = np.zeros((1, 9, 1), dtype=np.uint64)
    core.adjacency(**good)
    for change, sentence in (
        ({"tile": 100}, "tile must be a multiple of 64 up to 4096, not 100"),
        ({"tile": 0}, "tile must be a multiple of 64 up to 4096, not 0"),
        ({"threads": 0}, "threads must be positive, not 0"),
        ({"squared": []}, "there are no thresholds"),
        ({"bits": np.zeros((1, 9, 2), dtype=np.uint64)}, "bits has the wrong shape, type or layout"),
        ({"bits": np.zeros((1, 9, 1), dtype=np.int64)}, "bits has the wrong shape, type or layout"),
        ({"bits": np.zeros((2, 9, 1), dtype=np.uint64)[::2][:1, ::-1]}, "bits has the wrong shape, type or layout"),
    ):
        with pytest.raises(ValueError, match=f"^{sentence}$"):
            core.adjacency(**{**good, **change})
    for run in (core.components, core.cover):
        for bits in (np.zeros((9, 1)), np.zeros((1, 9, 2)), np.zeros((0, 9, 1)), np.zeros((1, 0, 0))):
            with pytest.raises(ValueError, match=r"^bits must be non-empty"):
                run(bits.astype(np.uint64), threads=1)
        with pytest.raises(ValueError, match=r"^bits beyond the last vertex are set$"):
            run(np.full((1, 9, 1), 1 << 9, dtype=np.uint64), threads=1)
        with pytest.raises(ValueError, match=r"^threads must be positive, not 0$"):
            run(np.zeros((1, 9, 1), dtype=np.uint64), threads=0)
