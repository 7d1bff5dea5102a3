"""The device ops against the float64 reference, on a GPU: sizes around every tile, types, layouts, streams; the same
bits twenty times.

Arrays come from the driver, so no framework is needed; torch and CuPy are tested where they see a device.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import oracles
import pytest
from cuda_cases import moved
from gpu_arrays import OnGpu, call, driver, new_stream
from needed import cupy_on_gpu, torch_on_gpu
from tolerance import assert_close, worst_error

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends import native_cuda, reference
from simkit.backends.base import Block
from simkit.metrics.cka import ForcedRoute, normalised
from simkit.metrics.prepare import prepare

pytestmark = pytest.mark.gpu

Array = npt.NDArray[Any]
Estimator = Literal["debiased", "biased"]
ESTIMATORS: tuple[Estimator, ...] = ("debiased", "biased")
REPEATS = 20
NOT_READY = 600  # CUDA_ERROR_NOT_READY


def features(n: int, p: int, seed: int = 0) -> Array:
    """ReLU features that share a few factors; no column is constant."""
    r = np.random.default_rng([seed, n, p])
    x = np.maximum(r.standard_normal((n, 4)) @ r.standard_normal((4, p)) + r.standard_normal((n, p)), -0.25)
    x[0] += 0.01 * np.arange(p) + 0.5
    return x


def layouts(x: Array) -> list[Array]:
    padded = np.zeros((2 * x.shape[0], 3 * x.shape[1]), dtype=x.dtype)
    padded[::2, ::3] = x
    return [x, np.asfortranarray(x), padded[::2, ::3], x[::-1, ::-1].copy()[::-1, ::-1]]


def on_gpu(x: Array) -> Any:
    return OnGpu(x)


def blocks(layers: list[Array], kernel: Any = None) -> list[Block]:
    return [prepare(as_matrix(on_gpu(x), name=str(k)), kernel or sk.Linear()) for k, x in enumerate(layers)]


def scores(layers: list[Array], others: list[Array] | None, estimator: Estimator, **forced: Any) -> Array:
    found = normalised(blocks(layers), None if others is None else blocks(others), estimator, ForcedRoute(**forced))
    assert found.plan.backend == "native_cuda"
    return found.values


def same_bits(first: Any, other: Any) -> bool:
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(first, other, strict=True))


# Columns and rows.


@pytest.mark.parametrize("n", [2, 7, 8, 9, 63, 64, 65, 511, 512, 513, 5000])
@pytest.mark.parametrize("p", [1, 31, 32, 33, 1000])
def test_columns_agree(n: int, p: int) -> None:
    for dtype in ("float32", "float64"):
        x = (features(n, p) + 1000).astype(dtype)
        want, got = reference.column_stats(as_matrix(x)), native_cuda.column_stats(as_matrix(on_gpu(x)))
        assert_close(got.mean, want.mean, "mean", dtype, n, p, scale=want.max_abs)
        assert worst_error(got.sum_sq_dev, want.sum_sq_dev, scale=1e-300 + want.sum_sq_dev) <= 1e-12
        assert got.max_abs == want.max_abs
        assert want.max_dev * (1 - 1e-12) <= got.max_dev <= 4 * want.max_dev
        assert (got.nonfinite, got.first_nonfinite) == (0, None)


def test_columns_of_any_layout_are_the_same() -> None:
    x = features(700, 37).astype(np.float32)
    want = native_cuda.column_stats(as_matrix(on_gpu(x)))
    for view in layouts(x):
        got = native_cuda.column_stats(as_matrix(on_gpu(view)))
        assert same_bits((want.mean, want.sum_sq_dev), (got.mean, got.sum_sq_dev))


def test_constant_columns_deviate_by_nothing() -> None:
    x = np.tile(np.random.default_rng(0).standard_normal(40).astype(np.float32) * 1e3, (1000, 1))
    for weights in (None, np.full(1000, 1 / 3)):
        stats = native_cuda.column_stats(as_matrix(on_gpu(x)), row_scale=weights)
        assert not stats.sum_sq_dev.any()
        assert stats.max_dev == 0.0


def test_nonfinite_entries_are_found() -> None:
    x = features(1000, 50).astype(np.float32)
    x[9, 44], x[9, 2], x[600, 0] = np.nan, np.inf, -np.inf
    with pytest.raises(ValueError, match=r"^x has 3 non-finite entries, the first at row 9, column 2$"):
        sk.cka(on_gpu(x), on_gpu(x))


@pytest.mark.parametrize(("n", "p"), [(2, 1), (9, 33), (400, 1000)])
def test_row_norms_agree(n: int, p: int) -> None:
    for dtype in ("float32", "float64"):
        x = features(n, p).astype(dtype)
        block = prepare(as_matrix(x), sk.Linear())
        want, got = reference.row_norms(block), native_cuda.row_norms(moved(block, on_gpu))
        assert_close(got, want, "norms", dtype, n, p, scale=want)


@pytest.mark.parametrize("n", [2, 64, 65, 1000, 3000])
def test_medians_of_distances_agree(n: int) -> None:
    """3000 samples have more distances than are collected at once; on a grid most of them are equal."""
    for dtype, x in itertools.product(("float32", "float64"), (features(n, 20), np.rint(features(n, 2)))):
        here = prepare(as_matrix(x.astype(dtype)), sk.Linear())
        want, block = reference.distance_median(here), moved(here, on_gpu)
        got = native_cuda.distance_median(block)
        assert_close(got, want, "median", dtype, n, 20, scale=max(want, 1e-300))
        for _ in range(REPEATS if n < 3000 else 3):
            assert native_cuda.distance_median(block) == got


# All pairs.


@pytest.mark.parametrize("n", [4, 63, 64, 65, 127, 128, 129, 300])
def test_small_pairs_agree(n: int) -> None:
    layers = [features(n, p, p) for p in (1, 40, 17)]
    for dtype, estimator in itertools.product((np.float32, np.float64), ESTIMATORS):
        cast = [x.astype(dtype) for x in layers]
        want = oracles.cka_matrix(cast, cast, estimator=estimator)
        assert_close(scores(cast, None, estimator, route="sample"), want, "cka", dtype, n, 40)
        assert_close(scores(cast[:1], cast[1:], estimator, route="sample"), want[:1, 1:], "cka", dtype, n, 40)


@pytest.mark.parametrize("p", [1, 15, 16, 17, 255, 256, 257, 770])
def test_features_agree(p: int) -> None:
    layers = [features(200, p), features(200, 3)]
    for dtype in (np.float32, np.float64):
        cast = [x.astype(dtype) for x in layers]
        want = oracles.cka_matrix(cast, cast, estimator="debiased")
        assert_close(scores(cast, None, "debiased", route="sample"), want, "cka", dtype, 200, p)


@pytest.mark.parametrize("n", [1000, 3999])
def test_large_pairs_agree(n: int) -> None:
    layers = [features(n, p, p).astype(np.float32) for p in (2000, 513, 64, 10)]
    want = oracles.cka_matrix(layers, layers, estimator="debiased")
    assert_close(scores(layers, None, "debiased", route="sample"), want, "cka", np.float32, n, 2000)
    assert_close(scores(layers, None, "debiased", route="sample", products="float64"), want, "cka", np.float64, n, 2000)


@pytest.mark.parametrize("n", [4, 64, 65, 1024, 1025, 20_000])
def test_feature_space_agrees(n: int) -> None:
    layers = [features(n, p, p) for p in (1, 64, 70, 3)]
    for dtype, estimator in itertools.product((np.float32, np.float64), ESTIMATORS):
        cast = [x.astype(dtype) for x in layers]
        want = sk.similarity_matrix(
            {str(k): x for k, x in enumerate(cast)}, measure=sk.CKA(estimator=estimator), backend="native_cpu"
        ).values
        got = scores(cast, None, estimator, route="feature")
        assert_close(got, want, "cka", np.float64 if dtype == np.float64 else np.float32, n, 70)
        assert_close(scores(cast[:1], cast[1:], estimator, route="feature"), want[:1, 1:], "cka", dtype, n, 70)
        assert same_bits([got], [scores(cast, None, estimator, route="feature")])


def test_many_layers_agree() -> None:
    layers = [features(130, 1 + seed % 9, seed).astype(np.float32) for seed in range(70)]
    want = oracles.cka_matrix(layers, layers, estimator="debiased")
    assert_close(scores(layers, None, "debiased", route="sample"), want, "cka", np.float32, 130, 9)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_same_bits_every_time_whatever_the_memory(estimator: Estimator) -> None:
    layers = [features(900, p, p).astype(np.float32) for p in (700, 33, 5)]
    want = scores(layers, None, estimator, route="sample")
    for repeat in range(REPEATS):
        memory = None if repeat % 2 else 2_000_000
        assert same_bits([want], [scores(layers, None, estimator, route="sample", memory=memory)])


def test_any_layout_is_the_same() -> None:
    x, y = features(300, 30).astype(np.float32), features(300, 7).astype(np.float32)
    for route in ("sample", "feature"):
        want = scores([x, y], None, "debiased", route=route)
        for view in layouts(x):
            assert same_bits([want], [scores([view, y], None, "debiased", route=route)])


def test_half_types_agree() -> None:
    x, y = features(300, 30).astype(np.float16), features(300, 7).astype(np.float32)
    want = oracles.cka_matrix([x, y], [x, y], estimator="debiased")
    assert_close(scores([x, y], None, "debiased"), want, "cka", np.float16, 300, 30)


def test_hazards_agree() -> None:
    for hazard, estimator in itertools.product(oracles.hazard_battery(), ESTIMATORS):
        want = oracles.cka(hazard.x, hazard.y, estimator=estimator)
        got = sk.cka(on_gpu(hazard.x), on_gpu(hazard.y), estimator=estimator)
        n, p = hazard.x.shape
        assert_close(got, want, "cka", hazard.x.dtype, n, p)


def test_cosine_agrees() -> None:
    x, y = features(300, 30).astype(np.float32), features(300, 7).astype(np.float32)
    want = oracles.cka(x, y, estimator="debiased", gram=oracles.cosine)
    assert_close(sk.cka(on_gpu(x), on_gpu(y), kernel=sk.Cosine()), want, "cka", np.float32, 300, 30)


KERNELS = (sk.RBF(0.5), sk.Laplacian(0.7), sk.Polynomial(), sk.Polynomial(degree=6, gamma=0.1, coef0=-0.5), sk.RBF(1e8))


@pytest.mark.parametrize("kernel", KERNELS, ids=["rbf", "laplacian", "cubic", "sextic", "wide rbf"])
@pytest.mark.parametrize("n", [4, 63, 64, 65, 257, 520, 1500])
def test_kernels_agree(n: int, kernel: Any) -> None:
    layers = [features(n, p, p).astype(np.float32) for p in (300, 5)]
    for estimator in ESTIMATORS:
        measure = sk.CKA(kernel=kernel, estimator=estimator)
        named = {str(k): x for k, x in enumerate(layers)}
        want = sk.similarity_matrix(named, measure=measure, backend="native_cpu").values
        there = blocks(layers, kernel)
        found = normalised(there, None, estimator, ForcedRoute())
        assert found.plan.backend == "native_cuda"
        assert_close(found.values, want, "cka", "float64", n, 300)
        for _ in range(REPEATS if n < 1500 else 2):
            assert same_bits([found.values], [normalised(there, None, estimator, ForcedRoute()).values])


@pytest.mark.parametrize("kernel", KERNELS[:2], ids=["rbf", "laplacian"])
def test_small_distances_of_kernels_agree(kernel: Any) -> None:
    x = np.repeat(features(150, 40), 2, axis=0) + 1e6
    x[1::4] += 1e-7 * features(x[1::4].shape[0], 40)
    y = features(300, 7)
    want = sk.cka(x, y, kernel=kernel, backend="reference")
    found = normalised(blocks([x], kernel), blocks([y], kernel), "debiased", ForcedRoute())
    assert_close(found.values[0, 0], want, "cka", "float64", 300, 40)


# The boundary.


def test_host_arrays_go_to_the_device_when_it_is_named() -> None:
    x, y = features(300, 30).astype(np.float32), features(300, 7).astype(np.float32)
    named, there = sk.cka(x, y, backend="native_cuda"), sk.cka(on_gpu(x), on_gpu(y))
    assert named == there
    assert sk.similarity_matrix({"x": x}).backend == "native_cpu"


def test_work_waits_for_the_stream_that_an_array_comes_with() -> None:
    """The values are written on their own stream, behind work that takes a while."""
    x = features(4000, 500).astype(np.float32)
    want = sk.cka(on_gpu(x), on_gpu(x[:, :50].copy()))
    cuda, stream = driver(), new_stream()
    source = OnGpu(x)
    late, other = OnGpu(np.zeros_like(x), stream=stream.value), on_gpu(x[:, :50].copy())
    slow = OnGpu(np.zeros(2**28, dtype=np.uint8))
    for value in range(200):
        call(cuda.cuMemsetD8Async, slow.pointer, ctypes.c_ubyte(value), ctypes.c_size_t(2**28), stream)
    call(cuda.cuMemcpyDtoDAsync_v2, late.pointer, source.pointer, ctypes.c_size_t(x.nbytes), stream)
    assert cuda.cuStreamQuery(stream) == NOT_READY
    assert sk.cka(late, other) == want
    call(cuda.cuStreamDestroy_v2, stream)


def test_work_waits_for_the_streams_of_all_arrays() -> None:
    """The second one's values are written on its own stream, behind work that takes a while."""
    x, y = features(300, 30).astype(np.float32), features(300, 7).astype(np.float32)
    want = sk.cka(on_gpu(x), on_gpu(y))
    cuda, streams = driver(), [new_stream(), new_stream()]
    source, slow = on_gpu(y), OnGpu(np.zeros(2**24, dtype=np.uint8))
    first, late = OnGpu(x, stream=streams[0].value), OnGpu(np.ones_like(y), stream=streams[1].value)
    for value in range(50):
        call(cuda.cuMemsetD8Async, slow.pointer, ctypes.c_ubyte(value), ctypes.c_size_t(2**24), streams[1])
    call(cuda.cuMemcpyDtoDAsync_v2, late.pointer, source.pointer, ctypes.c_size_t(y.nbytes), streams[1])
    assert sk.cka(first, late) == want
    for stream in streams:
        call(cuda.cuStreamDestroy_v2, stream)


