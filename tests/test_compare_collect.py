"""Features of a run on a device, without one: what is copied, where to, and what is not read at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import simkit as sk
from simkit import arrays
from simkit.arrays import DeviceMatrix, Matrix, as_matrix
from simkit.backends import native_cuda
from simkit.compare import collect, on_device, run
from simkit.devices import DeviceView
from simkit.errors import TooLittleMemory

Array = npt.NDArray[Any]


class There:
    """As an array of CuPy's on a device, which the host may not have."""

    def __init__(self, values: Array) -> None:
        self.values, self.shape, self.dtype = values, values.shape, values.dtype

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        v = self.values
        where = {"data": (v.ctypes.data, False), "strides": v.strides, "stream": 7, "version": 3}
        return {"shape": v.shape, "typestr": v.dtype.str, **where}

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def copy(self) -> There:
        return type(self)(self.values.copy())

    def get(self) -> Array:
        raise AssertionError("an array on the device was copied to the host")


class Capsuled(There):
    """As an array that offers DLPack alone."""

    __cuda_array_interface__ = None  # type: ignore[assignment]

    def __dlpack__(self, *, stream: int) -> object:
        return self.values.__dlpack__()


@pytest.mark.parametrize("measure", [sk.CKA(), sk.CKA(sk.RBF(0.5)), sk.NBS()])
def test_features_are_not_read_to_plan_what_follows(measure: Any) -> None:
    x = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    layers = [as_matrix(There(x), name="a"), as_matrix(There(x[:, :3].copy()), name="b")]
    half = [Matrix("h", np.zeros((40, 6), np.uint16), "bfloat16")]
    for left, right in ((layers, None), (layers, layers), (half, layers)):
        collect.check_engine(left, right, 5000, measure, 10**9)
    with pytest.raises(TooLittleMemory):
        collect.check_engine(layers, None, 5000, measure, 10)


@pytest.mark.parametrize("kind", [There, Capsuled])
def test_a_copy_lies_where_the_features_lay(kind: type[There]) -> None:
    """Whatever way an array says where it lies; it stays of the same origin."""
    x = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    features = DeviceMatrix("a", as_matrix(kind(x)).view, "elsewhere")  # type: ignore[attr-defined]
    again = on_device.copied(features, stay=True)
    assert isinstance(again, DeviceMatrix)
    assert (again.name, again.origin, again.device, again.n, again.p) == ("a", "elsewhere", 0, 40, 6)
    assert again.view.pointer != features.view.pointer
    assert np.array_equal(again.view.array.values, x)
    assert again.view.array.values.ctypes.data == again.view.pointer


@pytest.mark.parametrize("mode", ["exact", "minibatch"])
@pytest.mark.parametrize("can_hold", [False, True])
def test_features_go_to_the_host_where_no_sums_are_held_on_their_device(
    mode: str, can_hold: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layer by layer, into the memory of the batch before; models on several devices too."""
    torch = pytest.importorskip("torch")

    def view(x: Any) -> DeviceView | None:
        if not isinstance(x, torch.Tensor):
            return None
        x = x.detach()
        place = 0 if x.shape[1] > 3 else last[0]
        return DeviceView(x.data_ptr(), (x.shape[0], x.shape[1]), (4 * x.stride(0), 4), "float32", place, 1, x)

    last = [0]  # the device of the last layer
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.ReLU(inplace=True), torch.nn.Linear(6, 3))
    options: dict[str, Any] = {"data": list(torch.randn(2000, 5).split(700)), "progress": False, "mode": mode}
    decided = collect.Decision("moments" if mode == "exact" else "minibatch", 10**6, 0, "asked for")
    monkeypatch.setattr(run, "decide", lambda *args, **options: decided)
    want = sk.compare(model, layers=["0", "1", "2"], **options)
    devices = (True, ["one that no op may use"], "") if can_hold else (True, [], "there is none")
    monkeypatch.setattr(native_cuda, "device_report", lambda: devices)
    monkeypatch.setattr(arrays, "device_view", view)
    seen: list[dict[str, Matrix]] = []
    update = sk.StreamingCKA.update
    monkeypatch.setattr(sk.StreamingCKA, "update", lambda s, *sides: (seen.append(sides[0]), update(s, *sides))[1])
    monkeypatch.setattr(native_cuda, "free_memory", lambda device: 10**9)
    for last[0] in [1] if can_hold else [1, 0]:
        seen.clear()
        got = sk.compare(model, layers=["0", "1", "2"], **options)
        assert np.array_equal(got.values, want.values)
        assert got.backend == "native_cpu"
        assert got.plan.notes[-1] == "batches copied to the host and added there: 3"
        assert len(seen) == 3
        for name in ("0", "1", "2"):
            assert [batch[name].device for batch in seen] == [None] * 3
            assert len({batch[name].values.ctypes.data for batch in seen}) == 1
            assert all(batch[name].origin.endswith("copied to the host") for batch in seen)
