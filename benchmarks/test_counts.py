"""What plans and closed forms say a workload costs, against loops over scalars that count every product they form.

The loops form each product once, by symmetry, and their answer must be simkit's: so many multiply-adds are enough for
it. They share no formula with the planner or with ``test_growth.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement
from typing import Any

import numpy as np
import pytest

import simkit as sk

from .features import named, relu_layers
from .rivals import debiased_from_sums
from .test_growth import planned, series_of
from .truth import Array, Floats, centred, greedy_order


@dataclass
class Tally:
    """Multiply-adds so far."""

    products: int = 0

    def dot(self, a: Sequence[float], b: Sequence[float]) -> float:
        """The inner product, one multiply-add after the other."""
        total = 0.0
        for x, y in zip(a, b, strict=True):
            total += x * y
            self.products += 1
        return total

    def gram(self, rows: Array, *, diagonal: bool) -> Floats:
        """The inner products of all rows, those of the lower half formed; the diagonal formed or zero."""
        vectors, n = rows.tolist(), len(rows)
        products = np.zeros((n, n))
        for i, j in (combinations_with_replacement if diagonal else combinations)(range(n), 2):
            products[i, j] = products[j, i] = self.dot(vectors[i], vectors[j])
        return products


def closed_form(name: str, *sizes: int) -> int:
    """What ``test_growth.py`` fits its counted exponents to; where its call has a plan, that is the same."""
    kind = next(series.kind for series in series_of(full=False) if series.kind.name.startswith(name))
    counted = kind.count(*sizes)
    assert planned(kind.make(*sizes)()) == (None if name == "W5" else counted)
    return counted


def test_columns_to_the_unit() -> None:
    """W2: the upper half of XᵀX, diagonal included."""
    (x,) = relu_layers(0, 30, (9,), models=1)[0]
    tally = Tally()
    order, _ = greedy_order(np.square(tally.gram(centred(x).T, diagonal=True)))
    found = sk.greedy_cka(x)
    assert found.order.tolist() == order.tolist()
    assert tally.products == closed_form("W2, the greedy order of columns", 30, 9)


def test_graphs_to_the_unit() -> None:
    """W4: the cosines of every pair of filters, each pair once."""
    w = np.random.default_rng(0).standard_normal((40, 30), dtype=np.float32)
    tally = Tally()
    cosines = tally.gram(w / np.linalg.norm(w, axis=1, keepdims=True), diagonal=False)
    graph = sk.filter_graph(w, threshold=0.2, norm="cosine")
    assert graph.edges == np.count_nonzero(np.triu(cosines >= 0.2, 1))
    assert tally.products == closed_form("W4", 40, 30)


def test_all_pairs_between_half_without_and_with_diagonals() -> None:
    """W1: a plan counts half of n² and of L²; the loops need one entry or the other of the diagonals."""
    n, p, layers = 26, 7, 4
    features = [relu_layers(seed, n, (p,), models=1)[0][0] for seed in range(layers)]
    strict, whole = Tally(), Tally()
    grams = np.array([strict.gram(centred(x), diagonal=False) for x in features])
    below = np.tril_indices(n, -1)
    flat = grams[:, below[0], below[1]]
    products = 2 * strict.gram(flat, diagonal=False)
    whole.products = strict.products
    for x in features:  # the diagonals of the Gram matrices, and each of them with itself
        whole.products += n * x.shape[1]
    np.fill_diagonal(products, [2 * whole.dot(row, row) for row in flat.tolist()])
    table = debiased_from_sums(products, grams.sum(axis=2), n)
    found = sk.similarity_matrix(named(features))
    assert found.values == pytest.approx(table, abs=1e-7)
    assert strict.products <= closed_form("W1", n, p, layers) <= whole.products + n * layers * (layers + 1) // 2


def test_channels_between_half_without_and_with_diagonals() -> None:
    """W3: as W1, a Gram matrix for every channel; the biased estimator reads their diagonals."""
    n, area, units = 24, 150, 4
    (x,) = relu_layers(0, n, (units * area,), models=1)[0]
    tally = Tally()
    blocks = np.split(centred(x), units, axis=1)
    grams = np.array([tally.gram(block, diagonal=True) for block in blocks])
    i, j = np.tril_indices(n)
    products = tally.gram(grams[:, i, j] * np.where(i == j, 1.0, np.sqrt(2)), diagonal=True)  # off it they come twice
    found = sk.greedy_cka(x, units=units)
    assert found.order.tolist() == greedy_order(products)[0].tolist()
    counted = closed_form("W3", n, area, units)
    without = n * (n - 1) // 2 * (units * area + units * (units - 1) // 2)
    assert without <= counted <= tally.products


def test_a_stream_to_the_unit() -> None:
    """W5 has no plan that counts: its closed form is that of the upper half of the products of all features."""
    n, p, layers = 24, 4, 3
    features = [relu_layers(seed, n, (p,), models=1)[0][0] for seed in range(layers)]
    tally = Tally()
    products = tally.gram(np.hstack([centred(x) for x in features]).T, diagonal=True)
    squares = np.square(products).reshape(layers, p, layers, p).sum(axis=(1, 3))
    stream: Any = sk.StreamingCKA(estimator="biased")
    for start in range(0, n, 8):
        stream.update(named([x[start : start + 8] for x in features]))
    own = np.sqrt(np.diagonal(squares))
    assert stream.compute().values == pytest.approx(squares / np.outer(own, own), abs=1e-12)
    assert tally.products == closed_form("W5", n, p, layers)
