"""Products on tensor cores where matrices go in strips, of a layer's units, and of columns: on the emulator, against
the reference; and the choice of them from the plan down to the programs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import emulated_greedy
import emulated_strips
import numpy as np
import numpy.typing as npt
import pytest
from cuda_cases import agrees, block_of, bound, every_order, pair_sums, relu, see_device
from emulated_cuda import compile_programs
from emulated_strips import PACES, Emulated
from tolerance import assert_close, worst_error

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends import cuda_strips, native_cuda, reference
from simkit.backends.base import Block, UnitBlocks
from simkit.backends.routes import plan_pair_sums
from simkit.errors import TooLittleMemory

Array = npt.NDArray[Any]
EPS = 2.0**-23
WHOLE, STRIPS, GREEDY = "cuda_programs", "cuda_strips_programs", "cuda_greedy_programs"


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.getbasetemp()
    found = {name: compile_programs(folder, name) for name in (WHOLE, STRIPS, GREEDY)}
    return found if found[WHOLE] else pytest.skip("there is no C++ compiler")


def in_strips(emulated: Emulated, blocks: list[Block], *, sample: bool, wide: bool, **strips: int) -> Any:
    return emulated.pair_sums(
        rows=[bound(block) for block in blocks],
        columns=[],
        debiased=True,
        sample_space=sample,
        double_products=wide,
        tensor=True,
        **{"resident": 0, "passing": 0, "bytes": 2**20, "threads": 2, **strips},
    )


def same_bits(first: Any, other: Any) -> bool:
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(first, other, strict=True))


# Strips.


@pytest.mark.parametrize("wide", [False, True])
def test_pairs_in_strips_in_sample_space(programs: dict[str, Any], wide: bool) -> None:
    """One strip has the bits of whole copies, on tensor cores too; several have their digits."""
    tile = 64 if wide else 128
    for order, n in enumerate((tile + 1, 2 * tile + 1)):
        blocks = [block_of(relu(n, p, p).astype(np.float32))[0] for p in (36, 17)]
        want = pair_sums(programs[WHOLE], blocks, [], True, wide, 2**24, tensor=True)(0)
        one = in_strips(Emulated(programs[STRIPS]), blocks, sample=True, wide=wide, resident=n + tile)
        assert same_bits(one, want)
        several = in_strips(Emulated(programs[STRIPS], order, PACES[order]), blocks, sample=True, wide=wide)
        agrees(several, blocks, [], True, wide)


def test_pairs_in_strips_in_feature_space_have_the_bits_of_whole_copies(programs: dict[str, Any]) -> None:
    for order, (n, widths, kernel) in enumerate(((70, (5, 70), sk.Linear()), (2050, (5, 3), sk.Cosine()))):
        blocks = [block_of(relu(n, p, p).astype(np.float32), kernel)[0] for p in widths]
        got = in_strips(Emulated(programs[STRIPS], order, PACES[order]), blocks, sample=False, wide=True, bytes=0)
        assert same_bits(got, pair_sums(programs[WHOLE], blocks, [], True, True, 2**26, sample=False, tensor=True)(0))


# Units and columns.


@pytest.mark.parametrize("widths", [[1, 64, 2, 65, 16], [5] * 13])
def test_sums_of_units(programs: dict[str, Any], widths: list[int]) -> None:
    offsets = np.cumsum([0, *widths])
    for dtype, debiased in itertools.product(("float32", "float64"), (True, False)):
        block, _ = block_of(relu(65, int(offsets[-1])).astype(dtype))
        rows = UnitBlocks(block, offsets)
        want = reference.pair_sums(
            rows,
            None,
            estimator="debiased" if debiased else "biased",
            route=plan_pair_sums(rows, None, route="sample"),
        )
        size = want.self_rows
        for sample, wide in ((True, dtype == "float64"), (False, True)):

            def compute(order: int, block: Block = block, how: Any = (debiased, sample, wide)) -> Any:
                named = dict(zip(("debiased", "sample_space", "double_products"), how, strict=True))
                values, own, raw = emulated_greedy.unit_sums(
                    programs[GREEDY], order, bound(block), offsets, **named, bytes=2**26, tensor=True
                )
                return values.held, own, raw

            values, own, _ = every_order(compute)
            kind = "float64" if wide else "float32"
            assert_close(own, size, "hsic", kind, 65, max(widths), scale=size)
            assert_close(values, want.values, "hsic", kind, 65, max(widths), scale=np.sqrt(np.outer(size, size)))


@pytest.mark.parametrize(("n", "p"), [(2, 1), (15, 3), (130, 129), (1023, 3), (1040, 17)])
def test_column_products(programs: dict[str, Any], n: int, p: int) -> None:
    for dtype, exact in (("float32", False), ("float64", False), ("float64", True)):
        block, stats = block_of(relu(n, p).astype(dtype))

        def compute(order: int, block: Block = block, squares: Any = stats.sum_sq_dev, exact: bool = exact) -> Any:
            how: Any = {"exact": exact, "tensor": True, "squared": order == 3}
            return (
                emulated_greedy.column_products(
                    programs[GREEDY], order % 3, bound(block), squares, **how, bytes=2**30
                ).held,
            )

        (g,) = every_order(compute) if n < 100 else compute(2)
        want = reference.column_products(block, stats)
        assert np.array_equal(g, g.T)
        size = np.sqrt(np.outer(np.diag(want), np.diag(want)))
        assert_close(g, want, "products", "float64" if exact else "float32", n, p, scale=size)
        (squared,) = compute(3)
        assert np.array_equal(squared, g * g)


def test_errors_of_columns_are_a_few_eps(programs: dict[str, Any]) -> None:
    """Sums of eight rows inside the tensor cores, of 256 plainly: the same order of units."""
    x = relu(1500, 40).astype(np.float32)
    block, stats = block_of(x)
    want = reference.column_products(block, stats)
    size = np.sqrt(np.outer(np.diag(want), np.diag(want)))
    order = reference.eliminate([want * want])[0].order.tolist()
    found = []
    for tensor in (False, True):
        how: Any = {"exact": False, "tensor": tensor, "squared": False}
        g = emulated_greedy.column_products(
            programs[GREEDY], 0, bound(block), stats.sum_sq_dev, **how, bytes=2**30
        ).held
        found.append(worst_error(g, want, scale=size))
        assert reference.eliminate([g * g])[0].order.tolist() == order
    assert max(found) < 5 * EPS


# The choice, from the plan to the programs.


@pytest.fixture
def device(programs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    def of_capability(major: int, minor: int) -> None:
        see_device(monkeypatch, emulated_greedy.module(programs[WHOLE], programs[GREEDY], capability=(major, minor)))

    return of_capability


@pytest.mark.parametrize(("name", "n"), [("sample", 1000), ("feature", 20_000)])
def test_strips_are_planned_with_the_cores_of_the_device(
    programs: dict[str, Any], monkeypatch: pytest.MonkeyPatch, name: Any, n: int
) -> None:
    blocks = [Block(as_matrix(np.zeros((n, p), np.float32)), sk.Linear(), np.zeros(p), 0) for p in (400, 20)]
    for capability, cores in (((9, 0), None), ((9, 0), "plain"), ((8, 6), None), ((8, 6), "tensor")):
        see_device(monkeypatch, emulated_strips.module(programs[WHOLE], Emulated(programs[STRIPS]), capability))

        def plan(memory: int, forced: Any = cores) -> Any:
            return cuda_strips.plan_pair_sums(blocks, None, memory=memory, route=name, cores=forced)

        with pytest.raises(TooLittleMemory) as refused:
            plan(1000)
        route = plan(refused.value.needed)
        assert route.strips is not None
        assert route.cores == (cores or ("tensor" if capability == (9, 0) else "plain"))
        assert ("on tensor cores" in route.reason) == (route.cores == "tensor")


def test_the_route_s_choice_reaches_strips(programs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same route on other cores: other last bits, those of the program told directly."""
    see_device(monkeypatch, emulated_strips.module(programs[WHOLE], Emulated(programs[STRIPS])))
    blocks = [block_of(relu(129, p, p).astype(np.float32))[0] for p in (36, 17)]
    found = {}
    for cores in ("plain", "tensor"):
        strips = cuda_strips.Strips(bytes=2**20, threads=2)
        route = cuda_strips.HostRoute("sample", "float32", 128, 1, 0, 0, "", cores=cores, strips=strips)  # type: ignore[arg-type]
        found[cores] = native_cuda.pair_sums(blocks, None, estimator="debiased", route=route).values
    assert found["plain"].tobytes() != found["tensor"].tobytes()
    assert same_bits([found["tensor"]], in_strips(Emulated(programs[STRIPS]), blocks, sample=True, wide=False)[:1])


