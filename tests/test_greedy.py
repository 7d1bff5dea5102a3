"""Greedy CKA damage against the loop that evaluates every CKA, and against itself under every option."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import oracles
import pytest
from backend_lists import CHOSEN, NAMED

import simkit as sk
from simkit.backends.choose import choose

Array = npt.NDArray[np.floating]
Estimator = Literal["debiased", "biased"]
Mode = Literal["greedy", "oneshot"]

ESTIMATORS: tuple[Estimator, ...] = ("biased", "debiased")
MODES: tuple[Mode, ...] = ("greedy", "oneshot")


def relu(n: int, p: int, seed: int = 0) -> Array:
    r = np.random.default_rng([seed, n, p])
    return np.maximum(r.standard_normal((n, 4)) @ r.standard_normal((4, p)) + 0.7 * r.standard_normal((n, p)), 0)


def single(p: int) -> list[Array]:
    return [np.array([k]) for k in range(p)]


def agrees(
    x: Array,
    units: list[Array],
    *,
    estimator: Estimator,
    mode: Mode = "greedy",
    given: int | list[int] | None = None,
    backend: str | None = None,
) -> sk.Elimination:
    """The order of the brute force and its CKA to 1e-9."""
    found = sk.greedy_cka(x, units=given, estimator=estimator, mode=mode, backend=backend)
    brute = oracles.greedy_by_evaluation(x, units, estimator=estimator, mode=mode)
    assert found.order.tolist() == brute.order
    assert np.allclose(found.cka, brute.cka, rtol=0, atol=1e-9, equal_nan=True)
    assert math.isnan(found.cka[-1])
    assert np.isfinite(found.cka[:-1]).all()
    assert np.array_equal(found.damage, 1 - found.cka, equal_nan=True)
    return found


@pytest.mark.parametrize("backend", CHOSEN)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_columns_and_blocks_of_float64(estimator: Estimator, mode: Mode, backend: str | None) -> None:
    for seed, (n, p) in itertools.product(range(3), [(4, 6), (9, 3), (60, 14), (70, 16)]):
        options = {"estimator": estimator, "mode": mode, "backend": backend}
        x = relu(n, p, seed)
        agrees(x, single(p), **options)  # type: ignore[arg-type]
        agrees(x + 1e4, single(p), **options)  # type: ignore[arg-type]
        if p % 2 == 0:
            agrees(x, [np.array([k, k + 1]) for k in range(0, p, 2)], given=p // 2, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", CHOSEN)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_units_by_their_ids(estimator: Estimator, backend: str | None) -> None:
    """Columns of one unit need not be neighbours, ids need not be 0, 1, 2, ..., and units may differ in width."""
    x = relu(50, 12)
    ids = [7, -3, 7, 100, 5, 5, 7, -3, 100, 5, 8, 7]
    found = sk.greedy_cka(x, units=ids, estimator=estimator, backend=backend)
    names = sorted(set(ids))
    columns = [np.flatnonzero(np.array(ids) == name) for name in names]
    brute = oracles.greedy_by_evaluation(x, columns, estimator=estimator)
    assert found.order.tolist() == [names[k] for k in brute.order]
    assert np.allclose(found.cka, brute.cka, rtol=0, atol=1e-9, equal_nan=True)
    grouped = sk.greedy_cka(
        x[:, np.concatenate(columns)], units=np.repeat(names, [len(c) for c in columns]), estimator=estimator
    )
    assert grouped.order.tolist() == found.order.tolist()
    as_columns = sk.greedy_cka(x, units=np.arange(12), estimator=estimator, backend=backend)
    assert as_columns.order.tolist() == sk.greedy_cka(x, estimator=estimator, backend=backend).order.tolist()


@pytest.mark.parametrize("backend", CHOSEN)
def test_channels_of_convolution_maps(backend: str | None) -> None:
    """[n, c, h, w]: units=c makes each channel its h·w columns."""
    maps = relu(40, 5 * 6, 3).reshape(40, 5, 2, 3)
    found = sk.greedy_cka(maps, units=5, backend=backend)
    brute = oracles.greedy_by_evaluation(
        maps.reshape(40, 30), [np.arange(6 * c, 6 * c + 6) for c in range(5)], estimator="biased"
    )
    assert found.order.tolist() == brute.order
    assert np.allclose(found.cka, brute.cka, rtol=0, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("backend", CHOSEN)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("mode", MODES)
def test_ties_go_to_the_lowest_index(mode: Mode, estimator: Estimator, backend: str | None) -> None:
    x = relu(50, 9)
    x[:, 4] = x[:, 7] = x[:, 2]
    found = agrees(x, single(9), estimator=estimator, mode=mode, backend=backend)
    places = {unit: place for place, unit in enumerate(found.order.tolist())}
    assert places[2] < places[4] < places[7]
    if mode == "greedy":
        assert found.smallest_gap <= 1e-12
    same = np.repeat(x[:, :1], 6, axis=1)
    assert agrees(same, single(6), estimator=estimator, mode=mode, backend=backend).order.tolist() == [0, 1, 2, 3, 4, 5]
    assert np.allclose(sk.greedy_cka(same, estimator=estimator, mode=mode).cka[:-1], 1, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", CHOSEN)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dead_units_go_first_at_no_damage(dtype: type[np.floating], estimator: Estimator, backend: str | None) -> None:
    x = relu(50, 8).astype(dtype)
    x[:, 6], x[:, 1], x[:, 3] = 0, 0.1, 1e4
    found = sk.greedy_cka(x, estimator=estimator, backend=backend)
    assert found.order[:3].tolist() == [1, 3, 6]
    assert np.allclose(found.damage[:3], 0, atol=1e-12)
    blocks = sk.greedy_cka(np.repeat(x, 2, axis=1), units=8, estimator=estimator, backend=backend)
    assert blocks.order.tolist() == found.order.tolist()
    live = sk.greedy_cka(x[:, [0, 2, 4, 5, 7]], estimator=estimator, backend=backend)
    assert [[0, 2, 4, 5, 7][k] for k in live.order] == found.order[3:].tolist()


@pytest.mark.parametrize("backend", CHOSEN)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("mode", MODES)
def test_one_and_two_units(mode: Mode, estimator: Estimator, backend: str | None) -> None:
    x = relu(30, 2)
    one = sk.greedy_cka(x[:, :1], estimator=estimator, mode=mode, backend=backend)
    assert one.order.tolist() == [0]
    assert np.isnan(one.cka).tolist() == [True]
    assert one.smallest_gap == math.inf
    whole = sk.greedy_cka(x, units=1, estimator=estimator, mode=mode, backend=backend)
    assert whole.order.tolist() == [0]
    agrees(x, single(2), estimator=estimator, mode=mode, backend=backend)


@pytest.mark.parametrize("backend", CHOSEN)
@pytest.mark.parametrize("mode", MODES)
def test_count_and_threshold_cut_the_same_order(mode: Mode, backend: str | None) -> None:
    x = relu(60, 10)
    whole = sk.greedy_cka(x, mode=mode, backend=backend)
    for count in (1, 4, np.int64(9), 10):
        part = sk.greedy_cka(x, mode=mode, count=int(count), backend=backend)
        assert part.order.tolist() == whole.order[:count].tolist()
        assert np.array_equal(part.cka, whole.cka[:count], equal_nan=True)
    for k in (0, 3, 8):
        threshold = float(whole.cka[k])
        lower = whole.cka[:-1] < threshold
        kept = int(np.argmax(lower)) if lower.any() else 9  # the empty set has no CKA and is never reached
        part = sk.greedy_cka(x, mode=mode, min_cka=threshold, backend=backend)
        assert part.order.tolist() == whole.order[:kept].tolist()
        assert (part.cka >= threshold).all()
    assert len(sk.greedy_cka(x, mode=mode, min_cka=-1.0, backend=backend).order) == 9
    assert len(sk.greedy_cka(x, mode=mode, min_cka=1.0, backend=backend).order) == 0
    assert len(sk.greedy_cka(x, mode=mode, min_cka=0.5, count=2, backend=backend).order) == 2


def test_a_mapping_gives_a_mapping() -> None:
    layers = {"conv1": relu(40, 8), "fc": relu(40, 5).astype(np.float32)}
    found = sk.greedy_cka(layers)
    assert list(found) == ["conv1", "fc"]
    for name, x in layers.items():
        assert found[name].order.tolist() == sk.greedy_cka(x).order.tolist()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_smallest_gap_is_the_least_lead_of_a_choice(estimator: Estimator) -> None:
    x = relu(50, 9)
    brute = oracles.greedy_by_evaluation(x, single(9), estimator=estimator)
    gaps = [sorted(scores.values())[-1] - sorted(scores.values())[-2] for scores in brute.scores[:-1]]
    for backend in (None, "reference"):
        assert sk.greedy_cka(x, estimator=estimator, backend=backend).smallest_gap == pytest.approx(
            min(gaps), abs=1e-12
        )


def test_oneshot_ranks_by_the_first_scores() -> None:
    x = relu(50, 9)
    ranked = sk.greedy_cka(x, mode="oneshot")
    first = oracles.greedy_by_evaluation(x, single(9), estimator="biased").scores[0]
    assert ranked.order.tolist() == sorted(first, key=lambda k: (-first[k], k))
    assert ranked.smallest_gap == math.inf


SCALES = {
    "a few tiny": lambda p: np.where(np.arange(p) < 5, 1e-3, 1.0),
    "a few very tiny": lambda p: np.where(np.arange(p) < 5, 1e-7, 1.0),
    "one dominant": lambda p: np.where(np.arange(p) == 5, 1e3, 1.0),
    "one overwhelming": lambda p: np.where(np.arange(p) == 5, 1e8, 1.0),
    "a ladder": lambda p: np.logspace(0, -8, p),
    "a ladder upwards": lambda p: np.logspace(-8, 0, p),
    "two levels": lambda p: np.where(np.arange(p) % 2 == 0, 1.0, 1e-5),
}


@pytest.mark.parametrize("backend", CHOSEN)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", SCALES)
def test_units_of_very_different_size(name: str, estimator: Estimator, backend: str | None) -> None:
    """When the large ones are gone, the CKA of what is left is still right."""
    for seed in range(2):
        agrees(relu(50, 12, seed) * SCALES[name](12), single(12), estimator=estimator, backend=backend)


@pytest.mark.parametrize("backend", CHOSEN)
def test_copies_of_very_different_size_lose_nothing(backend: str | None) -> None:
    x = relu(50, 1) * np.array([1.0, 1e-5, 1e-5, 1e-5])
    assert np.allclose(sk.greedy_cka(x, backend=backend).cka[:-1], 1.0, rtol=0, atol=1e-9)


def test_shapes_at_the_extremes() -> None:
    for n, p in ((4, 40), (6, 1), (7, 60)):
        for estimator in ESTIMATORS:
            agrees(np.random.default_rng(p).standard_normal((n, p)), single(p), estimator=estimator)
    few = sk.greedy_cka(np.random.default_rng(0).standard_normal((2, 30)))
    assert sorted(few.order.tolist()) == list(range(30))
    assert np.allclose(few.cka[:-1], 1.0, rtol=0, atol=1e-12)  # two samples: every column is the same up to scale


def squared_products(x: Array) -> npt.NDArray[np.float64]:
    z = oracles.centred_features(x)
    return np.asarray((z.T @ z) ** 2)


def lost_by_choices(a: npt.NDArray[np.float64], found: sk.Elimination) -> tuple[float, float]:
    """(most that a choice was below the best of its step, most that a CKA value is off), from fresh float64 sums."""
    alive = np.arange(len(a))
    total, rows = a.sum(), a.sum(axis=1)
    lost = off = 0.0
    for pick, value in zip(found.order[:-1].tolist(), found.cka[:-1].tolist(), strict=True):
        inside = a[np.ix_(alive, alive)]
        left = inside.sum() - 2 * inside.sum(axis=1) + np.diag(inside)
        scores = (rows[alive].sum() - rows[alive]) / np.sqrt(total * np.maximum(left, 0))
        own = float(scores[alive == pick][0])
        lost, off = max(lost, float(scores.max()) - own), max(off, abs(value - own))
        alive = alive[alive != pick]
    return lost, off


def _rarely_moving(r: np.random.Generator, n: int, p: int) -> Array:
    return np.where(r.random((n, p)) < 0.95, 1.0, r.standard_normal((n, p)))


def _few_active(r: np.random.Generator, n: int, p: int) -> Array:
    return (r.random((n, 1)) < 0.1) * np.abs(r.standard_normal((n, p)))


FLOAT32 = {
    "relu": lambda r, n, p: relu(n, p, int(r.integers(100))),
    "sparse relu": lambda r, n, p: np.maximum(r.standard_normal((n, p)) - 1.5, 0),
    "relu, far from zero": lambda r, n, p: relu(n, p) + 30,
    "rarely moving": _rarely_moving,
    "few active samples": _few_active,
    "binary": lambda r, n, p: (r.random((n, p)) < 0.6).astype(float),
    "gaussian": lambda r, n, p: r.standard_normal((n, p)),
    "many sizes": lambda r, n, p: r.standard_normal((n, p)) * np.exp(3 * r.standard_normal(p)),
    "an outlying row": lambda r, n, p: relu(n, p) * np.where(np.arange(n) == 3, 1e3, 1)[:, None],
}


@pytest.mark.parametrize("name", FLOAT32)
def test_float32_choices_are_within_1e6_of_the_best(name: str) -> None:
    for seed, (n, p) in enumerate([(70, 10), (1100, 40), (3000, 64)]):
        x = FLOAT32[name](np.random.default_rng(seed), n, p).astype(np.float32)
        lost, off = lost_by_choices(squared_products(x), sk.greedy_cka(x))
        assert lost <= 1e-6
        assert off <= 1e-6
        exact_lost, exact_off = lost_by_choices(squared_products(x), sk.greedy_cka(x, exact=True))
        assert exact_lost <= 1e-12
        assert exact_off <= 1e-9


@pytest.mark.parametrize("name", FLOAT32)
def test_float32_choices_of_blocks(name: str) -> None:
    r = np.random.default_rng(5)
    x = FLOAT32[name](r, 300, 60).astype(np.float32)
    for estimator in ESTIMATORS:
        for units in (12, 30):
            found = sk.greedy_cka(x, units=units, estimator=estimator)
            columns = np.arange(60).reshape(units, -1)
            z = oracles.centred_features(x)
            flat = np.stack([oracles.centred_kernel(z[:, c] @ z[:, c].T, estimator).ravel() for c in columns])
            lost, off = lost_by_choices(flat @ flat.T, found)
            assert lost <= 1e-6
            assert off <= 1e-6


def test_wide_layers() -> None:
    x = relu(300, 2000).astype(np.float32)
    found = sk.greedy_cka(x)
    assert sorted(found.order.tolist()) == list(range(2000))
    a = squared_products(x)
    part = sk.Elimination(found.order[:40], found.cka[:40], 0.0, found.plan)
    assert max(lost_by_choices(a, part)) <= 1e-6
    kept = np.setdiff1d(np.arange(2000), found.order[:1500])
    assert found.cka[1499] == pytest.approx(oracles.cka(x, x[:, kept], estimator="biased"), abs=1e-6)


@pytest.mark.slow
def test_wide_layers_to_the_last_unit() -> None:
    x = relu(3000, 2000).astype(np.float32)
    lost, off = lost_by_choices(squared_products(x), sk.greedy_cka(x))
    assert max(lost, off) <= 1e-6


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_closed_form_is_cka(estimator: Estimator) -> None:
    x = relu(80, 12).astype(np.float32)
    found = sk.greedy_cka(x, estimator=estimator)
    for k in (0, 5, 10):
        kept = np.setdiff1d(np.arange(12), found.order[: k + 1])
        assert found.cka[k] == pytest.approx(sk.cka(x, x[:, kept], estimator=estimator), abs=1e-6)


def test_elimination_on_any_matrix_of_products() -> None:
    """Both backends' searches agree on matrices with negative entries, as debiased ones have."""
    r = np.random.default_rng(6)
    for u in (1, 2, 3, 30):
        k = r.standard_normal((u, 200))
        a = k @ k.T
        for greedy in (True, False):
            native, reference = (
                choose("eliminate", backend=b).function([a], greedy=greedy)[0] for b in ("native_cpu", "reference")
            )
            assert native.order.tolist() == reference.order.tolist()
            assert np.allclose(native.cka, reference.cka, rtol=0, atol=1e-10, equal_nan=True)


