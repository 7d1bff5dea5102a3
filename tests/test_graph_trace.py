"""The channel graph: who computes, carries and reads whose channels, at which positions, in which transfer class."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from traced_models import Attention, Functional, Residual

from simkit import pruning as P
from simkit.graph import ChannelGraph, Group, trace, weakest
from simkit.graph.capture import capture

pytestmark = pytest.mark.usefixtures("one_thread")


def group(graph: ChannelGraph, name: str) -> Group:
    return next(found for found in graph.groups if found.name == name)


def places(found: Group) -> set[tuple[str, str, int]]:
    return {(slot.role, slot.tensor, slot.dim) for slot in found.slots}


def units(found: Group, tensor: str, dim: int) -> list[int]:
    return next(slot.units.tolist() for slot in found.slots if (slot.tensor, slot.dim) == (tensor, dim))


def test_groups_of_a_functional_model() -> None:
    graph = trace(Functional(), torch.zeros(2, 1, 8, 8))
    assert [(g.name, g.kind, g.units) for g in graph.groups] == [
        ("conv1", "conv2d", 4),
        ("conv2", "conv2d", 6),
        ("fc1", "linear", 10),
        ("fc2", "linear", 3),
    ]
    assert places(group(graph, "conv1")) == {
        ("producer", "conv1.weight", 0),
        ("carrier", "bn1.weight", 0),
        ("carrier", "bn1.bias", 0),
        ("carrier", "bn1.running_mean", 0),
        ("carrier", "bn1.running_var", 0),
        ("consumer", "conv2.weight", 1),
    }
    assert units(group(graph, "conv2"), "fc1.weight", 1) == [unit for unit in range(6) for _ in range(4)]
    assert ("carrier", "prelu.weight", 0) in places(group(graph, "fc1"))
    (reader,) = group(graph, "fc1").consumers
    assert [step.op for step in reader.steps] == ["prelu", "batch_norm", "dropout", "mul", "sigmoid"]
    assert [step.module for step in reader.steps] == ["prelu", "bn2", "", "", ""]
    assert [g.transfer for g in graph.prunable] == ["affine", "mixing", "other"]
    assert list(graph.frozen) == ["fc2"]
    assert [len(g.carriers) for g in graph.groups] == [4, 0, 5, 0]
    assert [(s.module, s.attribute) for s in group(graph, "conv1").sizes] == [("bn1", "num_features")]


def test_explain_names_layers_paths_and_reasons() -> None:
    lines = trace(Functional(), torch.zeros(2, 1, 8, 8)).explain().splitlines()
    assert lines[:2] == [
        "conv1 (conv2d, 4 units): exact",
        "  -> batch_norm > relu > max_pool2d -> conv2; transfer affine",
    ]
    assert lines[-1] == (
        "fc2 (linear, 3 units): frozen: 'log_softmax' in the model's forward is not elementwise: "
        "what it gives one unit depends on the others"
    )


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
        ([nn.LayerNorm(4)], "other"),
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
    expected = [unit for unit in range(5) for _ in range(positions)]
    assert first.consumers[0].units.tolist() == expected
    assert first.transfer == transfer
    for slot in first.carriers:
        assert slot.units.tolist() == expected


def test_positions_of_units_are_ascending() -> None:
    first = trace(nn.Sequential(nn.Conv1d(1, 3, 2), nn.Flatten(), nn.Linear(12, 1)), torch.zeros(1, 1, 5)).groups[0]
    assert first.consumers[0].positions([2, 0]).tolist() == [0, 1, 2, 3, 8, 9, 10, 11]


def test_channels_are_followed_through_permutations_and_means() -> None:
    class Moved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 2)
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x).permute(0, 2, 3, 1).movedim(3, 1).transpose(1, 3)
            return self.fc(x.mean((1, 2)).unsqueeze(1).squeeze(1))

    first = trace(Moved(), torch.zeros(2, 1, 3, 3)).groups[0]
    assert [step.op for step in first.consumers[0].steps] == [
        "permute",
        "movedim",
        "transpose",
        "mean",
        "unsqueeze",
        "squeeze",
    ]
    assert first.consumers[0].units.tolist() == [0, 1, 2, 3]


def test_sums_over_channels_read_them_without_a_weight() -> None:
    class Energy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return functional.softplus(self.b(torch.cos(self.a(x)))).sum(-1, keepdim=True)

    torch.manual_seed(0)
    model, x = Energy().double(), torch.randn(4, 3, dtype=torch.float64)
    (first, last) = trace(model, x).prunable
    assert not first.totals
    assert [(total.node, total.dim, total.units.tolist()) for total in last.totals] == [("sum_1", 1, [0, 1, 2, 3, 4])]
    assert not last.consumers
    assert last.post is not None
    plan = P.plan(model, x, score=P.L1(), amount={"b": 0.4})
    assert P.PruningPlan.from_json(plan.to_json()) == plan
    kept = list(plan["b"].kept)
    expected = functional.softplus(model.b(torch.cos(model.a(x))))[:, kept].sum(-1, keepdim=True)
    torch.testing.assert_close(P.apply(model, plan, x)(x), expected, rtol=1e-12, atol=0)
    with pytest.raises(
        NotImplementedError, match="layer 'b' is added up by 'sum_1', which has no weight that could be"
    ):
        P.masked(model, plan)


def test_what_one_unit_costs() -> None:
    graph = trace(nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 2)), torch.zeros(2, 7, 3))
    assert (graph.groups[0].params, graph.groups[0].macs) == (4 + 2, 7 * (3 + 2))
    assert graph.macs() == 7 * (15 + 10)
    assert graph.macs({"0": [1, 4]}) == 7 * (9 + 6)


def test_a_residual_stream_is_one_group() -> None:
    graph = trace(Residual(), torch.zeros(2, 3, 6, 6))
    stream = group(graph, "stem")
    assert {slot.module for slot in stream.producers} == {"stem", "one.2", "two"}
    assert {slot.module for slot in stream.consumers} == {"one.0", "two", "head"}
    assert {slot.module: slot.transfer for slot in stream.consumers} == {
        "one.0": "identity",
        "two": "affine",
        "head": "mixing",
    }
    assert [g.name for g in graph.prunable] == ["stem", "one.0"]


class PaddedShortcut(nn.Module):
    """The shortcut of the first ResNet for small images: every second position, zeros for the new channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, 2, 1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.wide(x) + functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))


