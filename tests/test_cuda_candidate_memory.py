"""Orders under non-linear kernels within a device's memory, without a device: the CUDA programs on the emulator."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import emulated_device
import numpy as np
import numpy.typing as npt
import pytest
from cuda_cases import There, relu, see_device
from least_memory import least_memory

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends import native_cuda
from simkit.backends.damage_room import CandidateRoom
from simkit.errors import TooLittleMemory
from simkit.metrics.kernel_damage import kernel_damage
from simkit.metrics.prepare import prepare

Array = npt.NDArray[Any]
KERNELS = [sk.RBF(), sk.Laplacian(), sk.Polynomial()]
NAMES = ["rbf", "laplacian", "polynomial"]


@dataclass(frozen=True)
class Searches:
    """The library whose machines hold searches."""

    module: Any
    programs: Any

    def bounded(self, most: int) -> None:
        """Each machine from now on has so many bytes; 0: plenty."""
        self.programs.set_memory(ctypes.c_int64(most), ctypes.c_int64(0))

    @property
    def machines(self) -> int:
        """How many there were since."""
        self.programs.machines.restype = ctypes.c_int64
        return int(self.programs.machines())


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return emulated_device.compile_all(tmp_path_factory.getbasetemp()) or pytest.skip("there is no C++ compiler")


@pytest.fixture
def device(libraries: list[Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Searches]:
    module = emulated_device.module(libraries)
    see_device(monkeypatch, module)
    found = Searches(module, libraries[emulated_device.LIBRARIES.index("candidates_")])
    yield found
    found.bounded(0)


def order(x: Any, kernel: Any, memory: int | None = None, **options: Any) -> sk.Elimination:
    found: sk.Elimination = sk.greedy_cka(x, kernel=kernel, memory=memory, backend="native_cuda", **options)
    if memory is not None:
        assert max(step.bytes for step in found.plan.steps) <= memory
    return found


def least_for(x: Any, kernel: Any, **options: Any) -> int:
    """Of the median and the statistics too."""
    return least_memory(lambda memory: order(x, kernel, memory, count=1, **options))


def same(one: sk.Elimination, other: sk.Elimination) -> bool:
    return (one.order.tobytes(), one.cka.tobytes()) == (other.order.tobytes(), other.cka.tobytes())


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("kernel", KERNELS, ids=NAMES)
@pytest.mark.parametrize(
    "options", [{}, {"units": 4, "estimator": "debiased"}, {"units": [0] * 5 + [1, 2, 3, 3, 4, 4, 4]}]
)
def test_no_bit_depends_on_the_memory(kernel: Any, options: dict[str, Any]) -> None:
    """From the least on; a byte less is too little."""
    x = relu(200, 12)
    want, least = order(x, kernel, **options), least_for(x, kernel, **options)
    for memory in (least, least * 5 // 4, 2 * least, 10**8):
        assert same(order(x, kernel, memory, **options), want)
    with pytest.raises(TooLittleMemory, match=r" on a device needs \d+$"):
        order(x, kernel, least - 1, **options)
    with pytest.raises(
        TooLittleMemory, match=r"^memory=1 bytes is too little: leaving out the \d+ units of x \[200, 12"
    ):
        order(x, kernel, 1, **options)


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize(("dtype", "n", "u"), [(np.float32, 300, 30), (np.float64, 300, 30), (np.float64, 1300, 3)])
def test_a_search_holds_what_its_plan_says(
    device: Searches, monkeypatch: pytest.MonkeyPatch, dtype: Any, n: int, u: int, there: bool
) -> None:
    """Where machines have not a byte more, none is tried again; of many samples one candidate takes most of it."""
    x, everything = relu(n, u).astype(dtype), np.arange(u)
    block = prepare(as_matrix(There(x) if there else x), sk.RBF(0.5))
    copied, double = 0 if there else x.nbytes, dtype is np.float64
    hold = device.module.Candidates

    def scores(memory: int | None, most: int = 0) -> bytes:
        """With so many bytes beside a host layer's copy: to form the units, and to hold a search beside them."""

        def held(**options: Any) -> Any:
            device.bounded(max(0, most - x.nbytes))
            made = hold(**options)
            assert device.machines == 1
            device.bounded(most)
            return made

        monkeypatch.setattr(device.module, "Candidates", held)
        device.bounded(most)
        damage, levels = kernel_damage(
            block, np.split(everything, u), "biased", exact=double, backend="native_cuda", threads=1, memory=memory
        )
        found: Array = damage.scores(everything, everything, levels).cka
        device.bounded(0)
        return found.tobytes()

    with pytest.raises(TooLittleMemory) as no:
        native_cuda.plan_candidates(block, [1] * u, double=double, threads=1, memory=1)
    least, rooms, want = no.value.needed, [], scores(None)
    for memory in (least, least + 70_000, 3 * least, 40 * least, None):
        room = native_cuda.plan_candidates(block, [1] * u, double=double, threads=1, memory=memory)
        assert memory is None or room.bytes <= memory
        assert scores(memory, room.bytes - copied) == want
        rooms.append(room)
    assert [room.packed > 0 for room in rooms] == sorted(room.packed > 0 for room in rooms)
    assert (rooms[0].packed, rooms[-1].packed > 0, rooms[0].bytes) == (0, True, least)


def test_what_is_free_bounds_a_search(device: Searches) -> None:
    """Where no memory is given: fewer candidates in flight, to the same bits, and then a refusal; the plan says it."""
    x = relu(200, 12)
    want = order(x, sk.Polynomial())
    assert (
        "the kernel of all units is held; 10 of 10 tiles of pairs, 12 of 12 candidates at once" in want.plan.explain()
    )
    with pytest.raises(TooLittleMemory) as no:
        native_cuda.plan_candidates(prepare(as_matrix(x), sk.Polynomial()), [1] * 12, double=True, threads=1, memory=1)
    least = no.value.needed
    device.module.memory_info = lambda _: (least * 13 // 10, least * 13 // 10)
    tight = order(x, sk.Polynomial())
    assert same(tight, want)
    assert "; 10 of 10 tiles of pairs" not in tight.plan.explain()
    device.module.memory_info = lambda _: (least, least)
    with pytest.raises(TooLittleMemory, match=r" bytes, 80% of what is free, is too little: leaving out the 12 units"):
        order(x, sk.Polynomial())


@pytest.mark.usefixtures("device")
def test_the_room_of_units_of_all_widths() -> None:
    """Lists of candidates are as long as the widest unit says."""
    block = prepare(as_matrix(relu(300, 40)), sk.RBF())
    rooms: list[CandidateRoom] = [
        native_cuda.plan_candidates(block, widths, double=True, threads=1, memory=10**7)
        for widths in ([1] * 40, [4] * 10, [31] + [1] * 9)
    ]
    assert all(room.bytes <= 10**7 for room in rooms)
    assert rooms[1].bytes < rooms[2].bytes