@pytest.mark.parametrize("backend", NAMED)
def test_elimination_without_a_score_picks_units_all_the_same(backend: str) -> None:
    """A total that is not positive leaves no score: every removal is of a unit, and nobody knows its CKA."""
    eliminate = choose("eliminate", backend=backend).function
    for a in (-np.eye(40), np.zeros((3, 3)), np.full((5, 5), np.nan)):
        for greedy in (True, False):
            (found,) = eliminate([a], greedy=greedy)
            assert found.order.tolist() == list(range(len(a)))
            assert np.isnan(found.cka).all()


@pytest.mark.parametrize("backend", NAMED)
def test_no_counts_are_not_all(backend: str) -> None:
    """None stands for all units of every layer; an empty list has no count for the layer there is."""
    eliminate = choose("eliminate", backend=backend).function
    assert len(eliminate([np.eye(3)], counts=None)[0].order) == 3
    with pytest.raises(ValueError, match="shorter"):
        eliminate([np.eye(3)], counts=[])
    assert eliminate([], counts=[]) == []


@pytest.mark.parametrize("options", [{}, {"backend": "reference"}, {"backend": "reference", "units": 600}])
def test_layers_on_the_host_take_the_memory_of_one(options: dict[str, Any]) -> None:
    """Nothing of a layer is held while the next one is prepared."""
    layers = {str(k): relu(8, 600, k).astype(np.float32) for k in range(4)}
    sk.greedy_cka(layers["0"], count=1, **options)
    peaks = []
    for some in ({"0": layers["0"]}, layers):
        tracemalloc.start()
        sk.greedy_cka(some, count=1, **options)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] >= 8 * 600 * 600
    assert peaks[1] <= peaks[0] + 8 * 600 * 100