def test_padded_channels_stay_and_those_they_surround_may_go() -> None:
    graph = trace(PaddedShortcut(), torch.zeros(1, 1, 8, 8))
    assert units(group(graph, "stem"), "wide.weight", 0) == [-1, -1, 0, 1, 2, 3, -1, -1]
    assert units(group(graph, "stem"), "head.weight", 1) == [-1, -1, 0, 1, 2, 3, -1, -1]


def conv_group(groups: int, width: int, out: int) -> ChannelGraph:
    model = nn.Sequential(nn.Conv2d(3, width, 1), nn.Conv2d(width, out, 3, groups=groups), nn.Conv2d(out, 2, 1))
    return trace(model, torch.zeros(1, 3, 5, 5))


def test_depthwise_convolutions_carry() -> None:
    graph = conv_group(4, 4, 8)
    (found,) = graph.prunable
    assert ("carrier", "1.weight", 0) in places(found)
    assert units(found, "1.weight", 0) == units(found, "2.weight", 1) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [(s.module, s.attribute, s.units.tolist()) for s in found.sizes] == [("1", "groups", [0, 1, 2, 3])]


def test_many_small_groups_go_as_wholes() -> None:
    (found,) = conv_group(6, 12, 18).prunable
    assert found.units == 6
    assert units(found, "0.weight", 0) == [unit for unit in range(6) for _ in range(2)]
    assert units(found, "1.weight", 0) == [unit for unit in range(6) for _ in range(3)]
    assert [(s.attribute, s.units.tolist()) for s in found.sizes] == [("groups", list(range(6)))]


def test_few_large_groups_lose_equally_many() -> None:
    first, second = conv_group(2, 8, 10).prunable
    assert (first.units, second.units) == (4, 5)
    assert units(first, "0.weight", 0) == [0, 1, 2, 3] * 2
    assert units(first, "1.weight", 1) == [0, 1, 2, 3]
    assert units(second, "1.weight", 0) == units(second, "2.weight", 1) == [0, 1, 2, 3, 4] * 2
    assert not first.sizes


def test_transposed_groups() -> None:
    def groups_of(groups: int, width: int, out: int) -> tuple[Group, ...]:
        layer = nn.ConvTranspose2d(width, out, 3, groups=groups)
        return trace(
            nn.Sequential(nn.Conv2d(3, width, 1), layer, nn.Conv2d(out, 2, 1)), torch.zeros(1, 3, 5, 5)
        ).prunable

    (whole,) = groups_of(4, 8, 4)
    assert units(whole, "1.weight", 0) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert units(whole, "1.bias", 0) == units(whole, "2.weight", 1) == [0, 1, 2, 3]
    first, second = groups_of(2, 8, 10)
    assert units(first, "0.weight", 0) == units(first, "1.weight", 0) == [0, 1, 2, 3] * 2
    assert units(second, "1.weight", 1) == [0, 1, 2, 3, 4]
    assert units(second, "1.bias", 0) == units(second, "2.weight", 1) == [0, 1, 2, 3, 4] * 2


def test_norms_over_channels() -> None:
    def norm(layer: nn.Module) -> Group:
        return trace(nn.Sequential(nn.Conv2d(3, 6, 1), layer, nn.Conv2d(6, 2, 1)), torch.zeros(1, 3, 4, 4)).groups[0]

    groups = norm(nn.GroupNorm(3, 6))
    assert (groups.units, groups.approximate) == (3, None)
    assert [(s.attribute, len(s.units)) for s in groups.sizes] == [("num_groups", 3), ("num_channels", 6)]
    whole = norm(nn.GroupNorm(1, 6))
    assert (whole.units, whole.approximate) == (6, "the statistics of 'group_norm' in module '1' run over the channels")
    assert norm(nn.InstanceNorm2d(6, affine=True)).approximate is None
    for layer, shape in ((nn.LayerNorm(6), (2, 5, 3)), (nn.RMSNorm(6), (2, 3))):
        first = trace(nn.Sequential(nn.Linear(3, 6), layer, nn.Linear(6, 2)), torch.zeros(shape)).groups[0]
        assert first.approximate is not None
        assert [(s.attribute, s.index) for s in first.sizes] == [("normalized_shape", 0)]


