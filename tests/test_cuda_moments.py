"""The ops of streams on a device, without one: the CUDA programs on the emulator (tests/native)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cuda_cases import ORDERS, There, half, layouts, see_device
from emulated_cuda import DTYPES, compile_programs
from emulated_moments import module_with_moments

from simkit.arrays import Matrix, as_matrix
from simkit.backends import cuda_device, native_cuda, reference
from simkit.backends.moment_sums import MomentSums, MomentUnits, SideSums

Array = npt.NDArray[Any]
Layers = dict[str, Array]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = tmp_path_factory.getbasetemp()
    found = compile_programs(folder), compile_programs(folder, "cuda_moments_programs")
    return found if all(found) else pytest.skip("there is no C++ compiler")


def use(programs: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, order: int = 0) -> Any:
    module = module_with_moments(*programs, order)
    see_device(monkeypatch, module)
    return module


@pytest.fixture
def device(programs: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    return use(programs, monkeypatch)


@pytest.mark.parametrize("shape", [(1, 1), (129, 512), (7, 1025), (2, 70_000), (70_000, 2)])
def test_the_largest_entry(programs: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]) -> None:
    x = np.random.default_rng(sum(shape)).standard_normal(shape) * 4
    for order, kind in itertools.product(ORDERS if x.size < 10_000 else ORDERS[:1], DTYPES):
        use(programs, monkeypatch, order)
        matrix = as_matrix(half(x, kind))
        assert native_cuda.largest_entries([matrix]) == reference.largest_entries([matrix])
    for view in layouts(x):
        assert native_cuda.largest_entries([as_matrix(view), as_matrix(-x)]) == [np.abs(x).max()] * 2


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_infinite(bad: float) -> None:
    for place in [(0, 0), (299, 299), (100, 3)]:
        x = np.full((300, 300), -1e4, dtype=np.float32)
        fine = as_matrix(x.copy())
        x[place] = bad
        assert native_cuda.largest_entries([fine, as_matrix(x), fine]) == [1e4, np.inf, 1e4]


def sums_of(widths: Sequence[int], others: Sequence[int] | None, seed: int = 0) -> MomentSums:
    """Sums that are not zero, so that what is added is seen to be added."""
    r = np.random.default_rng(seed)

    def side(of: Sequence[int]) -> SideSums:
        p, count = sum(of), len(of)
        scale = np.concatenate([np.full(w, 2.0 ** r.integers(-9, 9)) for w in of])
        grams = () if others is None else tuple(np.triu(r.standard_normal((w, w))) for w in of)
        vectors = (r.standard_normal(size) for size in (p, p, count, count))
        return SideSums(tuple(np.cumsum([0, *of]).tolist()), r.standard_normal(p), scale, *vectors, grams)

    left, right = side(widths), None if others is None else side(others)
    p, layers = sum(widths), len(widths)
    q, count = (p, layers) if others is None else (sum(others), len(others))
    cross = r.standard_normal((p, q))
    return MomentSums(
        left,
        right,
        np.triu(cross) if others is None else cross,
        r.standard_normal((layers, count)),
        r.standard_normal((layers, q)),
        np.zeros((0, 0)) if others is None else r.standard_normal((count, p)),
    )


def arrays_of(sums: MomentSums) -> dict[str, Array]:
    out = {key: getattr(sums, key) for key in ("cross", "sum_ab", "sum_ay", "sum_bx")}
    for name, side in (("left", sums.left), ("right", sums.right)):
        if side is not None:
            out |= {f"{name}.{key}": getattr(side, key) for key in ("sum_z", "sum_az", "sum_a", "sum_aa")}
            out |= {f"{name}.gram.{i}": gram for i, gram in enumerate(side.gram)}
    return out


def added(backend: Any, layers: list[list[Matrix]], sums: MomentSums) -> dict[str, Array]:
    """The sums with a block of rows, and the rows."""
    sides = [sums.left] if sums.right is None else [sums.left, sums.right]
    n = layers[0][0].n
    units = [MomentUnits(x, s, np.full((n, s.offsets[-1]), np.nan)) for x, s in zip(layers, sides, strict=True)]
    moved = backend.moments_rows(units)
    backend.moments_add(sums, moved[0], moved[1] if len(moved) > 1 else None)
    return arrays_of(sums) | {f"{k}.{key}": getattr(rows, key) for k, rows in enumerate(moved) for key in ("z", "a")}


@pytest.mark.parametrize("n", [1, 7, 8, 9, 15, 16, 17, 511, 512])
@pytest.mark.parametrize("widths", [[1], [5, 24, 25], [63, 64, 65], [130, 3], [2] * 17])
def test_moments_of_a_block(
    programs: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, n: int, widths: list[int]
) -> None:
    """Both ops, one side alone and two, all types: the reference to rounding, the same bits in any order."""
    if n > 17 and widths == [130, 3]:
        pytest.skip("the other widths have as many tiles")
    r = np.random.default_rng(n)
    for others in (None, [7, *widths[:9]]):
        sides = [widths] if others is None else [widths, others]
        layers = [[as_matrix(half(r.standard_normal((n, w)), DTYPES[k % 4])) for k, w in enumerate(of)] for of in sides]
        want = added(reference, layers, sums_of(widths, others))
        found = []
        for order in ORDERS if n in (1, 9, 17) else ORDERS[:1]:
            use(programs, monkeypatch, order)
            found.append(added(native_cuda, layers, sums_of(widths, others)))
        for name, expected in want.items():
            size = max(float(np.abs(expected).max(initial=0.0)), 1e-300)
            assert found[0][name].shape == expected.shape
            assert np.abs(found[0][name] - expected).max(initial=0.0) <= 1e-13 * size, name
            assert all(found[0][name].tobytes() == other[name].tobytes() for other in found), name


@pytest.mark.usefixtures("device")
def test_rows_of_any_layout_are_the_same() -> None:
    x = np.random.default_rng(0).standard_normal((40, 70)).astype(np.float32)
    want = added(native_cuda, [[as_matrix(x)]], sums_of([70], None))
    for view in layouts(x):
        for kind in (as_matrix(view), as_matrix(There(view))):
            got = added(native_cuda, [[kind]], sums_of([70], None))
            assert all(got[name].tobytes() == array.tobytes() for name, array in want.items())


def test_a_batch_of_the_host_is_copied_once_for_all_its_ops(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    uploads: list[str] = []
    copied = device.Array.copied

    def counted(**options: Any) -> Any:
        uploads.append(options["dtype"])
        return copied(**options)

    monkeypatch.setattr(device.Array, "copied", staticmethod(counted))
    batch = as_matrix(np.random.default_rng(0).standard_normal((40, 7)))
    fields = dict(vars(batch))
    for _ in range(2):
        native_cuda.largest_entries([batch])
        added(native_cuda, [[batch]], sums_of([7], None))
    assert uploads == ["float64"]
    assert vars(batch) == fields
    assert cuda_device.held_bytes(0, [batch]) == cuda_device.bytes_of(batch)
