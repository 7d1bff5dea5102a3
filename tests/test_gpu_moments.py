"""Streams of device arrays on a GPU: the host's to rounding, any split to the bit, the same bits twenty times."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from cuda_cases import layouts
from gpu_arrays import OnGpu, call, driver, new_stream
from needed import torch_on_gpu
from streams import ESTIMATORS, Array, Estimator, features, placed, same_state, split, streamed, truth
from tolerance import assert_close

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends import native_cuda, reference
from simkit.backends.base import Cores
from simkit.backends.cuda_cores import FIRST
from simkit.backends.cuda_device import capability_of
from simkit.backends.moment_sums import MomentSums, MomentUnits, SideSums

pytestmark = pytest.mark.gpu

Layers = dict[str, Array]
REPEATS = 20
CORES: tuple[Cores, ...] = ("plain", "tensor")

there = partial(placed, kind=OnGpu)
on_gpu = partial(streamed, kind=OnGpu)


def test_largest_entries_agree() -> None:
    x = np.random.default_rng(0).standard_normal((900, 700)).astype(np.float32)
    for view in layouts(x):
        assert native_cuda.largest_entries([as_matrix(OnGpu(view))] * 2) == [float(np.abs(x).max())] * 2
    x[899, 699] = np.nan
    assert native_cuda.largest_entries([as_matrix(OnGpu(x))]) == [np.inf]


@pytest.mark.parametrize("rows", [1, 8, 15, 16, 17, 511, 512])
@pytest.mark.parametrize("widths", [[1], [63, 64, 65], [130, 3], [2] * 30, [1000]])
def test_moments_of_a_block_agree(rows: int, widths: list[int]) -> None:
    r = np.random.default_rng(rows)
    others = [7, *widths[:8]]
    tensor = capability_of([]) >= FIRST
    adding = [reference.moments_add, *(partial(native_cuda.moments_add, cores=cores) for cores in CORES[: 1 + tensor])]
    layers = [[as_matrix(r.standard_normal((rows, w)).astype(np.float32)) for w in of] for of in (widths, others)]
    for alone in (True, False):
        found = []
        for add in adding:
            backend = reference if add is reference.moments_add else native_cuda
            sides = [empty_side(of, alone) for of in ([widths] if alone else [widths, others])]
            units = [MomentUnits(x, s, np.empty((rows, s.offsets[-1]))) for x, s in zip(layers, sides, strict=False)]
            moved = backend.moments_rows(units)
            sums = empty_sums(sides)
            add(sums, moved[0], None if alone else moved[1])
            found.append([sums.cross, sums.sum_ab, sums.sum_ay, sums.left.sum_z, sums.left.sum_az, *sums.left.gram])
        for got in found[1:]:
            for number, want in zip(got, found[0], strict=True):
                assert np.abs(number - want).max() <= 1e-13 * np.abs(want).max()


def empty_side(widths: Sequence[int], alone: bool) -> SideSums:
    p, count = sum(widths), len(widths)
    grams = () if alone else tuple(np.zeros((w, w)) for w in widths)
    zeros = (np.zeros(size) for size in (p, p, count, count))
    return SideSums(tuple(np.cumsum([0, *widths]).tolist()), np.full(p, 0.5), np.full(p, 0.25), *zeros, grams)


def empty_sums(sides: Sequence[SideSums]) -> MomentSums:
    left, right = sides[0], sides[1] if len(sides) > 1 else None
    other = right or left
    (p, layers), (q, count) = ((side.offsets[-1], len(side.spans)) for side in (left, other))
    bx = np.zeros((0, 0)) if right is None else np.zeros((count, p))
    return MomentSums(left, right, np.zeros((p, q)), np.zeros((layers, count)), np.zeros((layers, q)), bx)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("n", [4, 511, 512, 513, 1100, 9000])
def test_streams_agree(n: int, estimator: Estimator) -> None:
    for kind in (np.float16, np.float32, np.float64):
        layers, others = features(n, [3, 130, 1], dtype=kind), features(n, [65, 2], 1, dtype=kind)
        for other in (None, others):
            got = on_gpu(layers, other, split(n, 0) if n < 2000 else (), estimator=estimator).compute()
            assert_close(got.values, truth(layers, other, estimator), "stream", kind, n, 130)
            assert n < 512 or got.backend == "native_cuda"


def test_wide_layers_agree() -> None:
    layers, others = features(3000, [1000, 513]), features(3000, [770], 1)
    got, want = on_gpu(layers, others, [1000] * 3).compute(), streamed(layers, others).compute()
    assert_close(got.values, want.values, "stream", np.float32, 3000, 1000)


@pytest.mark.parametrize("both", [False, True])
def test_the_same_bits_for_any_split_and_every_time(both: bool) -> None:
    n = 2600
    layers = features(n, [5, 300, 2], dtype=np.float64)
    others = features(n, [70], 1, dtype=np.float64) if both else None
    layers["l0"][[3, 700, 1500, 1501]] *= 1e5
    layers["l1"][2100] *= 1e40
    layers["l2"][:1300] = 2.5
    want = on_gpu(layers, others).state_dict()
    for sizes in ([512] * 5 + [40], [511, 513, 1024, 552], [1, n - 1], split(n, 1)):
        assert same_state(on_gpu(layers, others, sizes).state_dict(), want)
    for _ in range(REPEATS):
        assert same_state(on_gpu(layers, others).state_dict(), want)
    assert same_state(streamed(layers, others, [1300, 1300], backend="native_cuda").state_dict(), want)


@pytest.mark.parametrize("both", [False, True])
def test_batches_of_an_estimate_are_multiplied_where_they_lie(both: bool) -> None:
    layers = features(700, [3, 170, 1])
    layers["l0"][:100] = 2.5  # constant in the first batch
    others = features(700, [90, 2], 1) if both else None
    sizes = [100, 4, 333, 263]
    want = streamed(layers, others, sizes, mode="minibatch").compute()
    got = on_gpu(layers, others, sizes, mode="minibatch").compute()
    assert_close(got.values, want.values, "cka", np.float32, 700, 170)
    assert got.backend == "native_cuda"
    assert got.plan.notes == want.plan.notes
    first = on_gpu(layers, others, sizes, mode="minibatch").state_dict()
    assert same_state(on_gpu(layers, others, sizes, mode="minibatch").state_dict(), first)


def test_streams_of_the_device_and_of_the_host_meet() -> None:
    layers = features(1900, [6, 20])
    want = truth(layers, None, "debiased")
    parts = [{k: v[rows] for k, v in layers.items()} for rows in (slice(700), slice(700, 1900))]
    for first, second in ((on_gpu, streamed), (streamed, on_gpu), (on_gpu, on_gpu)):
        one = first(parts[0])
        one.merge(second(parts[1]))
        assert_close(one.compute().values, want, "stream", np.float32, 1900, 20)
        resumed = sk.StreamingCKA()
        resumed.load_state_dict(one.state_dict())
        for stream in (one, resumed):
            stream.update(there(parts[1]))
        assert same_state(one.state_dict(), resumed.state_dict())


def test_memory_that_is_written_to_after_an_update() -> None:
    """What an update left on the stream reads the batch before later work on that stream writes to it."""
    layers = features(4000, [400, 90])
    want = on_gpu(layers).compute().values
    queue = new_stream()
    stream = sk.StreamingCKA()
    for rows in (slice(300), slice(300, 4000)):
        batch = {name: OnGpu(x[rows], stream=queue.value) for name, x in layers.items()}
        stream.update(batch)
        for x in batch.values():
            call(driver().cuMemsetD8Async, x.pointer, ctypes.c_ubyte(255), ctypes.c_size_t(x.values.nbytes), queue)
        call(driver().cuStreamSynchronize, queue)
    assert np.array_equal(stream.compute().values, want)
    call(driver().cuStreamDestroy_v2, queue)
    stream.update(there(layers))  # the stream of the batches before is gone
    assert stream.samples == 8000


def test_batches_of_several_streams() -> None:
    """The sums wait for those of the batch before, whichever stream that came with; memory that goes waits too."""
    layers = features(4096, [70, 9])  # whole blocks: no row is kept, for which an update would wait
    cuts = [0, 700, 1300, 2600, 4096]
    want = on_gpu(layers, None, np.diff(cuts).tolist()).state_dict()
    queues = [new_stream() for _ in range(3)]
    spans = zip([*itertools.pairwise(cuts), (0, 4096)], [*queues, *queues], strict=False)
    batches = [  # kept: the whole device waits for memory that is freed
        {name: OnGpu(x[start:end], stream=queue.value) for name, x in layers.items()} for (start, end), queue in spans
    ]
    for _ in range(3):
        stream = sk.StreamingCKA()
        for batch in batches[:-1]:
            stream.update(batch)
        assert same_state(stream.state_dict(), want)
        stream.update(batches[-1])
        del stream  # with work left on a caller's stream
    for queue in queues:
        call(driver().cuStreamDestroy_v2, queue)


def test_torch_models_on_the_device_agree() -> None:
    torch = torch_on_gpu()
    torch.manual_seed(0)
    nn = torch.nn
    models = [nn.Sequential(nn.Linear(20, p), nn.ReLU(inplace=True), nn.Linear(p, 30)) for p in (60, 90)]
    data = list(torch.randn(20_000, 20).split(1000))
    found = {}
    for device in ("cpu", "cuda"):
        on = [model.to(device) for model in models]
        for mode, memory in (("exact", "2 MB"), ("exact", None), ("minibatch", None)):
            how: dict[str, Any] = {"mode": mode, "memory": memory, "device": device, "progress": False}
            found[device, mode, memory] = sk.compare(*on, data=data, layers=["0", "1", "2"], **how)
    for (device, mode, memory), matrix in found.items():
        assert_close(matrix.values, found["cpu", mode, memory].values, "cka", np.float32, 20_000, 90)
        assert matrix.backend == {"cpu": "native_cpu", "cuda": "native_cuda"}[device]
    assert found["cuda", "exact", None].plan.notes[-1].endswith(" of features stayed on cuda:0")
    options: dict[str, Any] = {"layers": ["0", "1", "2"], "measure": sk.CKA(sk.RBF()), "progress": False}
    spooled = sk.compare(*on, data=iter(data[:3]), **options)  # which does not say how many samples it has
    assert spooled.backend == "native_cuda"
    whole = sk.compare(*on, data=data[:3], **options)
    assert_close(spooled.values, whole.values, "cka", np.float32, 3000, 90)
    for batch, kind in itertools.product((data[0],), (torch.float16, torch.bfloat16)):
        stream = sk.StreamingCKA()
        stream.update({"x": batch.to("cuda", kind), "y": batch[:, :5].cuda()})
        assert stream.compute().backend == "native_cuda"
