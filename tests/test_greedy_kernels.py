"""Greedy CKA damage under non-linear kernels: against the brute force, over sizes, units, options and backends."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from backend_lists import CHOSEN
from candidate_cases import about
from oracles import centred_kernel
from scipy.spatial.distance import pdist, squareform

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends import damage_room
from simkit.backends.base import CandidateProblem, Estimator
from simkit.backends.choose import choose
from simkit.kernels import Kernel
from simkit.metrics import kernel_damage
from simkit.metrics.prepare import prepare

Array = npt.NDArray[Any]
Gram = Callable[[Array, Array], Array]


def distances(x: Array) -> Array:
    return np.asarray(squareform(pdist(x, "sqeuclidean")))


def rbf(x: Array, whole: Array) -> Array:
    return np.exp(-distances(x) / (2 * 0.5**2 * np.median(distances(whole))))


def laplacian(x: Array, whole: Array) -> Array:
    return np.exp(-np.sqrt(distances(x)) / (0.5 * np.sqrt(np.median(distances(whole)))))


def polynomial(x: Array, whole: Array) -> Array:
    return np.asarray((x @ x.T / whole.shape[1] + 1) ** 3)


KERNELS: dict[str, tuple[Kernel, Gram]] = {
    "rbf": (sk.RBF(), rbf),
    "laplacian": (sk.Laplacian(), laplacian),
    "polynomial": (sk.Polynomial(), polynomial),
}


def cka_of(x: Array, columns: Array, gram: Gram, estimator: Estimator) -> float:
    a, b = centred_kernel(gram(x, x), estimator), centred_kernel(gram(x[:, columns], x), estimator)
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def brute(x: Array, units: list[Array], gram: Gram, estimator: Estimator) -> tuple[list[int], list[float]]:
    """Every candidate of every step by the definition, up to the last unit."""
    kept, order, scores = list(range(len(units))), [], []
    while len(kept) > 1:
        tries = [cka_of(x, np.concatenate([units[k] for k in kept if k != out]), gram, estimator) for out in kept]
        best = int(np.argmax(np.array(tries) >= max(tries) - 1e-12))
        scores.append(tries[best])
        order.append(kept.pop(best))
    return order, scores


def features(n: int, p: int, seed: int = 0) -> Array:
    r = np.random.default_rng([seed, n, p])
    z = r.standard_normal((n, 4))
    return np.maximum(z @ r.standard_normal((4, p)) + r.standard_normal((n, p)), 0)


@pytest.mark.parametrize("backend", CHOSEN)
@pytest.mark.parametrize("estimator", ["biased", "debiased"])
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(("n", "p"), [(5, 3), (40, 7), (257, 5)])
def test_the_order_is_that_of_the_brute_force(
    n: int, p: int, name: str, estimator: Estimator, backend: str | None
) -> None:
    kernel, gram = KERNELS[name]
    x = features(n, p)
    order, scores = brute(x, [np.array([c]) for c in range(p)], gram, estimator)
    found = sk.greedy_cka(x, kernel=kernel, estimator=estimator, backend=backend)
    assert found.order[:-1].tolist() == order
    assert np.allclose(found.cka[:-1], scores, rtol=0, atol=1e-9)
    assert np.isnan(found.cka[-1])
    assert found.backend.split(", ")[0] == (backend or "native_cpu")


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("estimator", ["biased", "debiased"])
def test_blocks_of_columns(name: str, estimator: Estimator) -> None:
    kernel, gram = KERNELS[name]
    x = features(60, 12)
    equal = brute(x, list(np.split(np.arange(12), 4)), gram, estimator)
    found = sk.greedy_cka(x, units=4, kernel=kernel, estimator=estimator)
    assert found.order[:-1].tolist() == equal[0]
    assert np.allclose(found.cka[:-1], equal[1], rtol=0, atol=1e-9)
    ids = np.array([7, 2, 2, 7, 9, 9, 9, 2, 4, 4, 7, 4])
    names = [2, 4, 7, 9]
    ragged = brute(x, [np.flatnonzero(ids == u) for u in names], gram, estimator)
    found = sk.greedy_cka(x, units=ids, kernel=kernel, estimator=estimator)
    assert found.order[:-1].tolist() == [names[u] for u in ragged[0]]
    assert np.allclose(found.cka[:-1], ragged[1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_float32_choices_are_within_1e_6_of_the_best(name: str, offset: float) -> None:
    kernel, gram = KERNELS[name]
    if offset and name == "polynomial":
        pytest.skip("the polynomial kernel of raw rows at an offset is nearly constant")
    x = (features(300, 8) + offset).astype(np.float32)
    found = sk.greedy_cka(x, kernel=kernel)
    wide = x.astype(np.float64)
    kept = list(range(8))
    for unit, value in zip(found.order[:-1].tolist(), found.cka[:-1], strict=True):
        tries = {k: cka_of(wide, np.array([c for c in kept if c != k]), gram, "biased") for k in kept}
        assert tries[unit] > max(tries.values()) - 1e-6
        assert value == pytest.approx(tries[unit], abs=1e-6)
        kept.remove(unit)
    exact = sk.greedy_cka(x, kernel=kernel, exact=True)
    first = cka_of(wide, np.delete(np.arange(8), exact.order[0]), gram, "biased")
    assert exact.cka[0] == pytest.approx(first, abs=1e-9)


@pytest.mark.parametrize("n", [255, 256, 257, 511, 513, 600])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", KERNELS)
def test_sums_agree_with_the_reference_around_the_edges_of_tiles(n: int, dtype: type, name: str) -> None:
    """And do not depend on threads, nor on whether the kernel of all units was packed."""
    kernel, _ = KERNELS[name]
    block = prepare(as_matrix(features(n, 6).astype(dtype), name="x"), kernel)
    columns = [np.array([0, 3]), np.array([1]), np.array([2, 4, 5])]
    kept, chosen = np.array([0, 2]), np.array([2, 0, -1])
    results: dict[str | None, kernel_damage.Scores] = {}
    for backend in (None, "reference"):
        made, levels = kernel_damage.kernel_damage(block, columns, "debiased", exact=False, backend=backend, threads=2)
        results[backend] = made.scores(kept, chosen, levels)
        if backend is None:
            function = choose("candidate_sums").function
            sums = [function(made.problem, kept, chosen, levels=levels, threads=t) for t in (1, 2, 5)]

            bare = dataclasses.replace(made.problem, packed=None)
            sums.append(function(bare, kept, chosen, levels=levels, threads=2))
            for other in sums[1:]:
                assert np.array_equal(sums[0].rows, other.rows)
                assert np.array_equal(sums[0].cross, other.cross)
                assert np.array_equal(sums[0].squares, other.squares)
    found, right = results[None], results["reference"]
    assert np.allclose(found.cka, right.cka, rtol=0, atol=1e-6 if dtype == np.float32 else 1e-11)
    assert np.allclose(found.shift, right.shift, rtol=0, atol=1e-4)  # only a level to subtract


@pytest.mark.parametrize("kernel", [sk.RBF(), sk.Laplacian()], ids=["rbf", "laplacian"])
@pytest.mark.parametrize("rows", [500, 20_000])
def test_what_a_dominating_unit_leaves_keeps_its_digits(rows: int, kernel: Kernel) -> None:
    """Without it a distance is 1 of 40: a sum of many squares that are alike and round alike."""
    n, r = 56, np.random.default_rng(0)
    z = (np.sqrt(2 / rows) * r.integers(0, 2, (rows, n))).astype(np.float32)
    z = np.vstack([np.tile([0, np.sqrt(40)], n // 2).astype(np.float32), z])
    problem = CandidateProblem(z, np.arange(rows + 2), kernel, 1.0, "biased", np.zeros(n))
    kept, levels = np.arange(rows + 1), about(problem, 0.2)
    got, want = (
        choose("candidate_sums", backend=backend).function(problem, kept, np.array([0]), levels=levels)
        for backend in ("native_cpu", "reference")
    )
    assert got.cross == pytest.approx(want.cross, rel=2e-6)
    assert got.squares == pytest.approx(want.squares, rel=2e-6)


def test_candidates_in_batches_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    x = features(120, 9)
    whole = sk.greedy_cka(x, kernel=sk.RBF())
    monkeypatch.setattr(damage_room, "ROWS", 8 * 120 * 2)
    parts = sk.greedy_cka(x, kernel=sk.RBF())
    assert parts.order.tolist() == whole.order.tolist()
    assert np.array_equal(parts.cka, whole.cka, equal_nan=True)


def test_one_shot_ranks_by_the_first_scores() -> None:
    x = features(80, 6)
    first = [cka_of(x, np.delete(np.arange(6), k), rbf, "biased") for k in range(6)]
    found = sk.greedy_cka(x, kernel=sk.RBF(), mode="oneshot")
    assert found.order.tolist() == np.argsort(-np.array(first), kind="stable").tolist()
    for step in range(1, 6):
        kept = np.setdiff1d(np.arange(6), found.order[:step])
        assert found.cka[step - 1] == pytest.approx(cka_of(x, kept, rbf, "biased"), abs=1e-9)
    assert found.smallest_gap == np.inf


def test_ties_go_to_the_lowest_index_and_stopping_rules_hold() -> None:
    x = np.repeat(features(50, 3), 2, axis=1)
    found = sk.greedy_cka(x, kernel=sk.RBF(), count=1)
    assert found.order[0] % 2 == 0
    assert found.smallest_gap < 1e-12
    full = sk.greedy_cka(x, kernel=sk.RBF())
    some = sk.greedy_cka(x, kernel=sk.RBF(), min_cka=float(full.cka[2]))
    assert some.order.tolist() == full.order[:3].tolist()
    assert sk.greedy_cka(features(50, 1), kernel=sk.RBF()).order.tolist() == [0]
    assert sk.greedy_cka(features(50, 1), kernel=sk.RBF(), min_cka=0.5).order.tolist() == []


def test_several_layers_in_one_call() -> None:
    layers = {"a": features(40, 4), "b": features(40, 5, 1)}
    found = sk.greedy_cka(layers, kernel=sk.Laplacian())
    for name, x in layers.items():
        assert found[name].order.tolist() == sk.greedy_cka(x, kernel=sk.Laplacian()).order.tolist()


def test_what_cannot_be_done_is_said() -> None:
    with pytest.raises(NotImplementedError, match=r"^greedy_cka does not take Cosine\(\): a sample whose kept units "):
        sk.greedy_cka(features(30, 4), kernel=sk.Cosine())
    with pytest.raises(ValueError, match=r"^x is degenerate: every feature is constant over the samples$"):
        sk.greedy_cka(np.ones((30, 4)), kernel=sk.RBF())
    plan = sk.greedy_cka(features(30, 4), kernel=sk.RBF()).plan
    assert "candidate_sums: native_cpu" in plan.explain()
    assert "10 of them over 435 pairs" in plan.explain()


@pytest.mark.parametrize("ratio", [30, 3000, 1e5])
@pytest.mark.parametrize("name", ["rbf", "laplacian"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_unit_that_dwarfs_the_others(name: str, ratio: float, dtype: type) -> None:
    """Without it the kernel hardly varies, and its distances are what is left of far larger ones."""
    kernel, gram = KERNELS[name]
    x = features(120, 4)
    x[:, 1] *= ratio
    x = x.astype(dtype)
    wide = x.astype(np.float64)
    found = sk.greedy_cka(x, kernel=kernel, mode="oneshot")
    for step in range(3):
        kept = np.setdiff1d(np.arange(4), found.order[: step + 1])
        z = wide - wide.mean(axis=0)
        want = cka_of(z, kept, gram, "biased")
        if 1 in kept:
            assert found.cka[step] == pytest.approx(want, abs=1e-6)
    block = prepare(as_matrix(x, name="x"), kernel)
    made, levels = kernel_damage.kernel_damage(
        block, [np.array([c]) for c in range(4)], "biased", exact=False, backend=None, threads=2
    )
    scores = made.scores(np.arange(4), np.arange(4), levels).cka
    if ratio <= 3000:  # beyond, what is left of K is below the rounding of the oracle's own exponential
        want = cka_of(wide, np.array([0, 2, 3]), gram, "biased")
        assert scores[1] == pytest.approx(want, abs=1e-4 if dtype == np.float32 else 1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("units", [None, 3])
@pytest.mark.parametrize("size", [1e3, 3e4, 1e5, 1e10, 1e18])
def test_outliers_of_several_units(size: float, units: int | None, dtype: type) -> None:
    """Two samples stand out, each by another unit: without that unit, distances are what is left of far larger ones."""
    x = features(100, 6)
    x[0, 0] = x[1, 3] = size
    x = x.astype(dtype)
    columns = [np.array([c]) for c in range(6)] if units is None else np.split(np.arange(6), units)
    block = prepare(as_matrix(x, name="x"), sk.RBF())
    kept = np.arange(len(columns))
    sums = {}
    for backend in ("native_cpu", "reference"):
        made, levels = kernel_damage.kernel_damage(
            block, columns, "biased", exact=backend == "reference", backend=backend, threads=2
        )
        sums[backend] = made.scores(kept, kept, levels).cka
    assert np.abs(sums["native_cpu"] - sums["reference"]).max() <= 1e-6


@pytest.mark.parametrize("offset", [1.0, 5.0, 20.0])
def test_polynomials_of_float32_far_from_zero(offset: float) -> None:
    x = (features(60, 6) + offset).astype(np.float32)
    assert np.array_equal(
        sk.greedy_cka(x, kernel=sk.Polynomial()).cka[:-1], sk.greedy_cka(x, kernel=sk.Polynomial(), exact=True).cka[:-1]
    )
