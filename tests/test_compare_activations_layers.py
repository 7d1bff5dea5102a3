"""Which layers compare finds, under which names: repeated, shared, wrapped, compiled and hidden ones."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from watched_models import assert_scores, cnn, features, images  # noqa: E402

from simkit.compare.activations import Recorder  # noqa: E402
from simkit.compare.models import compare  # noqa: E402

pytestmark = pytest.mark.usefixtures("seeded_torch")


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


def test_bad_selections() -> None:
    model, x = cnn(), images()
    with pytest.raises(ValueError, match=r"model_a has no layer 'conv_1': did you mean 'conv1' or 'conv2'\?"):
        compare(model, data=x, layers=["conv_1"])
    with pytest.raises(ValueError, match="model_b has no layer 'conv1': its layers are '0'"):
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
