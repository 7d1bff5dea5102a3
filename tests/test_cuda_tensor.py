"""Products on tensor cores without a device: the fragments of warps against the PTX ISA, the splitting and the sums
against exact arithmetic, and the programs of whole copies, on the emulator, against the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import emulated_cuda
import numpy as np
import numpy.typing as npt
import oracles
import pytest
from cuda_cases import agrees, block_of, every_order, half, layouts, pair_sums, relu, see_device
from emulated_cuda import compile_programs
from emulated_tensor import split, sum_in_fractions, sum_of_eight
from tolerance import assert_close, worst_error

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends import cuda_device, cuda_routes, reference
from simkit.backends.cuda_cores import cores_for, float64_cost
from simkit.backends.routes import plan_pair_sums
from simkit.metrics.cka import ForcedRoute, normalised
from simkit.metrics.prepare import prepare

Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def warps(tmp_path_factory: pytest.TempPathFactory) -> Any:
    found = compile_programs(tmp_path_factory.getbasetemp(), "cuda_tensor_programs")
    return found or pytest.skip("there is no C++ compiler")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    found = compile_programs(tmp_path_factory.getbasetemp())
    return found or pytest.skip("there is no C++ compiler")


# A warp.


def test_a_warp_computes_what_its_threads_do(warps: Any) -> None:
    """Through the ISA's tables of which lane holds what, the fragments that lanes load give the sums they hold."""
    emulated_cuda.run(warps, "warps_agree")


def test_fragments_are_loaded_without_bank_conflicts(warps: Any) -> None:
    """Loads, stores of rows along memory, stores of rows across it: accesses that meet in a bank."""
    single, wide = np.empty(3, dtype=np.int32), np.empty(3, dtype=np.int32)
    emulated_cuda.run(warps, "bank_conflicts", single, wide)
    assert single.tolist() == [1, 2, 1]
    assert wide.tolist() == [1, 1, 2]


# Splitting, and the sum of eight products.


def significant_bits(values: Array) -> Array:
    mantissa = np.abs(np.ldexp(np.frexp(values.astype(np.float64))[0], 24)).astype(np.int64)
    lowest = np.where(mantissa == 0, 1 << 24, mantissa & -mantissa)
    return 25 - np.frexp(lowest.astype(np.float64))[1]


@pytest.mark.parametrize("scale", [0, -100, 100])
def test_splitting_loses_a_last_place_at_most(warps: Any, scale: int) -> None:
    """Every mantissa of some binades, at any scale: a float32 comes apart the same way."""
    z = np.concatenate([np.arange(2**23, 2**24, 7), np.arange(2**24 - 999, 2**24)]).astype(np.float32)
    z = np.ldexp(np.concatenate([z, -z]), scale - 23)
    high, low = (part.astype(np.float64) for part in split(warps, z))
    unit = 2.0 ** (scale - 23)
    assert significant_bits(high).max() <= 11
    assert significant_bits(low).max() <= 11
    steps = np.abs(z.astype(np.float64)) / unit / 2**13
    assert np.array_equal(np.abs(high) / unit / 2**13, np.floor(steps + 0.5))  # to nearest, ties away from zero
    rest = np.abs(z - high - low) / unit
    assert rest.max() == 1
    assert (rest == 0).mean() >= 0.74
    assert abs(np.mean((z - high - low) * np.sign(z))) / unit < 0.01


def test_splitting_what_is_not_ordinary(warps: Any) -> None:
    high, low = split(warps, np.array([0.0, -0.0, 2.0**-149, 2.0**-126, 1.0], dtype=np.float32))
    assert (high + low)[[0, 1, 3, 4]].tolist() == [0.0, 0.0, 2.0**-126, 1.0]
    bits = np.array([0x7FC00000, 0xFFFFFFFF, 0x7FFFFFFF, 0x7F800000], dtype=np.uint32).view(np.float32)
    high, low = split(warps, bits)
    assert np.isnan(low).all()  # a product with any of them is NaN


def test_the_sum_of_eight_products_is_what_was_measured(warps: Any) -> None:
    """Khattak and Mikaitis 2025: a product counts by its factors' leading bits, so 1.5 · 1.5 keeps a bit more than
    2.25 · 1."""
    small = [2.0**-12, 2.0**-12, 2.0**-12], [2.0**-11, 2.0**-12, 2.0**-12]
    assert sum_of_eight(warps, 0.0, [1.5, *small[0]], [1.5, *small[1]]) == 2.25 + 2.0**-22
    assert sum_of_eight(warps, 0.0, [2.25, *small[0]], [1.0, *small[1]]) == 2.25


def test_sums_of_eight_agree_with_exact_arithmetic(warps: Any) -> None:
    r = np.random.default_rng(0)
    for trial in range(300):
        x, y = np.ldexp(r.integers(-(2**11) + 1, 2**11, (2, 8)), r.integers(-12, 1 + 10 * (trial % 3), (2, 8)))
        c = float(np.float32(r.standard_normal() * 10.0 ** r.integers(-3, 4)))
        assert sum_of_eight(warps, c, x.tolist(), y.tolist()) == sum_in_fractions(c, x.tolist(), y.tolist())
    assert np.isnan(sum_of_eight(warps, 0.0, [np.nan], [1.0]))
    assert sum_of_eight(warps, np.inf, [1.0], [1.0]) == np.inf


