"""The mixed route: the same answer as the others, the cheapest split of all, and picked only where it can run and pays.

Splits are counted here pair by pair, over every subset of the layers, not only over the widest.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import oracles
import pytest
from mixed_cases import check_every_subset, subsets, unread
from tolerance import assert_close

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends import mixed, native_cpu, reference
from simkit.backends.base import Block, Estimator, Route, UnitBlocks
from simkit.backends.mapped import Mapped
from simkit.backends.mixed import Counts, cheapest_split
from simkit.backends.routes import plan_pair_sums
from simkit.errors import TooLittleMemory
from simkit.kernels import Kernel
from simkit.metrics.cka import ForcedRoute, normalised, sums_of
from simkit.metrics.prepare import prepare

Array = npt.NDArray[Any]
Widths = Sequence[int]

ESTIMATORS: tuple[Estimator, ...] = ("debiased", "biased")
DTYPES = (np.float32, np.float64)
LINEAR = sk.Linear()
FLOAT64_COST = 2.0


def layers(n: int, widths: Widths, dtype: type[np.floating] = np.float64, seed: int = 0) -> list[Array]:
    """Features that share a few factors."""
    r = np.random.default_rng([n, seed])
    z = r.standard_normal((n, 4))
    found = []
    for p in widths:
        x = z @ r.standard_normal((4, p)) + r.standard_normal((n, p))
        found.append(np.maximum(x, -0.25 if p > 2 else -9).astype(dtype))
    return found


def ready(given: Sequence[Array], kernel: Kernel = LINEAR) -> list[Block]:
    return [prepare(as_matrix(x, name=f"l{i}"), kernel) for i, x in enumerate(given)]


# What splits cost.


def counted(n: int, rows: Widths, columns: Widths | None, wide: Sequence[bool]) -> tuple[float, float]:
    """Multiply-adds of feature space and of sample space, pair by pair."""
    widths = [*rows, *(columns or ())]
    left = range(len(rows))
    between: Iterator[tuple[int, int]]
    if columns is None:
        between = itertools.combinations(left, 2)
    else:
        between = itertools.product(left, range(len(rows), len(widths)))
    pairs = list(between)
    feature = sum(float(widths[a] * widths[b]) for a, b in pairs if not (wide[a] and wide[b]))
    feature += sum(p * p / 2 for p, far in zip(widths, wide, strict=True) if not far)
    met = sum(1.0 for a, b in pairs if wide[a] and wide[b])
    m = sum(wide)
    own = m / 2 if columns is None else 0.0  # m²/2 pairs of all with all, each layer with itself among them
    if columns is not None and not met:  # these are paired with themselves
        met, own = m * (m - 1) / 2, m / 2
    tiles = sum(p for p, far in zip(widths, wide, strict=True) if far) + met + own
    return n * feature, n * n * tiles / 2


def by_count(counts: Counts) -> npt.NDArray[np.float64]:
    return np.asarray(FLOAT64_COST * counts.feature + counts.sample)


def tables() -> Iterator[tuple[int, list[int], list[int] | None]]:
    r = np.random.default_rng(3)
    for case in range(60):
        n = int(10 ** r.uniform(1, 5))
        widths = [int(p) for p in np.maximum(10 ** r.uniform(0, 4, r.integers(2, 8)), 1)]
        if case % 3 == 1:
            widths = [*widths[:2], *[widths[-1]] * 5]  # many equal ones
        yield n, widths, None
        cut = int(r.integers(1, len(widths)))
        yield n, widths[:cut], widths[cut:]


def test_no_subset_of_the_layers_is_cheaper_than_the_split_found() -> None:
    for n, rows, columns in tables():
        wide, least = cheapest_split(n, rows, columns, by_count)
        costs = {
            subset: FLOAT64_COST * feature + sample
            for subset in subsets(len(rows) + len(columns or ()))
            for feature, sample in [counted(n, rows, columns, subset)]
        }
        assert least == pytest.approx(costs[wide], rel=1e-12)
        # Several equal layers, or feature space alone, which is not a split, may make others as cheap.
        whole, _ = counted(n, rows, columns, [False] * len(wide))
        assert costs[wide] <= min(costs.values()) * (1 + 1e-12) or min(costs.values()) > FLOAT64_COST * whole


def test_many_layers_on_both_sides_are_split_nearly_at_best(monkeypatch: pytest.MonkeyPatch) -> None:
    r = np.random.default_rng(0)
    for n in (500, 5000, 50_000):
        rows, columns = ([int(p) for p in 10 ** r.uniform(0, 3.7, count)] for count in (400, 300))
        _, found = cheapest_split(n, rows, columns, by_count)
        with monkeypatch.context() as patch:
            patch.setattr(mixed, "PLACES", 1000)
            _, least = cheapest_split(n, rows, columns, by_count)
        assert least <= found <= 1.01 * least


def test_a_plan_has_the_counts_of_its_split() -> None:
    for n, rows, columns in tables():
        route = plan_pair_sums(unread(n, rows), None if columns is None else unread(n, columns), route="mixed")
        assert route.split is not None
        feature, sample = counted(n, rows, columns, route.split.wide)
        assert route.split.feature.multiply_adds == pytest.approx(feature, rel=1e-3, abs=n)
        assert route.split.sample.multiply_adds == pytest.approx(sample, rel=1e-3, abs=n * n)
        assert route.multiply_adds == route.split.feature.multiply_adds + route.split.sample.multiply_adds


# What is picked.

NEURONS = [1] * 512 + [4096] * 4


def test_many_narrow_layers_beside_wide_ones_are_mixed() -> None:
    blocks = unread(5000, NEURONS)
    for rows, columns in ((blocks, None), (blocks[:512], blocks[512:])):
        route = plan_pair_sums(rows, columns, threads=2)
        assert (route.name, route.products) == ("mixed", "float32")
        assert route.split is not None
        assert route.split.wide == (False,) * 512 + (True,) * 4
        assert route.words == "mixed: sample space among the 4 widest of 516 layers, feature space for the others"
    assert route.reason.startswith(
        "4.19e+10 float64 multiply-adds and 2.05e+11 float32 ones, against 2.1e+11 in feature"
    )
    both = plan_pair_sums(blocks, None).multiply_adds
    assert plan_pair_sums(blocks, None, route="sample").multiply_adds > 7.5 * both
    assert plan_pair_sums(blocks, None, route="feature").multiply_adds > 2.8 * both
    heads = plan_pair_sums(unread(100_000, [64] * 1200 + [6400] * 48, np.float64), None)
    assert heads.name == "mixed"
    assert heads.multiply_adds < 5.81e15 / 1.45  # of sample space


@pytest.mark.parametrize("dtype", DTYPES)
def test_layers_of_one_width_are_not_mixed(dtype: type[np.floating]) -> None:
    """The benchmark's shapes and others: two routes are enough for them, as before."""
    shapes = itertools.product((70, 400, 3000, 50_000), (1, 16, 64, 256, 3000), (1, 4, 10, 150))
    for n, p, count in shapes:
        blocks = unread(n, [p] * count, dtype)
        assert plan_pair_sums(blocks, None).name != "mixed"
        assert plan_pair_sums(blocks, blocks).name != "mixed"


