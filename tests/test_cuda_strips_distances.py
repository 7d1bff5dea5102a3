"""Medians of distances of host arrays that go to a device in strips, on an emulator of its two queues."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import emulated_cuda
import numpy as np
import pytest
from cuda_cases import block_of, bound, half, layouts, relu, see_device
from emulated_cuda import DTYPES, compile_programs
from emulated_strips import PACES, Emulated, StripArray, module
from strip_cases import smallest, strips, within
from tolerance import assert_close

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends import cuda_strips, reference
from simkit.backends.base import Block
from simkit.errors import TooLittleMemory

WHOLE, STRIPS = "cuda_programs", "cuda_strips_programs"
SAMPLED = 256  # rows whose distances place the first edges


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.getbasetemp()
    found = {name: compile_programs(folder, name) for name in (WHOLE, STRIPS)}
    return found if found[WHOLE] else pytest.skip("there is no C++ compiler")


def median(emulated: Emulated, block: Block, **sizes: int) -> float:
    return emulated.distance_median(bound(block), **strips(**sizes))


@pytest.mark.parametrize("n", [2, 65, 300, pytest.param(2 * SAMPLED + 9, marks=pytest.mark.slow)])
def test_the_bits_of_whole_copies(programs: dict[str, Any], n: int) -> None:
    """Few enough to collect all distances, and more; at every pace, in strips of any height."""
    block = block_of(relu(n, 5))[0]
    want = emulated_cuda.distance_median(programs[WHOLE], 0, bound(block))
    for number, pace in enumerate(PACES):
        heights = {"resident": (0, 128, 192, 9999)[number], "passing": (0, 64, 128, 9999)[number]}
        got = median(Emulated(programs[STRIPS], number % 3, pace), block, room=number * 2**16, **heights)
        assert got == want


def test_any_layout_and_type(programs: dict[str, Any]) -> None:
    x = relu(130, 7)
    emulated = Emulated(programs[STRIPS], pace="chance")
    for kind in DTYPES:
        block = block_of(half(x, kind))[0]
        assert median(emulated, block) == emulated_cuda.distance_median(programs[WHOLE], 0, bound(block))
    for view in layouts(x):
        assert median(emulated, block_of(view)[0], threads=1) == pytest.approx(
            reference.distance_median(block_of(x)[0]), rel=1e-13
        )


def test_rows_that_are_alike_in_different_strips(programs: dict[str, Any]) -> None:
    """Distances that cancel are formed of differences, and those of equal rows are zero: many of them tie."""
    equal, alike = np.repeat(relu(3, 6), 100, axis=0) + 1e3, np.tile(relu(33, 6), (4, 1))
    for x in (equal, alike * (1 + 1e-7 * np.arange(132)[:, None])):
        block = block_of(x)[0]
        want = emulated_cuda.distance_median(programs[WHOLE], 0, bound(block))
        assert median(Emulated(programs[STRIPS], pace="copies"), block) == want


def test_how_often_rows_cross(programs: dict[str, Any]) -> None:
    """Once for their norms, a few for the first edges, and as those of all pairs for every pass."""
    n, row = 384, 4 * 12
    block = block_of(relu(n, 12).astype(np.float32))[0]
    for resident, k in ((384, 1), (192, 2)):
        emulated = Emulated(programs[STRIPS])
        median(emulated, block, resident=resident, passing=64)
        assert emulated.ran[0].copied == (n + min(resident, SAMPLED) + 2 * n * (k + 1) // 2) * row


def test_memory_that_is_full_is_tried_again_and_then_explained(programs: dict[str, Any]) -> None:
    block = block_of(relu(300, 40).astype(np.float32))[0]
    emulated = Emulated(programs[STRIPS])
    want = median(emulated, block, room=0)
    least = emulated.memory = emulated.ran[0].most
    assert median(emulated, block, resident=9999, passing=9999, room=2**30) == want
    assert emulated.ran[1].machines == 2
    assert emulated.ran[1].most == least
    emulated.memory = least - 1
    with pytest.raises(MemoryError, match=r"^CUDA cannot allocate \d+ bytes on the device: its memory is full even "):
        median(emulated, block)


def test_every_pass_can_be_stopped(programs: dict[str, Any]) -> None:
    block = block_of(relu(300, 5).astype(np.float32))[0]
    for pace, pauses in itertools.product(PACES, (0, 5, 15, 30)):  # norms, sample, counts, collection
        emulated = Emulated(programs[STRIPS], pace=pace, pauses=pauses)
        with pytest.raises(RuntimeError, match=r"^stopped$"):
            median(emulated, block, room=0)
        assert emulated.ran[0].machines == 1


# Everything above the module, end to end.


@pytest.fixture
def device(programs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Emulated:
    emulated = Emulated(programs[STRIPS], pace="chance")
    see_device(monkeypatch, module(programs[WHOLE], emulated))
    return emulated


@pytest.mark.parametrize(
    ("n", "widths", "kernel"),
    [(257, (100, 20), sk.RBF(0.5)), pytest.param(600, (1200, 20), sk.Laplacian(), marks=pytest.mark.slow)],
)
def test_memory_from_the_least_to_plenty(device: Emulated, n: int, widths: Sequence[int], kernel: Any) -> None:
    """Statistics, medians and pairs stay within the memory that the call is given."""
    layers = {str(p): relu(n, p, p).astype(np.float32) for p in widths}
    measure = sk.CKA(kernel=kernel)
    want = sk.similarity_matrix(layers, measure=measure).values
    least = smallest(device, layers, measure=measure)
    assert cuda_strips.median_strips(as_matrix(layers[str(widths[0])]), 0, least, 1) is not None
    copied = []
    for memory in (least, None):
        StripArray.uploads.clear()
        m = within(device, layers, memory, measure=measure)
        assert_close(m.values, want, "cka", "float32", n, max(widths))
        copied.append(n * max(widths) * 4 in StripArray.uploads)
        assert copied[-1] == ("copied to the device" in m.plan.steps[0].reason)
    assert copied == [n < 300, True]  # a few hundred rows of a narrow layer take less than the least of a median


def test_what_a_median_takes_is_what_it_was_told(device: Emulated) -> None:
    x = relu(300, 60).astype(np.float32)
    matrix = as_matrix(x, name="layer")
    with pytest.raises(TooLittleMemory, match=r"the distances of layer's rows on a device needs \d+$") as refused:
        cuda_strips.median_strips(matrix, 0, 400_000, 1)
    block = block_of(x, sk.RBF())[0]
    taken = []
    for memory in (refused.value.needed, 1_000_000, 1_500_000):
        sizes = cuda_strips.median_strips(matrix, 0, memory, 2)
        assert sizes is not None
        device.distance_median(bound(block), **sizes.options())
        taken.append(device.ran[-1].most)
        assert taken[-1] <= memory // 2
    assert taken == sorted(set(taken))
