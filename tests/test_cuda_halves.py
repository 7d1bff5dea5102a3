"""Products of bfloat16 and float16 as they are, on tensor cores, without a device: the fragments of warps against the
PTX ISA, the sums against exact arithmetic, the programs on the emulator against the reference, and the choice of them
from the plan down."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import emulated_cuda
import emulated_strips
import numpy as np
import numpy.typing as npt
import oracles
import pytest
from cuda_cases import agrees, block_of, every_order, half, layouts, pair_sums, relu, see_device
from emulated_cuda import compile_programs
from emulated_strips import Emulated
from emulated_tensor import sum_in_fractions, sum_of_sixteen
from tolerance import assert_close, worst_error

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends import cuda_routes, cuda_strips, native_cuda, reference
from simkit.backends.base import Block, UnitBlocks
from simkit.backends.cuda_cores import float64_cost, panel_cost
from simkit.backends.routes import plan_pair_sums
from simkit.errors import TooLittleMemory
from simkit.metrics.cka import ForcedRoute, normalised
from simkit.metrics.prepare import prepare

Array = npt.NDArray[Any]
HALVES = ("bfloat16", "float16")
BITS = {"bfloat16": 8, "float16": 11}  # significant


@pytest.fixture(scope="module")
def warps(tmp_path_factory: pytest.TempPathFactory) -> Any:
    found = compile_programs(tmp_path_factory.getbasetemp(), "cuda_half_programs")
    return found or pytest.skip("there is no C++ compiler")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    found = compile_programs(tmp_path_factory.getbasetemp())
    return found or pytest.skip("there is no C++ compiler")


# A warp.


def test_a_warp_computes_what_its_threads_do(warps: Any) -> None:
    """Through the ISA's tables of which lane holds what, the fragments that lanes load give the sums they hold."""
    emulated_cuda.run(warps, "warps_agree")


def test_pieces_and_fragments_meet_in_no_bank(warps: Any) -> None:
    """Loads, stores of rows along memory, stores of rows across it; every piece of a slice is carried once."""
    worst = np.empty(3, dtype=np.int32)
    emulated_cuda.run(warps, "bank_conflicts", worst)
    assert worst.tolist() == [1, 1, 1]


