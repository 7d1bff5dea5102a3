"""What compare does to a model while it looks inside: find every kind of layer and output, and leave no trace."""

from __future__ import annotations

import random
import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from simkit.compare.activations import Recorder  # noqa: E402
from simkit.compare.batches import Call  # noqa: E402
from simkit.compare.matrix import SimilarityMatrix, similarity_matrix  # noqa: E402
from simkit.compare.models import compare  # noqa: E402


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def images(n: int = 24) -> Tensor:
    return torch.randn(n, 1, 6, 6)


def cnn() -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 3, 3),
            bn1=nn.BatchNorm2d(3),
            act=nn.ReLU(inplace=True),
            drop=nn.Dropout(0.5),
            conv2=nn.Conv2d(3, 4, 3),
            flat=nn.Flatten(),
            fc=nn.Linear(16, 5),
        )
    )


def features(model: nn.Module, x: Any, *layers: str) -> dict[str, Tensor]:
    """The outputs of named layers by a hook of one line, copied at once."""
    out: dict[str, Tensor] = {}
    modules = dict(model.named_modules())
    handles = [
        modules[name].register_forward_hook(lambda m, a, o, name=name: out.__setitem__(name, o.clone()))
        for name in layers
    ]
    flags = {module: module.training for module in model.modules()}
    with torch.no_grad():
        model.eval()(x)
    for module, flag in flags.items():
        module.training = flag
    for handle in handles:
        handle.remove()
    return out


def assert_scores(result: SimilarityMatrix, a: dict[str, Tensor], b: dict[str, Tensor] | None = None) -> None:
    want = similarity_matrix(a, b, backend="reference")
    np.testing.assert_allclose(result.values, want.values, atol=1e-6)
    assert (result.rows, result.columns) == (want.rows, want.columns)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


# --- the numbers -----------------------------------------------------------------------------------------------------


def test_two_models_give_the_scores_of_their_features() -> None:
    a, b, x = cnn(), cnn(), images()
    names = ("conv1", "bn1", "conv2", "fc")
    assert_scores(compare(a, b, data=x), features(a, x, *names), features(b, x, *names))


def test_one_model_against_itself_is_symmetric_with_ones() -> None:
    model, x = cnn(), images()
    m = compare(model, data=x)
    np.testing.assert_allclose(np.diag(m.values), 1, atol=1e-9)
    np.testing.assert_allclose(m.values, m.values.T, atol=1e-12)
    np.testing.assert_allclose(compare(model, model, data=x).values, m.values, atol=1e-12)


def test_in_place_operations_after_a_layer_do_not_reach_its_features() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 3))
    x = torch.randn(20, 6)
    with torch.no_grad():
        linear = model[0](x)
    assert_scores(compare(model, data=x, layers=["0", "1"]), {"0": linear, "1": linear.relu()})
    assert_scores(compare(model, data=x, layers=["0"], memory="1 MB"), {"0": linear})


def test_rows_follow_the_calls_not_the_registration() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.middle, self.first = nn.Linear(4, 2), nn.Linear(4, 4), nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.middle(self.first(x)))

    assert compare(Backwards(), data=torch.randn(9, 3)).rows == ("first", "middle", "last")


# --- no trace --------------------------------------------------------------------------------------------------------


def everything(model: nn.Module) -> dict[str, Any]:
    return {
        "hooks": hooks(model),
        "flags": [module.training for module in model.modules()],
        "state": {key: value.clone() for key, value in model.state_dict().items()},
        "identity": [id(t) for t in [*model.parameters(), *model.buffers()]],
        "grads": [p.grad for p in model.parameters()],
        "requires": [p.requires_grad for p in model.parameters()],
        "versions": [t._version for t in [*model.parameters(), *model.buffers()]],
    }


def assert_untouched(before: dict[str, Any], model: nn.Module) -> None:
    after = everything(model)
    for key, value in before.items():
        if key == "state":
            assert all(torch.equal(tensor, after[key][name]) for name, tensor in value.items())
        else:
            assert value == after[key], key


def test_the_model_is_untouched() -> None:
    model = cnn().train()
    model.bn1.eval()  # one flag apart from the others
    model.conv1.register_forward_hook(lambda *_: None)
    before = everything(model)
    compare(model, cnn(), data=images())
    assert_untouched(before, model)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_model_is_untouched_after_an_exception(error: type[BaseException]) -> None:
    model = cnn().train()
    before = everything(model)

    def batches() -> Iterator[Tensor]:
        yield images(8)
        raise error("stop")

    with pytest.raises(error, match="stop"):
        compare(model, cnn(), data=batches())
    assert_untouched(before, model)