COMMON = [
    [16384] * 7 + [8192] * 6 + [4096] * 6 + [10],  # ResNet-20, flattened
    [16] * 7 + [32] * 6 + [64] * 6 + [10],  # its means
    [64] * 7 + [256] * 4 + [128] * 8 + [512] * 10 + [1024] * 6 + [2048] * 3 + [1000],  # ResNet-50, its means
    [64] * 144 + [768] * 12,  # BERT: heads and layers
    ([4096] * 4 + [2048] * 4 + [1024] * 4 + [512] * 5 + [10]) * 2,
]


@pytest.mark.parametrize("widths", COMMON)
def test_networks_without_very_many_narrow_layers_gain_nothing(widths: list[int]) -> None:
    for n, dtype in itertools.product((300, 1000, 3000, 10_000, 50_000), DTYPES):
        assert plan_pair_sums(unread(n, widths, dtype), None).name != "mixed"


def test_it_is_not_picked_where_it_cannot_run() -> None:
    assert plan_pair_sums(unread(5000, NEURONS), None).name == "mixed"
    for kernel in (sk.RBF(), sk.Laplacian(), sk.Polynomial()):
        blocks = unread(5000, NEURONS, kernel=kernel)
        assert plan_pair_sums(blocks, None).name == "sample"
        with pytest.raises(ValueError, match=r"^the mixed route needs a linear kernel$"):
            plan_pair_sums(blocks, None, route="mixed")
        # One wide layer under another kernel is enough: feature space has no pairs of a linear one with it.
        some = [*unread(5000, NEURONS[:-1]), blocks[-1]]
        assert plan_pair_sums(some, None).name == "sample"
    with pytest.raises(ValueError, match=r"^the mixed route needs more than 1 layer$"):
        plan_pair_sums(unread(5000, [9]), None, route="mixed")


def test_units_of_one_layer_keep_to_one_route() -> None:
    whole = ready(layers(400, [3100]))[0]
    units = UnitBlocks(whole, np.array([*range(101), 3100]))
    assert plan_pair_sums(list(units), None).name == "mixed"
    assert plan_pair_sums(units, None).name == "sample"
    ids = np.minimum(np.arange(3100), 100)
    found = sk.greedy_cka(whole.matrix.values, units=ids, estimator="debiased", count=3)
    assert not any(step.route.startswith("mixed") for step in found.plan.steps)


