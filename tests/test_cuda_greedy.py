"""Greedy orders on a device, without one: the CUDA programs on the emulator (tests/native), against the reference."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import emulated_greedy
import numpy as np
import numpy.typing as npt
import pytest
from cuda_cases import ORDERS, array_of, block_of, bound, every_order, half, layouts, relu
from emulated_cuda import compile_programs
from tolerance import assert_close

from simkit.arrays import as_matrix
from simkit.backends import cuda_routes, native_cpu, reference
from simkit.backends.base import Block, UnitBlocks
from simkit.backends.routes import plan_pair_sums

Array = npt.NDArray[Any]
IN_REGISTERS = emulated_greedy.IN_REGISTERS


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    found = compile_programs(tmp_path_factory.getbasetemp(), "cuda_greedy_programs")
    return found or pytest.skip("there is no C++ compiler")


@pytest.mark.parametrize(("n", "p"), [(2, 1), (63, 65), (64, 128), (130, 129), (1023, 3), (1025, 64), (3100, 20)])
def test_column_products(programs: Any, n: int, p: int) -> None:
    for dtype, exact in itertools.product(("float32", "float64"), (False, True)):
        block, stats = block_of(relu(n, p).astype(dtype))

        def compute(order: int, block: Block = block, squares: Any = stats.sum_sq_dev, exact: bool = exact) -> Any:
            options = {"exact": exact, "tensor": False, "squared": order == 3}
            return (
                emulated_greedy.column_products(
                    programs, order % 3, bound(block), squares, **options, bytes=2**30
                ).held,
            )

        (g,) = every_order(compute) if n < 200 else compute(0)
        want = reference.column_products(block, stats)
        assert np.array_equal(g, g.T)
        size = np.sqrt(np.outer(np.diag(want), np.diag(want)))
        assert_close(g, want, "products", "float64" if exact else "float32", n, p, scale=size)
        (squared,) = compute(3)
        assert np.array_equal(squared, g * g)


# Sums of units.


def sums_of_units(
    programs: Any, block: Block, offsets: Any, *, debiased: bool, sample: bool, wide: bool, room: int = 2**26
) -> Callable[[int], Sequence[Array]]:
    def compute(order: int) -> Sequence[Array]:
        how: Any = {
            "debiased": debiased,
            "sample_space": sample,
            "double_products": wide,
            "tensor": False,
            "bytes": room,
        }
        values, own, raw = emulated_greedy.unit_sums(programs, order, bound(block), np.asarray(offsets), **how)
        return values.held, own, raw

    return compute


def units_agree(got: Sequence[Array], block: Block, offsets: Any, debiased: bool, wide: bool) -> None:
    rows = UnitBlocks(block, np.asarray(offsets))
    route = plan_pair_sums(rows, None, route="sample")
    want = reference.pair_sums(rows, None, estimator="debiased" if debiased else "biased", route=route)
    size, widest = want.self_rows, int(np.diff(offsets).max())
    dtype = "float64" if wide else "float32"
    assert_close(got[1], want.self_rows, "hsic", dtype, block.n, widest, scale=size)
    assert_close(got[0], want.values, "hsic", dtype, block.n, widest, scale=np.sqrt(np.outer(size, size)))
    assert np.array_equal(got[0], got[0].T)
    assert np.array_equal(np.diag(got[0]), got[1])


WIDTHS = {"columns": [1] * 20, "blocks": [5] * 13, "ragged": [1, 64, 2, 65, 3], "wide": [70, 200], "one": [30]}


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("n", [65, pytest.param(200, marks=pytest.mark.slow)])
def test_sums_of_units(programs: Any, widths: str, n: int) -> None:
    """By both routes as the reference."""
    offsets = np.cumsum([0, *WIDTHS[widths]])
    for dtype, debiased in itertools.product(("float32", "float64"), (True, False)):
        block, _ = block_of(relu(n, int(offsets[-1])).astype(dtype))
        for sample, wide in ((True, dtype == "float64"), (False, True)):
            compute = sums_of_units(programs, block, offsets, debiased=debiased, sample=sample, wide=wide)
            units_agree(every_order(compute) if n == 65 else compute(0), block, offsets, debiased, wide)


def test_the_plan_counts_the_cross_products_of_all_columns() -> None:
    block, _ = block_of(relu(300, 40))
    rows = UnitBlocks(block, np.arange(0, 41, 5))
    assert [len(rows), rows[-1].p, len(rows[2:4])] == [8, 5, 2]
    assert len({rows, UnitBlocks(block, rows.offsets)}) == 2  # by identity: arrays have no one answer
    whole, apart = (cuda_routes.plan_pair_sums(blocks, None, route="feature") for blocks in (rows, list(rows)))
    size = cuda_routes.feature_size(300, [5] * 8, [])
    assert apart.bytes == size.space.total(1)  # one square, of which the units' sums ask for no shares
    assert whole.bytes == size.space.shared + size.parts + 8 * 40 * 40
    assert whole.multiply_adds == apart.multiply_adds


def test_sums_of_units_that_cancel(programs: Any) -> None:
    """One row dwarfs the others: tiles are centred by their row means, and formed again."""
    x = relu(96, 20)
    x[5] *= 1e5
    block, _ = block_of(x)
    found = {}
    for room in (0, 2**26):
        compute = sums_of_units(programs, block, [0, 6, 20], debiased=True, sample=True, wide=True, room=room)
        found[room] = every_order(compute)
        units_agree(found[room], block, [0, 6, 20], True, True)
    assert [part.tobytes() for part in found[0]] == [part.tobytes() for part in found[2**26]]


def test_sums_of_units_of_any_layout_and_type(programs: Any) -> None:
    x, offsets = relu(70, 30), [0, 4, 5, 30]
    for sample in (True, False):
        views = [block_of(view)[0] for view in layouts(x.astype(np.float32))]
        halves = [block_of(half(x, kind))[0] for kind in ("float16", "bfloat16")]
        for block in (*views, *halves):
            compute = sums_of_units(programs, block, offsets, debiased=True, sample=sample, wide=not sample)
            units_agree(compute(0), block, offsets, True, not sample)


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32", "float64"])
def test_columns_in_any_order(programs: Any, kind: str) -> None:
    for n, p, count in ((1, 1, 1), (16, 20, 255), (17, 300, 256), (33, 9, 257)):
        plain = half(relu(n, p), kind)
        for view in [plain] if kind == "bfloat16" else layouts(plain):
            matrix = as_matrix(view)
            index = np.random.default_rng(count).integers(0, p, count)
            for order in ORDERS:
                got = emulated_greedy.gather_columns(programs, order, array_of(matrix), index)
                assert np.array_equal(got.held, matrix.values[:, index])


# Elimination.


def orders(
    programs: Any,
    matrices: Sequence[Array],
    *,
    greedy: bool = True,
    counts: Sequence[int] | None = None,
    least: float | None = None,
    in_registers: int = IN_REGISTERS,
) -> Callable[[int], Sequence[Array]]:
    """Of each matrix the order, the CKA, and the smallest gap beside whether digits were lost."""

    def compute(order: int) -> Sequence[Array]:
        found = emulated_greedy.eliminate(
            programs,
            order,
            [emulated_greedy.square(a) for a in matrices],
            greedy=greedy,
            counts=counts or [len(a) for a in matrices],
            min_cka=math.nan if least is None else least,
            in_registers=in_registers,
        )
        return [part for units, cka, *numbers in found for part in (units, cka, np.array(numbers, dtype=np.float64))]

    return compute


def layer(n: int, u: int) -> Array:
    z = relu(n, u)
    g = (z - z.mean(0)).T @ (z - z.mean(0))
    return g * g


@pytest.mark.parametrize("u", [1, 2, 3, 31, 100])
@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("in_registers", [IN_REGISTERS, 0])
def test_elimination(programs: Any, u: int, greedy: bool, in_registers: int) -> None:
    cases = [layer(150, u), np.eye(u), np.ones((u, u)), np.diag(np.arange(u) + 1.0)]
    for a, (count, least) in itertools.product(cases, ((u, None), (max(1, u // 2), None), (u, 0.9), (u, 2.0))):
        (want,) = reference.eliminate([a], greedy=greedy, counts=[count], min_cka=least)
        compute = orders(programs, [a], greedy=greedy, counts=[count], least=least, in_registers=in_registers)
        units, cka, gap = every_order(compute) if u < 100 else compute(0)
        assert units.tolist() == want.order.tolist()
        assert_close(cka, want.cka, "greedy", "float64", u, u)
        assert gap[0] == pytest.approx(want.smallest_gap, abs=1e-12)


@pytest.mark.parametrize("u", [512, 513, 2048, 2049, 4100])
def test_elimination_of_more_units_than_threads(programs: Any, u: int) -> None:
    """In one register of a thread, in four, in sixteen, and in memory, eight at a time: the same order and bits."""
    a, count = layer(64, u), 12
    (want,) = native_cpu.eliminate([a], counts=[count])
    found = [orders(programs, [a], counts=[count], in_registers=held)(2) for held in (IN_REGISTERS, 0)]
    for units, cka, _ in found:
        assert units.tolist() == want.order.tolist()
        assert_close(cka, want.cka, "greedy", "float64", u, u)
    assert found[0][1].tobytes() == found[1][1].tobytes()


@pytest.mark.parametrize("greedy", [True, False])
def test_sums_that_fall_faster_than_the_queue_foresees(programs: Any, greedy: bool) -> None:
    """Multiples of one unit: every choice ties, and every removal leaves a ninth of Q, so that it is formed again."""
    s = 3.0 ** -np.arange(40)
    (want,) = reference.eliminate([np.outer(s, s)], greedy=greedy)
    units, cka, _ = every_order(orders(programs, [np.outer(s, s)], greedy=greedy))
    assert units.tolist() == want.order.tolist() == list(range(40))
    assert_close(cka, want.cka, "greedy", "float64", 40, 40)


@pytest.mark.parametrize("in_registers", [IN_REGISTERS, 0])
def test_elimination_on_any_matrix_of_products(programs: Any, in_registers: int) -> None:
    """Negative entries, as debiased matrices have them; a Q that comes near zero on its way."""
    for u, greedy in itertools.product((2, 3, 30), (True, False)):
        k = np.random.default_rng([6, u]).standard_normal((u, 200))
        (want,) = reference.eliminate([k @ k.T], greedy=greedy)
        units, cka, _ = orders(programs, [k @ k.T], greedy=greedy, in_registers=in_registers)(2)
        assert units.tolist() == want.order.tolist()
        assert np.allclose(cka, want.cka, rtol=0, atol=1e-10, equal_nan=True)


@pytest.mark.parametrize("greedy", [True, False])
def test_constant_units_and_copies(programs: Any, greedy: bool) -> None:
    """Units that are constant go first, copies tie; one unit dwarfs the others, whose sums are formed again for it."""
    z = relu(90, 70)
    z[:, [3, 44]] = 5.0
    z[:, 50:60] = z[:, 10:20]
    z[:, 7] *= 1e4
    g = (z - z.mean(0)).T @ (z - z.mean(0))
    (want,) = reference.eliminate([g * g], greedy=greedy)
    units, cka, _ = every_order(orders(programs, [g * g], greedy=greedy))
    assert units.tolist() == want.order.tolist()
    assert_close(cka, want.cka, "greedy", "float64", 90, 70)


@pytest.mark.parametrize("in_registers", [IN_REGISTERS, 0])
def test_matrices_are_searched_side_by_side(programs: Any, in_registers: int) -> None:
    """As each would be alone, whatever else is searched and wherever it stops."""
    matrices, counts = [layer(90, u) for u in (33, 1, 600, 40, 513)], [33, 1, 9, 5, 20]
    for greedy, least in ((True, None), (False, None), (True, 0.999)):
        options: Any = {"greedy": greedy, "least": least, "in_registers": in_registers}
        found = every_order(orders(programs, matrices, counts=counts, **options))
        alone = [
            part
            for a, count in zip(matrices, counts, strict=True)
            for part in orders(programs, [a], counts=[count], **options)(0)
        ]
        assert [part.tobytes() for part in found] == [part.tobytes() for part in alone]


def test_elimination_without_a_score_picks_units_all_the_same(programs: Any) -> None:
    """A total that is not positive leaves no score: every removal is of a unit, and nobody knows its CKA."""
    for a in (-np.eye(40), np.zeros((3, 3)), np.full((5, 5), np.nan)):
        for greedy in (True, False):
            units, cka, _ = every_order(orders(programs, [a], greedy=greedy))
            assert units.tolist() == list(range(len(a)))
            assert np.isnan(cka).all()


@pytest.mark.parametrize("u", [1, 127, 128, 129, 255, 256, 257, 600])
def test_totals(programs: Any, u: int) -> None:
    a = layer(50, u)
    (found,) = {emulated_greedy.total(programs, order, emulated_greedy.square(a)) for order in (0, 1, 2)}
    assert found == pytest.approx(a.sum(), rel=1e-13)
    a[0, -1] = np.nan
    assert math.isnan(emulated_greedy.total(programs, 0, emulated_greedy.square(a)))