def test_hooks_go_when_a_forward_pass_fails() -> None:
    model = cnn()
    with pytest.raises(ValueError, match="model_a cannot run a batch"):
        compare(model, data=torch.randn(4, 2, 6, 6))
    assert hooks(model) == 0
    assert model.training


def test_dropout_is_off_and_buffers_written_in_forward_come_back() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("cache", torch.zeros(2))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.cache = torch.ones(5)
            return self.fc(x)

    model = Counting()
    before = everything(model)
    compare(model, data=torch.randn(300, 3))
    assert {k: v.tolist() for k, v in model.state_dict().items() if k != "fc.weight"} == {
        "calls": 0.0,
        "cache": [0.0, 0.0],
        "fc.bias": model.fc.bias.tolist(),
    }
    assert [t is not None and id(t) for t in model.buffers()] == before["identity"][2:]


def test_the_global_random_state_is_untouched() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            random.random()
            np.random.rand()  # noqa: NPY002
            return self.fc(x + torch.randn_like(x))

    model, loader = Noisy(), DataLoader(TensorDataset(torch.randn(20, 3)), batch_size=5, shuffle=True)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    compare(model, data=loader)
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002


def test_no_graph_is_kept_and_inputs_stay_as_they_were() -> None:
    class Overwrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            assert not torch.is_grad_enabled()
            return self.fc(x.mul_(-1))

    x = torch.randn(10, 4, requires_grad=True)
    before = x.detach().clone()
    model = Overwrites()
    twice = compare(model, nn.Sequential(OrderedDict(fc=model.fc)), data=x, layers=["fc"])
    assert torch.equal(x, before)
    assert not hasattr(x, "_backward_hooks") or not x._backward_hooks
    np.testing.assert_allclose(twice.values, 1, atol=1e-9)  # -x and x: the same up to sign


def test_models_that_share_modules_do_not_see_each_other() -> None:
    trunk = nn.Linear(5, 5)
    a, b = nn.Sequential(trunk, nn.Linear(5, 2)), nn.Sequential(nn.Tanh(), trunk)
    x = torch.randn(16, 5)
    m = compare(a, b, data=x)
    assert_scores(m, features(a, x, "0", "1"), features(b, x, "1"))


# --- layers ----------------------------------------------------------------------------------------------------------


class Repeats(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.out = nn.Linear(4, 2)
        self.aux = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.inner(x))
        return self.out(torch.tanh(self.inner(x)))


def test_each_call_of_a_layer_is_a_row() -> None:
    model, x = Repeats(), torch.randn(300, 4)
    first = model.inner(x)
    second = model.inner(torch.tanh(first))
    m = compare(model, data=x, layers=["inner", "out"])
    with torch.no_grad():
        assert_scores(m, {"inner": first, "inner#2": second, "out": model.out(torch.tanh(second))})
    assert compare(model, data=x).rows == ("inner", "inner#2", "out", "aux")
    assert compare(model, data=x, layers=["out", "inner"]).rows == ("out", "inner", "inner#2")


def test_a_layer_that_never_runs_is_named() -> None:
    model, x = Repeats(), torch.randn(30, 4)
    m = compare(model, cnn_free := nn.Linear(4, 3), data=x)
    assert m.rows[-1] == "aux"
    assert np.isnan(m.values[-1]).all()
    assert np.isfinite(m.values[:-1]).all()
    assert m.degenerate == {("row", "aux"): "it never ran in the forward pass"}
    assert "'aux'" in m.plan.explain()
    assert m.columns == (type(cnn_free).__name__,)
    both = compare(model, data=x)
    assert set(both.degenerate) == {("row", "aux"), ("column", "aux")}
    with pytest.raises(ValueError, match="model_a layer 'aux' never ran"):
        compare(model, data=x, layers=["aux", "out"])


def test_a_changing_number_of_calls_is_an_error() -> None:
    class Fickle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.calls = nn.Linear(3, 3), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            for _ in range(times[self.calls - 1]):
                x = self.fc(x)
            return x

    data = [torch.randn(4, 3)] * 2
    for times in ([1, 2], [2, 1]):
        with pytest.raises(ValueError, match=f"'fc' ran {times[1]} times in a batch and {times[0]} times in the first"):
            compare(Fickle(), data=data)


