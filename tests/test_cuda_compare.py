"""compare() of models on a device, without one: features stay there, or come back to be compared there."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import emulated_device
import numpy as np
import pytest
from cuda_cases import see_device
from tolerance import assert_close

import simkit as sk
from simkit import arrays
from simkit.arrays import DeviceMatrix
from simkit.backends import native_cuda
from simkit.compare import on_device
from simkit.devices import LEGACY_STREAM, DeviceView
from simkit.errors import TooLittleMemory

torch = pytest.importorskip("torch")
nn = torch.nn


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return emulated_device.compile_all(tmp_path_factory.getbasetemp()) or pytest.skip("there is no C++ compiler")


@pytest.fixture
def device(libraries: list[Any], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Torch tensors say that they lie on a device; which devices were made the current one."""

    def view(x: Any) -> DeviceView | None:
        if not isinstance(x, torch.Tensor):
            return None
        x = x.detach().reshape(len(x), -1)
        strides = (x.element_size() * x.stride(0), x.element_size() * x.stride(1))
        return DeviceView(x.data_ptr(), tuple(x.shape), strides, str(x.dtype)[6:], 0, LEGACY_STREAM, x)

    visited: list[int] = []
    see_device(monkeypatch, emulated_device.module(libraries))
    monkeypatch.setattr(arrays, "device_view", view)
    monkeypatch.setattr(on_device, "current", lambda ordinal: (visited.append(ordinal), nullcontext())[1])
    return visited


def stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on no features may come to the host."""
    monkeypatch.setattr(DeviceMatrix, "values", property(lambda x: pytest.fail(f"{x.name} was copied to the host")))


def models(dtype: Any = torch.float32) -> list[Any]:
    """Networks whose ReLU overwrites what the layer before gave."""
    torch.manual_seed(0)
    return [
        nn.Sequential(nn.Conv1d(1, p, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(3 * p, 4)).to(dtype)
        for p in (6, 9)
    ]


def images(n: int = 300) -> Any:
    return torch.randn(n, 1, 5, generator=torch.Generator().manual_seed(1))


def compared(nets: list[Any], data: Any, **options: Any) -> sk.SimilarityMatrix:
    return sk.compare(*nets, data=data, layers=["0", "1", "3"], progress=False, **options)


@pytest.mark.parametrize("measure", [sk.CKA(), sk.CKA(sk.RBF()), sk.CKA(estimator="biased")])
@pytest.mark.parametrize("pair", [False, True])
def test_features_stay_where_the_layers_leave_them(
    device: list[int], measure: Any, pair: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    nets, data = models()[: 1 + pair], images()
    with monkeypatch.context() as host:
        host.setattr(arrays, "device_view", lambda x: None)
        want = compared(nets, data, measure=measure)
    assert want.backend == "native_cpu"
    stay(monkeypatch)
    got = compared(nets, data, measure=measure)
    assert_close(got.values, want.values, "cka", np.float32, 300, 27)
    assert got.backend == "native_cuda"
    assert (got.rows, got.columns, got.samples) == (want.rows, want.columns, want.samples)
    assert got.plan.notes[0].startswith("features stay on cuda:0: ")
    assert got.plan.notes[-1].endswith(" of features stayed on cuda:0")
    assert not device


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_types_of_layers(device: list[int], dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    nets, data = models(dtype), images().to(dtype)
    with monkeypatch.context() as host:
        host.setattr(arrays, "device_view", lambda x: None)
        want = compared(nets, data)
    stay(monkeypatch)
    got = compared(nets, data)
    kind = np.float64 if dtype == torch.float64 else np.float32
    assert_close(got.values, want.values, "cka", kind, 300, 27)
    assert got.backend == "native_cuda"


@pytest.mark.usefixtures("device")
def test_no_split_of_the_data_changes_a_bit() -> None:
    """Also of data that holds more than it says, or less."""

    net = nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Tanh())  # element by element

    def bits(data: Any) -> bytes:
        found = sk.compare(net, data=data, layers=["0", "1", "2"], progress=False)
        assert (found.backend, found.samples) == ("native_cuda", 300)
        assert found.plan.notes[-1].endswith(" of features stayed on cuda:0")
        return found.values.tobytes()

    whole = bits(images())
    assert bits(list(images().split(77))) == whole
    for batch in (1, 70):
        assert bits(torch.utils.data.DataLoader(images(), batch)) == whole
    for said in (2, 9):
        assert bits(Said(images().split(70), said)) == whole


class Said:
    """Batches, and how many of them there are said to be."""

    def __init__(self, batches: Any, said: int) -> None:
        self._batches, self._said = batches, said

    def __iter__(self) -> Any:
        return iter(self._batches)

    def __len__(self) -> int:
        return self._said


@pytest.mark.parametrize("on_disk", [False, True])
def test_features_that_came_to_the_host_are_compared_on_the_device(
    device: list[int], on_disk: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of data that does not say how many samples it has, and of runs that can be resumed."""
    nets = models()
    measure = sk.CKA(sk.RBF())  # which no moments hold
    options: dict[str, Any] = {"resume": tmp_path / "kept"} if on_disk else {}
    data = list(images().split(70)) if on_disk else iter(images().split(70))
    got = compared(nets, data, measure=measure, **options)
    assert device == [0]
    assert got.backend == "native_cuda"
    assert got.plan.notes[-1].endswith(" on disk" if on_disk else " in memory")
    monkeypatch.setattr(arrays, "device_view", lambda x: None)
    want = compared(nets, images(), measure=measure)
    assert_close(got.values, want.values, "cka", np.float32, 300, 27)


def test_a_device_that_is_too_small_leaves_it_to_the_host(device: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """After the models have run nothing is lost."""
    data, measure = images().split(70), sk.CKA(sk.RBF())
    for error in (TooLittleMemory("8 bytes", "pairs of layers", 9), MemoryError("the device is full")):
        monkeypatch.setattr(native_cuda, "pair_sums", lambda *_, error=error, **__: (_ for _ in ()).throw(error))
        got = compared(models(), iter(data), measure=measure)
        assert got.backend == "native_cpu"
        assert got.plan.notes[-2] == f"not compared on cuda:0: {error}"
    assert device == [0, 0]


def test_memory_bounds_what_stays(device: list[int]) -> None:
    nets, data = models(), images()
    got = compared(nets, data, memory="4 MB")
    assert got.backend == "native_cuda"
    assert got.plan.notes[0].endswith("; memory=3.815 MiB")
    with pytest.raises(TooLittleMemory, match=r"^memory=100 kB is too little: "):
        compared(nets, data, memory="100 kB", measure=sk.CKA(sk.RBF()))
    assert not device


@pytest.mark.usefixtures("device")
def test_layers_that_change_their_place_or_width_are_refused() -> None:
    class Wide(nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.Identity()

        def forward(self, x: Any) -> Any:
            return self.pool(x if len(x) == 70 else x[:, :3])

    with pytest.raises(ValueError, match=r"^'pool' has 3 features in one batch and 5 in another"):
        sk.compare(Wide(), data=torch.utils.data.DataLoader(images()[:, 0], 70), layers=["pool"], progress=False)
