"""compare() of models on a device, without one: features stay there, or come back to be compared there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import emulated_device
import numpy as np
import pytest

torch = pytest.importorskip("torch")
from cuda_cases import see_device  # noqa: E402
from tolerance import assert_close  # noqa: E402

import simkit as sk  # noqa: E402
from simkit import arrays  # noqa: E402
from simkit.arrays import DeviceMatrix  # noqa: E402
from simkit.backends import native_cuda  # noqa: E402
from simkit.compare import collectors, on_device  # noqa: E402
from simkit.devices import LEGACY_STREAM, DeviceView  # noqa: E402
from simkit.errors import TooLittleMemory  # noqa: E402
from simkit.pruning.scores import cka_damage  # noqa: E402

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


def failing(error: Callable[[], Exception], times: list[int]) -> Any:
    """An op of the device that raises, and counts how often."""

    def op(*_: Any, **__: Any) -> Any:
        times.append(1)
        raise error()

    return op


# Made when they are raised: an exception keeps the frames that it passed, and so copies on a device.
LACKING = [
    pytest.param(partial(TooLittleMemory, "8 bytes", "pairs of layers", 9), id="too little"),
    pytest.param(partial(MemoryError, "the device is full"), id="full"),
]


@pytest.mark.parametrize("error", LACKING)
@pytest.mark.parametrize("stays", [False, True])
def test_a_device_that_is_too_small_leaves_it_to_the_host(
    device: list[int], error: Callable[[], Exception], stays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the models have run nothing is lost. All is tried twice, for what torch keeps for itself."""
    data, measure = list(images().split(70)), sk.CKA(sk.RBF())
    want = compared(models(), data, measure=measure)
    times: list[int] = []
    monkeypatch.setattr(native_cuda, "pair_sums", failing(error, times))
    got = compared(models(), data if stays else iter(data), measure=measure)
    assert got.backend == "native_cpu"
    assert_close(got.values, want.values, "cka", np.float32, 300, 27)
    assert f"not compared on cuda:0: {error()}" in got.plan.notes
    assert (f"features did not stay on their device: {error()}" in got.plan.notes) == stays
    assert len(times) == 2 * (1 + stays)
    assert len(device) == 2


@pytest.mark.usefixtures("device")
def test_features_that_are_more_than_the_data_said_leave_for_the_disk() -> None:
    """Where the room is bounded; the device compares them all the same."""
    nets, data = models()[:1], images(20_000)
    got = compared(nets, Said(data.split(70), 2), memory="4 MB")
    want = compared(nets, data, memory="4 MB")
    assert_close(got.values, want.values, "cka", np.float32, 20_000, 18)
    assert got.plan.notes[0].startswith("features stay on cuda:0: ")
    assert got.plan.notes[-1] == "features did not stay on their device: they take more than 1.526 MiB"
    assert got.plan.notes[-2].endswith(" of features were on disk")
    assert got.backend == "native_cuda"


@pytest.mark.usefixtures("device")
def test_features_for_which_the_host_has_no_room_in_memory_stay_all_the_same() -> None:
    """Until the engine finds too little memory there; then they go to disk, not to memory that the engine needs."""
    net, data = nn.Sequential(nn.Linear(5, 3), nn.ReLU()), images(1200)[:, 0]
    run = partial(sk.compare, net, data=data, layers=["0", "1"], measure=sk.CKA(sk.RBF()), progress=False)
    with pytest.raises(TooLittleMemory) as caught:
        run(memory=10_000)
    got = run(memory=caught.value.needed)
    stayed, *_, on_disk, left = got.plan.notes
    assert stayed.startswith("features stay on cuda:0: ")
    assert on_disk.endswith(" of features were on disk")
    assert left.startswith("features did not stay on their device: memory=")
    assert got.backend == "native_cpu"
    assert_close(got.values, run(memory=10**7).values, "cka", np.float32, 1200, 3)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("memory", [None, 10**9])
