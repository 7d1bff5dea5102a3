"""What is not a plain chain is refused in one sentence that names the operation and the module."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from simkit.graph import trace


class Three(nn.Module):
    """Three linear layers and a forward that the test supplies."""

    def __init__(self, run: Callable[[Three, Tensor], object]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.run = run

    def forward(self, x: Tensor) -> object:
        return self.run(self, x)


def residual(m: Three, x: Tensor) -> Tensor:
    x = m.a(x)
    return m.c(x + m.b(x))


def reused(m: Three, x: Tensor) -> Tensor:
    return m.c(m.b(m.b(m.a(x))))


def two_outputs(m: Three, x: Tensor) -> tuple[Tensor, Tensor]:
    x = m.a(x)
    return m.c(x), x


def two_heads(m: Three, x: Tensor) -> dict[str, Tensor]:
    x = m.a(x)
    return {"b": m.b(x), "c": m.c(x)}


def square(m: Three, x: Tensor) -> Tensor:
    x = m.a(x)
    return m.c(x * x)


def normalised(m: Three, x: Tensor) -> Tensor:
    return m.c(functional.layer_norm(m.a(x), (4,)))


def bare_weight(m: Three, x: Tensor) -> Tensor:
    return functional.linear(m.a(x), m.c.weight)


def computed_weight(m: Three, x: Tensor) -> Tensor:
    return functional.linear(m.a(x), m.c.weight * 2)


def always_dropping(m: Three, x: Tensor) -> Tensor:
    return m.c(functional.dropout(m.a(x)))


def over_the_batch(m: Three, x: Tensor) -> Tensor:
    return m.c(m.a(x).mean(0, keepdim=True))


def over_the_channels(m: Three, x: Tensor) -> Tensor:
    return m.a(x).mean(1, keepdim=True).expand(2, 4)


def into_the_batch(m: Three, x: Tensor) -> Tensor:
    return m.a(x).view(-1, 2)


@pytest.mark.parametrize(
    ("run", "sentence"),
    [
        (residual, r"the output of 'linear' in module 'a' is read by 'linear' in module 'b', 'add' .*: a branch"),
        (reused, r"module 'b' is used 2 times"),
        (two_outputs, r"the output of 'linear' in module 'a' is read by 'linear' in module 'c' and is an output"),
        (two_heads, r"the output of 'linear' in module 'a' is read by 'linear' in module 'b', 'linear' in module 'c'"),
        (square, r"'mul' in the model's forward combines two tensors"),
        (normalised, r"'layer_norm' in the model's forward is not an operation the chain tracer knows"),
        (bare_weight, r"'linear' in the model's forward does not run in a plain torch.nn.Linear but in Three"),
        (computed_weight, r"'linear' in the model's forward also reads 'mul' in the model's forward"),
        (always_dropping, r"'dropout' in the model's forward drops units in eval mode too"),
        (over_the_batch, r"'mean' in the model's forward averages over the batch or the channels"),
        (over_the_channels, r"'mean' in the model's forward averages over the batch or the channels"),
        (into_the_batch, r"'view' in the model's forward turns \[2, 4\] into \[4, 2\]"),
    ],
)
def test_forwards_that_are_no_chain(run: Callable[[Three, Tensor], object], sentence: str) -> None:
    with pytest.raises(NotImplementedError, match=f"{sentence}.*general channel graph is not there yet"):
        trace(Three(run), torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("model", "shape", "sentence"),
    [
        (nn.Sequential(nn.Conv2d(2, 4, 3, groups=2)), (1, 2, 5, 5), "'conv2d' in module '0' has groups=2"),
        (nn.Sequential(nn.ConvTranspose2d(2, 4, 3)), (1, 2, 5, 5), "'conv_transpose2d' in module '0' is not"),
        (nn.Sequential(nn.Conv2d(2, 4, 3), nn.Linear(3, 2)), (1, 2, 5, 5), "'linear' in module '1' does not run over"),
        (nn.Sequential(nn.Conv2d(2, 4, 3)), (2, 5, 5), "'conv2d' in module '0' runs on one sample without a batch"),
        (nn.Sequential(nn.Linear(2, 4)), (2,), "'linear' in module '0' runs on one sample without a batch"),
        (nn.Sequential(nn.Linear(2, 4), nn.MaxPool1d(2)), (3, 2), "'max_pool1d' in module '1' pools over the channels"),
        (nn.Sequential(nn.Linear(2, 4), nn.LSTM(4, 2)), (3, 2), "'lstm' in module '1'"),
        (nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4)), (3, 2), "'layer_norm' in module '1'"),
        (nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular")), (1, 1, 4, 4), "'pad' in module '0'"),
        (
            nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(3)),
            (5, 3, 2),
            "'batch_norm' in module '1' runs over dimension 1",
        ),
    ],
)
def test_modules_that_are_not_understood(model: nn.Module, shape: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(NotImplementedError, match=sentence):
        trace(model, torch.zeros(shape))


def test_shared_parameters_are_named() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    with pytest.raises(NotImplementedError, match=r"'0.weight' and '2.weight' are one shared parameter"):
        trace(model, torch.zeros(1, 3))


def test_a_module_without_parameters_used_twice_is_shared_state_too() -> None:
    norm = nn.BatchNorm1d(3, affine=False)
    model = nn.Sequential(nn.Linear(3, 3), norm, nn.Linear(3, 3), norm)
    with pytest.raises(NotImplementedError, match="is used 2 times"):
        trace(model, torch.zeros(2, 3))


def test_parametrised_and_masked_weights_are_refused() -> None:
    parametrised = parametrizations.weight_norm(nn.Linear(3, 4))
    with pytest.raises(NotImplementedError, match="also reads"):
        trace(nn.Sequential(parametrised, nn.Linear(4, 2)), torch.zeros(1, 3))
    pruned = prune.l1_unstructured(nn.Linear(3, 4), "weight", 0.5)
    with pytest.raises(NotImplementedError, match="cannot be deep-copied"):
        trace(nn.Sequential(pruned, nn.Linear(4, 2)), torch.zeros(1, 3))


def test_data_dependent_control_flow_is_refused() -> None:
    def branching(m: Three, x: Tensor) -> Tensor:
        x = m.a(x)
        return m.c(x + 1 if x.sum() > 0 else x)

    with pytest.raises(NotImplementedError, match=r"torch.export cannot capture Three: "):
        trace(Three(branching), torch.zeros(2, 3))


def test_inputs_that_do_not_fit_are_the_users_error() -> None:
    with pytest.raises(ValueError, match=r"Sequential does not run on example_inputs: .*cannot be multiplied"):
        trace(nn.Sequential(nn.Linear(3, 4)), torch.zeros(2, 5))
    with pytest.raises(TypeError, match="example_inputs must be a tensor or a tuple of tensors, not NoneType"):
        trace(nn.Sequential(nn.Linear(3, 4)), None)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, not int"):
        trace(3, torch.zeros(2, 5))  # type: ignore[arg-type]


def test_models_with_nothing_to_remove() -> None:
    with pytest.raises(ValueError, match="ReLU has no Linear or convolution layer"):
        trace(nn.ReLU(), torch.zeros(2, 3))


def test_two_inputs_are_no_chain() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    with pytest.raises(NotImplementedError, match="Two reads 2 inputs and not 1"):
        trace(Two(), (torch.zeros(2, 3), torch.zeros(2, 3)))
