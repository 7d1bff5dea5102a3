"""Which backend takes arrays that lie on a CUDA device, without a device, and what the plan says of it."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from device_arrays import OnDevice

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends import cuda_device, native_cpu, native_cuda
from simkit.backends.choose import choose

Array = npt.NDArray[Any]


@pytest.fixture
def x() -> Array:
    return np.random.default_rng(0).standard_normal((70, 6)).astype(np.float32)


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without a device, whatever this one has."""
    monkeypatch.setattr(native_cuda, "device_report", lambda: (True, [], "no CUDA-capable device is detected"))


def seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_cuda, "device_report", lambda: (True, ["a device"], ""))


def test_host_arrays_stay_on_the_host(x: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    seen(monkeypatch)
    m = as_matrix(x)
    for op in native_cuda.OPS:
        choice = choose(op, inputs=[m])
        assert (choice.backend, choice.reason) == ("native_cpu", "first choice")
        assert choose(op, backend="native_cuda", inputs=[m]).reason == "asked for"


def test_device_arrays_stay_on_their_device(x: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    seen(monkeypatch)
    a, b, c = (as_matrix(OnDevice(x, device), name=name) for name, device in (("a", 0), ("b", 0), ("c", 2)))
    h = as_matrix(x, name="h")
    for op in native_cuda.OPS:
        choice = choose(op, inputs=[a, b])
        assert (choice.backend, choice.reason) == ("native_cuda", "first choice")
        assert choice.function is getattr(native_cuda, op)
    with monkeypatch.context() as less:
        less.setattr(native_cuda, "OPS", native_cuda.OPS[1:])
        choice = choose("column_stats", inputs=[a])
    assert choice.backend == "native_cpu"
    assert choice.reason == "native_cuda: there is no CUDA column_stats; copied from the device to the host"
    text = "^a lies on cuda:0 and h on the host: move one of them, or name a backend, which takes both$"
    with pytest.raises(ValueError, match=text):
        choose("pair_sums", inputs=[a, h])
    for backend, reason in (
        ("native_cuda", "asked for"),
        ("native_cpu", "asked for; copied from the device to the host"),
    ):
        choice = choose("pair_sums", backend=backend, inputs=[a, h])
        assert (choice.backend, choice.reason) == (backend, reason)
    for backend in (None, "native_cuda"):
        with pytest.raises(ValueError, match=r"^a lies on cuda:0 and c on cuda:2: move them to one device$"):
            choose("pair_sums", inputs=[a, c], backend=backend)
    assert choose("pair_sums", inputs=[a, c], backend="native_cpu").backend == "native_cpu"


def test_what_came_over_the_host_is_said(x: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    seen(monkeypatch)
    a, whole = as_matrix(OnDevice(x), name="a"), as_matrix(OnDevice((x * 10).astype(np.int32)), name="whole")
    assert whole.origin.endswith(" device 0, copied to the host")
    choice = choose("pair_sums", inputs=[whole, whole])
    assert (choice.backend, choice.reason) == ("native_cpu", f"first choice; whole is {whole.origin}")
    text = f"a lies on cuda:0 and whole on the host (whole is {whole.origin}): move one of them, or name a backend"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}, which takes both$"):
        choose("pair_sums", inputs=[a, whole])


def test_the_kernel_that_no_device_takes(x: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    from simkit.backends.base import Block

    pytest.importorskip("numba")
    seen(monkeypatch)
    m = as_matrix(OnDevice(x))
    for kernel in (sk.Cosine(), sk.RBF(0.5), sk.Laplacian(), sk.Polynomial()):
        assert choose("pair_sums", inputs=[Block(m, kernel, np.zeros(6), 0)]).backend == "native_cuda"

    def own(product: float, squared_distance: float) -> float:
        return product - squared_distance

    custom = Block(m, sk.CustomKernel(own), np.zeros(6), 0)
    assert choose("column_products", inputs=[custom]).backend == "native_cuda"  # no kernel comes into it
    why = f"there is no CUDA pair_sums for {custom.kernel!r}"
    assert choose("pair_sums", inputs=[custom]).reason == f"native_cuda: {why}; copied from the device to the host"
    with pytest.raises(NotImplementedError, match=f"^backend 'native_cuda' cannot run pair_sums: {re.escape(why)}$"):
        choose("pair_sums", backend="native_cuda", inputs=[custom])


CALLS: dict[str, Callable[..., Any]] = {
    "similarity_matrix": lambda x, **o: sk.similarity_matrix({"x": x, "y": x}, **o),
    "nbs": lambda x, **o: sk.similarity_matrix({"x": x}, measure=sk.NBS()),
    "greedy_cka": lambda x, **o: sk.greedy_cka(x, **o),
    "redundancy": lambda x, **o: sk.redundancy(x, **o),
}


@pytest.mark.usefixtures("blind")
@pytest.mark.parametrize("name", CALLS)
def test_without_a_device_the_host_computes_and_the_plan_says_so(x: Array, name: str) -> None:
    want, got = CALLS[name](x), CALLS[name](OnDevice(x))
    assert "copied from the device to the host" in got.plan.explain()
    assert "copied" not in want.plan.explain()
    if name in ("similarity_matrix", "nbs"):
        assert got.values.tolist() == want.values.tolist()
    if name == "greedy_cka":
        assert got.order.tolist() == want.order.tolist()
    if name in ("similarity_matrix", "greedy_cka"):
        assert "native_cuda: no CUDA-capable device is detected" in got.plan.explain()


@pytest.mark.usefixtures("blind")
def test_a_named_device_backend_never_falls_back(x: Array) -> None:
    for call in (sk.cka, sk.hsic):
        with pytest.raises(
            NotImplementedError,
            match=r"^backend 'native_cuda' cannot run column_stats: no CUDA-capable device is detected$",
        ):
            call(x, x, backend="native_cuda")


@pytest.mark.usefixtures("blind")
def test_streams_are_summed_on_the_host(x: Array) -> None:
    for mode in ("exact", "minibatch"):
        streams = [sk.StreamingCKA(mode=mode) for _ in range(2)]  # type: ignore[arg-type]
        for k in range(0, 70, 10):
            streams[0].update({"x": x[k : k + 10]})
            streams[1].update({"x": OnDevice(x[k : k + 10])})
        want, got = (stream.compute() for stream in streams)
        assert got.values.tolist() == want.values.tolist()
        assert "batches copied to the host and added there: 7" in got.plan.explain()
        assert "copied" not in want.plan.explain()


def test_a_build_without_cuda_says_so(x: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    why = "this build has no CUDA code (SIMKIT_CUDA=OFF)"
    monkeypatch.setattr(cuda_device, "load", lambda: (None, why))
    cuda_device.device_report.cache_clear()
    try:
        assert native_cuda.device_report() == (False, [], why)
        assert native_cuda.unsupported_reasons("column_stats") == [why]
        assert native_cuda.unsupported_reasons("guess") == ["there is no CUDA guess"]
        m = sk.similarity_matrix({"x": OnDevice(x)})
        assert m.plan.steps[0].reason.startswith(f"native_cuda: {why}; copied from the device to the host")
    finally:
        cuda_device.device_report.cache_clear()


# The planner and the binding.


def test_the_planner_of_tiles(x: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    from simkit.metrics.prepare import prepare

    device = SimpleNamespace(
        current_device=lambda: 0, capability=lambda device: (10, 0), memory_info=lambda device: (2**37, 2**37)
    )
    monkeypatch.setattr(cuda_device, "load", lambda: (device, ""))
    wide = [prepare(as_matrix(np.tile(x, 20) + x.max(), name=str(k)), sk.Linear()) for k in range(3)]
    route = native_cuda.plan_pair_sums(wide, None)
    assert (route.name, route.products, route.tile) == ("sample", "float32", 128)
    assert route.multiply_adds == 70 * 70 * (360 + 4) // 2
    assert native_cuda.plan_pair_sums(wide, None, products="float64").tile == 64
    blocks = [prepare(as_matrix(x, name=str(k)), sk.Linear()) for k in range(3)]
    route = native_cuda.plan_pair_sums(blocks, None)
    assert (route.name, route.products, route.tile) == ("feature", "float64", 64)
    assert route.multiply_adds == 70 * 18 * 18 // 2
    for given in (wide, blocks):
        most = native_cuda.plan_pair_sums(given[:1], given[1:]).bytes
        assert native_cuda.plan_pair_sums(given[:1], given[1:], memory=most).bytes <= most
    with pytest.raises(ValueError, match=r"^memory=1000 bytes is too little: comparing 3 layers of 70 samples on a"):
        native_cuda.plan_pair_sums(blocks, None, memory=1000)
    with pytest.raises(NotImplementedError, match=r"^native_cuda multiplies float32 in tiles of 128, not 32$"):
        native_cuda.plan_pair_sums(wide, None, tile=32)


def test_the_binding_refuses_what_it_cannot_read() -> None:
    cuda: Any = cuda_device.load()[0]
    if cuda is None:
        pytest.skip("this build has no CUDA code")
    address = ctypes.addressof(ctypes.create_string_buffer(1024))
    good = {"pointer": address // 64 * 64, "shape": (2, 3), "strides": (12, 4), "dtype": "float32"}
    good |= {"device": 0, "stream": 1}
    for change, sentence in (
        ({"shape": (0, 3)}, r"^a non-empty matrix \[n, p\] is needed$"),
        ({"dtype": "int32"}, "^no kernel reads dtype int32$"),
        ({"strides": (12, 2)}, "^the array's items are not aligned$"),
    ):
        with pytest.raises(ValueError, match=sentence):
            cuda.Array(**{**good, **change})
    if not native_cuda.device_report()[1]:
        with pytest.raises(RuntimeError, match=r"^CUDA cannot look up an array's address: "):
            cuda.Array(**good)
        with pytest.raises(RuntimeError, match=r"^CUDA cannot "):
            cuda.Array.copied(x=np.eye(2), dtype="float64", device=0)
    assert native_cpu.unsupported_reasons("column_stats") == []
