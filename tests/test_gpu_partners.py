"""The nearest rows and merging against the float64 reference, on a GPU; the same bits twenty times."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cuda_cases import layouts
from gpu_arrays import OnGpu
from nearest_cases import agree, check, hazards, on_host, problem_of, residues_of, rows_of, same_bits
from needed import torch_on_gpu

from simkit.backends import native_cpu, native_cuda
from simkit.metrics.merging import BatchNorm, merging

pytestmark = pytest.mark.gpu

Array = npt.NDArray[Any]
REPEATS = 20
HAZARDS = {name: (x, k) for name, x, k in hazards()}


@pytest.mark.parametrize(("a", "b"), [(1, 1), (1, 70), (63, 65), (64, 64), (65, 63), (194, 3), (3, 194), (1500, 1600)])
def test_any_number_of_rows_agrees(a: int, b: int) -> None:
    for dtype, k in itertools.product(("float32", "float64"), (1, 4)):
        x = rows_of(a + b, 18).astype(dtype)
        for residues in (None, residues_of(a + b, same_sign=True), residues_of(a + b, same_sign=False)):
            check(native_cuda.nearest_rows, x, k, a, residues=residues, place=OnGpu)


@pytest.mark.parametrize("p", [1, 15, 16, 17, 33, 2047, 2048, 2049, 4113])
def test_any_number_of_entries_agrees(p: int) -> None:
    x, last = rows_of(200, p), np.random.default_rng(p).standard_normal(200)
    for dtype in ("float32", "float64"):
        check(native_cuda.nearest_rows, x.astype(dtype), 2, last=last, place=OnGpu)
        check(native_cuda.nearest_rows, x.astype(dtype), 1, 90, place=OnGpu)


@pytest.mark.parametrize("k", [1, 2, 33, 64, 128])
def test_any_number_of_neighbours_agrees(k: int) -> None:
    check(native_cuda.nearest_rows, rows_of(150, 12).astype(np.float32), k, place=OnGpu)
    check(native_cuda.nearest_rows, rows_of(40, 12), k, residues=residues_of(40, same_sign=True), place=OnGpu)


@pytest.mark.parametrize("name", HAZARDS)
def test_hazards_agree(name: str) -> None:
    x, k = HAZARDS[name]
    for a in (None, len(x) // 2):
        check(native_cuda.nearest_rows, x, k, a, place=OnGpu)


@pytest.mark.parametrize(("n", "p"), [(700, 30), (4000, 600)])
def test_the_same_bits_every_time(n: int, p: int) -> None:
    for dtype in ("float32", "float64"):
        x = rows_of(n, p).astype(dtype)
        problem = problem_of(x, residues=residues_of(n, same_sign=True), place=OnGpu)
        found = native_cuda.nearest_rows(problem, 5)
        agree(found, native_cpu.nearest_rows(on_host(problem, x), 5), p)
        for _ in range(REPEATS):
            assert same_bits(found, native_cuda.nearest_rows(problem, 5))


def test_any_layout_is_the_same() -> None:
    x = rows_of(300, 40).astype(np.float32)
    first, *others = (native_cuda.nearest_rows(problem_of(view, place=OnGpu), 3) for view in layouts(x))
    assert all(same_bits(first, other) for other in others)


def test_more_near_ties_than_a_list_holds() -> None:
    x = np.repeat(rows_of(3, 20), 400, axis=0) * (1 + 1e-9 * rows_of(1200, 20))
    for dtype in ("float32", "float64"):
        check(native_cuda.nearest_rows, x.astype(dtype), 3, place=OnGpu)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_merging_agrees(dtype: str) -> None:
    r = np.random.default_rng(0)
    w = rows_of(512, 300).astype(dtype)
    w[40] = 0.0  # a unit without a direction
    kept, bias = np.arange(512) % 2 == 0, r.standard_normal(512)
    norm = BatchNorm(r.standard_normal(512), r.standard_normal(512), r.standard_normal(512), r.uniform(0, 2, 512))
    for options in ({}, {"bias": bias}, {"batch_norm": norm}, {"batch_norm": norm, "bn_scale": "reference"}):
        got, want = merging(OnGpu(w), kept, **options), merging(w, kept, **options)
        assert got.backend == "native_cuda"
        assert got.partner.tolist() == want.partner.tolist()
        for name in ("scale", "residue", "cosine", "score"):
            np.testing.assert_allclose(getattr(got, name), getattr(want, name), rtol=1e-12, atol=1e-13)


def test_parameters_of_torch_on_the_device() -> None:
    torch = torch_on_gpu()
    conv, norm = torch.nn.Conv2d(16, 64, 3).cuda(), torch.nn.BatchNorm2d(64).cuda()
    kept = torch.arange(64, device="cuda") % 2 == 0
    parts = norm.weight, norm.bias, norm.running_mean, norm.running_var
    got = merging(conv.weight, kept, bias=conv.bias, batch_norm=BatchNorm(*parts))
    host = [part.detach().cpu().numpy() for part in (conv.weight, kept, conv.bias, *parts)]
    want = merging(host[0], host[1], bias=host[2], batch_norm=BatchNorm(*host[3:]))
    assert got.backend == "native_cuda"
    assert got.partner.tolist() == want.partner.tolist()