BAD = [
    ({"units": 4}, ValueError, "units=4 must divide the 6 columns into equal blocks"),
    ({"units": 0}, ValueError, "units=0 must divide the 6 columns into equal blocks"),
    ({"units": True}, ValueError, r"units must be \[6\] integer ids, not bool of shape \(\)"),
    ({"units": [0, 1, 2]}, ValueError, r"units must be \[6\] integer ids, not int64 of shape \(3,\)"),
    ({"units": [0.0] * 6}, ValueError, r"units must be \[6\] integer ids, not float64 of shape \(6,\)"),
    (
        {"units": np.array([0, 1, 2, 3, 4, 2**63], dtype=np.uint64)},
        ValueError,
        "units holds the id 9223372036854775808, which int64, the type of ids, cannot hold",
    ),
    ({"count": 0}, ValueError, "count must be an integer from 1 to 6, not 0"),
    ({"count": 7}, ValueError, "count must be an integer from 1 to 6, not 7"),
    ({"count": 2.0}, ValueError, "count must be an integer from 1 to 6, not 2.0"),
    ({"count": 4, "units": 3}, ValueError, "count must be an integer from 1 to 3, not 4"),
    ({"min_cka": 1.5}, ValueError, "min_cka must be a number of at most 1, not 1.5"),
    ({"min_cka": True}, ValueError, "min_cka must be a number of at most 1, not True"),
    ({"min_cka": np.bool_(True)}, ValueError, r"min_cka must be a number of at most 1, not .*True.*"),
    ({"min_cka": "0.5"}, ValueError, "min_cka must be a number of at most 1, not '0.5'"),
    ({"min_cka": math.nan}, ValueError, "min_cka must be a number of at most 1, not nan"),
    ({"mode": "random"}, ValueError, 'mode must be "greedy" or "oneshot", not \'random\''),
    ({"estimator": "unbiased"}, ValueError, 'estimator must be "debiased" or "biased", not \'unbiased\''),
    (
        {"kernel": sk.Cosine()},
        NotImplementedError,
        r"greedy_cka does not take Cosine\(\): a sample whose kept units are all zero has no direction",
    ),
    ({"kernel": "linear"}, TypeError, "kernel must be a kernel object .*, not 'linear'"),
    ({"threads": 0}, ValueError, "threads must be a positive integer, not 0"),
    ({"backend": "cuda"}, ValueError, "backend must be None or one of native_cuda, native_cpu, reference, not 'cuda'"),
]