def test_leaves_are_found_where_they_hide() -> None:
    """Parametrized layers have children, and attention holds a Linear that never runs."""
    attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert compare(attention, data=torch.randn(12, 5, 8)).rows == ("self_attn", "norm1", "linear1", "linear2", "norm2")
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.ReLU())
    assert compare(normed, data=torch.randn(12, 4)).rows == ("0",)
    assert compare(nn.Linear(4, 4), data=torch.randn(12, 4)).rows == ("Linear",)


def test_the_fast_path_of_transformers_does_not_hide_layers() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    x = torch.randn(12, 5, 8)
    m = compare(encoder, data=x, layers=["layers.1.linear1", "layers.1"])
    assert_scores(m, features(encoder, x, "layers.1.linear1", "layers.1"))


def test_selection_by_label_module_and_predicate() -> None:
    model, x = cnn(), images()
    assert compare(model, data=x, layers={"stem": "conv1", "head": model.fc}).rows == ("stem", "head")
    assert compare(model, data=x, layers=[model.fc, "conv1"]).rows == ("fc", "conv1")
    convolutions = compare(model, data=x, layers=lambda name, module: isinstance(module, nn.Conv2d))
    assert convolutions.rows == ("conv1", "conv2")
    m = compare(model, cnn(), data=x, layers=(["conv1"], {"end": "fc"}))
    assert (m.rows, m.columns) == (("conv1",), ("end",))
    assert compare(model, data=x, layers=("conv1", "fc")).rows == ("conv1", "fc")
    assert compare(model, data=x, layers="fc").rows == ("fc",)


def test_a_batch_that_the_model_refuses() -> None:
    """One sentence, with torch's own error and its traceback into the model as the cause."""

    class Asserts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.shape[1] != 3:
                raise AssertionError
            return self.fc(x)

    fits, other = nn.Linear(7, 2), nn.Linear(3, 2)
    cases: list[tuple[nn.Module, torch.Tensor, str, type[Exception]]] = [
        (other, torch.zeros(5, 7), "shape (5, 7), float32: mat1 and mat2 shapes cannot be multiplied", RuntimeError),
        (other, torch.zeros(5, 3, dtype=torch.float64), "shape (5, 3), float64: mat1 and mat2 must have", RuntimeError),
        (nn.BatchNorm2d(3), torch.zeros(5, 3), "shape (5, 3), float32: expected 4D input (got 2D input)", ValueError),
        (nn.Embedding(4, 2), torch.full((5, 1), 9), "shape (5, 1), int64: index out of range in self", IndexError),
        (nn.Bilinear(3, 3, 2), torch.zeros(5, 3), "shape (5, 3), float32: ", TypeError),
        (Asserts(), torch.zeros(5, 2), "shape (5, 2), float32: AssertionError", AssertionError),
    ]
    for model, x, sentence, cause in cases:
        with pytest.raises(ValueError, match="^" + re.escape(f"model_a cannot run a batch of {sentence}")) as caught:
            compare(model, data=[(x,)], progress=False)
        assert type(caught.value.__cause__) is cause
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"^model_b cannot run a batch of shape \(5, 7\), float32: mat1"):
        compare(fits, other, data=torch.zeros(5, 7), progress=False)


def test_bugs_and_memory_of_the_model_are_not_taken_for_a_bad_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (KeyError("a bug"), torch.OutOfMemoryError("out of memory"), KeyboardInterrupt()):
        model = nn.Linear(3, 2)
        monkeypatch.setattr(model, "forward", MagicMock(side_effect=error))
        with pytest.raises(type(error)) as caught:
            compare(model, data=torch.zeros(5, 3), progress=False)
        assert caught.value is error