# The programs.


@pytest.mark.parametrize(("n", "orders"), [(64, False), (65, True), (128, False), (129, False)])
def test_pair_sums_of_any_number_of_samples(programs: Any, n: int, orders: bool) -> None:
    rows = [block_of(relu(n, p, seed).astype(np.float32))[0] for seed, p in enumerate((5, 40, 17))]
    for wide in (False, True):
        compute = pair_sums(programs, rows, [], True, wide, 2**24, tensor=True)
        agrees(every_order(compute) if orders else compute(0), rows, [], True, wide)


@pytest.mark.parametrize("p", [1, 15, 16, 17, 255, 257, 530])
def test_pair_sums_of_any_number_of_features(programs: Any, p: int) -> None:
    rows = [block_of(relu(70, q, q).astype(np.float32))[0] for q in (p, 3)]
    for wide in (False, True):
        agrees(pair_sums(programs, rows, [], p % 2 > 0, wide, 2**24, tensor=True)(2), rows, [], p % 2 > 0, wide)


def test_narrow_layers_are_multiplied_plainly(programs: Any) -> None:
    """The same bits as without tensor cores: fifteen columns are too few for the errors of splitting to average."""
    rows = [block_of(relu(90, p).astype(np.float32))[0] for p in (1, 15)]
    plain, tensor = (pair_sums(programs, rows, [], True, False, 2**24, tensor=tensor)(0) for tensor in (False, True))
    for a, b in zip(plain, tensor, strict=True):
        assert_close(a, b, "hsic", "float64", 90, 15, scale=np.abs(a).max())


def test_the_answer_depends_on_no_room_and_no_layout(programs: Any) -> None:
    x, y = relu(140, 30).astype(np.float32), relu(140, 17, 1).astype(np.float32)
    rows = [block_of(x)[0], block_of(y)[0]]
    for wide in (False, True):
        want = pair_sums(programs, rows, [], True, wide, 2**28, tensor=True)(0)
        others = [pair_sums(programs, rows, [], True, wide, 0, tensor=True)(0)]
        for view in layouts(x)[1:]:
            others.append(pair_sums(programs, [block_of(view)[0], rows[1]], [], True, wide, 2**28, tensor=True)(0))
        for got in others:
            for a, b in zip(want, got, strict=True):
                assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("kind", emulated_cuda.DTYPES)
def test_any_type_and_kernel_across(programs: Any, kind: str) -> None:
    wide = kind == "float64"
    for kernel in (sk.Linear(), sk.Cosine()):
        rows = [block_of(half(relu(80, 20), kind), kernel)[0]]
        columns = [block_of(half(relu(80, p, p), kind), kernel)[0] for p in (7, 33)]
        agrees(pair_sums(programs, rows, columns, True, wide, 2**24, tensor=True)(1), rows, columns, True, wide)


def test_non_linear_kernels_and_feature_space(programs: Any) -> None:
    for kernel in (sk.RBF(0.5), sk.Laplacian(0.7), sk.Polynomial()):
        rows = [block_of(relu(70, p, p), kernel)[0] for p in (19, 5)]
        agrees(every_order(pair_sums(programs, rows, [], True, True, 2**24, tensor=True)), rows, [], True, True)
    rows = [block_of(relu(70, p, p))[0] for p in (65, 5, 1)]
    compute = pair_sums(programs, rows, [], True, True, 0, sample=False, tensor=True)
    agrees(every_order(compute), rows, [], True, True)


# Errors beside those of plain float32.


def errors(programs: Any, layers: Sequence[Array]) -> tuple[float, float]:
    """(plain, on tensor cores): the worst error of debiased CKA between the layers, against float64."""
    rows = [block_of(x)[0] for x in layers]
    want = reference.pair_sums(rows, None, estimator="debiased", route=plan_pair_sums(rows, None, route="sample"))
    scale = np.sqrt(np.outer(want.self_rows, want.self_rows))
    found = []
    for tensor in (False, True):
        values, own, _ = pair_sums(programs, rows, [], True, False, 2**26, tensor=tensor)(0)
        scores = values / np.sqrt(np.outer(own, own))
        found.append(worst_error(scores, want.values / scale))
    return found[0], found[1]


def like_w1(n: int, widths: Sequence[int]) -> list[Array]:
    """ReLU layers of one network, and its ten logits."""
    r = np.random.default_rng(0)
    z = r.standard_normal((n, 16))
    layers = [np.maximum(z @ r.standard_normal((16, p)) + 2 * r.standard_normal((n, p)), 0) for p in widths]
    return [x.astype(np.float32) for x in layers]