def test_mapped_layers_keep_to_one_route(tmp_path: Path) -> None:
    given = layers(400, [1] * 100 + [3000])
    assert sk.similarity_matrix({str(i): x for i, x in enumerate(given)}).plan.steps[0].route.startswith("mixed: ")
    np.save(tmp_path / "wide.npy", given[-1])
    mapped = [*given[:-1], np.load(tmp_path / "wide.npy", mmap_mode="r")]
    step = sk.similarity_matrix({str(i): x for i, x in enumerate(mapped)}).plan.steps[0]
    assert step.route == "sample space"
    assert plan_pair_sums(unread(5000, NEURONS), None, mapped=Mapped(((4096 * 4, 5000 * 4096 * 4),))).name != "mixed"


# The answer.

WIDTHS = [1, 7, 64, 33, 300, 2, 300, 5]
TABLES = [(range(8), None), ([0], range(1, 8)), ([5, 4, 3], [0, 1, 2]), ([2, 3], [3, 2, 2]), ([4, 6], [0, 1, 5])]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [64, 90, 333])
def test_ragged_tables(n: int, dtype: type[np.floating], estimator: Estimator) -> None:
    given = layers(n, WIDTHS, dtype)
    want = oracles.cka_matrix(given, given, estimator=estimator)
    blocks = ready(given)
    for (left, right), tile in itertools.product(TABLES, (None, 24, 57)):
        rows, columns = ([blocks[i] for i in left], None if right is None else [blocks[i] for i in right])
        forced = ForcedRoute(route="mixed", tile=tile, threads=2)
        scores = normalised(rows, columns, estimator, forced)
        assert scores.plan.steps[0].route.startswith("mixed: ")
        expected = want[np.ix_(left, left if right is None else right)]
        assert_close(scores.values, expected, "cka", dtype, n, 300)
        if right is None:
            assert np.array_equal(scores.values, scores.values.T)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("n", [4, 5, 31, 63, 64, 65, 97])
def test_small_pairs(n: int, estimator: Estimator) -> None:
    for p, q in ((1, 1), (1, 40), (33, 2), (90, 257)):
        given = layers(n, [p, q])
        want = oracles.cka_matrix(given, given, estimator=estimator)
        for dtype in DTYPES if n >= 31 else (np.float64,):
            blocks = ready([x.astype(dtype) for x in given])
            for rows, columns in ((blocks, None), (blocks[:1], blocks[1:])):
                got = normalised(rows, columns, estimator, ForcedRoute(route="mixed")).values
                if n >= 31:
                    assert_close(got, want if columns is None else want[:1, 1:], "cka", dtype, n, max(p, q))
                else:
                    assert np.abs(got - (want if columns is None else want[:1, 1:])).max() < 1e-10


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("left", [None, 1, 3])  # the columns begin here; None: pairs of all layers
def test_every_subset_may_be_wide(estimator: Estimator, left: int | None) -> None:
    blocks = ready(layers(70, [5, 90, 1, 40]))
    rows, columns = (blocks, None) if left is None else (blocks[:left], blocks[left:])
    check_every_subset(
        lambda name: plan_pair_sums(rows, columns, route=name, tile=24),
        lambda route: native_cpu.pair_sums(rows, columns, estimator=estimator, route=route),
        4,
    )


def test_the_reference_takes_any_route() -> None:
    rows = ready(layers(60, [3, 50, 9]))
    want = normalised(rows, None, "debiased", ForcedRoute(backend="reference")).values
    scores = normalised(rows, None, "debiased", ForcedRoute(backend="reference", route="mixed"))
    assert np.array_equal(scores.values, want)
    assert normalised(rows, None, "debiased", ForcedRoute(route="mixed")).values == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_threads_change_no_bit(dtype: type[np.floating], estimator: Estimator) -> None:
    blocks = ready(layers(300, WIDTHS + [1] * 70, dtype))
    for rows, columns in ((blocks, None), (blocks[:5], blocks[5:])):
        one = normalised(rows, columns, estimator, ForcedRoute(route="mixed", threads=1)).values
        for threads in (2, 3, 7):
            more = normalised(rows, columns, estimator, ForcedRoute(route="mixed", threads=threads)).values
            assert np.array_equal(one, more)


def test_cosine_kernels_are_mixed_too() -> None:
    given = layers(120, [3, 80, 9, 2, 200])
    want = oracles.cka_matrix(given, given, estimator="debiased", gram=oracles.cosine)
    got = normalised(ready(given, sk.Cosine()), None, "debiased", ForcedRoute(route="mixed", tile=24)).values
    assert_close(got, want, "cka", np.float64, 120, 200)


# Sums that cancel.