def test_bad_selections() -> None:
    model, x = cnn(), images()
    with pytest.raises(ValueError, match=r"model_a has no layer 'conv_1': did you mean 'conv1' or 'conv2'\?"):
        compare(model, data=x, layers=["conv_1"])
    with pytest.raises(ValueError, match="model_b has no layer 'conv1': its layers are 0"):
        compare(model, nn.Sequential(nn.Flatten(), nn.Linear(36, 2)), data=x, layers=["conv1"])
    with pytest.raises(ValueError, match="layers is empty"):
        compare(model, data=x, layers=[])
    with pytest.raises(ValueError, match="layers selected none of the 8 modules of model_a"):
        compare(model, data=x, layers=lambda *_: False)
    with pytest.raises(ValueError, match="'fc' and 'fc' are one module of model_a: name it once"):
        compare(model, data=x, layers=["fc", "fc"])
    with pytest.raises(ValueError, match=r"^layers has two labels that read '1': give each layer of model_a its own$"):
        compare(model, data=x, layers={1: "conv1", "1": "conv2"})
    with pytest.raises(ValueError, match="holds a Linear that is no module of model_a"):
        compare(model, data=x, layers=[nn.Linear(1, 1)])
    with pytest.raises(TypeError, match="must hold names or modules, not 3"):
        compare(model, data=x, layers=[3])
    with pytest.raises(TypeError, match="must be names, a mapping or a callable, not 3"):
        compare(model, data=x, layers=3)
    with pytest.raises(ValueError, match="a pair of selections but there is no model_b"):
        compare(model, data=x, layers=(["fc"], ["fc"]))
    with pytest.raises(ValueError, match="model_a has no layer with weights"):
        compare(nn.ReLU(), data=x)


def test_shared_modules_have_their_first_name() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(OrderedDict(one=shared, act=nn.Tanh(), two=shared))
    x = torch.randn(12, 4)
    assert compare(model, data=x).rows == ("one", "one#2")
    assert compare(model, data=x, layers=["two"]).rows == ("two", "two#2")
    with pytest.raises(ValueError, match="'one' and 'two' are one module"):
        compare(model, data=x, layers=["one", "two"])


# --- wrappers and odd models -----------------------------------------------------------------------------------------


def test_wrappers_are_looked_through() -> None:
    model, x = cnn(), images()
    plain = compare(model, data=x)
    wrapped = [nn.DataParallel(model), torch.compile(model, backend="eager")]
    wrapped.append(nn.DataParallel(wrapped[1]))
    for wrapper in wrapped:
        m = compare(wrapper, data=x)
        assert m.rows == plain.rows
        np.testing.assert_array_equal(m.values, plain.values)
    assert compare(wrapped[0], data=x, layers=["module.fc", "conv1"]).rows == ("fc", "conv1")
    assert compare(wrapped[1], data=x, layers=["_orig_mod.fc"]).rows == ("fc",)


def test_compiled_parts_inside_a_model_show_their_layers() -> None:
    part = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    plain = nn.Sequential(part, nn.Linear(4, 2))
    x = torch.randn(12, 4)
    want = compare(plain, data=x)
    mixed = nn.Sequential(torch.compile(part, backend="eager"), plain[1])
    with torch.no_grad():
        mixed(x)  # compiled before there were hooks
    m = compare(mixed, data=x)
    assert m.rows == want.rows == ("0.0", "1")
    np.testing.assert_array_equal(m.values, want.values)
    plain.compile(backend="eager")
    np.testing.assert_array_equal(compare(plain, data=x).values, want.values)


def test_models_that_cannot_be_looked_into() -> None:
    x = torch.randn(4, 3)
    with pytest.raises(TypeError, match=r"model_a must be a torch\.nn\.Module, not function"):
        compare(lambda x: x, data=x)
    with pytest.raises(TypeError, match=r"model_b must be a torch\.nn\.Module, not str"):
        compare(nn.Linear(3, 3), "resnet", data=x)
    with pytest.raises(ValueError, match="no values in 'weight' yet: initialise it"):
        compare(nn.LazyLinear(3), data=x)
    with pytest.raises(ValueError, match="no values in 'weight' yet"):
        compare(nn.Linear(3, 3, device="meta"), data=x)
    with pytest.raises(ValueError, match="device='nonsense' cannot be used"):
        compare(nn.Linear(3, 3), data=x, device="nonsense")


def test_torchscript_is_refused() -> None:
    class Script(torch.jit.ScriptModule):
        pass

    with pytest.raises(NotImplementedError, match="TorchScript at 'inner'"):
        compare(nn.Sequential(OrderedDict(inner=Script())), data=torch.randn(4, 3))


