"""What compare makes of what layers return: every kind of output, its reduction to features, and its bad numbers."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from watched_models import assert_scores, cnn, images  # noqa: E402

from simkit.compare.activations import Recorder  # noqa: E402
from simkit.compare.batches import Call  # noqa: E402
from simkit.compare.models import compare  # noqa: E402

pytestmark = pytest.mark.usefixtures("seeded_torch")


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