def outlying(x: Array) -> Array:
    """One sample dwarfs the others: little of a debiased self-product is left."""
    return np.asarray(x * np.where(np.arange(len(x)) == 7, 3e4, 1)[:, None], dtype=x.dtype)


def cancelling(narrow: bool, wide: bool) -> tuple[list[Array], list[str]]:
    given = layers(500, [1] * 128 + [2000], np.float32)
    given[3] = outlying(given[3]) if narrow else given[3]
    given[-1] = outlying(given[-1]) if wide else given[-1]
    sums, plan = sums_of(ready(given), None, "debiased", ForcedRoute())
    got = sums.table / np.sqrt(np.outer(sums.self_rows, sums.self_columns))
    some = [0, 3, 127, 128]
    want = oracles.cka_matrix(*[[given[i] for i in some]] * 2, estimator="debiased")
    assert_close(got[np.ix_(some, some)], want, "cka", np.float32, 500, 2000)
    return given, [f"{step.route.split(':')[0]}, {step.reason.split('; ')[-1]}" for step in plan.steps]


def test_what_cancels_is_formed_again() -> None:
    _, steps = cancelling(narrow=False, wide=False)
    assert len(steps) == 1
    assert steps[0].startswith("mixed, ")
    _, steps = cancelling(narrow=False, wide=True)  # float32 products: once more in float64
    assert steps[1:] == ["mixed, done again because the first pass cancelled"]
    for wide in (False, True):
        _, steps = cancelling(narrow=True, wide=wide)  # feature space, whose sums hold the diagonals
        assert steps[1:] == ["sample space, done again because the first pass cancelled"]


def test_what_is_insisted_on_is_not_formed_again() -> None:
    given = layers(500, [1] * 10 + [900], np.float32)
    given[-1] = outlying(given[-1])
    for forced, passes in (
        (ForcedRoute(route="mixed"), 2),
        (ForcedRoute(route="mixed", products="float32"), 1),
        (ForcedRoute(route="mixed", products="float64"), 1),
    ):
        _, plan = sums_of(ready(given), None, "debiased", forced)
        assert [step.route.split(":")[0] for step in plan.steps] == ["mixed"] * passes


# Memory.


def planned(memory: int | None, threads: int = 2, **forced: Any) -> Route:
    return plan_pair_sums(unread(5000, NEURONS), None, memory=memory, threads=threads, **forced)


def test_memory_is_kept_to() -> None:
    free = planned(None)
    for memory in (10**9, 4 * 10**7, 25 * 10**6, 20 * 10**6):
        route = planned(memory, 8)
        assert route.name == "mixed"
        assert route.split is not None
        assert route.bytes <= memory
        assert route.split.feature.bytes <= memory
        assert route.split.sample.bytes + 8 * 516 * 516 <= memory
        assert 1 <= route.threads <= 8
    assert planned(20 * 10**6).tile <= free.tile
    with pytest.raises(TooLittleMemory) as caught:
        planned(10**6, route="mixed")
    assert str(caught.value).startswith(
        "memory=1000000 bytes is too little: comparing 516 layers of 5000 samples by the mixed route needs "
    )
    assert 19 * 10**6 < caught.value.needed < 20 * 10**6
    assert planned(caught.value.needed, route="mixed").bytes <= caught.value.needed
    with pytest.raises(TooLittleMemory, match=r"comparing 516 layers of 5000 samples needs \d+$"):
        planned(caught.value.needed - 1)  # nor is there room for either of the others


def test_what_is_formed_in_little_memory_is_the_same() -> None:
    blocks = ready(layers(400, [1] * 100 + [3000]))
    free = normalised(blocks, None, "debiased", ForcedRoute()).values
    for memory in (10**7, 5 * 10**6):
        scores = normalised(blocks, None, "debiased", ForcedRoute(memory=memory))
        assert scores.plan.steps[0].bytes <= memory
        assert math.isclose(float(np.abs(scores.values - free).max()), 0.0, abs_tol=1e-12)


def test_the_words_of_a_plan() -> None:
    blocks = ready(layers(400, [1] * 100 + [3000]))
    scores = normalised(blocks, None, "biased", ForcedRoute())
    text = scores.plan.explain()
    assert text.startswith(
        "pair_sums: native_cpu, mixed: sample space among the 1 widest of 101 layers, feature space for the others, "
    )
    for words in ("float64 multiply-adds and ", "in feature space alone and ", "in sample space alone", "MiB of"):
        assert words in text
    some = [blocks[0], blocks[-1]]
    want = reference.pair_sums(some, None, estimator="biased", route=plan_pair_sums(some, None))
    cka = want.table / np.sqrt(np.outer(want.self_rows, want.self_columns))
    assert_close(scores.values[np.ix_([0, 100], [0, 100])], cka, "cka", np.float64, 400, 3000)
