"""Candidates of the CUDA programs, on the emulator (tests/native), against the reference; greedy orders end to end."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import emulated_candidates
import numpy as np
import numpy.typing as npt
import pytest
from candidate_cases import KERNELS, NAMES, NONE, about, agrees, features, held, level_of, on_device, problem_of
from cuda_cases import ORDERS, There, half, layouts, relu, see_device
from emulated_cuda import compile_programs
from tolerance import assert_close

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends import native_cuda, reference
from simkit.backends.base import CandidateProblem, CandidateSums, Levels
from simkit.backends.choose import choose
from simkit.metrics import kernel_damage
from simkit.metrics.prepare import prepare

Array = npt.NDArray[Any]
ESTIMATORS: tuple[Any, ...] = ("biased", "debiased")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = tmp_path_factory.getbasetemp()
    found = compile_programs(folder), compile_programs(folder, "cuda_candidates_programs")
    return found if all(found) else pytest.skip("there is no C++ compiler")


def use(programs: tuple[Any, Any], patch: pytest.MonkeyPatch, order: int = 0) -> None:
    see_device(patch, emulated_candidates.module(*programs, order))


@pytest.fixture
def device(programs: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    use(programs, monkeypatch)


def parts_of(sums: CandidateSums) -> list[Array]:
    found = [getattr(sums, field.name) for field in dataclasses.fields(sums)]
    return [part for part in found if part is not None]


def same_bits(one: CandidateSums, other: CandidateSums) -> bool:
    pairs = zip(parts_of(one), parts_of(other), strict=True)
    return all(a.tobytes() == b.tobytes() for a, b in pairs)


def every_order(
    programs: tuple[Any, Any], problem: CandidateProblem, kept: Array, chosen: Array, level: float | Levels, **room: int
) -> CandidateSums:
    found = []
    for order in ORDERS:
        with pytest.MonkeyPatch.context() as patch:
            use(programs, patch, order)
            levels = level if isinstance(level, Levels) else about(problem, level)
            found.append(native_cuda.candidate_sums(held(problem, **room), kept, chosen, levels=levels))
    assert same_bits(found[0], found[1])
    assert same_bits(found[0], found[2])
    return found[0]


@pytest.mark.parametrize("kernel", KERNELS, ids=NAMES)
@pytest.mark.parametrize("n", [4, 63, 64, 65, 194])
def test_sums_of_any_number_of_samples(programs: tuple[Any, Any], n: int, kernel: Any) -> None:
    """Of kept units in any order, some candidates and none; with both estimators and types."""
    for dtype, estimator in itertools.product((np.float32, np.float64), ESTIMATORS):
        problem = problem_of(features(9, n).astype(dtype), kernel, estimator)
        kept, chosen = np.array([8, 0, 2, 5, 1, 7]), np.array([5, -1, 8, 0, 1])
        agrees(
            every_order(programs, problem, kept, chosen, level_of(problem, kept)),
            problem,
            kept,
            chosen,
            level_of(problem, kept),
        )


@pytest.mark.parametrize("kernel", KERNELS[:3], ids=NAMES[:3])
@pytest.mark.parametrize("count", [1, 3, 4, 5, 17])
def test_units_of_several_features_and_any_number_of_candidates(
    programs: tuple[Any, Any], count: int, kernel: Any
) -> None:
    """Around the rows and the candidates that come at once, and around the parts that blocks take."""
    widths = tuple((1, 8, 9, 16, 17, 3, 7, 2)[u % 8] for u in range(count))
    for dtype in (np.float32, np.float64):
        problem = problem_of(features(sum(widths), 70).astype(dtype), kernel, "biased", widths)
        kept = np.arange(count)
        chosen = np.append(kept, -1) if count > 1 else NONE
        sums = every_order(programs, problem, kept, chosen, 0.3)
        agrees(sums, problem, kept, chosen, 0.3)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("kernel", KERNELS[:3], ids=NAMES[:3])
def test_sums_do_not_depend_on_the_room(kernel: Any) -> None:
    """L held or formed again; one tile, one candidate at a time or all: the same bits. Calls leave no trace."""
    problem = problem_of(features(80, 130).astype(np.float32), kernel, widths=(2,) * 40)
    kept = np.delete(np.arange(40), [3, 30])
    some = held(problem, at_once=40)
    want = native_cuda.candidate_sums(some, kept, kept, levels=about(problem, 0.2))
    assert some.packed.nbytes == 6 * 64 * 64 * (8 if isinstance(kernel, sk.Polynomial) else 4)
    agrees(want, problem, kept, kept, 0.2)
    for at_once, packed, room in ((40, 0, 2**26), (1, 0, 0), (40, 0, 300_000), (10, 2**30, 0), (7, 2**30, 2**26)):
        other = held(problem, at_once=at_once, packed=packed, room=room)
        assert bool(other.packed.nbytes) == (packed > 0)
        native_cuda.candidate_sums(other, kept[:9], kept[2:5], levels=about(problem, 0.1))
        assert same_bits(want, native_cuda.candidate_sums(other, kept, kept, levels=about(problem, 0.2)))
    assert same_bits(want, native_cuda.candidate_sums(on_device(problem), kept, kept, levels=about(problem, 0.2)))
    bare = native_cuda.candidate_sums(some, kept, kept, levels=about(problem, 0.2), rows=False)
    assert bare.rows is None
    assert [part.tobytes() for part in parts_of(bare)] == [part.tobytes() for part in parts_of(want)[:4]]


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("kernel", KERNELS[:2], ids=NAMES[:2])
def test_equal_rows_are_at_no_distance(kernel: Any) -> None:
    """And remain so without any unit: the kernel of equal samples is 1, exactly."""
    for dtype in (np.float32, np.float64):
        z = np.repeat(features(5, 1, 30.0), 130, axis=1).astype(dtype) * 1e3
        kept = np.arange(5)
        problem = problem_of(z, kernel)
        for level in (0.0, 0.25, 0.75, 1.0):
            sums = native_cuda.candidate_sums(held(problem), kept, np.append(kept, -1), levels=about(problem, level))
            assert sums.rows is not None
            assert (sums.rows == 129 * (1.0 - level)).all()
            assert (sums.squares == 130 * 129 * (1.0 - level) ** 2).all()


@pytest.mark.parametrize("kernel", KERNELS[:2], ids=NAMES[:2])
@pytest.mark.parametrize("size", [1e-12, 1e-3, 1e3, 1e6, 1e18])
def test_units_and_samples_unlike_the_others(programs: tuple[Any, Any], size: float, kernel: Any) -> None:
    """What is left of a distance without the unit that made it, in both forms of the kernel."""
    for dtype, wide in itertools.product((np.float32, np.float64), (1, 2)):
        z = features(6, 140)
        z[2:4, 9] *= size
        z[0] *= size
        problem = problem_of(z.astype(dtype), kernel, "biased", (wide,) * (6 // wide))
        kept = np.arange(6 // wide)
        for level in (0.2, 0.9):
            agrees(every_order(programs, problem, kept, kept, level), problem, kept, kept, level)


@pytest.mark.usefixtures("device")
def test_both_forms_of_the_kernel_agree() -> None:
    """A level just below and just above where the form changes; and one where the kernel hardly varies."""
    problem = problem_of(features(20, 100).astype(np.float32), sk.RBF())
    kept = np.arange(20)
    there = held(problem)
    for level in (0.5, 0.5000001):
        agrees(native_cuda.candidate_sums(there, kept, kept, levels=about(problem, level)), problem, kept, kept, level)
    flat = problem_of(features(20, 100, 1e-3).astype(np.float32), sk.RBF())
    level = level_of(flat, kept)
    got = native_cuda.candidate_sums(held(flat), kept, kept, levels=about(flat, level))
    want = reference.candidate_sums(flat, kept, kept, levels=about(flat, level))
    assert np.abs(got.squares / want.squares - 1).max() < 1e-5
    assert np.abs(got.cross / want.cross - 1).max() < 1e-4


# Units.


@pytest.mark.parametrize("n", [2, 31, 32, 33, 255, 256, 300])
def test_units_are_the_columns(programs: tuple[Any, Any], n: int) -> None:
    """Any type, layout and order of columns; distances are what the reference's are, about another place."""
    x = relu(n, 37) * 3 + 7
    columns = np.random.default_rng(0).permutation(37)[:35]
    for kind, kernel in itertools.product(("float16", "float32", "float64"), (sk.Laplacian(), sk.Polynomial())):
        views: Sequence[Any] = [half(x, kind)] if n != 33 else layouts(x.astype(kind))
        for view in views:
            block = prepare(as_matrix(view), kernel)
            want = reference.unit_features(block, columns, double=True)
            found = []
            for order in ORDERS:
                with pytest.MonkeyPatch.context() as patch:
                    use(programs, patch, order)
                    found.append(native_cuda.unit_features(block, columns, double=True))
            z = found[0].z.units.z
            assert z.tobytes() == found[1].z.units.z.tobytes() == found[2].z.units.z.tobytes()
            assert found[0].z.shape == z.shape
            moved = (z - want.z).mean(axis=1, keepdims=True)
            assert np.abs(z - want.z - moved).max() <= 1e-14 * np.abs(want.z).max()
            assert np.abs(moved).max() <= (3 * np.abs(want.z).max() if isinstance(kernel, sk.Laplacian) else 0)
            assert_close(found[0].sum_sq_dev, want.sum_sq_dev, "products", "float64", n, 37, scale=want.sum_sq_dev)


