"""The CUDA programs' arithmetic, without a device: the same C++, run on the host by an emulator, against the reference.

The emulator (tests/native) runs the threads of a block one after another, in three orders; the bits must not depend on
the order. Arrays start out as NaN and are watched at both ends.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import emulated_cuda
import numpy as np
import numpy.typing as npt
import oracles
import pytest
from cuda_cases import agrees, array_of, block_of, bound, every_order, half, layouts, pair_sums, relu, see_device
from emulated_cuda import compile_programs
from tolerance import assert_close, worst_error

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends import reference
from simkit.backends.base import Block
from simkit.metrics.cka import ForcedRoute, normalised
from simkit.metrics.prepare import prepare

Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    found = compile_programs(tmp_path_factory.getbasetemp())
    return found or pytest.skip("there is no C++ compiler")


# Columns.


def column_stats(programs: Any, block: Block) -> Callable[[int], Sequence[Array]]:
    def compute(order: int) -> Sequence[Array]:
        x, scale = array_of(block.matrix), block.row_scale
        mean, squares, max_abs, max_dev, *bad = emulated_cuda.column_stats(programs, order, x=x, row_scale=scale)
        return mean, squares, np.array([max_abs, max_dev]), np.array(bad)

    return compute


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 63, 64, 65, 511, 512, 513, 1027])
@pytest.mark.parametrize("p", [1, 31, 32, 33, 98])
def test_column_stats(programs: Any, n: int, p: int) -> None:
    for dtype in ("float32", "float64"):
        matrix = as_matrix((relu(n, p) + 1000).astype(dtype))
        want = reference.column_stats(matrix)
        block = Block(matrix, sk.Linear(), np.zeros(p), 0)
        mean, squares, most, bad = every_order(column_stats(programs, block))
        assert_close(mean, want.mean, "mean", dtype, n, p, scale=want.max_abs)
        assert worst_error(squares, want.sum_sq_dev, scale=1e-300 + want.sum_sq_dev) <= 1e-12
        assert most[0] == want.max_abs
        assert want.max_dev * (1 - 1e-12) <= most[1] <= 4 * want.max_dev + 1e-300
        assert bad.tolist() == [0, -1, -1]


def test_column_stats_of_any_layout_type_and_scale(programs: Any) -> None:
    x = relu(70, 37)
    scale = 1.0 / np.linalg.norm(x, axis=1)
    for kind, weights in itertools.product(emulated_cuda.DTYPES, (None, scale)):
        matrix = as_matrix(half(x, kind))
        want = reference.column_stats(matrix, row_scale=weights)
        block = Block(matrix, sk.Linear(), np.zeros(37), 0, weights)
        mean, squares, *_ = every_order(column_stats(programs, block))
        assert_close(mean, want.mean, "mean", "float64", 70, 37, scale=want.max_abs)
        assert_close(squares, want.sum_sq_dev, "products", "float64", 70, 37, scale=want.sum_sq_dev)
    for view in layouts(x.astype(np.float32)):
        block = Block(as_matrix(view), sk.Linear(), np.zeros(37), 0)
        for got, same in zip(
            column_stats(programs, block)(0),
            column_stats(programs, Block(as_matrix(x.astype(np.float32)), sk.Linear(), np.zeros(37), 0))(0),
            strict=True,
        ):
            assert got.tobytes() == same.tobytes()


def test_constant_columns_deviate_by_exactly_nothing(programs: Any) -> None:
    x = np.tile(np.random.default_rng(0).standard_normal(40).astype(np.float32) * 1e3, (1000, 1))
    for weights in (None, np.full(1000, 1 / 3)):
        block = Block(as_matrix(x), sk.Linear(), np.zeros(40), 0, weights)
        mean, squares, most, _ = every_order(column_stats(programs, block))
        assert not squares.any()
        assert most[1] == 0.0
        assert mean.tolist() == (x[0].astype(np.float64) * (1.0 if weights is None else 1 / 3)).tolist()


def test_nonfinite_entries_are_counted_and_the_first_is_found(programs: Any) -> None:
    for places in ([(700, 3)], [(9, 44), (9, 2), (600, 0)], [(0, 0), (999, 49)]):
        x = relu(1000, 50).astype(np.float32)
        for k, (i, j) in enumerate(places):
            x[i, j] = (np.nan, np.inf, -np.inf)[k]
        block = Block(as_matrix(x), sk.Linear(), np.zeros(50), 0)
        *_, bad = every_order(column_stats(programs, block))
        assert bad.tolist() == [len(places), *min(places)]


def test_every_half_value_is_read_exactly(programs: Any) -> None:
    torch = pytest.importorskip("torch")
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for kind in (torch.float16, torch.bfloat16):
        values = bits.view(kind)
        values = values[values.isfinite()].reshape(1, -1)
        block = Block(as_matrix(values), sk.Linear(), np.zeros(values.shape[1]), 0)
        mean, *_ = column_stats(programs, block)(0)
        assert mean.tolist() == values[0].double().tolist()  # one sample: the mean is the value


@pytest.mark.parametrize(("n", "p"), [(1, 1), (7, 31), (8, 32), (9, 33), (40, 700)])
def test_row_norms(programs: Any, n: int, p: int) -> None:
    for dtype in ("float32", "float64"):
        block, _ = block_of(relu(max(n, 2), p).astype(dtype))

        def compute(order: int, block: Block = block) -> Sequence[Array]:
            return (emulated_cuda.row_norms(programs, order, bound(block)),)

        (norms,) = every_order(compute)
        want = reference.row_norms(block)
        assert_close(norms, want, "norms", "float64", n, p, scale=want)


# All pairs.


@pytest.mark.parametrize("n", [4, 63, 64, 65, 127, 128, 129, 194, 300])
@pytest.mark.parametrize("wide", [False, True])
def test_pair_sums_of_any_number_of_samples(programs: Any, n: int, wide: bool) -> None:
    if n < 64 and not wide:
        pytest.skip("the route takes float64 products here")
    rows = [block_of(relu(n, p, seed).astype(np.float32))[0] for seed, p in enumerate((5, 40, 17))]
    for debiased, room in itertools.product((True, False), (0, 2**24)):
        compute = pair_sums(programs, rows, [], debiased, wide, room)
        agrees(every_order(compute) if n in (65, 129) else compute(0), rows, [], debiased, wide)


@pytest.mark.parametrize("p", [1, 15, 16, 17, 255, 256, 257, 530])
def test_pair_sums_of_any_number_of_features(programs: Any, p: int) -> None:
    rows = [block_of(relu(70, q, q).astype(np.float32))[0] for q in (p, 3)]
    for wide in (False, True):
        agrees(every_order(pair_sums(programs, rows, [], True, wide, 2**24)), rows, [], True, wide)


def test_pair_sums_do_not_depend_on_the_room(programs: Any) -> None:
    """The same bits whether one tile or all of them are in flight."""
    rows = [block_of(relu(300, p, p).astype(np.float32))[0] for p in (5, 20)]
    for wide in (False, True):
        one, two, all_of_them = (pair_sums(programs, rows, [], True, wide, room)(0) for room in (0, 600_000, 2**28))
        for a, b, c in zip(one, two, all_of_them, strict=True):
            assert a.tobytes() == b.tobytes() == c.tobytes()


def test_pair_sums_across_and_of_many(programs: Any) -> None:
    many = [block_of(relu(66, 1 + seed % 9, seed).astype(np.float32))[0] for seed in range(70)]
    agrees(pair_sums(programs, many, [], True, False, 2**26)(0), many, [], True, False)
    for left in (1, 5, 66):
        compute = pair_sums(programs, many[:left], many[left:], False, False, 2**26)
        agrees(compute(0), many[:left], many[left:], False, False)


def test_pair_sums_of_any_layout_type_and_kernel(programs: Any) -> None:
    x, y = relu(90, 30), relu(90, 7, 1)
    plain = [block_of(x.astype(np.float32))[0], block_of(y.astype(np.float32))[0]]
    same = pair_sums(programs, plain, [], True, False, 2**24)(0)
    for view in layouts(x.astype(np.float32)):
        got = pair_sums(programs, [block_of(view)[0], plain[1]], [], True, False, 2**24)(0)
        for a, b in zip(got, same, strict=True):
            assert a.tobytes() == b.tobytes()
    for kind, kernel in itertools.product(emulated_cuda.DTYPES, (sk.Linear(), sk.Cosine())):
        rows = [block_of(half(x, kind), kernel)[0], block_of(half(y, kind), kernel)[0]]
        wide = kind == "float64"
        agrees(every_order(pair_sums(programs, rows, [], True, wide, 2**24)), rows, [], True, wide)


def test_pair_sums_that_cancel_are_centred_by_their_row_means(programs: Any) -> None:
    """One row dwarfs the others: what is left of K is a 1e-16th of it, unless K is centred before it is squared."""
    x, y = relu(96, 6), relu(96, 9, 1)
    x[5] *= 1e5
    rows = [block_of(x)[0], block_of(y)[0]]
    agrees(every_order(pair_sums(programs, rows, [], True, True, 2**24)), rows, [], True, True)


@pytest.mark.parametrize("n", [4, 15, 16, 17, 63, 64, 65, 1023, 1024, 1025, 3100])
def test_feature_space_of_any_number_of_samples(programs: Any, n: int) -> None:
    rows = [block_of(relu(n, p, seed))[0] for seed, p in enumerate((5, 70, 1))]
    for debiased, room in itertools.product((True, False), (0, 2**24)):
        compute = pair_sums(programs, rows, [], debiased, True, room, sample=False)
        agrees(every_order(compute) if n == 65 else compute(0), rows, [], debiased, True)


@pytest.mark.parametrize("widths", [(1, 1), (64, 64), (63, 65, 2), (128, 1, 1, 1, 130), (1,) * 70, (200,)])
def test_feature_space_of_any_widths_square_and_across(programs: Any, widths: tuple[int, ...]) -> None:
    blocks = [block_of(relu(70, p, seed))[0] for seed, p in enumerate(widths)]
    agrees(every_order(pair_sums(programs, blocks, [], True, True, 0, sample=False)), blocks, [], True, True)
    for left in sorted({1, len(widths) - 1} - {0, len(widths)}):
        rows, columns = blocks[:left], blocks[left:]
        for debiased in (True, False):
            compute = pair_sums(programs, rows, columns, debiased, True, 2**24, sample=False)
            agrees(compute(0), rows, columns, debiased, True)


def test_feature_space_of_any_layout_type_and_kernel(programs: Any) -> None:
    x, y = relu(90, 30), relu(90, 7, 1)
    for view in layouts(x.astype(np.float32)):
        rows = [block_of(view)[0], block_of(y)[0]]
        agrees(pair_sums(programs, rows, [], True, True, 2**24, sample=False)(0), rows, [], True, True)
    for kind, kernel in itertools.product(emulated_cuda.DTYPES, (sk.Linear(), sk.Cosine())):
        rows = [block_of(half(x, kind), kernel)[0], block_of(half(y, kind), kernel)[0]]
        agrees(pair_sums(programs, rows, [], True, True, 2**24, sample=False)(0), rows, [], True, True)


# Everything above the module, end to end.


@pytest.fixture
def device(programs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    see_device(monkeypatch, emulated_cuda.module(programs))


HAZARDS = {hazard.name: hazard for hazard in oracles.hazard_battery()}


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("name", HAZARDS)
def test_hazards(name: str) -> None:
    hazard = HAZARDS[name]
    n, p = hazard.x.shape
    layers = {"x": hazard.x, "y": hazard.y}
    m = sk.similarity_matrix(layers, backend="native_cuda")
    assert m.backend == "native_cuda"
    want = oracles.cka(hazard.x, hazard.y, estimator="debiased")
    assert_close(m["x", "y"], want, "cka", hazard.x.dtype, n, p)
    blocks = [prepare(as_matrix(x, name=key), sk.Linear(), backend="native_cuda") for key, x in layers.items()]
    found = normalised(blocks, None, "debiased", ForcedRoute(backend="native_cuda", route="sample")).values[0, 1]
    assert_close(found, want, "cka", hazard.x.dtype, n, p)


@pytest.mark.parametrize(
    ("built", "runs"),
    [
        ("90-real", (90,)),
        ("80-real,86-real", (80, 86, 87, 89)),
        ("80-real,90-virtual", (80, 86, 87, 89, 90, 100, 103, 120)),
        ("86", (86, 87, 89, 90, 100, 103, 120)),
        ("90a-real", (90,)),
        ("90a-virtual,120", (90, 120)),
        ("100f-real", (100, 103)),
        ("native", (75, 80, 86, 87, 89, 90, 100, 103, 120)),
    ],
)
def test_which_devices_a_build_has_code_for(programs: Any, built: str, runs: tuple[int, ...]) -> None:
    devices = (75, 80, 86, 87, 89, 90, 100, 103, 120)
    assert tuple(c for c in devices if programs.has_code_for(built.encode(), c)) == runs