CHANGES: dict[str, Callable[[Array], Array]] = {
    "as it is": lambda x: x,
    "far from zero": lambda x: x + np.float32(1000),
    "tiny": lambda x: x * np.float32(1e-30),
    "huge": lambda x: x * np.float32(1e30),
    "binary": lambda x: (x > 1).astype(np.float32),
    "equal rows": lambda x: x[np.arange(len(x)) % 9],
}


@pytest.mark.parametrize("change", CHANGES)
def test_errors_stay_at_the_level_of_float32(programs: Any, change: str) -> None:
    """Measured: 1e-9 to 7e-9 plainly, 2e-9 to 4e-9 on tensor cores; equal rows 1e-9 and 2e-8, the share of the lost
    products of two low parts, which is the same for equal rows."""
    plain, tensor = errors(programs, [CHANGES[change](x) for x in like_w1(130, (160, 96, 10))])
    assert tensor <= max(2 * plain, 4e-8 if change == "equal rows" else 1.5e-8)


# The choice, and everything above the module.


@pytest.fixture
def device(programs: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    def of_capability(major: int, minor: int) -> None:
        module = emulated_cuda.module(programs, capability=(major, minor))
        see_device(monkeypatch, module)

    return of_capability


def scores_on_device(layers: dict[str, Array], **forced: Any) -> Any:
    blocks = [prepare(as_matrix(x, name=key), sk.Linear(), backend="native_cuda") for key, x in layers.items()]
    return normalised(blocks, None, "debiased", ForcedRoute(backend="native_cuda", **forced))


def test_the_capability_of_the_device_chooses_and_the_caller_may_force(device: Any) -> None:
    layers = {str(p): relu(70, p, p).astype(np.float32) for p in (90, 40)}
    how = "float32 products on tensor cores, each three of TF32: no float64 input"
    words = {
        (8, 0): how,
        (9, 0): how,
        (8, 6): "float32 products: no float64 input",
        (7, 5): "float32 products: no float64",
    }
    for capability, reason in words.items():
        device(*capability)
        plan = scores_on_device(layers, route="sample").plan
        assert reason in plan.steps[0].reason
    device(8, 6)
    forced = scores_on_device(layers, route="sample", cores="tensor")
    assert how in forced.plan.explain()
    device(8, 0)
    plain = scores_on_device(layers, route="sample", cores="plain")
    assert "tensor" not in plain.plan.explain()
    assert worst_error(plain.values, forced.values) <= 1e-7
    assert "float64 products on tensor cores; " in scores_on_device(layers, route="feature").plan.explain()


def test_routes_are_chosen_by_what_float64_costs_on_the_device(device: Any) -> None:
    """The more samples there are for each column, the sooner feature space pays."""

    def route(dtype: str, samples: int) -> str:
        blocks = [block_of(relu(samples, 8).astype(dtype))[0] for _ in range(2)]
        return cuda_routes.plan_pair_sums(blocks, None).name

    device(9, 0)
    assert [route("float32", n) for n in (80, 2000)] == ["feature", "feature"]
    device(8, 6)
    assert [route("float32", n) for n in (80, 2000)] == ["sample", "feature"]
    assert route("float64", 80) == "feature"
    costs = {}
    for capability in ((8, 0), (8, 9), (9, 0), (10, 0)):
        device(*capability)
        blocks = [block_of(relu(70, 4))[0]]
        costs[capability] = float64_cost(blocks, cores_for(blocks)), float64_cost(blocks, "plain")
    assert costs == {(8, 0): (2.7, 2.0), (8, 9): (64.0, 64.0), (9, 0): (1.7, 2.0), (10, 0): (2.0, 2.0)}


def test_tensor_cores_that_are_not_there_are_refused(device: Any) -> None:
    layers = {"a": relu(70, 20)}
    device(7, 5)
    with pytest.raises(
        NotImplementedError, match=r"^products on tensor cores need a device of capability 8.0, not 7.5$"
    ):
        scores_on_device(layers, cores="tensor")
    blocks = [block_of(relu(70, 20))[0]]
    for cores in ("tensor", "half"):
        with pytest.raises(
            NotImplementedError, match=r"^products on tensor cores need a CUDA device, not a processor$"
        ):
            normalised(blocks, None, "debiased", ForcedRoute(backend="native_cpu", cores=cores))  # type: ignore[arg-type]


def test_a_build_without_cuda_plans_plain_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_device, "load", lambda: (None, "no"))
    assert cores_for([block_of(relu(70, 20))[0]]) == "plain"


HAZARDS = {hazard.name: hazard for hazard in oracles.hazard_battery()}
QUICK = ("+1000", "×1e-20", "constant columns")


@pytest.mark.parametrize("name", [pytest.param(k, marks=[] if k in QUICK else pytest.mark.slow) for k in HAZARDS])
def test_hazards(device: Any, name: str) -> None:
    hazard = HAZARDS[name]
    n, p = hazard.x.shape
    device(9, 0)
    layers = {"x": hazard.x, "y": hazard.y}
    want = oracles.cka(hazard.x, hazard.y, estimator="debiased")
    found = scores_on_device(layers, route="sample").values[0, 1]
    assert_close(found, want, "cka", hazard.x.dtype, n, p)
