"""Streams on a device, without one: the host's to rounding, and to the bit the same for any split of their rows."""

from __future__ import annotations

import copy
import functools
import itertools
import pickle
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cuda_cases import There, see_device
from emulated_cuda import compile_programs
from emulated_moments import module_with_moments
from streams import ESTIMATORS, Estimator, features, placed, same_state, split, streamed, truth
from tolerance import assert_close

import simkit as sk
from simkit import arrays
from simkit.arrays import DeviceMatrix
from simkit.backends import cuda_moments, native_cpu, reference
from simkit.compare import collect, run
from simkit.devices import LEGACY_STREAM, DeviceView

Array = npt.NDArray[Any]
Layers = dict[str, Array]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = tmp_path_factory.getbasetemp()
    found = compile_programs(folder), compile_programs(folder, "cuda_moments_programs")
    return found if all(found) else pytest.skip("there is no C++ compiler")


@pytest.fixture
def device(programs: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    module = module_with_moments(*programs)
    see_device(monkeypatch, module)
    return module


@pytest.fixture(params=["plain", "tensor cores"])
def either(programs: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Any:
    """A device without tensor cores, then one that has them, whose threads run downwards."""
    tensor = request.param != "plain"
    module = module_with_moments(*programs, 1 if tensor else 0, (9, 0) if tensor else (7, 5))
    see_device(monkeypatch, module)
    return " on tensor cores" if tensor else ""


there = functools.partial(placed, kind=There)
on_device = functools.partial(streamed, kind=There)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("n", [4, 511, 512, 513, 1100])
def test_a_stream_on_the_device_is_the_whole_datas_number(either: str, n: int, estimator: Estimator) -> None:
    layers, others = features(n, [3, 17, 1]), features(n, [9, 2], 1)
    for other in (None, others):
        got = on_device(layers, other, split(n, 0), estimator=estimator).compute()
        assert_close(got.values, truth(layers, other, estimator), "stream", np.float32, n, 17)
        host = streamed(layers, other, estimator=estimator).compute()
        assert_close(got.values, host.values, "stream", np.float32, n, 17)
        assert got.samples == n
        if n >= 512:
            assert got.backend == "native_cuda"
            assert [step.op for step in got.plan.steps] == ["moments_add", "moments_rows", "largest_entries"]
            assert got.plan.steps[0].reason == f"first choice; float64 products{either}"
            assert not got.plan.notes


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("both", [False, True])
def test_any_split_of_one_order_gives_the_same_bits(both: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows apart, a layer that wakes up and rows for which the units move are in them."""
    n = 2600
    layers = features(n, [5, 30, 2], dtype=np.float64)
    others = features(n, [7], 1, dtype=np.float64) if both else None
    layers["l0"][[3, 700, 1500, 1501]] *= 1e5
    layers["l1"][2100] *= 1e40
    layers["l2"][:1300] = 2.5
    whole = on_device(layers, others)
    assert_close(whole.compute().values, streamed(layers, others).compute().values, "stream", np.float64, n, 30)
    splits = [[512] * 5 + [40], [511, 513, 1024, 552], [1, n - 1], [n - 4, 4], split(n, 1)]
    for sizes in splits:
        again = on_device(layers, others, sizes)
        assert again.compute().values.tobytes() == whole.compute().values.tobytes()
        assert same_state(again.state_dict(), whole.state_dict())
    named = streamed(layers, others, splits[1], backend="native_cuda")  # host batches are uploaded
    assert same_state(named.state_dict(), whole.state_dict())
    monkeypatch.setattr(cuda_moments, "ROOM", 1)  # one block at a time
    assert same_state(on_device(layers, others).state_dict(), whole.state_dict())


@pytest.mark.parametrize("times", [1e2, 1e4, 1e9])
@pytest.mark.parametrize("rows", [[0], [700], [3, 600, 601, 1099], list(range(0, 1100, 35))])
@pytest.mark.usefixtures("device")
def test_rows_that_dwarf_the_others(rows: list[int], times: float) -> None:
    layers = features(1100, [8, 20], dtype=np.float64)
    for k, row in enumerate(rows):
        for x in layers.values():
            x[row] *= times * (1 + 0.1 * k)
    others = {"y": layers["l1"][:, :5] + 1}
    for other in (None, others):
        got, host = on_device(layers, other, [300, 800]), streamed(layers, other)
        assert_close(got.compute().values, truth(layers, other, "debiased"), "stream", np.float64, 1100, 20)
        for key, array in host.state_dict().items():  # the same rows are kept apart
            if "apart" in key:
                assert got.state_dict()[key].shape == array.shape


AWKWARD: dict[str, Any] = {
    "far from zero": lambda r, x: x + 1e6,
    "tiny": lambda r, x: x * 1e-20,
    "huge": lambda r, x: x * 1e20,
    "a first block that is constant": lambda r, x: np.where(np.arange(len(x))[:, None] < 512, 3.0, x),
    "a drift": lambda r, x: x + np.linspace(0, 100, len(x))[:, None],
    "heavy-tailed": lambda r, x: r.standard_cauchy(x.shape) + x,
    "rows of many sizes": lambda r, x: x * np.exp(3 * r.standard_normal((len(x), 1))),
    "tiny, then huge": lambda r, x: np.where(np.arange(len(x))[:, None] < 512, 1e-200 * x, 1e80 * x),
    "constant, then tiny": lambda r, x: np.where(np.arange(len(x))[:, None] < 512, 0.0, 1e-200 * x),
}


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_streams(name: str, estimator: Estimator) -> None:
    layers = {
        k: AWKWARD[name](np.random.default_rng(1), x) for k, x in features(1100, [8, 20], dtype=np.float64).items()
    }
    for others in (None, {"y": layers["l1"][:, ::2] + layers["l0"][:, :1]}):
        got = on_device(layers, others, split(1100, 2), estimator=estimator).compute()
        want = streamed(layers, others, estimator=estimator).compute()
        assert_close(got.values, want.values, "stream", np.float64, 1100, 20)
        assert got.degenerate == want.degenerate


@pytest.mark.usefixtures("device")
def test_merging_a_stream_of_the_device_and_one_of_the_host() -> None:
    layers = features(1900, [6, 20])
    others = features(1900, [9], 1)
    layers["l0"][17] *= 1e3
    layers["l1"][1500:] += 30
    want = truth(layers, others, "debiased")
    cut = 700
    parts = [({k: v[rows] for k, v in layers.items()}, {k: v[rows] for k, v in others.items()})
             for rows in (slice(cut), slice(cut, 1900))]  # fmt: skip
    made = [(on_device, streamed), (streamed, on_device), (on_device, on_device)]
    seen = []
    for first, second in made:
        one, two = first(*parts[0]), second(*parts[1])
        before = two.state_dict()
        one.merge(two)
        assert same_state(two.state_dict(), before)
        assert_close(one.compute().values, want, "stream", np.float32, 1900, 20)
        one.update(there(parts[1][0]), there(parts[1][1]))  # goes on, on the device
        seen.append(one.compute())
        assert one.samples == 1900 + 1200
    for other in seen[1:]:
        assert np.abs(other.values - seen[0].values).max() <= 1e-12
    twice = on_device(*parts[0])
    twice.merge(twice)
    assert twice.samples == 2 * cut
    doubled = [{k: np.concatenate([v, v]) for k, v in side.items()} for side in parts[0]]
    assert_close(twice.compute().values, truth(*doubled, "debiased"), "stream", np.float32, 2 * cut, 20)


@pytest.mark.usefixtures("device")
def test_streams_of_a_device_that_was_named_meet() -> None:
    """Rows that wait in both fill a block, which is added to sums on the host by the backend that was named."""
    layers = features(1500, [6, 20])
    cut = {name: x[700:] for name, x in layers.items()}
    one = streamed({name: x[:700] for name, x in layers.items()}, backend="native_cuda")
    one.merge(streamed(cut, backend="native_cuda"))
    assert one.samples == 1500
    assert_close(one.compute().values, truth(layers, None, "debiased"), "stream", np.float32, 1500, 20)
    assert one.compute().backend == "native_cuda"


@pytest.mark.usefixtures("device")
def test_who_added_the_rows_is_known_of_streams_that_were_merged() -> None:
    layers = features(600, [6, 20])
    device, host, taken = on_device(layers), streamed(layers), on_device(layers)
    taken.update(layers)  # copied to the device
    sent = "batches copied to cuda:0 and added there: {}".format
    for parts, backend, notes in (
        ([device], "native_cuda", ()),
        ([taken], "native_cuda", (sent(1),)),
        ([taken, taken], "native_cuda", (sent(2),)),
        ([host, taken], "native_cpu, native_cuda", (sent(1),)),
    ):
        merged = sk.StreamingCKA()
        for part in parts:
            merged.merge(part)
        assert {*merged.compute().backend.split(", ")} == {*backend.split(", ")}
        assert merged.compute().plan.notes == notes
    taken.load_state_dict(host.state_dict())
    assert taken.compute().plan.notes == ()
    estimates = [sk.StreamingCKA(mode="minibatch") for _ in range(3)]
    for estimate in estimates[1:]:
        estimate.update(there(layers, slice(3), kind=Copied))  # too few, so that the next join them on the host
        estimate.update(there(layers, kind=Copied))
        estimate.update(there(layers))
        estimates[0].merge(estimate)
    assert estimates[0].compute().backend == "native_cpu, native_cuda"
    assert estimates[0].compute().plan.notes[-1] == "batches copied to the host and added there: 4"


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("both", [False, True])
def test_batches_of_an_estimate_are_multiplied_where_they_lie(both: bool) -> None:
    layers = features(700, [3, 17, 1])
    layers["l0"][:100] = 2.5  # constant in the first batch
    others = features(700, [9, 2], 1) if both else None
    sizes = [100, 4, 333, 263]
    want = streamed(layers, others, sizes, mode="minibatch").compute()
    got = on_device(layers, others, sizes, mode="minibatch").compute()
    assert_close(got.values, want.values, "cka", np.float32, 700, 17)
    assert got.backend == "native_cuda"
    assert [step.op for step in got.plan.steps] == ["pair_sums", "column_stats", "largest_entries"]
    assert got.plan.notes == want.plan.notes
    assert [step.backend for step in want.plan.steps] == ["native_cpu"] * 3
    stream = sk.StreamingCKA(mode="minibatch")
    for apart in (
        {"l0": Copied(layers["l0"]), "l1": layers["l1"]},
        {"l0": Copied(layers["l0"]), "l1": Copied(layers["l1"], 1)},
    ):
        stream.update(apart)  # meet on the host
        result = stream.compute()
        assert result.backend == "native_cpu"
        assert result.plan.notes[-1].startswith("batches copied to the host and added there: ")
    stream.reset()
    bad = {name: x.copy() for name, x in layers.items()}
    bad["l1"][690, 4] = np.nan
    with pytest.raises(ValueError, match=r"^l1 has 1 non-finite entry, the first at row 690, column 4$"):
        stream.update(there(bad))
    assert stream.samples == 0


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("n", [100, 512, 1100])
@pytest.mark.parametrize("both", [False, True])
def test_a_state_is_plain_data_and_goes_on_anywhere(n: int, both: bool) -> None:
    layers = features(1700, [6, 20])
    layers["l1"][50] *= 1e5  # a row apart
    others = features(1700, [9], 1) if both else None
    first, rest = slice(n), slice(n, 1700)
    stream = sk.StreamingCKA()
    stream.update(there(layers, first), there(others, first))
    state = stream.state_dict()
    assert all(isinstance(array, np.ndarray) for array in state.values())
    here, back = sk.StreamingCKA(), sk.StreamingCKA()
    for resumed in (here, back):
        resumed.load_state_dict(state)
        assert same_state(resumed.state_dict(), state)
    for s in (stream, back):
        s.update(there(layers, rest), there(others, rest))
    here.update({k: x[rest] for k, x in layers.items()}, others and {k: x[rest] for k, x in others.items()})
    assert same_state(back.state_dict(), stream.state_dict())
    assert_close(here.compute().values, stream.compute().values, "stream", np.float32, 1700, 20)


def test_what_crosses_for_a_batch(device: Any) -> None:
    """One trip for the norms of all blocks of a batch; sums cross when they are asked for, and no other time."""
    layers = features(8192, [20, 3])
    stream = on_device({k: x[:600] for k, x in layers.items()})
    device.calls.clear()
    stream.update(there(layers, slice(600, 8192)))
    assert device.calls == ["keep", "rows", "add"]  # 15 blocks
    device.calls.clear()
    stream.update(there(layers, slice(300)))
    assert device.calls == ["keep"]
    device.calls.clear()
    stream.compute()
    assert device.calls == ["stage", "numbers"]
    layers["l0"][9] *= 1e5
    device.calls.clear()
    stream.update(there(layers, slice(1000)))
    assert device.calls == ["keep", "rows", "take", "add", "add", "keep"]


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda stream: pickle.loads(pickle.dumps(stream))])
@pytest.mark.parametrize("n", [100, 1100])
def test_a_stream_of_the_device_is_copied_and_pickled(n: int, copied: Any) -> None:
    layers = features(n, [5, 9])
    stream = on_device(layers)
    again = copied(stream)
    assert same_state(again.state_dict(), stream.state_dict())
    assert again.compute().plan == stream.compute().plan
    stream.update(there(features(600, [5, 9], 2)))
    again.update(there(features(600, [5, 9], 2)))  # goes on, on the device
    assert same_state(again.state_dict(), stream.state_dict())
    assert again.compute().backend == "native_cuda"


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("both", [False, True])
def test_what_is_added_on_the_device_is_all_its_work(both: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also blocks whose units the host finds: the first, and those for which units move."""
    for module, op in itertools.product((native_cpu, reference), ("moments_rows", "moments_add", "largest_entries")):
        monkeypatch.setattr(module, op, lambda *_, op=op, **__: pytest.fail(f"{op} ran on the host"))
    layers = features(2100, [5, 30], dtype=np.float64)
    layers["l0"][:1300] = 2.5
    layers["l1"][1700] *= 1e40
    others = features(2100, [7], 1, dtype=np.float64) if both else None
    on_device(layers, others, [700, 1400])
    streamed(layers, others, [700, 1400], backend="native_cuda")


class Copied(There):
    def get(self) -> Array:
        return self.values


@pytest.mark.usefixtures("device")
def test_batches_here_and_there() -> None:
    layers = features(1800, [6, 20])
    want = truth(layers, None, "debiased")
    on, off = "batches copied to cuda:0 and added there: 1", "batches copied to the host and added there: 1"
    for first, second in itertools.permutations((True, False)):
        stream = sk.StreamingCKA()
        for away, rows in ((first, slice(900)), (second, slice(900, 1800))):
            stream.update(there(layers, rows) if away else {k: x[rows] for k, x in layers.items()})
        result = stream.compute()
        assert_close(result.values, want, "stream", np.float32, 1800, 20)
        assert result.plan.notes == ((on,) if first else ())
        assert result.backend == ("native_cuda" if first else "native_cpu, native_cuda")
    stream = sk.StreamingCKA(backend="native_cpu")
    stream.update(there(layers, kind=Copied))
    assert stream.compute().plan.notes == (off,)
    mixed = sk.StreamingCKA()
    with pytest.raises(ValueError, match=r"^l0 lies on cuda:0 and l1 on the host: move one of them, or name a backend"):
        mixed.update({"l0": Copied(layers["l0"]), "l1": layers["l1"]})
    assert mixed.samples == 0
    mixed.update({"l0": Copied((8 * layers["l0"]).astype(np.int32)), "l1": layers["l1"]})
    assert mixed.compute().backend == "native_cpu"
    assert mixed.compute().plan.notes == (off,)
    mixed.update(there(layers))
    assert mixed.compute().plan.notes == (off,)
    mixed.update(layers)
    assert mixed.compute().plan.notes == (off, on)
    fast = sk.StreamingCKA(products="float32")
    fast.update(there(layers, kind=Copied))
    assert fast.compute().plan.notes[-1] == off
    named = sk.StreamingCKA(products="float32", backend="native_cuda")
    with pytest.raises(
        NotImplementedError, match=r"^products=\"float32\" adds rows on the host, not on backend='native_cuda'$"
    ):
        named.update(there(layers))


@pytest.mark.usefixtures("device")
def test_what_is_refused() -> None:
    layers = features(1200, [6, 20])
    stream = on_device(layers)
    before = stream.state_dict()
    sentence = "^l0 lies on cuda:1 and the sums of this stream on cuda:0: move the batches to one device$"
    with pytest.raises(ValueError, match=sentence):
        stream.update({name: There(x, device=1) for name, x in layers.items()})
    bad = {name: x[:700].copy() for name, x in layers.items()}
    bad["l1"][690, 4] = np.nan
    with pytest.raises(ValueError, match=r"^l1 has 1 non-finite entry, the first at row 1890, column 4$"):
        stream.update(there(bad))
    huge = {"l0": bad["l0"], "l1": np.full((700, 20), 1e302)}
    with pytest.raises(ValueError, match=r"^l1 holds 1e\+302, too large to centre in float64: rescale its features$"):
        stream.update(there(huge))
    assert same_state(stream.state_dict(), before)
    stream.reset()
    assert stream.samples == 0


@pytest.mark.usefixtures("device")
def test_activations_on_the_device_stay_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """compare() of models whose tensors say that they lie on a device; a layer overwrites the one before it."""
    torch = pytest.importorskip("torch")
    nn = torch.nn

    def view(x: Any) -> DeviceView | None:
        if not isinstance(x, torch.Tensor):
            return None
        x = x.detach()
        shape, strides = (x.shape[0], x.shape[1]), (4 * x.stride(0), 4 * x.stride(1))
        return DeviceView(x.data_ptr(), shape, strides, "float32", 0, LEGACY_STREAM, x)

    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(5, p), nn.ReLU(inplace=True), nn.Linear(p, 3)) for p in (6, 9)]
    data = torch.randn(3000, 5)
    options: dict[str, Any] = {
        "data": list(data.split(700)),
        "layers": ["0", "1", "2"],
        "progress": False,
        "memory": 10**6,
    }
    decided = collect.Decision("moments", 10**6, 0, "asked for")
    monkeypatch.setattr(run, "decide", lambda *args, **options: decided)
    want = sk.compare(*models, **options)
    monkeypatch.setattr(arrays, "device_view", view)
    monkeypatch.setattr(DeviceMatrix, "values", property(lambda x: pytest.fail(f"{x.name} was copied to the host")))
    got = sk.compare(*models, **options)
    assert (got.backend, want.backend) == ("native_cuda", "native_cpu")
    assert got.rows == want.rows
    assert_close(got.values, want.values, "stream", np.float32, 3000, 9)
