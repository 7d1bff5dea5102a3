"""What compare does to a model while it looks inside: read its features as they were, and leave no trace."""

from __future__ import annotations

import random
import re
from collections import OrderedDict
from collections.abc import Iterator
from unittest.mock import MagicMock

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402
from watched_models import assert_scores, assert_untouched, cnn, everything, features, hooks, images  # noqa: E402

from simkit.compare.models import compare  # noqa: E402

pytestmark = pytest.mark.usefixtures("seeded_torch")


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