@pytest.mark.usefixtures("device")
def test_units_keep_their_digits_beside_an_outlier() -> None:
    x = relu(400, 3).astype(np.float32)
    x[5] = 1e8
    block = prepare(as_matrix(x), sk.RBF())
    found = native_cuda.unit_features(block, np.arange(3), double=False).z.units.z.astype(np.float64)
    want = reference.unit_features(block, np.arange(3), double=True).z
    ordinary = np.delete(np.arange(400), 5)
    off = (found - want)[:, ordinary]
    assert np.ptp(off, axis=1).max() < 2.0**-22 * np.ptp(want[:, ordinary])


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("size", [1e160, 1e-170, 1.0])
def test_squares_are_of_scaled_units(size: float) -> None:
    """Raw ones would overflow, or vanish; nothing would dominate."""
    for kernel, columns in itertools.product((sk.RBF(), sk.Laplacian()), ([3, 0, 4], range(5))):
        block = prepare(as_matrix(relu(40, 5) * size), kernel)
        found, want = (
            module.unit_features(block, np.array(columns), double=True).sum_sq_dev
            for module in (native_cuda, reference)
        )
        assert_close(found, want, "products", "float64", 40, 5, scale=want)


# Everything above the module, end to end.


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("kernel", KERNELS, ids=NAMES)
def test_greedy_orders_end_to_end(kernel: Any) -> None:
    """From a host array by name and from an array on the device: the reference's order, the units formed once."""
    x = relu(90, 12)
    for estimator, units, mode in (("biased", None, "greedy"), ("debiased", 4, "greedy"), ("biased", 6, "oneshot")):
        options: dict[str, Any] = {"kernel": kernel, "estimator": estimator, "units": units, "mode": mode}
        want = sk.greedy_cka(x, **options, backend="reference")
        before = emulated_candidates.FormedUnits.made
        named, there = sk.greedy_cka(x, **options, backend="native_cuda"), sk.greedy_cka(There(x), **options)
        assert emulated_candidates.FormedUnits.made == before + 2
        for found in (named, there):
            assert found.order.tolist() == want.order.tolist()
            assert_close(found.cka, want.cka, "greedy", "float64", 90, 12)
            assert found.backend == "native_cuda"
            assert "candidate_sums: native_cuda" in found.plan.explain()
        assert named.cka.tobytes() == there.cka.tobytes()


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("kernel", KERNELS[:2], ids=NAMES[:2])
def test_float32_choices_are_within_1e_6_of_the_best(kernel: Any) -> None:
    x = relu(200, 10).astype(np.float32) + 100
    found = sk.greedy_cka(There(x), kernel=kernel)
    block = prepare(as_matrix(x), kernel)
    columns = [np.array([c]) for c in range(10)]
    made, levels = kernel_damage.kernel_damage(block, columns, "biased", exact=True, backend="reference", threads=1)
    kept = np.arange(10)
    for unit, value in zip(found.order[:-1].tolist(), found.cka[:-1], strict=True):
        scores = made.scores(kept, kept, levels).cka
        chosen = float(scores[kept.tolist().index(unit)])
        assert chosen > scores.max() - 1e-6
        assert value == pytest.approx(chosen, abs=1e-6)
        kept = kept[kept != unit]


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("kernel", KERNELS[:2], ids=NAMES[:2])
@pytest.mark.parametrize("ratio", [3000.0, 1e10])
def test_scores_without_what_dwarfs_the_others(kernel: Any, ratio: float) -> None:
    x = relu(120, 6).astype(np.float32)
    x[:, 1] *= np.float32(ratio if ratio < 1e4 else 1.0)
    x[0, 0] = x[1, 3] = ratio
    block = prepare(as_matrix(x), kernel)
    columns = [np.array([c]) for c in range(6)]
    scores = []
    for backend in ("native_cuda", "reference"):
        made, levels = kernel_damage.kernel_damage(
            block, columns, "biased", exact=backend == "reference", backend=backend, threads=1
        )
        scores.append(made.scores(np.arange(6), np.arange(6), levels).cka)
    assert np.abs(scores[0] - scores[1]).max() <= (1e-4 if ratio < 1e4 else 1e-6)


@pytest.mark.usefixtures("device")
def test_custom_kernels_are_refused_by_name() -> None:
    pytest.importorskip("numba")
    custom = sk.CustomKernel(lambda product, d: product - d)
    x = relu(40, 4)
    with pytest.raises(
        NotImplementedError,
        match=r"^backend 'native_cuda' cannot run candidate_sums: there is no CUDA candidate_sums of CustomKernel\(",
    ):
        sk.greedy_cka(x, kernel=custom, backend="native_cuda")
    block = prepare(as_matrix(There(x)), sk.RBF())
    assert choose("candidate_sums", inputs=[block], kernel=sk.RBF()).backend == "native_cuda"
    refused = choose("candidate_sums", inputs=[block], kernel=custom)
    assert refused.backend == "native_cpu"
    assert refused.reason.endswith("copied from the device to the host")
