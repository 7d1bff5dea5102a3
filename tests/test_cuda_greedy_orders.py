"""``sk.greedy_cka`` on a device, without one, end to end: the CUDA programs on the emulator (tests/native)."""

from __future__ import annotations

import itertools
import math
from typing import Any

import emulated_greedy
import numpy as np
import numpy.typing as npt
import pytest
from cuda_cases import There, block_of, relu, see_device
from emulated_cuda import compile_programs
from tolerance import assert_close

import simkit as sk
from simkit.backends import cuda_device, cuda_routes, native_cpu, native_cuda, reference
from simkit.backends.base import PairSums, UnitBlocks
from simkit.backends.routes import plan_pair_sums
from simkit.errors import TooLittleMemory

Array = npt.NDArray[Any]
IN_REGISTERS = emulated_greedy.IN_REGISTERS


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    found = compile_programs(tmp_path_factory.getbasetemp(), "cuda_greedy_programs")
    return found or pytest.skip("there is no C++ compiler")


@pytest.fixture
def device(programs: Any, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = emulated_greedy.module(compile_programs(tmp_path_factory.getbasetemp()), programs)
    see_device(monkeypatch, module)
    return module


def agree(got: sk.Elimination, want: sk.Elimination, dtype: Any, n: int, p: int) -> None:
    assert got.backend == "native_cuda"
    assert got.order.tolist() == want.order.tolist()
    assert_close(got.cka, want.cka, "greedy", dtype, n, p)
    assert got.smallest_gap == pytest.approx(want.smallest_gap, abs=1e-9)


IDS = np.random.default_rng(5).permutation(np.arange(24) % 5)
UNITS: dict[str, Any] = {"columns": None, "blocks": 6, "ids": IDS}


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("estimator", ["biased", "debiased"])
def test_greedy_orders(units: str, estimator: Any) -> None:
    x = relu(130, 24)
    for dtype, mode in itertools.product((np.float32, np.float64), ("greedy", "oneshot")):
        for limit in ({}, {"count": 3}, {"min_cka": 0.9}):
            got, want = (
                sk.greedy_cka(
                    x.astype(dtype),
                    units=UNITS[units],
                    estimator=estimator,
                    mode=mode,  # type: ignore[arg-type]
                    exact=True,
                    backend=backend,
                    **limit,  # type: ignore[arg-type]
                )
                for backend in ("native_cuda", "reference")
            )
            agree(got, want, np.float64, 130, 24)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("mode", ["greedy", "oneshot"])
def test_a_unit_that_makes_up_nearly_all(mode: Any) -> None:
    """What it leaves is lost in rounding on the device, which says so: the search is the host's."""
    x = relu(64, 8)
    for dominating in (False, True):
        x[:, 3] *= 1.7e4 if dominating else 1.0
        got, want = (sk.greedy_cka(x, mode=mode, count=5, backend=backend) for backend in ("native_cuda", "reference"))
        agree(got, want, np.float64, 64, 8)
        assert ("again by native_cpu: a unit is nearly all of what is kept" in got.plan.explain()) == dominating


@pytest.mark.usefixtures("device")
def test_layers_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mapping's layers are searched at once, as far as memory for their matrices goes; the answer does not change."""
    layers = {"a": relu(80, 9), "b": relu(80, 30, 1), 3: relu(70, 5), "d": relu(80, 30, 2)}
    want = {name: sk.greedy_cka(x, backend="native_cuda") for name, x in layers.items()}
    searched: list[int] = []
    search = native_cuda.eliminate

    def counted(matrices: Any, **options: Any) -> Any:
        searched.append(len(matrices))
        return search(matrices, **options)

    monkeypatch.setattr(native_cuda, "eliminate", counted)
    for room, batches in ((2**31, [4]), (8 * 930, [1, 2, 1]), (8 * (81 + 900), [2, 2])):
        searched.clear()
        monkeypatch.setattr("simkit.metrics.greedy.TOGETHER", room)
        got = sk.greedy_cka(layers, backend="native_cuda")
        assert list(got) == list(layers)
        assert searched == batches
        for name, one in got.items():
            assert (one.order.tobytes(), one.cka.tobytes()) == (want[name].order.tobytes(), want[name].cka.tobytes())
            assert [step.op for step in one.plan.steps] == ["column_products", "eliminate", "column_stats"]


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("units", UNITS)
def test_arrays_on_a_device_stay_there(units: str) -> None:
    layers = {name: relu(70, 24, seed).astype(np.float32) for seed, name in enumerate("ab")}
    for estimator in ("biased", "debiased"):
        options: Any = {"units": UNITS[units], "estimator": estimator, "exact": True}
        found = sk.greedy_cka({name: There(x) for name, x in layers.items()}, **options)
        for name, got in found.items():
            agree(got, sk.greedy_cka(layers[name], backend="reference", **options), np.float64, 70, 24)
            assert "host" not in got.plan.explain()
            assert ("gather_columns" in [step.op for step in got.plan.steps]) == (units == "ids")


@pytest.mark.parametrize("route", ["sample", "feature"])
def test_units_on_the_host_are_copied_whole_or_pass_in_strips(device: Any, route: Any) -> None:
    """The layer counts once, whether it is there already or not; what is left of the memory is the workspace."""
    block, _ = block_of(relu(150, 24).astype(np.float32))
    units, features, told = UnitBlocks(block, np.arange(0, 25, 4)), 4 * 150 * 24, []

    def planned(memory: int | None = None) -> Any:
        return native_cuda.plan_pair_sums(units, None, memory=memory, route=route)

    def free(room: int, held: int = 0) -> None:
        free = math.ceil(room / cuda_device.SHARE) - held
        device.memory_info = lambda _: (free, free)

    sums = device.unit_sums
    device.unit_sums = lambda *args, **options: told.append(options["bytes"]) or sums(*args, **options)
    plan = planned()
    assert (plan.strips, plan.bytes) == (None, features + plan.workspace)
    with pytest.raises(
        TooLittleMemory, match=r"^memory=1 bytes is too little: comparing 6 layers of 150 samples"
    ) as no:
        planned(1)
    least = no.value.needed
    assert (planned(least).strips, planned(least).bytes) == (None, least)
    with pytest.raises(TooLittleMemory):  # strips of so few samples take more
        planned(least - 1)
    free(least)
    smallest = planned()
    assert (smallest.strips, smallest.bytes) == (None, least)
    free(least - 100)
    with pytest.raises(TooLittleMemory, match=r" bytes, 80% of what is free, is too little: comparing 6 layers"):
        planned()
    want = reference.pair_sums(units, None, estimator="debiased", route=plan_pair_sums(units, None))
    for way in (plan, smallest):
        got = native_cuda.pair_sums(units, None, estimator="debiased", route=way)
        assert_close(got.values, want.values, "hsic", np.float32, 150, 4, scale=want.self_rows.max())
    assert told == [plan.workspace, least - features]
    free(least, features)  # whose copy has taken its part of what was free
    assert planned().bytes == least


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("route", ["sample", "feature"])
def test_units_of_many_samples_pass_in_strips_where_there_is_no_room(route: Any) -> None:
    block, _ = block_of(relu(5000, 24).astype(np.float32))
    units = UnitBlocks(block, np.arange(0, 25, 4))
    with pytest.raises(TooLittleMemory) as whole:
        cuda_routes.plan_pair_sums(units, None, memory=1, route=route)
    with pytest.raises(TooLittleMemory) as no:
        native_cuda.plan_pair_sums(units, None, memory=1, route=route)
    least, copied = no.value.needed, 4 * 5000 * 24 + whole.value.needed
    assert least < copied
    for memory in (least, copied - 1, copied):
        plan = native_cuda.plan_pair_sums(units, None, memory=memory, route=route)
        assert plan.bytes <= memory
        assert (plan.strips is None) == (memory == copied)
    with pytest.raises(TooLittleMemory):
        native_cuda.plan_pair_sums(units, None, memory=least - 1, route=route)


@pytest.mark.parametrize("units", [None, 200, np.random.default_rng(1).permutation(np.arange(400) % 200)])
@pytest.mark.parametrize("estimator", ["biased", "debiased"])
def test_nothing_of_the_size_of_the_matrix_leaves_the_device(device: Any, units: Any, estimator: Any) -> None:
    x = relu(60, 200 if units is None else 400)
    before = device.fetched()
    got = sk.greedy_cka(x, units=units, estimator=estimator, backend="native_cuda")
    assert len(got.order) == 200
    assert device.fetched() - before <= 200 * 200 < 8 * 200 * 200 / 7


def test_a_matrix_on_the_device_is_an_array_to_numpy(device: Any) -> None:
    block, stats = block_of(relu(60, 20))
    held = native_cuda.column_products(block, stats)
    assert (held.device, held.nbytes, len(held), held.name) == (0, 3200, 20, "x")
    want = reference.column_products(block, stats)
    assert_close(np.asarray(held), want, "products", np.float64, 60, 20, scale=np.abs(want).max())
    own = np.ones(20)
    assert PairSums(held, own, own, own, own).table.tobytes() == np.asarray(held).tobytes()
    assert PairSums(want, own, own, own, own).table is want
    before = device.fetched()
    assert held.sum() == pytest.approx(want.sum())
    assert device.fetched() - before == 160
    assert np.asarray(held, dtype=np.float32).dtype == np.float32
    with pytest.raises(ValueError, match=r"^the matrix of x lies on cuda:0: NumPy needs a copy of it$"):
        np.array(held, copy=False)
    (found,) = native_cpu.eliminate([held])
    assert found.order.tolist() == native_cuda.eliminate([held])[0].order.tolist()


@pytest.mark.usefixtures("device")
def test_a_layer_that_does_not_vary_is_named() -> None:
    with pytest.raises(ValueError, match=r"^wide "):
        sk.greedy_cka({"fine": relu(20, 3), "wide": np.ones((20, 4))}, backend="native_cuda")
