"""Arrays on CUDA devices, without a device: what their owners say is read, nothing is copied before it must be.

The fakes below stand for CuPy, JAX and torch: they say where they lie, and hand over a copy when asked.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import simkit as sk
from simkit.arrays import DeviceMatrix, as_matrix
from simkit.backends import cuda_device, native_cpu, native_cuda
from simkit.backends.choose import choose
from simkit.devices import LEGACY_STREAM, device_view

Array = npt.NDArray[Any]


class OnDevice:
    """As a CuPy array: strides of its own, a stream, and ``get`` for a copy on the host."""

    def __init__(self, values: Array, device: int = 0, stream: int | None = 77, version: int = 3) -> None:
        self.values, self.device, self.stream, self.version, self.copies = values, device, stream, version, 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.values.dtype

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        v = self.values
        interface = {"shape": v.shape, "typestr": v.dtype.str, "data": (v.ctypes.data, False), "version": self.version}
        interface["strides"] = None if v.flags.c_contiguous else v.strides
        return interface | ({"stream": self.stream} if self.version >= 3 else {})

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.device

    def reshape(self, *shape: int) -> OnDevice:
        return OnDevice(self.values.reshape(*shape), self.device, self.stream, self.version)

    def get(self) -> Array:
        self.copies += 1
        return self.values


class Capsuled(OnDevice):
    """As an array that offers DLPack alone."""

    __cuda_array_interface__ = None  # type: ignore[assignment]

    def __dlpack__(self, *, stream: int) -> object:
        assert stream == LEGACY_STREAM  # the owner makes this stream wait for its own
        return self.values.__dlpack__()


@pytest.fixture
def x() -> Array:
    return np.random.default_rng(0).standard_normal((70, 6)).astype(np.float32)


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without a device, whatever this one has."""
    monkeypatch.setattr(native_cuda, "device_report", lambda: (True, [], "no CUDA-capable device is detected"))


def seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_cuda, "device_report", lambda: (True, ["a device"], ""))


# Reading.


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_the_interface_is_read_and_nothing_is_copied(x: Array, kind: str) -> None:
    values = x.astype(kind)
    for view in (values, values.T, values[::-1, ::2], np.asfortranarray(values), np.broadcast_to(values[:1], (9, 6))):
        owner = OnDevice(view, device=3)
        found = device_view(owner)
        assert found is not None
        assert (found.pointer, found.shape, found.strides) == (view.ctypes.data, view.shape, view.strides)
        assert (found.dtype, found.device, found.stream, found.owner) == (kind, 3, 77, owner)
        m = as_matrix(owner, name="fc")
        assert isinstance(m, DeviceMatrix)
        assert (m.name, m.n, m.p, m.dtype, m.device, m.mapped) == ("fc", *view.shape, kind, 3, False)
        assert m.origin.endswith(" cuda:3")
        assert m.precision == ("float64" if kind == "float64" else "float32")
        assert owner.copies == 0


@pytest.mark.parametrize(
    ("stream", "version", "read"), [(None, 3, 1), (1, 3, 1), (2, 3, 2), (0x5555, 3, 0x5555), (9, 2, 1)]
)
def test_streams(x: Array, stream: int | None, version: int, read: int) -> None:
    found = device_view(OnDevice(x, stream=stream, version=version))
    assert found is not None
    assert found.stream == read


@pytest.mark.parametrize("stream", [0, -1, "x", 1.0])
def test_streams_that_are_none(x: Array, stream: Any) -> None:
    with pytest.raises(ValueError, match=rf"^the array's __cuda_array_interface__ names stream {stream!r}: it must be"):
        sk.cka(OnDevice(x, stream=stream), x)


@pytest.mark.parametrize("shape", [(70, 6), (70, 2, 3)])
def test_the_stream_is_that_of_the_device_of_the_array(x: Array, shape: tuple[int, ...]) -> None:
    """As with CuPy, whose arrays name the current stream of the current device, and copy there."""
    current = [0]

    class Device:
        def __enter__(self) -> None:
            current.append(1)

        def __exit__(self, *_: object) -> None:
            current.pop()

    class Elsewhere(OnDevice):
        @property
        def __cuda_array_interface__(self) -> dict[str, Any]:
            return OnDevice.__cuda_array_interface__.fget(self) | {"stream": (55, 77)[current[-1]]}  # type: ignore[attr-defined]

        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 1

        def reshape(self, *shape: int) -> OnDevice:
            assert current[-1] == 1
            return Elsewhere(self.values.reshape(*shape), Device())  # type: ignore[arg-type]

    found = device_view(Elsewhere(x.reshape(shape), Device()))  # type: ignore[arg-type]
    assert found is not None
    assert (found.device, found.stream, found.shape, current) == (1, 77, (70, 6), [0])


def test_an_interface_that_says_nothing_of_streams_gives_way_to_dlpack(x: Array) -> None:
    """As JAX's, of version 2: its values may not be there yet, and only DLPack waits for them."""

    asked_for: list[int] = []

    class Both(OnDevice):
        def __dlpack__(self, *, stream: int) -> object:
            asked_for.append(stream)
            return self.values.__dlpack__()

    for version, asked in ((2, [LEGACY_STREAM]), (3, [])):
        asked_for.clear()
        found = device_view(Both(x, version=version))
        assert found is not None
        assert (found.pointer, found.stream) == (x.ctypes.data, LEGACY_STREAM if asked else 77)
        assert asked_for == asked