def test_the_choice_reaches_units(device: Callable[[int, int], None]) -> None:
    x, found = relu(200, 96).astype(np.float32), {}
    for capability in ((8, 0), (8, 6)):
        device(*capability)
        got, want = (sk.greedy_cka(x, units=4, backend=backend) for backend in ("native_cuda", "reference"))
        assert got.order.tolist() == want.order.tolist()
        assert_close(got.cka, want.cka, "greedy", "float32", 200, 24)
        assert ("on tensor cores" in got.plan.explain()) == (capability == (8, 0))
        found[capability] = got.cka.tobytes()
    assert found[8, 0] != found[8, 6]


def test_greedy_orders(device: Callable[[int, int], None]) -> None:
    device(8, 0)
    x = relu(200, 24)
    for dtype, exact in itertools.product((np.float32, np.float64), (False, True)):
        got, want = (
            sk.greedy_cka(x.astype(dtype), exact=exact, backend=backend) for backend in ("native_cuda", "reference")
        )
        assert got.order.tolist() == want.order.tolist()
        double = exact or dtype == np.float64
        assert_close(got.cka, want.cka, "greedy", "float64" if double else "float32", 200, 24)
        assert f"{'float64' if double else 'float32'} products of columns on tensor cores" in got.plan.explain()


def test_products_of_columns_on_cores_that_are_not_there_are_refused(device: Callable[[int, int], None]) -> None:
    device(7, 5)
    block, stats = block_of(relu(70, 20))
    with pytest.raises(
        NotImplementedError, match=r"^products on tensor cores need a device of capability 8.0, not 7.5$"
    ):
        native_cuda.column_products(block, stats, cores="tensor")
    device(8, 6)
    plain, tensor = (
        np.asarray(native_cuda.column_products(block, stats, exact=False, cores=cores)) for cores in ("plain", "tensor")
    )
    assert plain.tobytes() != tensor.tobytes()
    assert_close(plain, tensor, "products", "float32", 70, 20, scale=np.abs(plain).max())