def test_a_device_of_its_own_leaves_the_model_where_it_is() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
    identity = [id(p) for p in model.parameters()]
    recorder = Recorder(model, ["0"], what="model_a", reduce="flatten", device="cpu")
    assert recorder.root is model  # already there: no copy
    moved = Recorder(model, [model[0]], what="model_a", reduce="flatten", device="meta")
    assert moved.root is not model
    assert {p.device.type for p in moved.root.parameters()} == {"meta"}
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert [id(p) for p in model.parameters()] == identity


# --- outputs ---------------------------------------------------------------------------------------------------------


class ModelOutput(OrderedDict[str, Any]):
    """As Hugging Face's: a mapping that is also read by attribute."""


@dataclass
class Result:
    name: str
    value: Tensor


class Returns(nn.Module):
    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.fc, self.wrap = nn.Linear(4, 3), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.fc(x))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: (y, y * 0),
        lambda y: [None, {"deep": (y,)}],
        lambda y: {"loss": torch.zeros(()), "hidden": torch.zeros(9, 2), "logits": y},
        lambda y: ModelOutput(loss=torch.zeros(()), logits=y * 0, last_hidden_state=y),
        lambda y: ModelOutput(a=y, b=y * 0),
        lambda y: Result("x", y),
    ],
    ids=["tuple", "nested", "logits", "last_hidden_state", "first", "dataclass"],
)
def test_outputs_of_every_kind(wrap: Any) -> None:
    model, x = Returns(wrap), torch.randn(9, 4)
    with torch.no_grad():
        assert_scores(compare(model, data=x, layers={"y": model}), {"y": model.fc(x)})


def test_an_output_without_tensors_is_an_error_when_named() -> None:
    model = Returns(lambda y: "text")
    with pytest.raises(ValueError, match="model_a layer 'Returns' returned str without any tensor"):
        compare(model, data=torch.randn(9, 4), layers=[model])


def test_rnn_outputs_and_the_batch_dimension() -> None:
    good, bad = nn.LSTM(4, 3, batch_first=True), nn.LSTM(4, 3)
    x = torch.randn(9, 5, 4)
    with torch.no_grad():
        assert_scores(compare(good, data=x), {"LSTM": good(x)[0]})

    class TimeMajor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = bad

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x.movedim(1, 0))[0]

    for layers in (None, ["rnn"]):
        with pytest.raises(ValueError, match=r"'rnn' returned shape \(5, 9, 3\) for a batch of 9 samples: dimension 0"):
            compare(TimeMajor(), data=x, layers=layers)


def test_position_embeddings_are_reported_not_compared() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places, self.fc = nn.Embedding(11, 4), nn.Embedding(6, 4), nn.Linear(4, 2)

        def forward(self, ids: Tensor) -> Tensor:
            return self.fc(self.words(ids) + self.places(torch.arange(6))[None])

    ids = torch.randint(0, 11, (20, 6))
    m = compare(Tokens(), data=ids)
    assert m.rows == ("words", "fc", "places")
    assert "returned shape (6, 4) for a batch of 20 samples" in m.degenerate["row", "places"]
    with pytest.raises(ValueError, match=r"'places' returned shape \(6, 4\)"):
        compare(Tokens(), data=ids, layers=["places"])


# --- reductions ------------------------------------------------------------------------------------------------------


def test_reductions_of_maps() -> None:
    model, x = nn.Conv2d(1, 3, 3), images()
    maps = model(x).detach()
    assert_scores(compare(model, data=x, reduce="flatten"), {"Conv2d": maps.flatten(1)})
    assert_scores(compare(model, data=x, reduce="mean"), {"Conv2d": maps.mean((2, 3))})
    assert_scores(compare(model, data=x, reduce=lambda t: t.amax((2, 3))), {"Conv2d": maps.amax((2, 3))})
    positions = compare(model, data=x, reduce="positions")
    assert_scores(positions, {"Conv2d": maps.movedim(1, -1).reshape(-1, 3)})
    assert positions.samples == 24 * 16


def recorded(model: nn.Module, x: Tensor, reduce: Any) -> np.ndarray:
    """The features that one layer hands over."""
    got = []
    with Recorder(model, None, what="model_a", reduce=reduce) as recorder:
        recorder.run(Call((x,), {}, len(x)), len(x), lambda name, features: got.append(features.values.copy()))
    return got[0]


