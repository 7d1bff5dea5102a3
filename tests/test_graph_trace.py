"""The channel graph of plain chains: who carries whose channels, at which positions, in which transfer class."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from simkit.graph import ChannelGraph, Group, View, trace, weakest
from simkit.graph.preserve import quiet_copy


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Functional(nn.Module):
    """Everything between the layers is a function, and one ReLU module is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding="same", bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1)
        self.fc1 = nn.Linear(6 * 4, 10)
        self.prelu = nn.PReLU(10)
        self.bn2 = nn.BatchNorm1d(10)
        self.fc2 = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(self.relu(self.bn1(self.conv1(x))), 2)
        x = functional.adaptive_avg_pool2d(self.relu(self.conv2(x)), 2)
        x = x.view(x.size(0), -1)
        x = functional.dropout(self.bn2(self.prelu(self.fc1(x))), 0.5, self.training)
        return functional.log_softmax(self.fc2(torch.sigmoid(x * 2)), 1)


def group(graph: ChannelGraph, name: str) -> Group:
    return next(found for found in graph.groups if found.name == name)


def slots(found: Group) -> list[tuple[str, str, int, int, bool]]:
    return [(slot.role, slot.tensor, slot.dim, slot.positions, slot.masked) for slot in found.slots]


def test_groups_of_a_functional_model() -> None:
    graph = trace(Functional(), torch.zeros(2, 1, 8, 8))
    assert [(g.name, g.kind, g.units, g.sites) for g in graph.groups] == [
        ("conv1", "conv2d", 4, 64),
        ("conv2", "conv2d", 6, 16),
        ("fc1", "linear", 10, 1),
        ("fc2", "linear", 3, 1),
    ]
    assert slots(group(graph, "conv1")) == [
        ("producer", "conv1.weight", 0, 1, True),
        ("carrier", "bn1.weight", 0, 1, True),
        ("carrier", "bn1.bias", 0, 1, True),
        ("carrier", "bn1.running_mean", 0, 1, True),
        ("carrier", "bn1.running_var", 0, 1, False),
        ("consumer", "conv2.weight", 1, 1, False),
    ]
    assert slots(group(graph, "conv2"))[-1] == ("consumer", "fc1.weight", 1, 4, False)
    assert ("carrier", "prelu.weight", 0, 1, False) in slots(group(graph, "fc1"))
    assert [step.op for step in group(graph, "fc1").steps] == ["prelu", "batch_norm", "dropout", "mul", "sigmoid"]
    assert [g.transfer for g in graph.groups] == ["affine", "mixing", "other", "other"]
    assert group(graph, "fc1").response == pytest.approx(0.5)
    assert graph.frozen == {"fc2": "its units are the model's output"}
    assert [g.name for g in graph.prunable] == ["conv1", "conv2", "fc1"]
    assert [len(g.carriers) for g in graph.groups] == [4, 0, 5, 0]


def test_explain_has_one_line_per_group() -> None:
    lines = trace(Functional(), torch.zeros(2, 1, 8, 8)).explain().splitlines()
    assert lines[0] == "conv1 (conv2d, 4 units) -> batch_norm > relu > max_pool2d -> conv2; transfer affine"
    assert lines[-1].endswith("-> the output; frozen: its units are the model's output")


@pytest.mark.parametrize(
    ("between", "transfer"),
    [
        ([], "identity"),
        ([nn.Identity(), nn.Dropout(0.5)], "identity"),
        ([nn.ReLU()], "homogeneous"),
        ([nn.LeakyReLU(0.1), nn.ReLU()], "homogeneous"),
        ([nn.BatchNorm1d(4), nn.ReLU()], "affine"),
        ([nn.Tanh()], "other"),
        ([nn.GELU(), nn.BatchNorm1d(4)], "other"),
        ([nn.Unflatten(1, (4, 1)), nn.Flatten()], "identity"),
    ],
)
def test_transfer_classes_of_linear_paths(between: list[nn.Module], transfer: str) -> None:
    graph = trace(nn.Sequential(nn.Linear(3, 4), *between, nn.Linear(4, 2)), torch.zeros(2, 3))
    assert graph.groups[0].transfer == transfer


@pytest.mark.parametrize(
    ("between", "positions", "transfer"),
    [
        ([nn.Flatten()], 12, "mixing"),
        ([nn.MaxPool2d(2), nn.Flatten()], 2, "mixing"),
        ([nn.AdaptiveMaxPool2d(1), nn.Flatten()], 1, "homogeneous"),
        ([nn.AvgPool2d(2), nn.ReLU(), nn.Flatten()], 2, "mixing"),
        ([nn.AdaptiveAvgPool2d((2, 3)), nn.Flatten(2), nn.Flatten()], 6, "mixing"),
        ([nn.Flatten(), nn.BatchNorm1d(60), nn.ReLU()], 12, "mixing"),
        ([nn.Flatten(), nn.Unflatten(1, (5, 3, 4)), nn.MaxPool2d(3, 1), nn.Flatten()], 2, "mixing"),
    ],
)
def test_a_channel_is_its_positions_after_flatten(between: list[nn.Module], positions: int, transfer: str) -> None:
    model = nn.Sequential(nn.Conv2d(2, 5, (3, 2)), *between, nn.Linear(5 * positions, 2))
    first = trace(model, torch.zeros(3, 2, 5, 5)).groups[0]
    assert first.consumers[0].positions == positions
    assert first.transfer == transfer
    for slot in first.carriers:
        assert slot.positions == positions