@pytest.mark.parametrize("kind", HALVES)
def test_a_word_holds_two_columns_the_first_below(warps: Any, kind: str) -> None:
    """Every number of the type, subnormal ones too."""
    words = np.arange(2**16, dtype=np.uint32) | (np.arange(2**16, dtype=np.uint32)[::-1] << 16)
    values = np.empty((len(words), 2), dtype=np.float32)
    emulated_cuda.run(warps, "widen_words", words, ctypes.c_int64(len(words)), int(kind == "bfloat16"), values)
    numbers = np.arange(2**16, dtype=np.uint16)
    want = numbers.view(np.float16) if kind == "float16" else (numbers.astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(values[:, 0], want, equal_nan=True)
    assert np.array_equal(values[:, 1], want[::-1], equal_nan=True)


@pytest.mark.parametrize("kind", HALVES)
def test_sums_of_sixteen_agree_with_exact_arithmetic(warps: Any, kind: str) -> None:
    """Eight products at a time: exact ones, cut at 24 bits below the largest, towards zero."""
    r, most = np.random.default_rng(0), 2 ** BITS[kind]
    for trial in range(200):
        x, y = np.ldexp(
            r.integers(-most + 1, most, (2, 16)).astype(float), r.integers(-8, 1 + 5 * (trial % 3), (2, 16))
        )
        c = float(np.float32(r.standard_normal() * 10.0 ** r.integers(-3, 4)))
        want = sum_in_fractions(c, x.tolist(), y.tolist(), at_once=8)
        assert sum_of_sixteen(warps, c, x.tolist(), y.tolist()) == want
    assert np.isnan(sum_of_sixteen(warps, 0.0, [np.nan] * 16, [1.0] * 16))


# The programs.


def as_they_are(
    programs: Any, rows: list[Block], columns: list[Block], *, debiased: bool = True, room: int = 2**24
) -> Any:
    return pair_sums(programs, rows, columns, debiased, False, room, tensor=True, halves=True)


@pytest.mark.parametrize("kind", HALVES)
@pytest.mark.parametrize(("n", "orders"), [(64, False), (127, False), (128, False), (129, True), (257, False)])
def test_any_number_of_samples(programs: Any, kind: str, n: int, orders: bool) -> None:
    rows = [block_of(half(relu(n, p, seed), kind))[0] for seed, p in enumerate((5, 40, 17))]
    compute = as_they_are(programs, rows, [])
    agrees(every_order(compute) if orders else compute(0), rows, [], True, False)


@pytest.mark.parametrize("kind", HALVES)
@pytest.mark.parametrize("p", [1, 2, 7, 8, 9, 31, 32, 33, 63, 65, 1023, 1024, 1025, 2080])
def test_any_number_of_features(programs: Any, kind: str, p: int) -> None:
    """Around a piece of eight columns, a slice of 32, and the 1024 that one sum in float32 takes."""
    rows = [block_of(half(relu(70, q, q), kind))[0] for q in (p, 3)]
    debiased = p % 2 > 0
    agrees(as_they_are(programs, rows, [], debiased=debiased)(2), rows, [], debiased, False)


@pytest.mark.parametrize("kind", HALVES)
def test_one_model_against_another(programs: Any, kind: str) -> None:
    rows = [block_of(half(relu(80, 20), kind))[0]]
    columns = [block_of(half(relu(80, p, p), kind))[0] for p in (7, 33)]
    agrees(as_they_are(programs, rows, columns)(1), rows, columns, True, False)


def test_the_answer_depends_on_no_room_and_no_layout(programs: Any) -> None:
    """Rows whose pieces lie side by side and at multiples of their size, and all others."""
    for p in (40, 37):
        x, y = relu(140, p).astype(np.float16), block_of(relu(140, 17, 1).astype(np.float16))[0]
        want = as_they_are(programs, [block_of(x)[0], y], [], room=2**28)(0)
        others = [as_they_are(programs, [block_of(x)[0], y], [], room=0)(0)]
        shifted = np.empty(140 * p + 1, dtype=np.float16)[1:].reshape(140, p)
        shifted[:] = x
        others += [as_they_are(programs, [block_of(view)[0], y], [])(0) for view in (*layouts(x)[1:], shifted)]
        for got in others:
            assert [a.tobytes() for a in got] == [a.tobytes() for a in want]


# Errors beside those of float32.


def score_errors(programs: Any, layers: list[Array], kind: str) -> tuple[float, float]:
    """(plain float32, as they are): the worst error of debiased CKA between the layers, against float64."""
    rows = [block_of(half(x, kind))[0] for x in layers]
    want = reference.pair_sums(rows, None, estimator="debiased", route=plan_pair_sums(rows, None, route="sample"))
    scores = want.values / np.sqrt(np.outer(want.self_rows, want.self_rows))
    found = []
    for compute in (pair_sums(programs, rows, [], True, False, 2**26), as_they_are(programs, rows, [], room=2**26)):
        values, own, _ = compute(0)
        found.append(worst_error(values / np.sqrt(np.outer(own, own)), scores))
    return found[0], found[1]


def like_w1(n: int, widths: tuple[int, ...]) -> list[Array]:
    """ReLU layers of one network, and its ten logits."""
    r = np.random.default_rng(0)
    z = r.standard_normal((n, 16))
    return [np.maximum(z @ r.standard_normal((16, p)) + 2 * r.standard_normal((n, p)), 0) for p in widths]


@pytest.mark.parametrize("kind", HALVES)
def test_errors_stay_at_the_level_of_float32(programs: Any, kind: str) -> None:
    """Measured: 7e-9 to 1e-8 plainly, 6e-9 to 9e-9 as they are, offsets as large as the rule takes among them."""
    layers = like_w1(130, (530, 1200, 160, 10))
    for change in (0.0, 0.9):
        plain, own = score_errors(programs, [x + change for x in layers], kind)
        assert own <= max(2 * plain, 1.5e-8)
    _, own = score_errors(programs, [x > 1 for x in layers], kind)
    assert own <= 1e-8  # their products and sums are whole numbers


@pytest.mark.parametrize("kind", HALVES)
def test_wide_layers_without_structure(programs: Any, kind: str) -> None:
    """The worst case: an inner product of centred rows is 1/√p of what was subtracted from it. Measured: 2e-7."""
    r = np.random.default_rng(5)
    _, own = score_errors(programs, [r.standard_normal((64, p)) + 0.98 for p in (2048, 4096)], kind)
    assert own <= 5e-7


# The choice, and everything above the module.


@pytest.fixture
def device(programs: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    def of_capability(major: int, minor: int) -> None:
        see_device(monkeypatch, emulated_cuda.module(programs, capability=(major, minor)))

    return of_capability


def layers_of(kind: str, change: float = 0.0, n: int = 70) -> dict[str, Any]:
    return {str(p): half(np.maximum(relu(n, p, p), 0) + change, kind) for p in (90, 40)}


def prepared(layers: dict[str, Any], kernel: Any = None) -> list[Block]:
    return [prepare(as_matrix(x, name=key), kernel or sk.Linear(), backend="native_cuda") for key, x in layers.items()]


def scores_on_device(layers: dict[str, Any], kernel: Any = None, **forced: Any) -> Any:
    return normalised(prepared(layers, kernel), None, "debiased", ForcedRoute(backend="native_cuda", **forced))


@pytest.mark.parametrize("kind", HALVES)
def test_the_plan_says_that_they_are_multiplied_as_they_are(device: Any, kind: str) -> None:
    layers = layers_of(kind)
    how = f"{kind} products as they are on tensor cores, centred afterwards: {kind} input near zero; feature space"
    for capability in ((8, 0), (8, 6), (8, 9), (9, 0), (12, 0)):
        device(*capability)
        assert how in scores_on_device(layers, route="sample").plan.steps[0].reason
    device(9, 0)
    want = {cores: scores_on_device(layers, route="sample", cores=cores) for cores in ("plain", "tensor", "half")}
    assert len({found.values.tobytes() for found in want.values()}) == 3
    assert how in want["half"].plan.explain()
    assert how in scores_on_device(layers, cores="half").plan.explain()
    for cores in ("plain", "tensor"):
        assert "as they are" not in want[cores].plan.explain()
        assert worst_error(want[cores].values, want["half"].values) <= 1e-7
    device(10, 0)
    assert "float32 products: no float64 input; feature" in scores_on_device(layers, route="sample").plan.explain()
    assert how in scores_on_device(layers, route="sample", cores="half").plan.explain()


def test_layers_that_are_not_multiplied_so_and_why(device: Any) -> None:
    """The plan says it where a layer is of 16 bits, the error where the caller insists."""
    device(9, 0)
    far = layers_of("float16", 2.0)
    small = {
        key: half(np.ldexp(np.asarray(x, dtype=np.float32), -60), "bfloat16") for key, x in layers_of("float16").items()
    }
    mixed = {**layers_of("float16"), "x": relu(70, 5).astype(np.float32)}
    cases: list[tuple[dict[str, Any], Any, str]] = [
        (far, None, "the mean of 90 lies 2.12 times as far from zero as its samples from the mean"),
        (small, None, "float32 may not hold the squares of 90, which is of the size of 2^-56"),
        (mixed, None, "all must be of float16, or all of bfloat16, not of float16 and float32"),
        (layers_of("float16"), sk.Cosine(), "the kernel must be linear, not Cosine()"),
    ]
    for layers, kernel, why in cases:
        plan = scores_on_device(layers, kernel, route="sample").plan
        assert (
            f"float32 products on tensor cores, each three of TF32: no float64 input; {why}; feature" in plan.explain()
        )
        with pytest.raises(NotImplementedError) as refused:
            scores_on_device(layers, kernel, cores="half")
        assert str(refused.value) == f"the layers are not multiplied as the 16-bit numbers that they are: {why}"
    single = {"x": relu(70, 5).astype(np.float32)}
    assert "bfloat16" not in scores_on_device(single, route="sample").plan.explain()


def test_what_else_is_refused(device: Any) -> None:
    layers = layers_of("float16")
    device(9, 0)
    with pytest.raises(
        NotImplementedError, match=r"^feature space takes float64 products, not those of 16-bit numbers as"
    ):
        scores_on_device(layers, route="feature", cores="half")
    with pytest.raises(NotImplementedError, match=r"they are: float64 products are asked for$"):
        scores_on_device(layers, products="float64", cores="half")
    block, stats = block_of(layers["40"])
    with pytest.raises(
        NotImplementedError, match=r"^only pairs of layers are multiplied as the 16-bit numbers that they"
    ):
        native_cuda.column_products(block, stats, cores="half")
    units = UnitBlocks(block, np.arange(0, 41, 4))
    with pytest.raises(NotImplementedError, match=r"they are: the units of a layer are multiplied in float32$"):
        cuda_routes.plan_pair_sums(units, None, route="sample", cores="half")
    planned = cuda_routes.plan_pair_sums(units, None, route="sample")
    assert planned.cores == "tensor"
    assert "; the units of a layer are multiplied in float32; " in planned.reason
    device(7, 5)
    with pytest.raises(
        NotImplementedError, match=r"^products on tensor cores need a device of capability 8.0, not 7.5$"
    ):
        scores_on_device(layers, cores="half")


def test_routes_are_chosen_by_what_products_of_halves_cost(device: Any) -> None:
    """Ten and more of them in the time of one of float64: sample space pays for more samples, until panels outweigh."""
    costs = {}
    for capability in ((8, 0), (8, 6), (9, 0)):
        device(*capability)
        blocks = [block_of(relu(70, 4).astype(np.float16))[0]]
        costs[capability] = float64_cost(blocks, "half"), panel_cost(blocks, "half"), panel_cost(blocks, "tensor")
    assert costs == {(8, 0): (16.0, 16.0, 1.0), (8, 6): (128.0, 2.0, 1.0), (9, 0): (10.0, 10.0, 1.0)}
    device(9, 0)

    def route(kind: str, widths: list[int]) -> str:
        blocks = [block_of(half(np.maximum(relu(200, p, k), 0), kind))[0] for k, p in enumerate(widths)]
        return cuda_routes.plan_pair_sums(blocks, None).name

    assert [route(kind, [60, 50]) for kind in ("float32", "float16")] == ["feature", "sample"]
    assert [route(kind, [4] * 20) for kind in ("float32", "float16")] == ["feature", "feature"]


def test_a_pass_that_cancels_is_done_again_in_float64(device: Any) -> None:
    """Also where the caller insisted on products of halves."""
    device(9, 0)
    layers = {key: np.asarray(x) for key, x in layers_of("float16").items()}
    for x in layers.values():
        x[0] *= np.float16(1000)
    want = oracles.cka_matrix(list(layers.values()), list(layers.values()), estimator="debiased")
    for cores in (None, "half"):
        found = scores_on_device(layers, route="sample", cores=cores)
        first, second = found.plan.steps
        assert "float16 products as they are" in first.reason
        assert "float64 products on tensor cores" in second.reason
        assert_close(found.values, want, "cka", "float16", 70, 90)


def test_strips_multiply_in_float32_and_say_so(
    programs: Any, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of the whole layers is multiplied as they are."""
    strips = Emulated(compile_programs(tmp_path_factory.getbasetemp(), "cuda_strips_programs"))
    see_device(monkeypatch, emulated_strips.module(programs, strips, (9, 0)))
    blocks = [block_of(x)[0] for x in layers_of("float16", n=1000).values()]
    with pytest.raises(TooLittleMemory) as refused:
        cuda_strips.plan_pair_sums(blocks, None, memory=1000, route="sample")
    route = cuda_strips.plan_pair_sums(blocks, None, memory=refused.value.needed, route="sample")
    assert isinstance(route, cuda_strips.HostRoute)
    assert route.strips is not None
    assert route.cores == "tensor"
    assert "; in strips no layer is multiplied as it is; " in route.reason
    with pytest.raises(
        NotImplementedError, match=r"^layers that go to a device in strips are multiplied in float32, not"
    ):
        cuda_strips.plan_pair_sums(blocks, None, memory=refused.value.needed, route="sample", cores="half")
    whole = cuda_strips.plan_pair_sums(blocks, None, route="sample")
    assert whole.cores == "half"
    assert whole.reason.endswith("; copied to the device")


def test_the_workspace_counts_the_centres_of_rows(device: Any) -> None:
    device(9, 0)
    blocks = prepared(layers_of("float16"))
    own, wide = (cuda_routes.plan_pair_sums(blocks, None, route="sample", cores=cores) for cores in ("half", "tensor"))
    assert own.bytes - wide.bytes == 8 * 2 * 70
    assert own.tile == wide.tile == 128


HAZARDS = {hazard.name: hazard for hazard in oracles.hazard_battery()}
QUICK = ("plain", "+1000", "first row ×1000", "constant columns")
BEYOND = {  # what 16 bits do not hold
    "float16": ("+1e5, float64", "×10000", "×1e+06", "×1e-20", "first row ×10000"),
    "bfloat16": ("+1e5, float64",),
}
HELD = [(name, kind) for kind in HALVES for name in HAZARDS if name not in BEYOND[kind]]


@pytest.mark.parametrize(
    ("name", "kind"), [pytest.param(*case, marks=[] if case[0] in QUICK else pytest.mark.slow) for case in HELD]
)
def test_hazards(device: Any, name: str, kind: str) -> None:
    """By whichever products the plan takes, against the score of what 16 bits hold of them."""
    device(9, 0)
    sides = [half(x, kind) for x in (HAZARDS[name].x, HAZARDS[name].y)]
    x, y = (np.asarray(side.float() if kind == "bfloat16" else side, dtype=np.float64) for side in sides)
    found = scores_on_device(dict(zip("xy", sides, strict=True)), route="sample")
    far = name in ("+100", "+1000", "×1e-20")
    assert ("products as they are" in found.plan.explain()) != far
    assert_close(found.values[0, 1], oracles.cka(x, y, estimator="debiased"), "cka", kind, *x.shape)
