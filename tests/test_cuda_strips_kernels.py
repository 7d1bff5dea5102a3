"""Non-linear kernels of host arrays that go to a device in strips, on an emulator of its two queues."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import oracles
import pytest
from cuda_cases import agrees, block_of, half, layouts, pair_sums, relu, see_device
from emulated_cuda import DTYPES, compile_programs
from emulated_strips import PACES, Emulated, StripArray, module
from strip_cases import same_bits, smallest, sums, within
from tolerance import assert_close

import simkit as sk
from simkit.backends import cuda_strips
from simkit.backends.base import Block
from simkit.errors import TooLittleMemory

Array = npt.NDArray[Any]
WHOLE, STRIPS = "cuda_programs", "cuda_strips_programs"
PILOT = 256  # rows that estimate the means


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.getbasetemp()
    found = {name: compile_programs(folder, name) for name in (WHOLE, STRIPS)}
    return found if found[WHOLE] else pytest.skip("there is no C++ compiler")


def mixture(n: int, *, kind: type = np.float32) -> list[Block]:
    """Two layers of distances, two of products and a cosine, of which one has rows that are alike in other strips."""
    x = relu(n, 9).astype(kind)
    if n > 70:
        x[-1] = x[3] * 1.0001
        x[n // 2] = x[1]
    kernels = (sk.RBF(0.5), sk.Linear(), sk.Laplacian(), sk.Polynomial(degree=3), sk.Cosine())
    widths = (9, 20, 5, 17, 4)
    layers = [x if p == 9 else relu(n, p, p).astype(kind) for p in widths]
    return [block_of(layer, kernel)[0] for layer, kernel in zip(layers, kernels, strict=True)]


def in_strips(emulated: Emulated, blocks: Sequence[Block], left: int | None = None, **options: Any) -> Any:
    return sums(emulated, blocks, len(blocks) if left is None else left, sample=True, wide=True, **options)


@pytest.mark.parametrize(("n", "tensor"), [(4, False), (65, True), (300, False)])
def test_one_strip_has_the_bits_of_whole_copies(programs: dict[str, Any], n: int, tensor: bool) -> None:
    """Of the pilots' rows too, which pass in strips of one tile; biased and debiased, two sides and one."""
    blocks = mixture(n)
    for debiased, left in itertools.product((True, False), (2, 5)):
        emulated = Emulated(programs[STRIPS], pace="chance")
        how: dict[str, Any] = {"debiased": debiased, "tensor": tensor}
        want = pair_sums(programs[WHOLE], blocks[:left], blocks[left:], debiased, True, 2**22, tensor=tensor)(0)
        assert same_bits(in_strips(emulated, blocks, left, resident=n + 63, **how), want)


@pytest.mark.parametrize("n", [193, pytest.param(2 * PILOT + 9, marks=pytest.mark.slow)])
def test_the_answer_depends_on_neither_pace_nor_order(programs: dict[str, Any], n: int) -> None:
    """Strips of one tile, three behind the first, the last of one row or nine; pilots from all of them."""
    blocks = mixture(n)
    first = None
    for number, pace in enumerate(PACES):
        got = in_strips(Emulated(programs[STRIPS], number % 3, pace), blocks)
        agrees(got, blocks, [], True, True)
        first = first or got
        assert same_bits(got, first)


@pytest.mark.slow
def test_strips_of_any_height(programs: dict[str, Any]) -> None:
    for n, (resident, passing) in itertools.product((63, 64, 194), ((3, 2), (2, 1), (2, 2), (1, 1))):
        blocks = mixture(n)
        for number, pace in enumerate(PACES):
            emulated = Emulated(programs[STRIPS], number % 3, pace)
            got = in_strips(emulated, blocks, 2, resident=resident * 64, passing=passing * 64, room=number * 2**18)
            agrees(got, blocks[:2], blocks[2:], True, True)


def test_rows_that_are_alike_in_different_strips(programs: dict[str, Any]) -> None:
    """Their distance comes from their differences: the Laplacian kernel would show a wrong one, pilots' as well."""
    x = np.repeat(relu(33, 6), 4, axis=0) + 1e3
    x[1::2] *= 1 + 1e-7
    blocks = [block_of(x, kernel)[0] for kernel in (sk.Laplacian(), sk.RBF(0.1))]
    want = pair_sums(programs[WHOLE], blocks, [], True, True, 2**22)(0)
    got = in_strips(Emulated(programs[STRIPS], pace="copies"), blocks)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    agrees(got, blocks, [], True, True)


def test_any_layout_and_type(programs: dict[str, Any]) -> None:
    x = relu(130, 30)
    emulated = Emulated(programs[STRIPS], pace="chance")
    for kind, kernel in zip(DTYPES, (sk.RBF(), sk.Polynomial(), sk.Laplacian(), sk.RBF()), strict=True):
        block = block_of(half(x, kind), kernel)[0]
        agrees(in_strips(emulated, [block]), [block], [], True, True)
    for kernel in (sk.RBF(), sk.Polynomial()):
        want = in_strips(emulated, [block_of(x.astype(np.float32), kernel)[0]])
        for view in layouts(x.astype(np.float32)):
            got = in_strips(emulated, [block_of(view, kernel)[0]], room=0, threads=1)
            assert same_bits(got, want)


