"""Arrays on CUDA devices, without a device: what their owners say is read, nothing is copied before it must be."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from device_arrays import Capsuled, OnDevice, Tensor

import simkit as sk
from simkit.arrays import DeviceMatrix, as_matrix
from simkit.devices import LEGACY_STREAM, device_view

Array = npt.NDArray[Any]


@pytest.fixture
def x() -> Array:
    return np.random.default_rng(0).standard_normal((70, 6)).astype(np.float32)


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
