"""Redundancy: the formula, its options, the published numbers."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
from backend_lists import ANY

import simkit as sk


def weights(n: int = 120, d: int = 30) -> Any:
    r = np.random.default_rng([n, d])
    w = r.standard_normal((n, d))
    w[n // 2 :] = w[: n - n // 2] + 0.3 * r.standard_normal((n - n // 2, d))
    return w.astype(np.float32)


@pytest.mark.parametrize("backend", ANY)
def test_the_formula(backend: str | None) -> None:
    w = weights()
    for threshold in (None, 0.8, 1.2):
        found = sk.redundancy(w, threshold=threshold, backend=backend)
        graph = sk.filter_graph(w, threshold=threshold)
        covering = graph.covering()
        assert found.value == float(found) == 120 / (0.65 * covering.upper + 0.35 * graph.components)
        assert (found.filters, found.components, found.edge_density) == (120, graph.components, graph.edge_density)
        assert (found.threshold, found.covering_number) == (graph.threshold, covering.upper)
        assert (found.covering.lower, found.covering.upper) == (covering.lower, covering.upper)
        assert found.covering.centres.tolist() == covering.centres.tolist()
        assert found.backend == (backend or "native_cpu")
        assert [step.op for step in found.plan.steps] == ["adjacency", "components", "cover"]
    other = sk.redundancy(w, threshold=1.2, covering_weight=2, components_weight=0)
    assert other.value == 120 / (2 * other.covering.upper)


def test_a_sweep_gives_a_list_in_its_order() -> None:
    w = weights()
    thresholds = [1.2, 0.7, 1.35]
    sweep = sk.redundancy(w, threshold=thresholds)
    assert [found.threshold for found in sweep] == thresholds
    for found, threshold in zip(sweep, thresholds, strict=True):
        single = sk.redundancy(w, threshold=threshold)
        assert (found.value, found.components) == (single.value, single.components)
        assert found.covering.centres.tolist() == single.covering.centres.tolist()
    assert len(sk.redundancy(w, threshold=np.array([1.0]))) == 1


def test_pruning_one_filter_after_the_other() -> None:
    """The paper's loop: take a filter out of the graph and measure again."""
    w = weights(60)
    graph = sk.filter_graph(w, threshold=1.0)
    for _ in range(25):
        covering = graph.covering()
        degree = graph.adjacency().sum(axis=1)
        graph = graph.remove(int(degree.argmax()))
        found = sk.redundancy(graph)
        again = sk.redundancy(w[graph.filters], threshold=1.0)
        assert (found.value, found.filters) == (again.value, len(graph.filters))
        assert found.covering.upper >= covering.lower - 1
        assert found.graph is graph


def test_extremes() -> None:
    """1 when no two filters are near, the number of filters when all are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sk.DegenerateWarning)
        assert sk.redundancy(weights(), threshold=1e-3).value == pytest.approx(1)
        assert sk.redundancy(weights(), threshold=2).value == pytest.approx(120)
        assert sk.redundancy(weights()[:1]).value == pytest.approx(1)
        assert sk.redundancy(np.zeros((5, 3))).value == pytest.approx(5)
    with pytest.warns(sk.DegenerateWarning, match=r"^the graph of weight is empty: an edge means cosine ≥ 1, and the"):
        sk.redundancy(weights(), threshold=1e-3)


@pytest.mark.parametrize(("filters", "pruned"), [(512, 45), (467, 43)])
def test_the_published_steps_measure_width(filters: int, pruned: int) -> None:
    """With distance / √4608 ≤ 0.023 every graph is complete: ⌊2√redundancy⌋ filters go, whatever they are."""
    w = np.random.default_rng(filters).standard_normal((filters, 512, 3, 3), dtype=np.float32)
    with pytest.warns(sk.DegenerateWarning, match="complete"):
        found = sk.redundancy(w, threshold=0.023, norm="sqrt_fan_in", estimator="total_degree")
    assert found.covering_number == found.components == 1
    assert math.floor(2 * math.sqrt(found.value)) == pruned


def test_the_total_degree_estimate_in_the_formula() -> None:
    w = weights()
    found = sk.redundancy(w, threshold=1.1, estimator="total_degree")
    estimate = sk.filter_graph(w, threshold=1.1).total_degree_covering()
    assert found.covering_number == estimate
    assert found.value == 120 / (0.65 * estimate + 0.35 * found.components)


def test_duplicates_make_a_layer_redundant() -> None:
    r = np.random.default_rng(0)
    w = np.repeat(r.standard_normal((20, 200)), 5, axis=0) * r.uniform(0.5, 2, (100, 1))
    found = sk.redundancy(w, threshold=0.1)
    assert (found.value, found.components, found.covering.upper) == (pytest.approx(5), 20, 20)


def test_bad_arguments() -> None:
    w = weights(9)
    graph = sk.filter_graph(w, threshold=1.2)
    for options, sentence in (
        ({"covering_weight": -0.1}, "covering_weight must be a number of at least 0, not -0.1"),
        ({"components_weight": math.nan}, "components_weight must be a number of at least 0, not nan"),
        ({"components_weight": "a"}, "components_weight must be a number of at least 0, not 'a'"),
        ({"covering_weight": 0, "components_weight": 0}, "covering_weight and components_weight are both 0: "),
        ({"estimator": "exact"}, 'estimator must be "greedy" or "total_degree", not \'exact\''),
        ({"threshold": -1}, "a distance threshold must not be negative, as -1.0 is"),
        ({"norm": "l1"}, "norm must be one of distance, cosine, sqrt_fan_in, not 'l1'"),
    ):
        with pytest.raises(ValueError, match=f"^{sentence}"):
            sk.redundancy(w, **options)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match=r"^a graph has its threshold, 1.2: threshold=0.5 cannot be given$"):
        sk.redundancy(graph, threshold=0.5)
    for norm in ("distance", "cosine", "l1"):
        with pytest.raises(ValueError, match=rf"^a graph has its norm, 'distance': norm='{norm}' cannot be given$"):
            sk.redundancy(graph, norm=norm)  # type: ignore[call-overload]
    w[2, 2] = np.nan
    sentence = r"^weight has shape \(4,\): a layer's weights are \[filters, weights\]; write weight\[:, None\] for one "
    for measured in (sk.redundancy, sk.filter_graph):
        with pytest.raises(ValueError, match=sentence):
            measured(np.ones(4))
    with pytest.raises(ValueError, match=r"^weight has 1 non-finite entry, the first at filter 2, entry 2$"):
        sk.redundancy(w)