def test_dlpack_is_read_and_kept(x: Array) -> None:
    for values in (x, x.astype(np.float64)[:, ::-2], x.astype(np.float16).T):
        before = sys.getrefcount(values)
        found = device_view(Capsuled(values, device=1))
        assert found is not None
        assert (found.pointer, found.shape, found.strides) == (values.ctypes.data, values.shape, values.strides)
        assert (found.dtype, found.device, found.stream) == (values.dtype.name, 1, LEGACY_STREAM)
        assert sys.getrefcount(values) > before
        del found
        assert sys.getrefcount(values) == before  # the capsule's destructor gave the array back
    m = as_matrix(Capsuled(x))
    assert np.array_equal(m.values, x)


def test_more_dimensions_are_joined_where_they_lie(x: Array) -> None:
    maps = np.arange(120, dtype=np.float32).reshape(5, 2, 3, 4)
    found = device_view(OnDevice(maps))
    assert found is not None
    assert (found.pointer, found.shape, found.strides) == (maps.ctypes.data, (5, 24), (96, 4))


def test_what_is_no_matrix_of_floats_takes_the_way_over_the_host(x: Array) -> None:
    for values in (x > 0, (x * 10).astype(np.int64), x.astype(">f4")):
        owner = OnDevice(values)
        assert device_view(owner) is None
        m = as_matrix(owner)
        assert m.device is None
        assert m.origin.endswith("device 0, copied to the host")
        assert np.array_equal(m.float64(), values.astype(np.float64))
    with pytest.raises(ValueError, match=r"^x has shape \(70,\): a representation is \[n, p\]"):
        as_matrix(OnDevice(x[:, 0]))
    with pytest.raises(TypeError, match=r"^x has dtype complex64: similarity of complex features is not defined here$"):
        as_matrix(OnDevice(x.astype(np.complex64)))
    assert device_view(x) is None


def test_an_array_that_cannot_be_copied_says_so(x: Array) -> None:
    class Stuck(OnDevice):
        get = None  # type: ignore[assignment]

    stuck = Stuck(x)
    del Stuck.get
    stuck.__class__ = type("Stuck", (), {"__dlpack_device__": lambda self: (2, 0)})  # nothing but a place
    with pytest.raises(TypeError, match=r"^x lies on a device, and has neither get\(\) nor __array__\(\) to copy it"):
        as_matrix(stuck)


def test_the_host_copy_is_made_once_and_shared(x: Array) -> None:
    owner = OnDevice(x)
    m = as_matrix(owner)
    assert owner.copies == 0
    parts = [m.column_slice(0, 2), m.column_slice(2, 6).column_slice(1, 3), m.renamed("other"), as_matrix(m, name="y")]
    for part, columns in zip(parts, (slice(0, 2), slice(3, 5), slice(None), slice(None)), strict=True):
        assert isinstance(part, DeviceMatrix)
        assert part.view.pointer == x[:, columns].ctypes.data
        assert part.view.shape == x[:, columns].shape == (part.n, part.p)
        assert np.array_equal(part.values, x[:, columns])
    assert [part.name for part in parts] == ["x", "x", "other", "y"]
    assert np.array_equal(m.float64(), x.astype(np.float64))
    assert owner.copies == 1
    host = m.on_host()
    assert (host.device, host.origin) == (None, f"{m.origin}, copied to the host")


class Tensor:
    """What is asked of a torch CUDA tensor."""

    def __init__(self, values: Array, kind: str = "float32", index: int = 1) -> None:
        self.values, self.dtype = values, f"torch.{kind}"
        self.device = SimpleNamespace(type="cuda", index=index)
        self.layout, self.is_quantized, self.is_nested = "strided", False, False
        self.ndim, self.shape = values.ndim, values.shape

    def __len__(self) -> int:
        return len(self.values)

    def detach(self) -> Tensor:
        return self

    resolve_conj = resolve_neg = detach

    def reshape(self, *shape: int) -> Tensor:
        return Tensor(self.values.reshape(*shape), self.dtype.removeprefix("torch."), self.device.index)

    def numel(self) -> int:
        return self.values.size

    def element_size(self) -> int:
        return self.values.itemsize

    def stride(self, axis: int) -> int:
        return self.values.strides[axis] // self.values.itemsize

    def data_ptr(self) -> int:
        return int(self.values.ctypes.data)


@pytest.fixture
def fake_torch(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    streams = {1: 0x77, 0: 0}
    cuda = SimpleNamespace(current_stream=lambda device: SimpleNamespace(cuda_stream=streams[device.index]))
    torch = SimpleNamespace(Tensor=Tensor, strided="strided", cuda=cuda, version=SimpleNamespace(hip=None))
    monkeypatch.setitem(sys.modules, "torch", torch)
    return torch


def test_tensors_say_it_themselves(x: Array, fake_torch: SimpleNamespace) -> None:
    for values, kind in ((x, "float32"), (x.T, "float32"), (x.view(np.uint16), "bfloat16"), (x[::2, ::-1], "float32")):
        found = device_view(Tensor(values, kind))
        assert found is not None
        assert (found.pointer, found.shape, found.strides) == (values.ctypes.data, values.shape, values.strides)
        assert (found.dtype, found.device, found.stream) == (kind, 1, 0x77)
    found = device_view(Tensor(x, index=0))
    assert found is not None
    assert found.stream == LEGACY_STREAM  # torch's default stream
    for kind in ("int64", "complex64", "float8_e4m3fn"):
        assert device_view(Tensor(x, kind)) is None
    fake_torch.version.hip = "6"
    assert device_view(Tensor(x)) is None


# Choosing.


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
