"""Arrays on a second GPU while the first is current: the same bits there, and the first stays current."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gpu_arrays import OnGpu, new_stream
from needed import cupy_on_gpu, may

import simkit as sk
from simkit.backends import cuda_device

pytestmark = pytest.mark.gpu

Call = Callable[[Callable[[Any], Any]], list[Any]]


@pytest.fixture(autouse=True)
def two() -> None:
    _, devices, _ = cuda_device.device_report()
    if len(devices) < 2:
        may("there is no second device")
    if cuda_device.cuda().capability(0) != cuda_device.cuda().capability(1):
        may("the devices are of two kinds, which may multiply by different cores")


def relu(n: int, p: int) -> Any:
    r = np.random.default_rng([n, p])
    return np.maximum(r.standard_normal((n, 4)) @ r.standard_normal((4, p)) + r.standard_normal((n, p)), 0)


X, Y = relu(300, 40).astype(np.float32), relu(300, 9).astype(np.float32)


def streamed(on: Callable[[Any], Any]) -> list[Any]:
    stream = sk.StreamingCKA()
    for rows in (slice(0, 130), slice(130, 300)):
        stream.update({"x": on(X[rows]), "y": on(Y[rows])})
    return [stream.compute().values]


def ordered(on: Callable[[Any], Any], **options: Any) -> list[Any]:
    found = sk.greedy_cka(on(X), **options)
    return [found.order, found.cka]


def graph(on: Callable[[Any], Any]) -> list[Any]:
    found = sk.filter_graph(on(X), threshold=1.2)
    return [np.asarray(found.bits)]


CALLS: dict[str, Call] = {
    "cka": lambda on: [sk.cka(on(X), on(Y))],
    "rbf": lambda on: [sk.cka(on(X), on(Y), kernel=sk.RBF())],
    "matrix": lambda on: [sk.similarity_matrix({"x": on(X), "y": on(Y)}).values],
    "order": ordered,
    "order of units": lambda on: ordered(on, units=8),
    "order by a kernel": lambda on: ordered(on, kernel=sk.RBF(), count=3),
    "graph": graph,
    "stream": streamed,
}


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_the_same_bits_on_either(name: str, streams: bool) -> None:
    found = []
    for device in (0, 1):
        own = new_stream(device).value if streams else None
        found.append(CALLS[name](lambda x, own=own, device=device: OnGpu(x, stream=own, device=device)))
        assert cuda_device.cuda().current_device() == 0
    for first, second in zip(*found, strict=True):
        assert np.asarray(first).tobytes() == np.asarray(second).tobytes()


def test_both_at_once() -> None:
    want = [CALLS["cka"](OnGpu), CALLS["order"](OnGpu)]
    found: dict[int, list[Any]] = {}

    def work(device: int) -> None:
        found[device] = [CALLS[name](lambda x: OnGpu(x, device=device)) for name in ("cka", "order")]

    team = [threading.Thread(target=work, args=(device,)) for device in (0, 1)]
    for thread in team:
        thread.start()
    for thread in team:
        thread.join()
    for device in (0, 1):
        for first, second in zip(want, found[device], strict=True):
            assert [np.asarray(a).tobytes() for a in first] == [np.asarray(b).tobytes() for b in second]


def test_cupy_arrays_of_the_device_that_is_not_current() -> None:
    """On a stream of that device which is its current one, and which still computes them."""
    cupy = cupy_on_gpu()
    want = CALLS["cka"](lambda x: OnGpu(x, device=1))
    for shape in (X.shape, (300, 8, 5)):
        with cupy.cuda.Device(1):
            stream = cupy.cuda.Stream(non_blocking=True)
            with stream:
                x, y = (cupy.asarray(values) for values in (X.reshape(shape), Y))
                with cupy.cuda.Device(0):
                    found = sk.cka(x, y)
        assert [found] == want


def test_two_devices_in_one_call_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^x lies on cuda:0 and y on cuda:1: move them to one device$"):
        sk.cka(OnGpu(X), OnGpu(Y, device=1))


def test_memory_of_the_other_device_is_refused() -> None:
    wrong = OnGpu(X, device=1)
    wrong.device = 0
    with pytest.raises(ValueError, match=r"^the array's memory is not that of CUDA device 0$"):
        sk.cka(wrong, OnGpu(Y))
    wrong.device = 1
