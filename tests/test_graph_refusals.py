"""What cannot be captured is refused in one sentence; what is not understood is frozen and named."""

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
        self.register_buffer("order", torch.tensor([3, 1, 0, 2]))
        self.run = run

    def forward(self, x: Tensor) -> object:
        return self.run(self, x)


def soft(m: Three, x: Tensor) -> Tensor:
    return m.c(functional.softmax(m.a(x), 1))


def sorted_(m: Three, x: Tensor) -> Tensor:
    return m.c(m.a(x).sort(1)[0])


def always_dropping(m: Three, x: Tensor) -> Tensor:
    return m.c(functional.dropout(m.a(x)))


def largest(m: Three, x: Tensor) -> Tensor:
    return m.c(m.a(x) - m.a(x).amax(1, keepdim=True))


def own_norm(m: Three, x: Tensor) -> Tensor:
    return m.c(m.a(x) / torch.linalg.vector_norm(m.a(x), -1.0, dim=1, keepdim=True))


def positions(m: Three, x: Tensor) -> Tensor:
    return m.c(m.a(x) + torch.arange(4.0))


def picked(m: Three, x: Tensor) -> Tensor:
    return m.c(m.a(x)[:, :1].expand(-1, 4) * m.a(x)[:, 2:3])


def by_number(m: Three, x: Tensor) -> Tensor:
    return m.c(m.a(x)[:, [3, 1, 0, 2]])


def over_the_batch_too(m: Three, x: Tensor) -> Tensor:
    return m.a(x).view(-1, 2)


def written_into(m: Three, x: Tensor) -> Tensor:
    full = torch.zeros(x.shape[0], 4)
    full[:, :] = m.a(x)
    return m.c(full)


def two_activations(m: Three, x: Tensor) -> Tensor:
    return m.a(x) @ m.a(x).t()


def of_another_input(m: Three, x: Tensor) -> Tensor:
    return m.c(m.a(x) * torch.cat([x, x[:, :1]], 1))


def summed(m: Three, x: Tensor) -> Tensor:
    return m.c(m.a(x)).new_zeros(2) + m.a(x).prod(1).sum()


def not_read(m: Three, x: Tensor) -> Tensor:
    m.a(x)
    return m.b(x.repeat(1, 2)[:, :4])


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (soft, "'softmax' in the model's forward is not elementwise: what it gives one unit depends on the others"),
        (sorted_, "'sort' in the model's forward is not an operation whose channels are understood"),
        (always_dropping, "'dropout' in the model's forward drops units in eval mode too"),
        (largest, "'amax' in the model's forward runs over them"),
        (own_norm, "'linalg_vector_norm' in the model's forward runs over them"),
        (positions, "'add' in the model's forward combines them with values that have no channels"),
        (by_number, "'index' in the model's forward picks them by number"),
        (over_the_batch_too, "its units are the model's output"),
        (written_into, "'copy' in the model's forward is not an operation whose channels are understood"),
        (two_activations, "'matmul' in the model's forward contracts them between two activations"),
        (of_another_input, "'mul' in the model's forward combines them with values that have no channels"),
        (summed, "'prod' in the model's forward runs over them"),
        (not_read, "nothing reads its units"),
    ],
)
def test_channels_that_are_not_followed_are_frozen_by_name(run: Callable[[Three, Tensor], object], reason: str) -> None:
    assert trace(Three(run), torch.zeros(2, 3)).frozen["a"] == reason


def test_pairs_of_channels_along_one_dimension_are_coupled() -> None:
    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(3, 5), nn.Linear(20, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.c((self.a(x).unsqueeze(2) * self.b(x).unsqueeze(1)).flatten(1))

    frozen = trace(Pairs(), torch.zeros(2, 3)).frozen
    reason = (
        "all its channels are coupled: 'flatten' in the model's forward lays the channels of two dimensions along one"
    )
    assert (frozen["a"], frozen["b"]) == (reason, reason)


def test_channels_of_which_one_is_picked_stay() -> None:
    graph = trace(Three(picked), torch.zeros(2, 3))
    assert graph.frozen["a"] == "'slice' in the model's forward takes it alone"
    assert not graph.prunable


@pytest.mark.parametrize(
    ("model", "shape", "reason"),
    [
        (nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 2, 1)), (2, 5, 5), "'conv2d' in module '0' runs on one sample"),
        (nn.Sequential(nn.Linear(2, 4), nn.MaxPool1d(2), nn.Linear(2, 3)), (3, 2), "'max_pool1d' in module '1' runs"),
        (nn.Sequential(nn.Linear(2, 4), nn.GroupNorm(1, 5), nn.Linear(4, 2)), (3, 5, 2), "'group_norm' in module '1'"),
        (
            nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(3), nn.Linear(4, 2)),
            (5, 3, 2),
            "'batch_norm' in module '1' has statistics over them",
        ),
    ],
)
def test_layers_that_run_over_the_channels(model: nn.Module, shape: tuple[int, ...], reason: str) -> None:
    assert trace(model, torch.zeros(shape)).frozen["0"].startswith(reason)


def test_a_recurrent_layer_freezes_what_it_reads() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.lstm = nn.Linear(3, 4), nn.LSTM(4, 5, batch_first=True)
            self.hidden, self.head = nn.Linear(5, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.hidden(self.lstm(self.encode(x))[0])))

    graph = trace(Recurrent(), torch.zeros(2, 7, 3))
    reason = "'lstm' in module 'lstm' is not an operation whose channels are understood"
    assert graph.frozen["encode"] == reason
    assert [group.name for group in graph.prunable] == ["hidden"]


def test_weights_that_are_computed_by_an_unknown_operation() -> None:
    normed = parametrizations.weight_norm(nn.Linear(3, 4))
    graph = trace(nn.Sequential(normed, nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), torch.zeros(1, 3))
    assert [group.name for group in graph.prunable] == ["2"]
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