@pytest.mark.parametrize(("options", "error", "sentence"), BAD)
def test_options_are_checked_with_their_value(
    options: dict[str, object], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=f"^{sentence}$"):
        sk.greedy_cka(relu(20, 6), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", NAMED)
@pytest.mark.parametrize("kernel", [sk.Linear(), sk.RBF()])
def test_numpy_scalars_are_numbers(kernel: sk.Kernel, backend: str) -> None:
    x = relu(20, 6)
    plain = sk.greedy_cka(x, min_cka=0.75, threads=2, units=3, kernel=kernel, backend=backend)
    options = {"min_cka": np.float32(0.75), "threads": np.int64(2), "units": np.int32(3)}
    scalars = sk.greedy_cka(x, kernel=kernel, backend=backend, **options)  # type: ignore[arg-type]
    assert scalars.order.tolist() == plain.order.tolist()
    assert scalars.plan == plain.plan


def test_a_mapping_without_layers() -> None:
    with pytest.raises(ValueError, match=r"^x is empty: give at least one named array$"):
        sk.greedy_cka({})


def test_the_plan_says_what_ran() -> None:
    x = relu(100, 6).astype(np.float32)
    columns = sk.greedy_cka(x)
    assert [step.op for step in columns.plan.steps] == ["column_products", "eliminate", "column_stats"]
    assert "float32 products" in columns.plan.explain()
    assert "float64 products" in sk.greedy_cka(x, exact=True).plan.explain()
    assert "float64 products" in sk.greedy_cka(x.astype(np.float64)).plan.explain()
    assert [step.op for step in sk.greedy_cka(x, units=3).plan.steps] == ["pair_sums", "eliminate", "column_stats"]
    assert columns.backend == "native_cpu"
    assert sk.greedy_cka(x, backend="reference").backend == "reference"
    assert sk.greedy_cka(x, mode="oneshot").plan.steps[1].route == "oneshot"