def test_features_that_grow_keep_to_half_of_what_is_free(memory: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    nets, data = models(), images(3000)
    want = compared(nets, data)
    monkeypatch.setattr(native_cuda, "free_memory", lambda device: 400_000)
    got = compared(nets, Said(data.split(70), 2), memory=memory)
    assert_close(got.values, want.values, "cka", np.float32, 3000, 27)
    assert got.plan.notes[-1] == "features did not stay on their device: they take more than 0.1907 MiB"


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("first", [0, 3, 7])
@pytest.mark.parametrize("at_once", [1, 1000, 2**26])  # bytes
def test_a_device_that_fills_up_loses_no_rows(first: int, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch has no memory for a layer of the first batch, or for one that grows; rows leave a few at a time."""
    monkeypatch.setattr(collectors, "AT_ONCE", at_once)
    nets, data = models(), images()
    want = compared(nets, data)
    empty, seen = torch.Tensor.new_empty, [0]

    def full(*args: Any, **options: Any) -> Any:
        seen[0] += 1
        if seen[0] > first:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return empty(*args, **options)

    monkeypatch.setattr(torch.Tensor, "new_empty", full)
    got = compared(nets, Said(data.split(70), 2))
    assert_close(got.values, want.values, "cka", np.float32, 300, 27)
    assert got.plan.notes[-1] == "features did not stay on their device: the device is full"
    assert got.backend == "native_cuda"


def test_layers_of_the_first_batch_that_have_no_room_come_to_the_host(
    device: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    nets, data = models(), images()
    want = {mode: compared(nets, list(data.split(70)), mode=mode) for mode in ("exact", "minibatch")}
    clone, seen = torch.Tensor.clone, [0]

    def full(x: Any, *args: Any, **options: Any) -> Any:
        seen[0] += 1
        if seen[0] % 5 == 0:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return clone(x, *args, **options)

    monkeypatch.setattr(torch.Tensor, "clone", full)
    for mode, expected in want.items():
        got = compared(nets, list(data.split(70)), mode=mode)
        assert_close(got.values, expected.values, "cka", np.float32, 300, 27)
        assert got.backend == "native_cpu"
        assert "features came to the host: their device had no room for those of the first batch" in got.plan.notes
    assert not device


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("mode", ["exact", "minibatch"])
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_layers_of_a_later_batch_that_have_no_room_meet_on_the_host(
    mode: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    nets, data = models(), images(3000)  # whose number is not known: an exact stream of them stays on the device
    want = compared(nets, iter(data.split(700)), mode=mode)
    assert want.backend == "native_cuda"
    clone, seen = torch.Tensor.clone, [0]

    def full(x: Any, *args: Any, **options: Any) -> Any:
        seen[0] += 1
        if seen[0] == 6 * batch + 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return clone(x, *args, **options)

    monkeypatch.setattr(torch.Tensor, "clone", full)
    got = compared(nets, iter(data.split(700)), mode=mode)
    assert seen[0] == 6 * 6  # those of the first batch twice
    assert_close(got.values, want.values, "cka", np.float32, 3000, 27)
    assert any("batches copied to " in note and note.endswith(" and added there: 1") for note in got.plan.notes)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(
    ("mode", "op"), [("exact", "hold_moments"), ("exact", "largest_entries"), ("minibatch", "largest_entries")]
)
def test_streams_whose_device_has_no_memory_are_summed_on_the_host(
    mode: str, op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nets, data = models(), images(3000)
    want = compared(nets, iter(data.split(700)), mode=mode)
    monkeypatch.setattr(native_cuda, op, failing(partial(MemoryError, "the device is full"), []))
    got = compared(nets, iter(data.split(700)), mode=mode)
    assert_close(got.values, want.values, "cka", np.float32, 3000, 27)
    assert got.backend == "native_cpu"
    assert got.plan.notes[-1] == "batches copied to the host and added there: 5"
    monkeypatch.setattr(native_cuda, "free_memory", lambda device: 1000)  # less than the sums take
    assert compared(nets, iter(data.split(700)), mode=mode).backend == "native_cpu"


@pytest.mark.usefixtures("device")
def test_batches_of_an_estimate_that_find_no_memory_are_multiplied_on_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nets, data = models(), list(images().split(70))
    want = compared(nets, data, mode="minibatch")
    assert want.backend == "native_cuda"
    monkeypatch.setattr(native_cuda, "pair_sums", failing(partial(MemoryError, "the device is full"), []))
    got = compared(nets, data, mode="minibatch")
    assert got.backend == "native_cpu"
    assert got.plan.notes[-1] == "batches copied to the host and added there: 5"
    assert_close(got.values, want.values, "cka", np.float32, 300, 27)
    stream = sk.StreamingCKA(mode="minibatch", backend="native_cuda")
    with pytest.raises(MemoryError, match=r"^the device is full$"):
        stream.update({"x": data[0].flatten(1)})


def test_layers_that_leave_the_device_in_a_later_batch(device: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    nets, data = models(), list(images().split(70))
    want = compared(nets, data)
    view, batches = arrays.device_view, [0]
    nets[0].register_forward_pre_hook(lambda *_: batches.append(0))
    monkeypatch.setattr(arrays, "device_view", lambda x: view(x) if len(batches) < 4 else None)
    got = compared(nets, data)
    assert_close(got.values, want.values, "cka", np.float32, 300, 27)
    assert got.plan.notes[-1] == "features did not stay on their device: '0' is not there in all batches"
    assert device == [0]


def test_memory_bounds_what_stays(device: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Features and the engine together, there and in strips."""
    nets, data = models(), images()
    given: list[int | None] = []
    plan = native_cuda.plan_pair_sums

    def planned(*args: Any, memory: int | None = None, **options: Any) -> Any:
        given.append(memory)
        return plan(*args, memory=memory, **options)

    monkeypatch.setattr(native_cuda, "plan_pair_sums", planned)
    features = 4 * 300 * sum(2 * 3 * p + 4 for p in (6, 9))
    got = compared(nets, data, memory=4 * 10**6)
    assert got.backend == "native_cuda"
    assert got.plan.notes[0].endswith("; memory=3.815 MiB")
    left = int((4 * 10**6 - features) * 0.9)
    assert given == [left]
    compared(nets, iter(data.split(70)), memory=4 * 10**6, measure=sk.CKA(sk.RBF()))
    assert set(given[1:]) == {left}
    given.clear()
    compared(nets, data)
    compared(nets, iter(data.split(70)), measure=sk.CKA(sk.RBF()))
    assert set(given) == {None}
    assert device == [0, 0]
    with pytest.raises(TooLittleMemory, match=r"^memory=100 kB is too little: "):
        compared(nets, data, memory="100 kB", measure=sk.CKA(sk.RBF()))


@pytest.mark.usefixtures("device")
def test_layers_that_change_their_width_are_refused() -> None:
    class Wide(nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.Identity()

        def forward(self, x: Any) -> Any:
            return self.pool(x if len(x) == 70 else x[:, :3])

    with pytest.raises(ValueError, match=r"^'pool' has 3 features in one batch and 5 in another"):
        sk.compare(Wide(), data=torch.utils.data.DataLoader(images()[:, 0], 70), layers=["pool"], progress=False)


@pytest.mark.parametrize("error", LACKING)
def test_orders_of_units_that_find_no_memory_are_searched_on_the_host(
    device: list[int], error: Callable[[], Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of layers that a criterion keeps: a tensor on another device than the CPU."""
    rows = torch.relu(torch.randn(300, 12, generator=torch.Generator().manual_seed(2)))

    class Rows:
        device = torch.device("cuda", 0)

        def cpu(self) -> Any:
            return rows

    found = cka_damage.greedy_cka
    calls = []

    def search(layers: Any, **options: Any) -> Any:
        calls.append(type(layers["x"]))
        if not isinstance(layers["x"], torch.Tensor):
            raise error()
        return found(layers, **options)

    monkeypatch.setattr(cka_damage, "greedy_cka", search)
    order = cka_damage._order_of("x", Rows())  # type: ignore[arg-type]
    assert calls == [Rows, Rows, torch.Tensor]
    assert sorted(order.order.tolist()) == list(range(12))
    monkeypatch.setattr(cka_damage, "greedy_cka", failing(partial(MemoryError, "the host is full"), []))
    with pytest.raises(MemoryError, match=r"^the host is full$"):
        cka_damage._order_of("x", rows)
    assert not device
