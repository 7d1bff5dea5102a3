"""Greedy orders of host layers within a device's memory, without one: products of columns and units in strips.

The CUDA programs run on the emulator's two queues (tests/native), as in ``test_cuda_strips.py``.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import emulated_cuda
import emulated_greedy
import emulated_strips
import numpy as np
import numpy.typing as npt
import pytest
from cuda_cases import There, block_of, bound, half, layouts, relu, see_device
from emulated_cuda import DTYPES, compile_programs
from emulated_strips import PACES, Emulated, StripArray
from least_memory import least_memory
from strip_cases import strips
from tolerance import assert_close

import simkit as sk
from simkit.backends import cuda_device, native_cuda
from simkit.backends.cuda_products import DeviceProducts
from simkit.errors import TooLittleMemory

Array = npt.NDArray[Any]
PARTS = 2**30  # bytes of the parts of whole copies
WHOLE, GREEDY, STRIPS = "cuda_programs", "cuda_greedy_programs", "cuda_strips_programs"


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.getbasetemp()
    found = {name: compile_programs(folder, name) for name in (WHOLE, GREEDY, STRIPS)}
    return found if found[WHOLE] else pytest.skip("there is no C++ compiler")


@pytest.fixture
def device(programs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Emulated:
    """A device of capability 7.5, whose memory is the emulator's."""
    emulated = Emulated(programs[STRIPS], pace="chance")
    found = emulated_greedy.module(programs[WHOLE], programs[GREEDY])
    for name, value in vars(emulated_strips.module(programs[WHOLE], emulated)).items():
        setattr(found, name, value)
    for name in OPS:
        setattr(found, name, partial(within_limit, emulated, programs[GREEDY], getattr(found, name)))
    see_device(monkeypatch, found)
    LIMIT.clear()
    return emulated


OPS = ("column_products", "unit_sums", "total", "eliminate", "column_products_in_strips", "pair_sums_in_strips")
LIMIT: dict[int, int] = {}  # of an emulated device, by its id: bytes for an op of an order and what it finds there


