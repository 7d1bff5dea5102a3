"""Host arrays that go to a device in strips, on an emulator of its two queues, with as much memory as a test says.

Either queue runs ahead of the other as far as events let it: where a wait is missing, some pace gives another answer.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import emulated_cuda
import numpy as np
import numpy.typing as npt
import oracles
import pytest
from cuda_cases import agrees, array_of, block_of, bound, half, layouts, pair_sums, relu, see_device
from emulated_cuda import compile_programs
from emulated_strips import PACES, Emulated, StripArray, module
from strip_cases import same_bits, smallest, strips, sums, within
from tolerance import assert_close

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends import cuda_device
from simkit.backends.base import Block
from simkit.errors import TooLittleMemory
from simkit.metrics.cka import ForcedRoute, normalised
from simkit.metrics.prepare import prepare

Array = npt.NDArray[Any]
WHOLE, STRIPS = "cuda_programs", "cuda_strips_programs"


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.getbasetemp()
    found = {name: compile_programs(folder, name) for name in (WHOLE, STRIPS)}
    return found if found[WHOLE] else pytest.skip("there is no C++ compiler")


# One matrix.


@pytest.mark.parametrize("pace", PACES)
def test_columns_and_rows_have_the_bits_of_whole_copies(programs: dict[str, Any], pace: str) -> None:
    for order, (n, passing) in enumerate([(1, 0), (511, 512), (513, 0), (1600, 0), (1600, 1024), (1600, 9999)]):
        for weights in (None, np.linspace(0.5, 2, n)):
            x = (relu(n, 33) + 100).astype(np.float32)
            block = Block(as_matrix(x), sk.Linear(), np.zeros(33), 0, weights)
            emulated = Emulated(programs[STRIPS], order % 3, pace)
            matrix = array_of(block.matrix)
            want = emulated_cuda.column_stats(programs[WHOLE], 0, x=matrix, row_scale=weights)
            assert same_bits(emulated.column_stats(x=matrix, row_scale=weights, **strips(passing=passing)), want)
            norms = emulated_cuda.row_norms(programs[WHOLE], 0, bound(block))
            assert same_bits([emulated.row_norms(bound(block), **strips(passing=passing))], [norms])


def test_columns_of_any_layout_and_type(programs: dict[str, Any]) -> None:
    x = relu(520, 70)
    for kind in emulated_cuda.DTYPES:
        matrix = as_matrix(half(x, kind))
        want = emulated_cuda.column_stats(programs[WHOLE], 0, x=array_of(matrix), row_scale=None)
        got = Emulated(programs[STRIPS], pace="copies").column_stats(x=array_of(matrix), row_scale=None, **strips())
        assert same_bits(got, want)
        if kind == "bfloat16":
            continue
        for view in layouts(half(x, kind)):
            emulated = Emulated(programs[STRIPS], pace="work")
            for room in (0, 2**20):  # bands of columns, and all of them
                again = emulated.column_stats(x=array_of(as_matrix(view)), row_scale=None, **strips(room=room))
                assert same_bits(again, want)


def test_nonfinite_entries_of_later_strips_are_found(programs: dict[str, Any]) -> None:
    for places in ([(1500, 3)], [(9, 44), (9, 2), (1024, 0)], [(512, 0), (1599, 49)]):
        x = relu(1600, 50).astype(np.float32)
        x[tuple(zip(*places, strict=True))] = np.inf
        *_, number, row, column = Emulated(programs[STRIPS]).column_stats(
            x=array_of(as_matrix(x)), row_scale=None, **strips()
        )
        assert (number, row, column) == (len(places), *min(places))


# All pairs.


@pytest.mark.parametrize("pace", PACES)
@pytest.mark.parametrize("wide", [False, True])
def test_pairs_in_sample_space(programs: dict[str, Any], pace: str, wide: bool) -> None:
    """Rows in strips of one tile, whose last has one row: the terms in the order of strips."""
    n = 3 * 64 + 1 if wide else 2 * 128 + 1  # the first strip has more to pass it than the two places for them
    blocks = [block_of(relu(n, p, p).astype(np.float32), sk.Cosine())[0] for p in (12, 5)]
    emulated = Emulated(programs[STRIPS], PACES.index(pace) % 3, pace)
    agrees(sums(emulated, blocks, 2, sample=True, wide=wide), blocks, [], True, wide)


@pytest.mark.parametrize("wide", [False, True])
def test_pairs_in_one_strip_have_the_bits_of_whole_copies(programs: dict[str, Any], wide: bool) -> None:
    for n in (4, 65, 128) if wide else (129, 256):
        blocks = [block_of(relu(n, p, p).astype(np.float32))[0] for p in (20, 5)]
        got = sums(Emulated(programs[STRIPS]), blocks, 2, sample=True, wide=wide, resident=n + 127)
        assert same_bits(got, pair_sums(programs[WHOLE], blocks, [], True, wide, 2**20)(0))


@pytest.mark.slow
@pytest.mark.parametrize("tile", [64, 128])
def test_pairs_in_strips_of_any_height(programs: dict[str, Any], tile: int) -> None:
    """Heights that divide one another, and that do not: the row sums keep their bits, the products their digits."""
    for n, (resident, passing) in itertools.product(
        (tile - 1, tile, tile + 1, 3 * tile + 2), ((3, 2), (2, 1), (2, 2), (1, 1))
    ):
        blocks = [block_of(relu(n, p, p).astype(np.float32))[0] for p in (20, 5)]
        heights = {"resident": resident * tile, "passing": passing * tile}
        for order, pace in enumerate(PACES):
            emulated = Emulated(programs[STRIPS], order % 3, pace)
            agrees(
                sums(emulated, blocks, 1, sample=True, wide=tile == 64, **heights), blocks[:1], blocks[1:], True, False
            )


def features_agree(
    programs: dict[str, Any], pace: str, n: int, widths: Sequence[int], kernel: Any, **sizes: int
) -> None:
    blocks = [block_of(relu(n, p, p).astype(np.float32), kernel)[0] for p in widths]
    emulated = Emulated(programs[STRIPS], PACES.index(pace) % 3 if n < 2100 else 0, pace)
    got = sums(emulated, blocks, len(blocks), sample=False, wide=True, **sizes)
    assert same_bits(got, pair_sums(programs[WHOLE], blocks, [], True, True, 2**26, sample=False)(0))


@pytest.mark.parametrize("pace", PACES)
def test_pairs_in_feature_space_have_the_bits_of_whole_copies(programs: dict[str, Any], pace: str) -> None:
    """A group of samples a strip, and several; one square a batch, and all."""
    features_agree(programs, pace, 70, (5, 70), sk.Linear(), room=0)
    features_agree(programs, pace, 2050, (5, 3), sk.Cosine())
    features_agree(programs, pace, 3100, (5, 3), sk.Linear(), passing=2048, room=0)


@pytest.mark.slow
def test_strips_that_are_parts_of_a_group_of_samples(programs: dict[str, Any]) -> None:
    """So many squares that they keep a device busy without more groups than one."""
    features_agree(programs, "copies", 2100, (1100, 1000), sk.Linear(), room=2**26)


@pytest.mark.parametrize("sample", [True, False])
def test_pairs_of_any_layout_type_and_side(programs: dict[str, Any], sample: bool) -> None:
    x, y = relu(130, 30), block_of(relu(130, 7, 1).astype(np.float32))[0]
    emulated = Emulated(programs[STRIPS], pace="chance")
    for kind in emulated_cuda.DTYPES:
        wide = kind == "float64" or not sample
        blocks = [block_of(half(x, kind))[0], y]
        agrees(sums(emulated, blocks, 2, sample=sample, wide=wide), blocks, [], True, wide)
        agrees(sums(emulated, blocks, 1, sample=sample, wide=wide), blocks[:1], blocks[1:], True, wide)
    want = sums(emulated, [block_of(x.astype(np.float32))[0], y], 2, sample=sample, wide=not sample)
    for view in layouts(x.astype(np.float32)):
        got = sums(emulated, [block_of(view)[0], y], 2, sample=sample, wide=not sample, room=0, threads=1)
        assert same_bits(got, want)


@pytest.mark.parametrize("wide", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_hazards(programs: dict[str, Any], wide: bool) -> None:
    """Strips change the order of a few sums: what the arithmetic of whole copies makes of a hazard, strips do too."""
    for number, hazard in enumerate(oracles.hazard_battery()):
        if hazard.x.dtype == np.float64 and not wide:
            continue
        blocks = [block_of(x[:100])[0] for x in (hazard.x, hazard.y)]
        for sample in (True, False):
            emulated = Emulated(programs[STRIPS], number % 3, PACES[number % 4])
            got = sums(emulated, blocks, 2, sample=sample, wide=wide or not sample)
            want = pair_sums(programs[WHOLE], blocks, [], True, wide or not sample, 2**24, sample=sample)(0)
            if sample:
                size = np.sqrt(np.outer(want[1], want[1]))
                assert_close(got[0], want[0], "hsic", "float64", 100, 64, scale=size)
                assert_close(got[2], want[2], "hsic", "float64", 100, 64, scale=want[2])
            else:
                assert same_bits(got, want)


def test_pairs_that_cancel_pass_again(programs: dict[str, Any]) -> None:
    x, y = relu(130, 6), relu(130, 9, 1)
    x[5] *= 1e5
    blocks = [block_of(x)[0], block_of(y)[0]]
    for pace in PACES:
        got = sums(Emulated(programs[STRIPS], pace=pace), blocks, 2, sample=True, wide=True, resident=64, passing=64)
        agrees(got, blocks, [], True, True)


def test_how_often_rows_cross(programs: dict[str, Any]) -> None:
    """With k resident strips every row crosses (k + 1) / 2 times on average, and those of the last strip k times."""
    n, row = 256, 4 * 12
    blocks = [block_of(relu(n, 12).astype(np.float32))[0]]
    for resident, k in ((256, 1), (128, 2), (64, 4)):
        emulated = Emulated(programs[STRIPS])
        sums(emulated, blocks, 1, sample=True, wide=True, resident=resident, passing=64)
        assert emulated.ran[0].copied == n * row * (k + 1) // 2


# Memory.


def test_memory_that_is_full_is_tried_again_and_then_explained(programs: dict[str, Any]) -> None:
    blocks = [block_of(relu(200, 20).astype(np.float32))[0]]
    emulated = Emulated(programs[STRIPS])
    want = sums(emulated, blocks, 1, sample=True, wide=True)
    least = emulated.ran[0].most
    emulated.memory = least
    got = sums(emulated, blocks, 1, sample=True, wide=True, resident=9999, passing=9999, room=2**30)
    assert emulated.ran[1].machines == 2
    assert emulated.ran[1].most == least
    assert same_bits(got, want)
    emulated.memory = least - 1
    sentence = r"^CUDA cannot allocate \d+ bytes on the device: its memory is full even with the smallest workspace$"
    with pytest.raises(MemoryError, match=sentence):
        sums(emulated, blocks, 1, sample=True, wide=True, resident=256)
    emulated.memory = 2_000
    for call in (
        lambda: emulated.column_stats(x=array_of(blocks[0].matrix), row_scale=None, **strips()),
        lambda: emulated.row_norms(bound(blocks[0]), **strips(passing=9999)),
        lambda: sums(emulated, blocks, 1, sample=False, wide=True),
    ):
        with pytest.raises(MemoryError, match=sentence):
            call()
        assert emulated.ran[-1].machines == 2


def test_a_walk_can_be_stopped(programs: dict[str, Any]) -> None:
    blocks = [block_of(relu(600, 20).astype(np.float32))[0]]
    for pace, (sample, pauses) in itertools.product(PACES, ((True, 0), (True, 7), (False, 0))):
        emulated = Emulated(programs[STRIPS], pace=pace, pauses=pauses)
        with pytest.raises(RuntimeError, match=r"^stopped$"):
            sums(emulated, blocks, 1, sample=sample, wide=True)
        assert emulated.ran[0].machines == 1


# Everything above the module, end to end.


@pytest.fixture
def device(programs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Emulated:
    emulated = Emulated(programs[STRIPS], pace="chance")
    found = module(programs[WHOLE], emulated)
    see_device(monkeypatch, found)
    return emulated


@pytest.mark.parametrize(("n", "kernel"), [(520, sk.Linear()), (3100, sk.Cosine())])
def test_memory_from_the_least_to_plenty(device: Emulated, n: int, kernel: Any) -> None:
    layers = {str(p): relu(n, p, p).astype(np.float32) for p in ((300, 20) if n == 520 else (40, 9))}
    want = sk.similarity_matrix(layers, measure=sk.CKA(kernel=kernel)).values
    least = smallest(device, layers, measure=sk.CKA(kernel=kernel))
    seen = []
    for memory in (least, least * 9 // 8, None):
        m = within(device, layers, memory, measure=sk.CKA(kernel=kernel))
        assert_close(m.values, want, "cka", "float32", n, 150)
        step = m.plan.steps[0]
        assert step.route == ("sample space" if n == 520 else "feature space")
        seen.append("copied to the device" in step.reason)
        assert seen[-1] != ("pass" in step.reason)
    assert seen == [False, False, True]


def test_arrays_are_copied_once_a_call(device: Emulated) -> None:
    layers = {str(p): relu(150, p, p).astype(np.float32) for p in (30, 4)}
    for kernel in (sk.Linear(), sk.Cosine(), sk.RBF(0.5)):
        StripArray.uploads.clear()
        m = within(device, layers, None, measure=sk.CKA(kernel=kernel))
        assert sorted(StripArray.uploads) == [150 * 4 * 4, 150 * 30 * 4]
        assert not device.ran
        StripArray.uploads.clear()
        assert sk.cka(layers["30"], layers["4"], kernel=kernel, backend="native_cuda") == m["30", "4"]
        assert len(StripArray.uploads) == 2
    gc.collect()
    assert not cuda_device._held


def test_a_device_with_little_memory_takes_strips(device: Emulated) -> None:
    layers = {str(p): relu(520, p, p).astype(np.float32) for p in (300, 20)}
    device.memory = 950_000  # of which 80%; the features have 665 600 bytes
    m = within(device, layers, None)
    assert device.ran
    assert StripArray.uploads == [520 * 20 * 4]  # for its statistics
    assert "samples stay while others pass" in m.plan.steps[0].reason
    assert_close(m.values, sk.similarity_matrix(layers).values, "cka", "float32", 520, 300)
    blocks = [prepare(as_matrix(x, name=name), sk.Polynomial()) for name, x in layers.items()]
    device.memory = 400_000
    sentence = r"^memory=320000 bytes, 80% of what is free, is too little: comparing 2 layers of 520 samples on a "
    with pytest.raises(TooLittleMemory, match=sentence + r"device needs \d+$"):
        normalised(blocks, None, "debiased", ForcedRoute(backend="native_cuda"))


def test_files_that_are_mapped(device: Emulated, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors import safe_open
    from safetensors.torch import save_file

    x, y = relu(520, 150).astype(np.float32), torch.from_numpy(relu(520, 90)).bfloat16()
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "fortran.npy", np.asfortranarray(x))
    save_file({"y": y}, tmp_path / "y.safetensors")
    want = sk.similarity_matrix({"x": x, "f": x, "y": y})
    with safe_open(tmp_path / "y.safetensors", framework="pt") as file:
        layers = {
            "x": np.load(tmp_path / "x.npy", mmap_mode="r"),
            "f": np.load(tmp_path / "fortran.npy", mmap_mode="r"),
            "y": file.get_tensor("y"),
        }
        m = within(device, layers, smallest(device, layers))
    assert device.ran
    assert_close(m.values, want.values, "cka", "float32", 520, 150)
    assert m["x", "f"] == pytest.approx(1, abs=1e-12)