def test_memory_that_is_elsewhere_is_refused() -> None:
    x = features(20, 3).astype(np.float32)
    wrong = OnGpu(x)
    wrong.at = x.ctypes.data
    with pytest.raises(ValueError, match=r"^the array's memory is not that of CUDA device 0$"):
        sk.cka(wrong, on_gpu(x))


def test_nothing_is_written_to() -> None:
    x = features(300, 30).astype(np.float32)
    there = OnGpu(x)
    sk.cka(there, there)
    sk.greedy_cka(there)
    back = np.empty_like(x)
    call(driver().cuMemcpyDtoH_v2, ctypes.c_void_p(back.ctypes.data), there.pointer, ctypes.c_size_t(x.nbytes))
    assert back.tobytes() == x.tobytes()


def test_many_threads_call_at_once() -> None:
    x, y = on_gpu(features(500, 60).astype(np.float32)), on_gpu(features(500, 9).astype(np.float32))
    want, found = sk.cka(x, y), []
    team = [threading.Thread(target=lambda: found.append(sk.cka(x, y))) for _ in range(8)]
    for thread in team:
        thread.start()
    for thread in team:
        thread.join()
    assert found == [want] * 8


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32", "float64"])
def test_torch_tensors_agree(kind: str) -> None:
    torch = torch_on_gpu()
    x = torch.from_numpy(features(300, 30)).to(getattr(torch, kind))
    y = torch.from_numpy(features(300, 7)).float()
    want = oracles.cka(x.double().numpy(), y.numpy(), estimator="debiased")
    with torch.cuda.stream(torch.cuda.Stream()):
        for view in (x.cuda(), x.cuda().T.contiguous().T, torch.cat([x.cuda()] * 2)[:300]):
            m = sk.similarity_matrix({"x": view, "y": y.cuda()})
            assert m.backend == "native_cuda"
            assert_close(m["x", "y"], want, "cka", kind, 300, 30)


def test_cupy_arrays_agree() -> None:
    cupy = cupy_on_gpu()
    x, y = features(300, 30).astype(np.float32), features(300, 7).astype(np.float32)
    want = oracles.cka(x, y, estimator="debiased")
    with cupy.cuda.Stream(non_blocking=True):
        assert_close(sk.cka(cupy.asarray(x), cupy.asarray(y)), want, "cka", np.float32, 300, 30)
