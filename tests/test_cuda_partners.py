"""The nearest rows of the CUDA programs, on the emulator (tests/native), against the reference, and merging on top."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import emulated_partners
import numpy as np
import numpy.typing as npt
import pytest
from cuda_cases import ORDERS, There, half, layouts, see_device
from emulated_cuda import DTYPES, compile_programs
from nearest_cases import Find, check, hazards, problem_of, residues_of, rows_of, same_bits

from simkit.backends import cuda_device, native_cuda
from simkit.backends.nearest import NearestProblem, NearestRows
from simkit.metrics.merging import BatchNorm, merging

Array = npt.NDArray[Any]
Load = Callable[..., None]
HAZARDS = {name: (x, k) for name, x, k in hazards()}
ROOMS = (0, 100_000, 2**30)


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = tmp_path_factory.getbasetemp()
    found = compile_programs(folder), compile_programs(folder, "cuda_partners_programs")
    return found if all(found) else pytest.skip("there is no C++ compiler")


@pytest.fixture
def load(libraries: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> Load:
    """``load(order, room)``: the module of that order of threads and workspace."""

    def take(order: int = 0, room: int = 2**30) -> None:
        module = emulated_partners.module(*libraries, order, room)
        see_device(monkeypatch, module)

    take()
    return take


def every_way(load: Load, problem: NearestProblem, k: int) -> NearestRows:
    """The same bits in every order of the threads, and whatever the room."""
    found = []
    for order, room in zip(ORDERS, ROOMS, strict=True):
        load(order, room)
        found.append(native_cuda.nearest_rows(problem, k))
    assert all(same_bits(found[0], other) for other in found[1:])
    return found[0]


@pytest.fixture
def find(load: Load) -> Find:
    return partial(every_way, load)


@pytest.mark.parametrize(("a", "b"), [(1, 1), (1, 70), (63, 65), (64, 64), (65, 63), (194, 3), (3, 194)])
def test_any_number_of_rows(find: Find, a: int, b: int) -> None:
    for dtype in ("float32", "float64"):
        check(find, rows_of(a + b, 18).astype(dtype), 1, a)
        check(find, rows_of(a + b, 18).astype(dtype), 4, a, residues=residues_of(a + b, same_sign=False))


@pytest.mark.parametrize("p", [1, 15, 16, 17, 31, 32, 33, 50])
def test_any_number_of_entries(find: Find, p: int) -> None:
    x, last = rows_of(75, p), np.random.default_rng(p).standard_normal(75)
    for dtype in ("float32", "float64"):
        check(find, x.astype(dtype), 2, last=last)
        check(find, x.astype(dtype), 1, 30)


@pytest.mark.parametrize("p", [2047, 2048, 2049, 4113])
def test_rows_of_more_entries_than_a_chunk(load: Load, p: int) -> None:
    x = rows_of(70, p)
    for room in (0, 2**30):
        load(0, room)
        for dtype in ("float32", "float64"):
            check(native_cuda.nearest_rows, x.astype(dtype), 2)
            assert cuda_device.load()[0].undecided[0] == 0


@pytest.mark.parametrize("k", [1, 2, 31, 33, 64, 128])
def test_any_number_of_neighbours(find: Find, k: int) -> None:
    check(find, rows_of(150, 12).astype(np.float32), k)
    check(find, rows_of(40, 12).astype(np.float32), k, residues=residues_of(40, same_sign=True))


def test_wide_tiles(load: Load) -> None:
    """Enough rows for tiles of 128; ragged."""
    x = rows_of(1500, 17).astype(np.float32)
    found = []
    for order, room in zip((0, 2), (2**30, 400_000), strict=True):
        load(order, room)
        found.append(check(native_cuda.nearest_rows, x, 3, residues=residues_of(1500, same_sign=True)))
        assert cuda_device.load()[0].undecided[0] == 0
    assert same_bits(*found)


@pytest.mark.slow
def test_wide_tiles_of_long_rows(load: Load) -> None:
    load()
    check(native_cuda.nearest_rows, rows_of(1500, 2100).astype(np.float32), 2)


@pytest.mark.parametrize("balance", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("same_sign", [True, False])
def test_residues(find: Find, balance: float, same_sign: bool) -> None:
    for seed in range(3):
        residues = residues_of(100, same_sign=same_sign, seed=seed)
        check(find, rows_of(100, 9, seed).astype(np.float32), 2, 40, residues=residues, balance=balance)


@pytest.mark.parametrize("name", HAZARDS)
def test_hazards(find: Find, name: str) -> None:
    x, k = HAZARDS[name]
    for a in (None, len(x) // 2):
        check(find, x, k, a)


def test_more_near_ties_than_a_list_holds(load: Load) -> None:
    """Rows that products cannot tell apart, in several parts: those are compared with all others, and no more."""
    x = np.repeat(rows_of(3, 20), 100, axis=0) * (1 + 1e-9 * rows_of(300, 20))
    x[150:] = rows_of(150, 20, 1)
    for room in ROOMS:
        load(0, room)
        for dtype in ("float32", "float64"):
            check(native_cuda.nearest_rows, x.astype(dtype), 3)
            assert 100 <= cuda_device.load()[0].undecided[0] <= 160
            check(native_cuda.nearest_rows, rows_of(300, 20).astype(dtype), 3)
            assert cuda_device.load()[0].undecided[0] == 0
    check(native_cuda.nearest_rows, np.repeat(rows_of(3, 20), 100, axis=0), 3)
    assert cuda_device.load()[0].undecided[0] == 300


def test_any_type_and_layout(find: Find) -> None:
    x = rows_of(70, 21)
    for kind in DTYPES:
        check(find, half(x, kind), 3)
    first, *others = (native_cuda.nearest_rows(problem_of(view), 3) for view in layouts(x.astype(np.float32)))
    assert all(same_bits(first, other) for other in others)


def test_too_many_neighbours_are_refused(load: Load) -> None:
    with pytest.raises(NotImplementedError, match=r"^native_cuda finds at most 128 nearest rows of each, not 129$"):
        native_cuda.nearest_rows(problem_of(rows_of(9, 3)), 129)


# Merging, end to end.


def norm_of(units: int) -> BatchNorm:
    r = np.random.default_rng(units)
    return BatchNorm(
        r.standard_normal(units), r.standard_normal(units), r.standard_normal(units), r.uniform(0, 2, units)
    )


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_merging_of_weights_on_a_device(load: Load, dtype: str) -> None:
    w = rows_of(130, 27).astype(dtype)
    w[40] = 0.0  # a unit without a direction
    kept, bias = np.arange(130) % 3 > 0, np.random.default_rng(0).standard_normal(130)
    cases: list[dict[str, Any]] = [{}, {"bias": bias}]
    cases += [{"bias": bias, "batch_norm": norm_of(130), "bn_scale": scale} for scale in ("exact", "reference")]
    for options in cases:
        got, want = merging(There(w), kept, **options), merging(w, kept, **options)
        assert got.backend == "native_cuda"
        assert [step.op for step in got.plan.steps] == ["column_stats", "row_norms", "nearest_rows"]
        assert want.backend == "native_cpu"
        assert got.partner.tolist() == want.partner.tolist()
        for name in ("scale", "residue", "cosine", "score"):
            np.testing.assert_allclose(getattr(got, name), getattr(want, name), rtol=1e-12, atol=1e-13)


def test_merging_asks_the_named_backend(load: Load) -> None:
    w, kept = rows_of(20, 5), np.arange(20) < 9
    assert merging(w, kept, backend="native_cuda").backend == "native_cuda"
    assert "tiles of float64 products" in merging(w, kept, backend="native_cuda").plan.explain()
    with pytest.raises(
        ValueError, match=r"^backend must be None or one of native_cuda, native_cpu, reference, not 'gpu'$"
    ):
        merging(w, kept, backend="gpu")


def test_residues_that_differ_by_rounding_are_equal(load: Load) -> None:
    """Units of one length that share one BatchNorm: the cosine decides, as on the host."""
    r = np.random.default_rng(3)
    w = r.standard_normal((40, 30))
    w[20:23] = w[5]
    w /= np.linalg.norm(w, axis=1, keepdims=True)
    kept = np.arange(40) % 4 > 0
    same = BatchNorm(*(np.full(40, value) for value in (1.3, -700.0, 0.4, 0.9)))
    for scale in ("exact", "reference"):
        want = merging(w, kept, batch_norm=same, threshold=-1.0, bn_scale=scale, backend="reference")
        got = merging(There(w), kept, batch_norm=same, threshold=-1.0, bn_scale=scale)
        assert got.partner.tolist() == want.partner.tolist()
        assert got.partner.tolist() == merging(w, kept, threshold=-1.0).partner.tolist()
