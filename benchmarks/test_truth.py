"""The references that benchmarks are checked against, checked themselves."""

from __future__ import annotations

import numpy as np
import pytest

from .truth import centred, cka, cka_table, graph_measures, greedy_order, order_error, unit_products


def _golden() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.RandomState(1337)
    x = rng.randn(100, 10)
    return x, rng.randn(100, 10) + x


def test_golden_values() -> None:
    """Values published for one seed."""
    x, y = _golden()
    assert cka(x, y) == pytest.approx(0.51346, abs=5e-6)
    assert cka(x, y, debiased=False) == pytest.approx(0.55761, abs=5e-6)


def test_wide_and_narrow_forms_agree() -> None:
    """Gram matrices and cross-products give the same number; repeated samples are counted as if stacked."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 30)), rng.standard_normal((40, 9))
    padded = np.concatenate([x, np.zeros((40, 20))], axis=1)
    assert cka(padded, y) == pytest.approx(cka(x, y), abs=1e-12)
    stacked = cka_table([np.tile(x, (3, 1))], [np.tile(y, (3, 1))])
    assert cka_table([x], [y], repeats=3) == pytest.approx(stacked, abs=1e-12)


@pytest.mark.parametrize("units", [8, 4])
def test_greedy_order_is_the_brute_force(units: int) -> None:
    """Columns and blocks: every step removes the unit whose removal keeps CKA highest."""
    rng = np.random.default_rng(1)
    x = np.maximum(rng.standard_normal((60, 5)) @ rng.standard_normal((5, 8)), 0)
    products = unit_products(x, units)
    order, scores = greedy_order(products)
    blocks = np.split(centred(x), units, axis=1)
    kept = list(range(units))
    for k, score in zip(order[:-1].tolist(), scores[:-1].tolist(), strict=True):
        tried = {i: cka(x, np.concatenate([blocks[j] for j in kept if j != i], axis=1), debiased=False) for i in kept}
        assert k == max(tried, key=tried.__getitem__)
        assert score == pytest.approx(tried[k], abs=1e-12)
        kept.remove(k)
    assert order_error(products, order, scores) < 1e-12
    assert order_error(products, order[::-1], scores) > 1e-3


def test_graph_measures_of_a_known_graph() -> None:
    """Five directions in the plane, 30° apart, and one across: a path of five filters and one alone."""
    angles = np.radians([0, 30, 60, 90, 120])
    w = np.zeros((6, 3))
    w[:5, 0], w[:5, 1], w[5, 2] = np.cos(angles), np.sin(angles), 7
    path, pairs_at_two, alone = np.cos(np.radians([31, 61, 29]))
    assert graph_measures(w, [path, pairs_at_two, alone]) == [(2, 4, 3), (2, 7, 2), (6, 0, 6)]