@pytest.mark.parametrize(
    ("model", "shape", "axis"),
    [
        (nn.Linear(4, 3), (5, 7, 4), -1),
        (nn.Linear(4, 3), (5, 7, 2, 4), -1),
        (nn.LayerNorm(4), (5, 7, 2, 4), -1),
        (nn.Conv1d(4, 3, 1), (5, 4, 7), 1),
        (nn.BatchNorm1d(4), (5, 4, 7), 1),
        (nn.Conv3d(4, 3, 1), (5, 4, 2, 2, 2), 1),
        (nn.GroupNorm(2, 4), (5, 4, 7), 1),
        (nn.Linear(4, 3), (5, 4), -1),
    ],
)
def test_which_dimension_holds_the_features(model: nn.Module, shape: tuple[int, ...], axis: int) -> None:
    x = torch.randn(shape)
    y = model.eval()(x).detach()
    last = y.movedim(axis, -1)
    over = tuple(range(1, last.ndim - 1))
    np.testing.assert_allclose(recorded(model, x, "mean"), last.mean(over) if over else last, atol=1e-6)
    np.testing.assert_array_equal(recorded(model, x, "positions"), last.reshape(-1, last.shape[-1]))
    np.testing.assert_array_equal(recorded(model, x, "flatten"), y.reshape(5, -1))


def test_half_precision_features_keep_their_bits() -> None:
    x = torch.randn(16, 8)
    for dtype in (torch.float16, torch.bfloat16):
        model = nn.Linear(8, 6).to(dtype)
        with torch.no_grad():
            want = model(x.to(dtype))
        assert_scores(compare(model, data=x.to(dtype)), {"Linear": want})
        assert_scores(compare(model, data=x.to(dtype), memory="1 MB"), {"Linear": want})


def test_bad_reductions() -> None:
    model, x = cnn(), images()
    with pytest.raises(ValueError, match=r"reduce must be 'flatten', 'mean', 'positions' or a callable, not 'sum'"):
        compare(model, data=x, reduce="sum")
    with pytest.raises(ValueError, match=r"reduce returned shape \(3, 4, 4\) for model_a layer 'conv1'"):
        compare(model, data=x, reduce=lambda t: t.sum(0))
    with pytest.raises(
        ValueError, match="'positions' needs as many positions in every layer: model_a layer 'conv1' has"
    ):
        compare(model, data=x, reduce="positions")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_features_name_layer_sample_and_feature(value: float) -> None:
    model = nn.Sequential(OrderedDict(first=nn.Linear(4, 4), spoil=nn.Identity(), fc=nn.Linear(4, 2)))
    x = torch.randn(300, 4)
    x[150, 2] = value
    model.first.weight.data = torch.eye(4)
    model.first.bias.data.zero_()
    model.first.forward = lambda x: x + 0 * model.first.weight.sum()
    with pytest.raises(
        ValueError, match=r"model_a layer 'first' has 1 non-finite entry .* first at sample 150, feature 2"
    ):
        compare(model, data=x)
    model.first.forward = lambda x: torch.zeros(len(x), 2, 2) + value
    with pytest.raises(ValueError, match=r"'first' has 512 non-finite entries in one batch, the first at sample 0"):
        compare(model, data=x)


def test_finite_features_whose_sum_overflows_are_fine() -> None:
    model, x = nn.Linear(4, 4, bias=False), torch.randn(20, 4)
    nn.init.constant_(model.weight, 1.0)
    model.weight.data[0] = 2.0
    big = (x.abs() + 1) * 1e37
    assert not torch.isfinite(model(big.repeat(5, 1)).sum())
    assert_scores(compare(model, data=big.repeat(5, 1)), {"Linear": model(big.repeat(5, 1)).detach()})


def test_constant_layers_are_named_on_every_way() -> None:
    model = nn.Sequential(OrderedDict(live=nn.Linear(4, 4), dead=nn.Linear(4, 4)))
    nn.init.zeros_(model.dead.weight)
    batches = lambda: (torch.randn(10, 4) for _ in range(3))  # noqa: E731
    for data, options in ((torch.randn(30, 4), {}), (batches(), {}), (batches(), {"mode": "minibatch"})):
        m = compare(model, data=data, **options)
        assert set(m.degenerate) == {("row", "dead"), ("column", "dead")}
        assert np.isnan(m.values[1]).all()
        assert m["live", "live"] == pytest.approx(1)