def test_indices_of_a_slot_are_blocks() -> None:
    first = trace(nn.Sequential(nn.Conv1d(1, 3, 2), nn.Flatten(), nn.Linear(12, 1)), torch.zeros(1, 1, 5)).groups[0]
    assert first.consumers[0].indices([2, 0]).tolist() == [8, 9, 10, 11, 0, 1, 2, 3]


def test_channels_are_followed_through_permutations_and_means() -> None:
    class Moved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 2)
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x).permute(0, 2, 3, 1)
            return self.fc(x.mean((1, 2)).unsqueeze(1).squeeze(1))

    first = trace(Moved(), torch.zeros(2, 1, 3, 3)).groups[0]
    assert [step.op for step in first.steps] == ["permute", "mean", "reshape", "reshape"]
    assert first.consumers[0].positions == 1


def test_linear_layers_on_tokens() -> None:
    graph = trace(nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 2)), torch.zeros(2, 7, 3))
    assert [(g.units, g.sites) for g in graph.groups] == [(5, 7), (2, 7)]


@pytest.mark.parametrize(
    ("between", "after", "reason"),
    [
        ([nn.Sigmoid()], nn.Linear(4, 2, bias=False), "emits 0.5 and not 0, and 'linear' in module '2' has no bias"),
        ([nn.Softmax(1)], nn.Linear(4, 2), "'softmax' in module '1' is not elementwise"),
        ([nn.Sigmoid(), nn.BatchNorm1d(4, affine=False)], nn.Linear(4, 2), "which has no scale, as 0.5"),
        ([nn.LogSigmoid(), nn.PReLU(4)], nn.Linear(4, 2), "as -0.693147 and not 0"),
    ],
)
def test_layers_whose_masking_no_cut_can_equal_are_frozen(
    between: list[nn.Module], after: nn.Module, reason: str
) -> None:
    graph = trace(nn.Sequential(nn.Linear(3, 4), *between, after), torch.zeros(2, 3))
    assert reason in graph.frozen["0"]


@pytest.mark.parametrize(
    ("between", "conv", "reason"),
    [
        ([nn.Sigmoid()], nn.Conv2d(3, 2, 3, padding=1), "at its padded borders"),
        ([nn.Sigmoid()], nn.Conv2d(3, 2, 3, padding="same"), "at its padded borders"),
        ([nn.Sigmoid(), nn.AvgPool2d(2, padding=1)], nn.Conv2d(3, 2, 1), "leaves it as no constant"),
    ],
)
def test_constants_that_meet_padding_freeze_the_layer(between: list[nn.Module], conv: nn.Module, reason: str) -> None:
    graph = trace(nn.Sequential(nn.Conv2d(1, 3, 3), *between, conv), torch.zeros(1, 1, 8, 8))
    assert reason in graph.frozen["0"]


def test_constants_without_padding_do_not() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Sigmoid(), nn.MaxPool2d(2, padding=1), nn.Conv2d(3, 2, 3))
    assert list(trace(model, torch.zeros(1, 1, 8, 8)).frozen) == ["3"]


def recorded(model: nn.Module, view: View, units: int, x: Tensor) -> Tensor:
    found: list[Tensor] = []
    quiet = quiet_copy(model)
    quiet.get_submodule(view.module).register_forward_hook(lambda m, a, out: found.append(view.read(out, units)))
    with torch.no_grad():
        quiet(x)
    return found[0]


def test_the_representation_is_read_after_batch_norm_and_activation() -> None:
    torch.manual_seed(0)
    model = Functional().eval()
    x = torch.randn(3, 1, 8, 8)  # another batch size than the one that is traced
    graph = trace(model, torch.zeros(2, 1, 8, 8))
    with torch.no_grad():
        conv1 = torch.relu(model.bn1(model.conv1(x)))
        conv2 = torch.relu(model.conv2(functional.max_pool2d(conv1, 2)))
        flat = functional.adaptive_avg_pool2d(conv2, 2).flatten(1)
        fc1 = torch.sigmoid(model.bn2(model.prelu(model.fc1(flat))) * 2)
        fc2 = functional.log_softmax(model.fc2(fc1), 1)
    for name, expected in (("conv1", conv1), ("conv2", conv2), ("fc1", fc1), ("fc2", fc2)):
        found = group(graph, name)
        value = recorded(model, found.view, found.units, x)
        torch.testing.assert_close(value, expected.reshape(3, found.units, -1))
        assert found.view.elements == expected[0].numel()


def test_an_activation_after_pooling_belongs_to_the_representation() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.ReLU(), nn.Linear(12, 2)).eval()
    first = trace(model, torch.zeros(2, 1, 8, 8)).groups[0]
    x = torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(recorded(model, first.view, 3, x), model[:4](x).detach().reshape(5, 3, 4))


def test_the_representation_of_tokens_and_moved_channels_has_units_second() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    first = trace(model, torch.zeros(2, 7, 3)).groups[0]
    x = torch.randn(4, 7, 3)
    torch.testing.assert_close(recorded(model, first.view, 5, x), model[:2](x).detach().movedim(2, 1))


def test_weakest_class() -> None:
    assert weakest([]) == "identity"
    assert weakest(["affine", "homogeneous"]) == "affine"
    assert weakest(["other", "mixing"]) == "other"