@pytest.mark.parametrize("plain", [True, False])
def test_units_of_attention_are_heads(plain: bool) -> None:
    graph = trace(Attention(plain=plain), torch.zeros(2, 7, 5))
    heads = group(graph, "qkv")
    assert heads.units == 3
    assert units(heads, "qkv.weight", 0) == [0, 0, 1, 1, 2, 2] * 3
    assert units(heads, "out.weight", 1) == [0, 0, 1, 1, 2, 2]
    assert heads.approximate is None
    tokens = 7
    assert graph.macs() == tokens * (5 * 18 + 6 * 4) + 2 * 3 * tokens * tokens * 2
    assert graph.macs({"qkv": [0]}) == tokens * (5 * 12 + 4 * 4) + 2 * 2 * tokens * tokens * 2


def test_concatenated_channels_keep_their_places() -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(7, 5), nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            a = torch.cat([x, self.a(x)], 1)
            return self.c(torch.cat([a, self.b(a)], 1))

    graph = trace(Dense(), torch.zeros(2, 3))
    assert units(group(graph, "a"), "b.weight", 1) == [-1] * 3 + [0, 1, 2, 3]
    assert units(group(graph, "a"), "c.weight", 1) == [-1] * 3 + [0, 1, 2, 3] + [-1] * 5
    assert units(group(graph, "b"), "c.weight", 1) == [-1] * 7 + [0, 1, 2, 3, 4]


@pytest.mark.parametrize("how", ["chunk", "split", "slice", "glu", "view"])
def test_halves_lose_the_same_channels(how: str) -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.c = nn.Linear(3, 8), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            if how == "glu":
                return self.c(functional.glu(x))
            if how == "view":
                return self.c(x.view(-1, 2, 4).sum(1))
            halves = {"chunk": x.chunk(2, 1), "split": x.split(4, 1), "slice": (x[:, :4], x[:, 4:])}[how]
            return self.c(halves[0] * torch.sigmoid(halves[1]))

    assert units(trace(Gated(), torch.zeros(2, 3)).groups[0], "a.weight", 0) == [0, 1, 2, 3] * 2


def test_shuffled_channels_go_with_their_places() -> None:
    model = nn.Sequential(nn.Conv2d(3, 12, 1), nn.ChannelShuffle(3), nn.Conv2d(12, 2, 1))
    (found,) = trace(model, torch.zeros(1, 3, 4, 4)).prunable
    assert found.units == 4
    assert units(found, "0.weight", 0) == [0, 1, 2, 3] * 3
    assert units(found, "2.weight", 1) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_tied_shared_and_bare_parameters() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.out = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False)
            self.out.weight = self.table.weight
            self.mix, self.scale = nn.Linear(6, 6), nn.Parameter(torch.ones(6))
            self.up, self.down = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(5, 6))

        def forward(self, x: Tensor) -> Tensor:
            y = self.mix(self.mix(self.table(x)) * self.scale)
            y = y + torch.einsum("btu,uc->btc", torch.relu(y @ (2 * self.up)), self.down)
            return self.out(y)

    graph = trace(Odd(), torch.zeros(2, 4, dtype=torch.int64))
    stream, inner = graph.prunable
    assert {("producer", "table.weight", 1), ("consumer", "out.weight", 1), ("producer", "mix.weight", 0),
            ("consumer", "mix.weight", 1), ("carrier", "scale", 0), ("consumer", "up", 0),
            ("producer", "down", 1)} <= places(stream)  # fmt: skip
    assert (inner.name, inner.units) == ("up", 5)
    assert places(inner) == {("producer", "up", 1), ("consumer", "down", 0)}


def test_frozen_parameters_and_several_inputs_and_outputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 5), nn.Linear(4, 5)
            self.one, self.two = nn.Linear(5, 2), nn.Linear(5, 3)

        def forward(self, x: Tensor, y: Tensor) -> dict[str, object]:
            z = torch.relu(self.a(x) + self.b(y))
            return {"one": self.one(z), "rest": (self.two(z), x)}

    graph = trace(Two().requires_grad_(False), (torch.zeros(2, 3), torch.zeros(2, 4)))
    assert [(g.name, g.units) for g in graph.prunable] == [("a", 5)]
    assert list(graph.frozen) == ["one", "two"]


def test_capturing_leaves_settings_as_they_are() -> None:
    torch.backends.mha.set_fastpath_enabled(True)
    with torch.no_grad():
        capture(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), torch.zeros(1, 3, 4))
        assert not torch.is_grad_enabled()
    assert torch.backends.mha.get_fastpath_enabled()


def test_weakest_class() -> None:
    assert weakest([]) == "identity"
    assert weakest(["affine", "homogeneous"]) == "affine"
    assert weakest(["other", "mixing"]) == "other"
