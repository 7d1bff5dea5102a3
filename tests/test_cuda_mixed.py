"""The mixed route on a device, without one: pairs that stand apart are left out of feature space and come from sample
space; the plan counts what the programs do, and is picked only where it gains.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import emulated_cuda
import numpy as np
import numpy.typing as npt
import oracles
import pytest
from cuda_cases import There, block_of, every_order, half, pair_sums, relu, see_device
from emulated_cuda import compile_programs
from emulated_strips import Emulated, StripArray
from emulated_strips import module as strips_module
from mixed_cases import check_every_subset, subsets, unread
from tolerance import assert_close

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends import cuda_routes, cuda_strips, native_cuda
from simkit.backends.base import Block, UnitBlocks
from simkit.backends.cuda_routes import feature_size
from simkit.errors import TooLittleMemory
from simkit.metrics.cka import ForcedRoute, normalised, sums_of
from simkit.metrics.prepare import prepare

Array = npt.NDArray[Any]
LINEAR = sk.Linear()
NEURONS = [1] * 2048 + [16384] * 4


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    found = compile_programs(tmp_path_factory.getbasetemp())
    return found or pytest.skip("there is no C++ compiler")


# The programs.


def feature_sums(
    programs: Any, rows: Sequence[Block], columns: Sequence[Block], debiased: bool, apart: Sequence[bool]
) -> Callable[[int], Sequence[Array]]:
    return pair_sums(programs, rows, columns, debiased, True, 0, sample=False, apart=apart)


@pytest.mark.parametrize("left", [None, 1, 3])  # the columns begin here; None: pairs of all layers
@pytest.mark.parametrize("debiased", [True, False])
def test_what_stands_apart_is_left_out(programs: Any, left: int | None, debiased: bool) -> None:
    """Of layers that share squares with others and that fill some alone; the rest is what it was, and the rest is 0."""
    blocks = [block_of(relu(90, p, seed))[0] for seed, p in enumerate((5, 200, 1, 130))]
    rows, columns = (blocks, []) if left is None else (blocks[:left], blocks[left:])
    want = feature_sums(programs, rows, columns, debiased, ())(0)
    for apart in subsets(4):
        values, own, raw = feature_sums(programs, rows, columns, debiased, apart)(0)
        far = np.array(apart)
        both = np.outer(far[: len(rows)], far if left is None else far[left:])
        assert not np.any(values[both])
        assert not np.any(own[far])
        assert not np.any(raw[far])
        for got, whole, kept in zip((values, own, raw), want, (~both, ~far, ~far), strict=True):
            np.testing.assert_allclose(got[kept], whole[kept], rtol=1e-12)


def test_no_order_of_threads_changes_a_bit(programs: Any) -> None:
    blocks = [block_of(relu(70, p, seed))[0] for seed, p in enumerate((100, 3, 140))]
    apart = (True, False, True)
    every_order(feature_sums(programs, blocks, [], True, apart))
    every_order(feature_sums(programs, blocks[:2], blocks[2:], True, apart))


# The plan.


def squares_listed(rows: Sequence[int], columns: Sequence[int], wide: Sequence[bool]) -> int:
    """Squares of which some entry belongs to a pair that is asked for, counted entry by entry."""
    owner = np.repeat(np.arange(len(rows) + len(columns)), [*rows, *columns])
    far, middle, width = np.array(wide), sum(rows), cuda_routes.TILES["float64"]

    def cut(begin: int, end: int) -> list[Array]:
        return [far[owner[i : min(end, i + width)]] for i in range(begin, end, width)]

    if not columns:
        pairs = list(itertools.combinations_with_replacement(cut(0, middle), 2))
    else:
        pairs = list(itertools.product(cut(0, middle), cut(middle, len(owner))))
        for layer in range(len(far)):
            own = np.flatnonzero(owner == layer)
            pairs += itertools.combinations_with_replacement(cut(int(own[0]), int(own[-1]) + 1), 2)
    return sum(not np.outer(a, b).all() for a, b in pairs)


def test_squares_are_counted_as_they_are_listed() -> None:
    r = np.random.default_rng(0)
    for _ in range(60):
        widths = r.choice([1, 2, 30, 63, 64, 65, 128, 200], r.integers(2, 7)).tolist()
        left = int(r.integers(1, len(widths) + 1))
        for wide in [(False,) * len(widths), *subsets(len(widths))]:
            rows, columns = widths[:left], widths[left:]
            assert feature_size(90, rows, columns, wide).squares == squares_listed(rows, columns, wide)
        assert feature_size(90, rows, columns).squares == squares_listed(rows, columns, (False,) * len(widths))


def test_many_narrow_layers_beside_wide_ones_are_mixed() -> None:
    """And some of the narrow ones with the wide: a few cost less in panels than in products with all wide columns."""
    blocks = unread(8192, NEURONS)
    for rows, columns in ((blocks, None), (blocks[1024:-2], [*blocks[:1024], *blocks[-2:]])):
        route = cuda_routes.plan_pair_sums(rows, columns)
        assert (route.name, route.products, route.cores, route.tile) == ("mixed", "float32", "plain", 128)
        assert route.split is not None
        far = [block.p for block, wide in zip([*rows, *(columns or ())], route.split.wide, strict=True) if wide]
        assert far.count(16384) == 4
        assert len(far) < len(route.split.wide)
        assert route.words.startswith(f"mixed: sample space among the {len(far)} widest of 2052 layers, feature space")
        feature, sample = route.split.feature, route.split.sample
        assert (feature.name, feature.products) == ("feature", "float64")
        assert (sample.name, sample.products) == ("sample", "float32")
        assert route.multiply_adds == feature.multiply_adds + sample.multiply_adds
        assert route.bytes == max(feature.bytes, sample.bytes)
        assert "of float32 products, against" in route.reason
        assert min(alone_in(rows, columns)) > 2 * route.multiply_adds
        assert cuda_routes.plan_pair_sums(rows, columns, split=False).split is None


def alone_in(rows: Sequence[Block], columns: Sequence[Block] | None) -> list[int]:
    """Multiply-adds of the other routes."""
    spaces: Any = ("sample", "feature")
    return [cuda_routes.plan_pair_sums(rows, columns, route=name).multiply_adds for name in spaces]


def test_it_is_not_picked_where_it_gains_little_or_cannot_run() -> None:
    for n, widths in itertools.product(
        (300, 3000, 50_000), ([64] * 144 + [768] * 12, [1] * 512 + [64] * 4, [64] * 7 + [256] * 4 + [2048] * 3, [300])
    ):
        assert cuda_routes.plan_pair_sums(unread(n, widths), None).name != "mixed"
    for kernel in (sk.RBF(), sk.Laplacian(), sk.Polynomial()):
        blocks = unread(8192, NEURONS, kernel=kernel)
        assert cuda_routes.plan_pair_sums(blocks, None).name == "sample"
        with pytest.raises(ValueError, match=r"^the mixed route needs a linear kernel$"):
            cuda_routes.plan_pair_sums(blocks, None, route="mixed")
    with pytest.raises(ValueError, match=r"^the mixed route needs more than 1 layer$"):
        cuda_routes.plan_pair_sums(unread(5000, [9]), None, route="mixed")
    with pytest.raises(NotImplementedError, match=r"^feature space takes float64 products, not those of 16-bit "):
        cuda_routes.plan_pair_sums(unread(5000, NEURONS, np.float16), None, route="mixed", cores="half")
    units = UnitBlocks(unread(8192, [sum(NEURONS)])[0], np.cumsum([0, *NEURONS]))
    assert cuda_routes.plan_pair_sums(list(units), None).name == "mixed"
    assert cuda_routes.plan_pair_sums(units, None).name != "mixed"
    with pytest.raises(NotImplementedError, match=r"^the units of a layer keep to one route on a device$"):
        cuda_routes.plan_pair_sums(units, None, route="mixed")


@pytest.mark.parametrize("first", [True, False])
def test_one_layer_of_float64_makes_all_products_so(first: bool) -> None:
    """Wherever it stands, and though it is not wide."""
    blocks = unread(5000, NEURONS)
    double = unread(5000, [1], np.float64)
    route = cuda_routes.plan_pair_sums([*double, *blocks] if first else [*blocks[:-4], *double, *blocks[-4:]], None)
    assert (route.name, route.products) == ("mixed", "float64")
    assert route.split is not None
    assert route.split.sample.products == "float64"


def test_a_forced_tile_is_that_of_one_space() -> None:
    blocks = unread(8192, NEURONS)
    route = cuda_routes.plan_pair_sums(blocks, None, tile=64)
    assert (route.name, route.tile) == ("feature", 64)
    with pytest.raises(NotImplementedError, match=r"^native_cuda multiplies float32 in tiles of 128, not 64$"):
        cuda_routes.plan_pair_sums(blocks, None, route="mixed", tile=64)


def test_a_plan_says_why_halves_are_not_multiplied_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(current_device=lambda: 0, capability=lambda device: (9, 0))
    see_device(monkeypatch, module)
    blocks = unread(8192, NEURONS, np.float16)
    far = [replace(block, shift=np.full(block.p, 30.0), spread=float(block.p)) for block in blocks]
    route = cuda_routes.plan_pair_sums(far, None)
    assert route.name == "mixed"
    assert "on tensor cores, each three of TF32; the mean of x lies 30 times as far from zero" in route.reason


def test_memory_bounds_both_halves() -> None:
    blocks = unread(8192, NEURONS)
    mixed = cuda_routes.plan_pair_sums(blocks, None, route="mixed")
    with pytest.raises(TooLittleMemory) as refused:
        cuda_routes.plan_pair_sums(blocks, None, route="mixed", memory=1)
    least = refused.value.needed
    tight = cuda_routes.plan_pair_sums(blocks, None, route="mixed", memory=least)
    assert tight.bytes <= least < mixed.bytes
    assert tight.split is not None
    assert max(tight.split.feature.bytes, tight.split.sample.bytes) == tight.bytes
    with pytest.raises(TooLittleMemory):
        cuda_routes.plan_pair_sums(blocks, None, route="mixed", memory=least - 1)


@pytest.mark.parametrize("widths", [[1] * 256 + [400] * 2, [200] * 6, [3, 1500, 70]])
@pytest.mark.parametrize("route", ["mixed", "feature"])
def test_no_half_takes_more_than_its_plan(programs: Any, device: None, widths: list[int], route: Any) -> None:
    """With not a byte more neither is tried again: squares of many narrow layers have many shares."""
    rng = np.random.default_rng(0)
    blocks = [block_of(rng.standard_normal((66, p)), name=f"l{i}")[0] for i, p in enumerate(widths)]
    there = [replace(block, matrix=as_matrix(There(block.matrix.values))) for block in blocks]
    with pytest.raises(TooLittleMemory) as no:
        cuda_routes.plan_pair_sums(there, None, memory=1, route=route)
    least, halves = no.value.needed, 2 if route == "mixed" else 1
    programs.machines.restype = ctypes.c_int64
    for memory in (least, least * 6 // 5, 3 * least):
        plan = cuda_routes.plan_pair_sums(there, None, memory=memory, route=route)
        assert plan.bytes <= memory
        programs.set_memory(ctypes.c_int64(plan.bytes), ctypes.c_int64(0))
        native_cuda.pair_sums(there, None, estimator="debiased", route=plan)
        assert programs.machines() == halves
        programs.set_memory(ctypes.c_int64(0), ctypes.c_int64(0))


@pytest.mark.usefixtures("device")
def test_copies_that_fit_are_compared_whole() -> None:
    """Where no memory is given: the least workspace may be more than tiles in flight are worth."""
    blocks = unread(20_000, NEURONS)
    for route in ("mixed", None):
        plan = cuda_strips.plan_pair_sums(blocks, None, route=route)  # type: ignore[arg-type]
        assert (plan.name, plan.multiply_adds) == ("mixed", cuda_routes.plan_pair_sums(blocks, None).multiply_adds)
        assert plan.bytes > 2**30 + 4 * 20_000 * sum(NEURONS)


@pytest.mark.parametrize("route", ["mixed", "sample", "feature"])
def test_a_refusal_asks_for_more_than_there_is(programs: Any, monkeypatch: pytest.MonkeyPatch, route: Any) -> None:
    module = emulated_cuda.module(programs)
    see_device(monkeypatch, module)
    for n, widths in ((5000, [1] * 520), (200, [40, 3000, 7]), (100_000, [1, 1])):
        blocks, asked = unread(n, widths), {}
        for free in 10 ** np.arange(3, 11):
            module.memory_info = lambda _, free=int(free): (free, free)
            try:
                cuda_strips.plan_pair_sums(blocks, None, route=route)
            except TooLittleMemory as error:
                asked[0.8 * free] = error.needed
        assert asked
        assert all(needed > room for room, needed in asked.items())


# The answer, end to end.

WIDTHS = [1, 7, 64, 33, 300, 2, 300, 5]
TABLES: list[tuple[Sequence[int], Sequence[int] | None]] = [
    (range(8), None),
    ([0], range(1, 8)),
    ([5, 4, 3], [0, 1, 2]),
    ([2, 3], [3, 2, 2]),
    ([4, 6], [0, 1, 5]),
]


@pytest.fixture
def device(programs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    see_device(monkeypatch, emulated_cuda.module(programs))


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("estimator", ["debiased", "biased"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("n", [64, 90, pytest.param(333, marks=pytest.mark.slow)])
def test_ragged_tables(n: int, dtype: str, estimator: Any) -> None:
    given = [half(relu(n, p, seed), dtype) for seed, p in enumerate(WIDTHS)]
    exact = [np.asarray(x.float() if dtype == "bfloat16" else x, dtype=np.float64) for x in given]
    want = oracles.cka_matrix(exact, exact, estimator=estimator)
    blocks = [prepare(as_matrix(x, name=f"l{i}"), LINEAR) for i, x in enumerate(given)]
    for left, right in TABLES:
        rows, columns = ([blocks[i] for i in left], None if right is None else [blocks[i] for i in right])
        scores = normalised(rows, columns, estimator, ForcedRoute(route="mixed", backend="native_cuda"))
        assert scores.plan.steps[0].route.startswith("mixed: ")
        expected = want[np.ix_(left, left if right is None else right)]
        assert_close(scores.values, expected, "cka", "float64" if dtype == "float64" else "float32", n, 300)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("left", [None, 1, 3])
def test_every_subset_may_be_wide(left: int | None) -> None:
    blocks = [block_of(relu(70, p, p))[0] for p in (5, 90, 1, 40)]
    rows, columns = (blocks, None) if left is None else (blocks[:left], blocks[left:])
    check_every_subset(
        lambda name: cuda_strips.plan_pair_sums(rows, columns, route=name),
        lambda route: native_cuda.pair_sums(rows, columns, estimator="debiased", route=route),
        4,
    )


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(("narrow", "wide"), [(False, False), (False, True), (True, False), (True, True)])
def test_sums_that_cancel_are_formed_again(monkeypatch: pytest.MonkeyPatch, narrow: bool, wide: bool) -> None:
    """One sample dwarfs the others: in a wide layer float32 products lose it, in a narrow one feature space does."""
    monkeypatch.setattr(cuda_routes, "SECOND_WALK", -1e12)  # it is picked unasked
    given = [relu(300, p, seed).astype(np.float32) for seed, p in enumerate([1] * 40 + [800])]
    dwarfs = np.where(np.arange(300) == 7, 3e4, 1)[:, None].astype(np.float32)
    given[-2] = given[-2] * dwarfs if narrow else given[-2]
    given[-1] = given[-1] * dwarfs if wide else given[-1]
    blocks = [prepare(as_matrix(x), LINEAR) for x in given]
    sums, plan = sums_of(blocks, None, "debiased", ForcedRoute(backend="native_cuda"))
    passes = ["mixed", "sample"] if narrow else ["mixed", "mixed"] if wide else ["mixed"]
    assert [step.route[: len(name)] for step, name in zip(plan.steps, passes, strict=True)] == passes
    got = sums.table / np.sqrt(np.outer(sums.self_rows, sums.self_columns))
    want = normalised(blocks, None, "debiased", ForcedRoute(backend="reference")).values
    assert_close(got, want, "cka", "float32", 300, 800)


def test_layers_in_strips_are_not_mixed(programs: Any, tmp_path_factory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where copies fit they are; where not, the cheaper of the two other routes is, and a forced one is refused."""
    strips = compile_programs(tmp_path_factory.getbasetemp(), "cuda_strips_programs")
    emulated = Emulated(strips)
    see_device(monkeypatch, strips_module(programs, emulated))
    monkeypatch.setattr(cuda_routes, "SECOND_WALK", -1e12)
    layers = {str(p): relu(520, p, p).astype(np.float32) for p in (1, 2, 300)}
    want = sk.similarity_matrix(layers).values
    StripArray.uploads.clear()
    whole = sk.similarity_matrix(layers, backend="native_cuda")
    assert whole.plan.steps[0].route.startswith("mixed: ")
    assert whole.plan.steps[0].reason.endswith("; copied to the device")
    assert sorted(StripArray.uploads) == [4 * 520, 4 * 520 * 2, 4 * 520 * 300]  # once each
    assert not emulated.ran
    assert_close(whole.values, want, "cka", "float32", 520, 300)
    emulated.memory = 900_000
    tight = sk.similarity_matrix(layers, backend="native_cuda")
    assert emulated.ran
    assert tight.plan.steps[0].route in ("sample space", "feature space")
    assert_close(tight.values, want, "cka", "float32", 520, 300)
    blocks = [prepare(as_matrix(x, name=name), LINEAR) for name, x in layers.items()]
    sentence = (
        r"^memory=720000 bytes, 80% of what is free, is too little: comparing 3 layers of 520 samples on a device by "
    )
    with pytest.raises(TooLittleMemory, match=sentence):
        normalised(blocks, None, "debiased", ForcedRoute(backend="native_cuda", route="mixed"))
