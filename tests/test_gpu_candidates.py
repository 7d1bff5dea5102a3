"""Candidates on a GPU against the reference, the same bits twenty times, and greedy orders end to end."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from candidate_cases import KERNELS, NAMES, NONE, about, agrees, features, held, level_of, on_device, problem_of
from cuda_cases import layouts, relu
from gpu_arrays import OnGpu, new_stream
from needed import torch_on_gpu
from tolerance import assert_close

import simkit as sk
from simkit.backends import native_cuda, reference
from simkit.backends.base import CandidateProblem, CandidateSums

pytestmark = pytest.mark.gpu

Array = npt.NDArray[Any]
ESTIMATORS: tuple[Any, ...] = ("biased", "debiased")
REPEATS = 20


def same_bits(one: CandidateSums, other: CandidateSums) -> bool:
    pairs = zip(dataclasses.astuple(one), dataclasses.astuple(other), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def agrees_about(problem: CandidateProblem, kept: Array, level: float) -> None:
    """Each kept unit left out, about one level of all rows."""
    found = native_cuda.candidate_sums(held(problem), kept, kept, levels=about(problem, level))
    agrees(found, problem, kept, kept, level)


@pytest.mark.parametrize("kernel", KERNELS, ids=NAMES)
@pytest.mark.parametrize("n", [4, 63, 64, 65, 194, 1000])
def test_sums_agree(n: int, kernel: Any) -> None:
    for dtype, estimator in itertools.product((np.float32, np.float64), ESTIMATORS):
        problem = problem_of(features(40, n).astype(dtype), kernel, estimator)
        kept = np.delete(np.arange(40), [3, 17])
        chosen, level = np.append(kept[::-1], -1), level_of(problem, kept)
        there = held(problem)
        want = native_cuda.candidate_sums(there, kept, chosen, levels=about(problem, level))
        agrees(want, problem, kept, chosen, level)
        for _ in range(REPEATS):
            assert same_bits(want, native_cuda.candidate_sums(there, kept, chosen, levels=about(problem, level)))


@pytest.mark.parametrize("kernel", KERNELS[:3], ids=NAMES[:3])
@pytest.mark.parametrize("count", [1, 3, 4, 5, 17, 300])
def test_units_of_several_features_agree(count: int, kernel: Any) -> None:
    widths = tuple((1, 8, 9, 16, 17, 3, 7, 2)[u % 8] for u in range(count))
    for dtype in (np.float32, np.float64):
        problem = problem_of(features(sum(widths), 70).astype(dtype), kernel, "biased", widths)
        kept = np.arange(count)
        chosen = np.append(kept, -1) if count > 1 else NONE
        there = held(problem, at_once=count)
        agrees(native_cuda.candidate_sums(there, kept, chosen, levels=about(problem, 0.3)), problem, kept, chosen, 0.3)


@pytest.mark.parametrize("kernel", KERNELS[:3], ids=NAMES[:3])
def test_sums_do_not_depend_on_the_room(kernel: Any) -> None:
    problem = problem_of(features(150, 500).astype(np.float32), kernel, widths=(2,) * 75)
    kept = np.delete(np.arange(75), [3, 60])
    want = native_cuda.candidate_sums(held(problem, at_once=75), kept, kept, levels=about(problem, 0.2))
    for at_once, packed, room in ((75, 0, 2**26), (1, 0, 0), (75, 0, 600_000), (10, 2**30, 0), (7, 2**30, 2**26)):
        other = held(problem, at_once=at_once, packed=packed, room=room)
        assert same_bits(want, native_cuda.candidate_sums(other, kept, kept, levels=about(problem, 0.2)))
    assert same_bits(want, native_cuda.candidate_sums(on_device(problem), kept, kept, levels=about(problem, 0.2)))


@pytest.mark.parametrize("kernel", KERNELS[:2], ids=NAMES[:2])
def test_equal_rows_are_at_no_distance(kernel: Any) -> None:
    for dtype in (np.float32, np.float64):
        z = np.repeat(features(5, 1, 30.0), 130, axis=1).astype(dtype) * 1e3
        problem = problem_of(z, kernel)
        for level in (0.0, 0.25, 0.75, 1.0):
            sums = native_cuda.candidate_sums(
                held(problem), np.arange(5), np.arange(-1, 5), levels=about(problem, level)
            )
            assert (sums.rows == 129 * (1.0 - level)).all()


@pytest.mark.parametrize("kernel", KERNELS[:2], ids=NAMES[:2])
@pytest.mark.parametrize("size", [1e-12, 1e-3, 1e3, 1e6, 1e18])
def test_units_and_samples_unlike_the_others(size: float, kernel: Any) -> None:
    for dtype, wide in itertools.product((np.float32, np.float64), (1, 2)):
        z = features(6, 70)
        z[2:4, 9] *= size
        z[0] *= size
        problem = problem_of(z.astype(dtype), kernel, "biased", (wide,) * (6 // wide))
        kept = np.arange(6 // wide)
        for level in (0.2, 0.9):
            agrees_about(problem, kept, level)


def test_both_forms_of_the_kernel_agree() -> None:
    problem = problem_of(features(20, 300).astype(np.float32), sk.RBF())
    kept = np.arange(20)
    for level in (0.5, 0.5000001):
        agrees_about(problem, kept, level)
    flat = problem_of(features(20, 100, 1e-3).astype(np.float32), sk.RBF())
    level = level_of(flat, kept)
    got = native_cuda.candidate_sums(held(flat), kept, kept, levels=about(flat, level))
    want = reference.candidate_sums(flat, kept, kept, levels=about(flat, level))
    assert np.abs(got.squares / want.squares - 1).max() < 1e-5
    assert np.abs(got.cross / want.cross - 1).max() < 1e-4


@pytest.mark.parametrize("kernel", KERNELS, ids=NAMES)
def test_greedy_orders_agree(kernel: Any) -> None:
    x = relu(300, 24)
    for estimator, units, mode in (("biased", None, "greedy"), ("debiased", 6, "greedy"), ("biased", 8, "oneshot")):
        options: dict[str, Any] = {"kernel": kernel, "estimator": estimator, "units": units, "mode": mode}
        want = sk.greedy_cka(x, **options, backend="reference")
        named = sk.greedy_cka(x, **options, backend="native_cuda")
        for view in layouts(x):
            found = sk.greedy_cka(OnGpu(view, stream=new_stream().value), **options)
            assert found.backend == "native_cuda"
            assert found.order.tolist() == want.order.tolist()
            assert_close(found.cka, want.cka, "greedy", "float64", 300, 24)
            assert found.cka.tobytes() == named.cka.tobytes()


@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_large_layers_agree_with_the_processor(kind: str) -> None:
    x = relu(2000, 64).astype(kind)
    for kernel in KERNELS[:2]:
        options: dict[str, Any] = {"kernel": kernel, "mode": "oneshot", "count": 1}
        want, got = sk.greedy_cka(x, **options, exact=True), sk.greedy_cka(OnGpu(x), **options)
        assert abs(got.cka[0] - want.cka[0]) < 1e-6
        again = [sk.greedy_cka(OnGpu(x), **options).cka.tobytes() for _ in range(3)]
        assert again == [got.cka.tobytes()] * 3


def test_torch_tensors_are_routed_to_their_device() -> None:
    torch = torch_on_gpu()
    x = torch.from_numpy(relu(200, 12))
    want = sk.greedy_cka(x, kernel=sk.RBF(), backend="reference")
    with torch.cuda.stream(torch.cuda.Stream()):
        found = sk.greedy_cka(x.cuda(), kernel=sk.RBF())
    assert found.backend == "native_cuda"
    assert found.order.tolist() == want.order.tolist()
