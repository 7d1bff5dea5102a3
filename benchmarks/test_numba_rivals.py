"""The rivals that numba compiles, run uncompiled at tiny sizes: their answers are the references'."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .features import relu_layers
from .test_w4_covering import differing as differing_graphs
from .test_w4_covering import filters as graph_filters
from .test_w4_covering import torch_similarity
from .test_w7_merging import BALANCE, THRESHOLD, closed_form, differing, filters
from .truth import graph_measures, greedy_order, kernel_candidates, unit_products

numba = pytest.importorskip("numba")


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module under another name, its functions left as they are."""
    monkeypatch.setattr(numba.config, "DISABLE_JIT", True)
    path = Path(__file__).with_name("numba_rivals.py")
    spec = importlib.util.spec_from_file_location(f"{__package__}.uncompiled_rivals", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_greedy_order(uncompiled: Any) -> None:
    """Every step of it, and the CKA after it."""
    x = np.float64(relu_layers(0, 80, (12,), models=1)[0][0])
    order, scores = uncompiled.greedy_columns(x)
    expected = greedy_order(unit_products(x, 12))
    assert order.tolist() == expected[0].tolist()
    assert scores == pytest.approx(expected[1], nan_ok=True)


def test_graphs(uncompiled: Any) -> None:
    """Components, edges and covers from no edges to many."""
    w, cosines = graph_filters(0, 60, 40), np.linspace(0.9, 0.1, 8)
    truth = graph_measures(w, cosines)
    assert truth[-1][1] > 4 * truth[0][1]
    assert differing_graphs(uncompiled.graph_measures(w, cosines), truth) == 0
    pytest.importorskip("torch")
    assert differing_graphs(uncompiled.graph_measures_of(torch_similarity(w), cosines), truth) == 0


def test_partners(uncompiled: Any) -> None:
    """Partners and scales of one layer."""
    layer = filters(0, 24, 30)
    assert differing([uncompiled.merging(layer, BALANCE, THRESHOLD)], [closed_form(layer)]) == 0


def test_candidates(uncompiled: Any) -> None:
    """CKA without each unit."""
    x = relu_layers(0, 40, (5,), models=1)[0][0]
    found = uncompiled.rbf_candidates(uncompiled.rbf_prepared(x))
    assert found == pytest.approx(kernel_candidates(x, np.arange(5), np.arange(5)), abs=1e-5)