def test_hazards(programs: dict[str, Any]) -> None:
    """What the arithmetic of whole copies makes of a hazard, strips do too."""
    kernels = (sk.RBF(), sk.Laplacian(), sk.Polynomial())
    for number, hazard in enumerate(oracles.hazard_battery()):
        try:
            blocks = [block_of(x[:100], kernels[number % 3])[0] for x in (hazard.x, hazard.y)]
        except ValueError:  # too large for a polynomial
            continue
        got = in_strips(Emulated(programs[STRIPS], number % 3, PACES[number % 4]), blocks)
        want = pair_sums(programs[WHOLE], blocks, [], True, True, 2**22)(0)
        size = np.sqrt(np.outer(want[1], want[1]))
        assert_close(got[0], want[0], "hsic", "float64", 100, 64, scale=size)
        assert_close(got[2], want[2], "hsic", "float64", 100, 64, scale=want[2])


def test_kernels_that_cancel_pass_again(programs: dict[str, Any]) -> None:
    """The estimate of 256 rows is poor where one of the others is far away: norms stay for the second walk."""
    x = relu(130, 6)
    x[5] *= 1e5
    blocks = [block_of(x, sk.Polynomial())[0], block_of(relu(130, 9, 1), sk.RBF())[0], block_of(x)[0]]
    emulated = Emulated(programs[STRIPS], pace="work")
    agrees(in_strips(emulated, blocks, resident=64, passing=64), blocks, [], True, True)
    row = 8 * (6 + 9 + 6)
    assert emulated.ran[0].copied == 2 * (130 + 66 + 2) * row + 2 * 130 * 8 * 15


def test_how_often_rows_cross(programs: dict[str, Any]) -> None:
    """As those of linear kernels, and once more before, with the pilots."""
    n, row, linear = 512, 4 * 12, 4 * 5
    blocks = [block_of(relu(n, 12).astype(np.float32), sk.RBF())[0], block_of(relu(n, 5).astype(np.float32))[0]]
    for resident, k in ((512, 1), (256, 2)):
        emulated = Emulated(programs[STRIPS])
        in_strips(emulated, blocks, resident=resident, passing=64)
        assert emulated.ran[0].copied == n * (row + linear) * (k + 1) // 2 + (n + PILOT) * row


def test_memory_that_is_full_is_tried_again_and_then_explained(programs: dict[str, Any]) -> None:
    blocks = [block_of(relu(200, p).astype(np.float32), sk.RBF())[0] for p in (20, 300)]
    emulated = Emulated(programs[STRIPS])
    want = in_strips(emulated, blocks, room=0)
    least = emulated.ran[0].most
    emulated.memory = least
    assert same_bits(in_strips(emulated, blocks, resident=9999, passing=9999, room=2**30), want)
    assert emulated.ran[1].machines == 2
    assert emulated.ran[1].most == least
    sentence = r"^CUDA cannot allocate \d+ bytes on the device: its memory is full even with the smallest workspace$"
    for memory in (least - 1, 2_000):
        emulated.memory = memory
        with pytest.raises(MemoryError, match=sentence):
            in_strips(emulated, blocks, resident=256)


def test_every_pass_can_be_stopped(programs: dict[str, Any]) -> None:
    blocks = [block_of(relu(130, 20).astype(np.float32), sk.RBF())[0]]
    for pace, pauses in zip(PACES, (0, 2, 3, 6), strict=True):  # of the pilots', and of the walk
        emulated = Emulated(programs[STRIPS], pace=pace, pauses=pauses)
        with pytest.raises(RuntimeError, match=r"^stopped$"):
            in_strips(emulated, blocks)
        assert emulated.ran[0].machines == 1


# Everything above the module, end to end.


@pytest.fixture
def device(programs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Emulated:
    emulated = Emulated(programs[STRIPS], pace="chance")
    see_device(monkeypatch, module(programs[WHOLE], emulated))
    return emulated


def test_memory_from_the_least_to_plenty(device: Emulated) -> None:
    n = 520
    layers = {str(p): relu(n, p, p).astype(np.float32) for p in (300, 20)}
    measure = sk.CKA(kernel=sk.Polynomial())
    want = sk.similarity_matrix(layers, measure=measure).values
    least = smallest(device, layers, measure=measure)
    reasons = []
    for memory in (least, None):
        StripArray.uploads.clear()
        m = within(device, layers, memory, measure=measure)
        assert_close(m.values, want, "cka", "float32", n, 300)
        reasons.append(m.plan.steps[0].reason)
        assert ("copied to the device" in reasons[-1]) == (memory is None)
        assert (n * 300 * 4 in StripArray.uploads) == (memory is None)
    assert reasons[0].endswith("; those of non-linear kernels pass once before, for norms and means")


def test_what_the_plan_says_is_what_is_taken(device: Emulated) -> None:
    """Where the pilots take most, and where the walk does: a wide layer of a non-linear kernel, and one of a linear."""
    for widths in ((90, 5), (5, 90)):
        kernels = sk.RBF(), sk.Linear()
        layers = [relu(400, p, p).astype(np.float32) for p in widths]
        blocks = [block_of(x, kernel)[0] for x, kernel in zip(layers, kernels, strict=True)]
        with pytest.raises(TooLittleMemory) as refused:
            cuda_strips.plan_pair_sums(blocks, None, memory=1000)
        taken = []
        for more in (0, 60_000):
            memory = refused.value.needed + more
            plan = cuda_strips.plan_pair_sums(blocks, None, memory=memory)
            assert isinstance(plan, cuda_strips.HostRoute)
            assert plan.strips is not None
            cuda_strips.pair_sums(blocks, (), 0, True, plan, plan.strips)
            taken.append(device.ran[-1].most)
            assert taken[-1] <= plan.bytes <= memory
        assert taken[0] < taken[-1]