def within_limit(emulated: Emulated, library: Any, op: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Runs an op with what copies and matrices leave; it is not tried again."""
    limit = LIMIT.get(id(emulated))
    if limit is None:
        return op(*args, **options)
    given = args[0] if args and isinstance(args[0], list) else args
    held = sum(a.held.nbytes for a in given if isinstance(a, emulated_cuda.Array)) + cuda_device.held_bytes(0)
    ran = len(emulated.ran)
    library.set_memory(ctypes.c_int64(max(1, limit - held)), ctypes.c_int64(0))
    try:
        found = op(*args, **options)
        library.machines.restype = ctypes.c_int64
        assert library.machines() <= 1
    finally:
        library.set_memory(ctypes.c_int64(0), ctypes.c_int64(0))
    assert all(terms.most <= limit - held for terms in emulated.ran[ran:])
    return found


# Products of columns.


def products(
    programs: dict[str, Any], x: Array, emulated: Emulated, *, exact: bool, tensor: bool = False, **sizes: int
) -> tuple[Array, Array]:
    """In strips, and of the whole copy."""
    block, stats = block_of(x)
    how: Any = {"exact": exact, "tensor": tensor, "squared": exact}
    got = emulated.column_products(bound(block), stats.sum_sq_dev, **how, **strips(**sizes))
    return got.held, emulated_greedy.column_products(
        programs[GREEDY], 0, bound(block), stats.sum_sq_dev, **how, bytes=PARTS
    ).held


def same_bits(pair: tuple[Array, Array]) -> bool:
    return pair[0].tobytes() == pair[1].tobytes()


@pytest.mark.parametrize("pace", PACES)
@pytest.mark.parametrize("exact", [False, True])
def test_products_have_the_bits_of_whole_copies(programs: dict[str, Any], pace: str, exact: bool) -> None:
    """Strips of one chunk of samples, of one group and of several; one square a batch, and all."""
    for number, (n, p) in enumerate([(2, 1), (255, 9), (256, 130), (257, 20), (1030, 70), (2100, 7), (3100, 20)]):
        x = relu(n, p).astype(np.float32) + (number % 2) * np.float32(40)  # or columns that are centred
        emulated = Emulated(programs[STRIPS], number % 3, pace)
        for sizes in ({"passing": 0, "room": 0}, {"passing": 300}, {"passing": 2048, "room": 2**22}):
            assert same_bits(products(programs, x, emulated, exact=exact, **sizes))


@pytest.mark.parametrize("pace", ["copies", pytest.param("work", marks=pytest.mark.slow)])
def test_parts_of_a_group_wait_for_one_another(programs: dict[str, Any], pace: str) -> None:
    """So many squares that they keep a device busy without more groups than one, which comes in three strips."""
    x = np.repeat(relu(600, 132).astype(np.float32), 32, axis=1)
    emulated = Emulated(programs[STRIPS], 0, pace)
    assert same_bits(products(programs, x, emulated, exact=False, passing=256, room=2**30))


def test_products_on_tensor_cores(programs: dict[str, Any]) -> None:
    for exact, n in itertools.product((False, True), (40, 1040)):
        x = relu(n, 17).astype(np.float32)
        assert same_bits(products(programs, x, Emulated(programs[STRIPS]), exact=exact, tensor=True, room=0))


def test_products_of_any_layout_type_and_weights(programs: dict[str, Any]) -> None:
    x, emulated = relu(300, 30), Emulated(programs[STRIPS], pace="chance")
    for kind, exact in itertools.product(DTYPES, (False, True)):
        assert same_bits(products(programs, half(x, kind), emulated, exact=exact))
    for view in layouts(x.astype(np.float32)):
        assert same_bits(products(programs, view, emulated, exact=False))
    block, stats = block_of(x, sk.Cosine())
    assert block.row_scale is not None
    how: Any = {"exact": True, "tensor": False, "squared": False}
    got = emulated.column_products(bound(block), stats.sum_sq_dev, **how, **strips())
    want = emulated_greedy.column_products(programs[GREEDY], 0, bound(block), stats.sum_sq_dev, **how, bytes=PARTS)
    assert same_bits((got.held, want.held))


def test_memory_that_is_full_is_tried_again_and_then_explained(programs: dict[str, Any]) -> None:
    x, emulated = relu(2100, 20).astype(np.float32), Emulated(programs[STRIPS])
    products(programs, x, emulated, exact=True, room=0)
    least = emulated.memory = emulated.ran[0].most
    assert same_bits(products(programs, x, emulated, exact=True, passing=9999, room=2**30))
    assert (emulated.ran[1].machines, emulated.ran[1].most) == (2, least)
    emulated.memory = least - 1
    with pytest.raises(MemoryError, match=r"^CUDA cannot allocate \d+ bytes .* even with the smallest workspace$"):
        products(programs, x, emulated, exact=True)


@pytest.mark.parametrize("pace", PACES)
def test_a_walk_can_be_stopped(programs: dict[str, Any], pace: str) -> None:
    emulated = Emulated(programs[STRIPS], pace=pace, pauses=1)
    with pytest.raises(RuntimeError, match=r"^stopped$"):
        products(programs, relu(1300, 9), emulated, exact=False)


# Orders, end to end.

UNITS: dict[str, Any] = {
    "columns": {},
    "debiased": {"estimator": "debiased"},
    "blocks": {"units": 6},
    "ids": {"units": np.arange(120) % 2},
}


def options_of(units: str, p: int) -> dict[str, Any]:
    """Of a layer of p columns; those of ids lie apart."""
    options = UNITS[units]
    return {**options, "units": options["units"][:p]} if units == "ids" else options


def order(emulated: Emulated, x: Any, memory: int | None, **options: Any) -> sk.Elimination:
    """Within so much memory, and with not a byte more than the plan says: no op exceeded it."""
    LIMIT.clear()
    emulated.ran.clear()
    found: sk.Elimination = sk.greedy_cka(x, memory=memory, backend="native_cuda", **options)
    assert all(terms.machines == 1 for terms in emulated.ran)
    said = max(step.bytes for step in found.plan.steps)
    if memory is not None:
        assert said <= memory
        assert all(terms.most <= memory for terms in emulated.ran)
    LIMIT[id(emulated)] = said
    again: sk.Elimination = sk.greedy_cka(x, memory=memory, backend="native_cuda", **options)
    LIMIT.clear()
    assert (again.order.tobytes(), again.cka.tobytes()) == (found.order.tobytes(), found.cka.tobytes())
    return found


def least(emulated: Emulated, x: Any, **options: Any) -> int:
    return least_memory(lambda memory: order(emulated, x, memory, **options))


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.slow)])
def test_memory_from_the_least_to_plenty(device: Emulated, units: str, dtype: Any) -> None:
    x, options = relu(2600, 24).astype(dtype), options_of(units, 24)
    want = sk.greedy_cka(x, backend="reference", exact=True, **options)
    smallest, ways = least(device, x, **options), []
    for memory in (smallest, smallest + 8, 10**7, None):
        got = order(device, x, memory, **options)
        assert got.order.tolist() == want.order.tolist()
        assert_close(got.cka, want.cka, "greedy", np.dtype(dtype).name, 2600, 24)
        ways.append("copied to the device" in got.plan.explain())
        assert ways[-1] != ("pass" in got.plan.explain())
    assert (ways, ways[0], ways[2:]) == (sorted(ways), False, [True, True])
    assert not cuda_device._held


def test_a_device_with_little_memory_takes_strips(device: Emulated) -> None:
    x = relu(6000, 60).astype(np.float32)
    want = sk.greedy_cka(x, backend="native_cuda")
    assert StripArray.uploads == [x.nbytes]
    for options in ({}, {"units": 6, "estimator": "debiased"}):
        device.memory = 1_900_000 if options else 700_000
        got = order(device, x, None, **options)
        assert "pass" in got.plan.explain()
        if not options:
            assert (got.order.tobytes(), got.cka.tobytes()) == (want.order.tobytes(), want.cka.tobytes())
    for free, work in ((300_000, "ordering the 60 columns of x by their products"), (100_000, "the statistics of x")):
        device.memory = free
        sentence = rf"^memory={free * 8 // 10} bytes, 80% of what is free, is too little: {work} on a device needs \d+$"
        with pytest.raises(TooLittleMemory, match=sentence):
            order(device, x, None)


UNSAID = {
    "columns": "ordering the 30 columns of x by their products",
    "debiased": "comparing 30 layers of 500 samples",
    "blocks": "comparing 6 layers of 500 samples",
    "ids": "bringing the columns of 2 units of x together and comparing 2 layers of 500 samples",
}


@pytest.mark.parametrize("units", UNITS)
def test_too_little_is_said_before_anything_is_sent(device: Emulated, units: str) -> None:
    """Also where there would be enough for the statistics."""
    x = relu(500, 30)
    for memory in (9000, 150_000):
        sentence = rf"^memory={memory} bytes is too little: {UNSAID[units]} on a device needs \d+$"
        with pytest.raises(TooLittleMemory, match=sentence):
            order(device, x, memory, **options_of(units, 30))
        assert not device.ran
        assert not StripArray.uploads


@pytest.mark.parametrize(("n", "p"), [(500, 30), (60, 512), (100, 700), (3000, 40)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_byte_less_than_the_least_is_too_little(device: Emulated, n: int, p: int, dtype: Any) -> None:
    """Of layers that need less copied whole than in strips, and of others."""
    block, _ = block_of(relu(n, p).astype(dtype))
    how: dict[str, Any] = {"double": dtype is np.float64, "threads": 1}
    with pytest.raises(TooLittleMemory) as no:
        native_cuda.plan_products(block, memory=1, **how)
    smallest = native_cuda.plan_products(block, memory=no.value.needed, **how)
    assert smallest.bytes <= no.value.needed
    assert (smallest.strips is None) == (n < 1000)
    with pytest.raises(TooLittleMemory):
        native_cuda.plan_products(block, memory=no.value.needed - 1, **how)


def test_a_search_of_many_columns_holds_what_its_plan_says(device: Emulated) -> None:
    """The parts of its sums grow as the square of their number."""
    x = relu(64, 1500).astype(np.float32)
    memory = least(device, x, count=3)
    assert order(device, x, memory, count=3).plan.steps[0].bytes <= memory


def test_a_copy_that_statistics_made_goes_before_strips(device: Emulated) -> None:
    x = relu(1000, 1000).astype(np.float32)
    got = order(device, x, 11_000_000, count=2)
    assert StripArray.uploads == [x.nbytes] * 2  # in both of `order`'s searches
    assert "pass" in got.plan.explain()


def test_layers_within_memory_are_ordered_one_by_one(device: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    """The matrix of one is let go before the products of the next are formed."""
    ran: list[str] = []
    for name in ("column_products", "eliminate"):
        op = getattr(native_cuda, name)
        monkeypatch.setattr(native_cuda, name, lambda *a, op=op, name=name, **k: ran.append(name) or op(*a, **k))
    layers = {name: relu(300, 20, seed) for seed, name in enumerate("abc")}
    found = sk.greedy_cka(layers, memory=10**6, backend="native_cuda")
    assert ran == ["column_products", "eliminate"] * 3
    ran.clear()
    want = sk.greedy_cka(layers, backend="native_cuda")
    assert ran == ["column_products"] * 3 + ["eliminate"]
    assert all(found[name].cka.tobytes() == want[name].cka.tobytes() for name in layers)


def test_files_that_are_mapped(device: Emulated, tmp_path: Path) -> None:
    x = relu(1200, 40).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    memory = least(device, mapped)
    got, want = (order(device, of, memory) for of in (mapped, x))
    assert "pass" in got.plan.explain()
    assert (got.order.tobytes(), got.cka.tobytes()) == (want.order.tobytes(), want.cka.tobytes())


@pytest.mark.usefixtures("device")
def test_memory_bounds_what_is_beside_a_layer_on_the_device() -> None:
    x = relu(1200, 200).astype(np.float32)
    want = sk.greedy_cka(There(x))
    with pytest.raises(TooLittleMemory, match=r"ordering the 200 columns of x by their products on a device") as no:
        sk.greedy_cka(There(x), memory=1000)
    for memory in (no.value.needed, 2 * no.value.needed, "1 GB"):
        got = sk.greedy_cka(There(x), memory=memory)
        assert (got.order.tobytes(), got.cka.tobytes()) == (want.order.tobytes(), want.cka.tobytes())
    with pytest.raises(TooLittleMemory):
        sk.greedy_cka(There(x), memory=no.value.needed - 1)


@pytest.mark.usefixtures("device")
def test_what_is_planned_is_what_runs() -> None:
    """A plan is data, and changes no bit."""
    x = relu(900, 20).astype(np.float32)
    block, stats = block_of(x)
    want = np.asarray(native_cuda.column_products(block, stats, exact=False))
    for memory in (320_000, 10**6):
        room = native_cuda.plan_products(block, double=False, threads=2, memory=memory)
        assert isinstance(room, DeviceProducts)
        assert room.bytes <= memory
        assert np.asarray(native_cuda.column_products(block, stats, exact=False, room=room)).tobytes() == want.tobytes()
