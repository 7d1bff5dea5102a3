"""What no weight reads: norms written by hand, index buffers, values of one number, values changed in place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from masking_oracle import Removed, masked_run, relative_gap
from torch import Tensor, nn
from torch.nn import functional as F

from simkit import pruning as P
from simkit.graph import trace
from simkit.graph.capture import capture

pytestmark = pytest.mark.usefixtures("one_thread")


def settled(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model.double().eval()


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def consumed(plan: P.PruningPlan) -> list[Removed]:
    slots = [slot for layer in plan.layers for slot in layer.slots if slot.role == "consumer"]
    return [Removed(slot.tensor, slot.dim, slot.positions) for slot in slots]


# Norms as their users write them; ``x`` is all that their statistics see.


def root_mean_square(x: Tensor) -> tuple[Tensor | float, Tensor]:
    return 0.0, torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


def mean_and_deviation(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean(-1, keepdim=True), 1 / (x.std(-1, keepdim=True) + 1e-5)


def both_at_once(x: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(x, dim=-1, keepdim=True, correction=0)
    return mean, torch.rsqrt(variance + 1e-5)


class OwnNorm(nn.Module):
    """``kept`` restricts the statistics, for the masked model of full size."""

    def __init__(self, size: int, statistics: Callable[[Tensor], tuple[Any, Tensor]]) -> None:
        super().__init__()
        self.weight, self.statistics = nn.Parameter(torch.ones(size)), statistics
        self.kept: list[int] | None = None

    def forward(self, x: Tensor) -> Tensor:
        shift, scale = self.statistics(x if self.kept is None else x[..., self.kept])
        return (x - shift) * scale * self.weight


class Stream(nn.Module):
    def __init__(self, statistics: Callable[[Tensor], tuple[Any, Tensor]]) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 11)
        self.norms = nn.ModuleList(OwnNorm(11, statistics) for _ in range(2))
        self.up, self.down, self.head = nn.Linear(11, 13), nn.Linear(13, 11), nn.Linear(11, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.down(F.silu(self.up(self.norms[0](x))))
        return self.head(self.norms[1](x))


@pytest.mark.parametrize("statistics", [root_mean_square, mean_and_deviation, both_at_once])
def test_a_norm_by_hand_is_approximate_as_torchs_own_is(statistics: Any) -> None:
    torch.manual_seed(0)
    model, x = settled(Stream(statistics)), drawn(5, 4)
    graph = P.trace(model, x)
    assert [(group.name, group.units) for group in graph.prunable] == [("embed", 11), ("up", 13)]
    stream = graph.prunable[0]
    assert stream.approximate is not None
    assert "in module 'norms.0' run over the channels" in stream.approximate
    assert "averaged by" in graph.explain()
    plan = P.plan(model, x, score=P.Random(seed=1), amount=0.4)
    assert P.PruningPlan.from_json(plan.to_json()) == plan
    small, other = P.apply(model, plan, x), drawn(3, 4)
    silent = masked_run(model, (other,), consumed(plan))
    with torch.no_grad():
        assert relative_gap(silent, P.masked(model, plan)(other)) < 1e-12
        assert relative_gap(silent, small(other)) > 1e-6
        for norm in model.norms:  # type: ignore[union-attr]
            norm.kept = list(plan["embed"].kept)  # type: ignore[union-attr]
        assert relative_gap(masked_run(model, (other,), consumed(plan)), small(other)) < 1e-12


class Between(nn.Module):
    """Two layers, and what the test does between them."""

    order: Tensor

    def __init__(self, run: Callable[[Any, Tensor], Tensor], order: tuple[int, ...] = (3, 0, 6, 5, 1, 2, 4)) -> None:
        super().__init__()
        self.a, self.same, self.b = nn.Linear(4, 7), nn.Identity(), nn.Linear(len(order), 3)
        self.register_buffer("order", torch.tensor(order))
        self.size, self.run = 7, run

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.run(self, self.same(self.a(x))))


@pytest.mark.parametrize(
    "length", [lambda x: x.norm(dim=1, keepdim=True), lambda x: torch.linalg.vector_norm(x, 3, dim=1, keepdim=True)]
)
def test_lengths_over_channels_count_the_removed_as_zero(length: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model, x = settled(Between(lambda m, x: torch.tanh(x) / length(x))), drawn(5, 4)
    plan = P.plan(model, x, score=P.L1(), amount=0.3)
    assert plan.exact
    gone = plan["a"].removed
    expected = masked_run(model, (x,), [], silenced=[Removed("same", 1, gone)])
    assert relative_gap(expected, P.apply(model, plan, x)(x)) < 1e-12


class Heads(nn.Module):
    """Hidden units are normalised, split into heads and put together again."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.same, self.b = nn.Linear(4, 8), nn.Identity(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.normalize(self.same(self.a(x)), dim=1).unflatten(1, (2, -1)).cos().flatten(1))


def test_normalised_units_are_followed_into_heads() -> None:
    torch.manual_seed(0)
    model, x = settled(Heads()), drawn(5, 4)
    plan = P.plan(model, x, score=P.L1(), amount={"a": 0.5})
    assert plan.exact
    gone = tuple(i for slot in plan["a"].slots if slot.tensor == "a.weight" for i in slot.positions)
    expected = masked_run(model, (x,), consumed(plan), silenced=[Removed("same", 1, gone)])
    assert relative_gap(expected, P.apply(model, plan, x)(x)) < 1e-12


@pytest.mark.parametrize("counts", [(2,), (1, 2)])
def test_tiled_units_go_from_every_tile(counts: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model, x = settled(Between(lambda m, x: x.cos().tile(counts), tuple(range(14)))), drawn(5, 4)
    plan = P.plan(model, x, score=P.L1(), amount=0.4)
    assert relative_gap(masked_run(model, (x,), consumed(plan)), P.apply(model, plan, x)(x)) < 1e-12


@pytest.mark.parametrize(
    ("scaled", "operation"),
    [
        (lambda w: w / w.norm(dim=1, keepdim=True), "linalg_vector_norm"),
        (lambda w: F.normalize(w, dim=1), "linalg_vector_norm"),
        (lambda w: w / w.abs().sum(1, keepdim=True), "sum"),
    ],
)
def test_weights_divided_by_their_length_keep_what_they_read(
    scaled: Callable[[Tensor], Tensor], operation: str
) -> None:
    """Cut, they would have another length; where they read zeros they would not."""

    class Cosines(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, scaled(self.weight))

    graph = trace(nn.Sequential(nn.Linear(4, 7), nn.ReLU(), Cosines(7, 5), nn.Linear(5, 2)), torch.zeros(2, 4))
    assert graph.frozen["0"] == f"'{operation}' in module '2' runs over them"
    assert [group.name for group in graph.prunable] == ["2"]


ORDERS = {
    "index": (lambda m, x: torch.relu(x[:, m.order]), (3, 0, 6, 5, 1, 2, 4)),
    "index_select": (lambda m, x: torch.cos(x.index_select(-1, m.order)), (3, 0, 6, 5, 1, 2, 4)),
    "some": (lambda m, x: x[:, m.order], (6, 2, 1)),
    "twice": (lambda m, x: torch.cos(x[:, m.order]), (6, 2, 2, 1, 6, 0, 3, 4, 5)),
    "negative": (lambda m, x: x[:, m.order], (-1, 0, -3, 1, 2, 3, 5)),
    "flipped": (lambda m, x: torch.cos(x.flip(1)[:, m.order]).flip(-1), (3, 0, 6, 5, 1, 2, 4)),
    "two": (lambda m, x: torch.cos(x[:, m.order]) * x.sin()[:, m.order], (3, 0, 6, 5, 1, 2, 4)),
    "gated": (lambda m, x: x[:, m.order] * m.b(x[:, m.order]).sum(1, keepdim=True), (3, 0, 6, 5, 1, 2, 4)),
}  # fmt: skip


@pytest.mark.parametrize("name", ORDERS)
def test_channels_in_the_order_of_a_buffer(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = settled(Between(*ORDERS[name])), drawn(5, 4)
    plan = P.plan(model, x, score=P.Random(seed=4), amount=0.45)
    assert plan.exact
    assert P.PruningPlan.from_json(plan.to_json()) == plan
    small = P.apply(model, plan, x)
    order: Any = small.order
    assert int(order.max()) < small.get_submodule("a").out_features
    assert relative_gap(masked_run(model, (x,), consumed(plan)), small(x)) < 1e-12
    P.save(small, tmp_path / "m.safetensors")
    again = P.load(tmp_path / "m.safetensors", lambda: settled(Between(*ORDERS[name])))
    assert relative_gap(small(x), again(x)) < 1e-14
    second = P.plan(small, x, score=P.L1(), amount=0.5)
    assert relative_gap(masked_run(small, (x,), consumed(second)), P.apply(small, second, x)(x)) < 1e-12


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (lambda m, x: x[:, [3, 0, 6, 5, 1, 2, 4]], "'index' in the model's forward picks them by number"),
        (lambda m, x: x[:, m.order] + m.order, "'index' in the model's forward picks them by number"),
        (lambda m, x: x[:, m.order[:7]], "'index' in the model's forward picks them by number"),
    ],
)
def test_orders_that_cannot_be_counted_anew_keep_their_channels(run: Any, reason: str) -> None:
    assert trace(Between(run), torch.zeros(2, 4)).frozen["a"] == reason


def test_an_order_of_channels_and_of_other_things_stays() -> None:
    class Both(nn.Module):
        order: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)
            self.register_buffer("order", torch.tensor([2, 0, 3, 1]))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x)[:, self.order]) + x[:, self.order].sum(1, keepdim=True)

    assert "a" in trace(Both(), torch.zeros(2, 4)).frozen


UNIFORM = {
    "zeros": lambda m, x: torch.tanh(x + x.new_zeros(x.shape[0], m.size)),
    "ones": lambda m, x: torch.where(x > 0, x, torch.ones(m.size, dtype=x.dtype)),
    "like": lambda m, x: x.cos() * torch.full_like(x, 0.5),
    "expanded": lambda m, x: torch.cos(x + torch.full((1, 1), 0.3, dtype=x.dtype).expand(len(x), m.size)),
    "in place": lambda m, x: torch.zeros(x.shape[0], m.size, dtype=x.dtype).add_(x).cos(),
}


@pytest.mark.parametrize("name", UNIFORM)
def test_values_of_one_number_are_of_any_length(name: str) -> None:
    torch.manual_seed(0)
    model, x = settled(Between(UNIFORM[name])), drawn(5, 4)
    plan = P.plan(model, x, score=P.Random(seed=4), amount=0.45)
    small = P.apply(model, plan, x)
    assert relative_gap(masked_run(model, (x,), consumed(plan)), small(x)) < 1e-12


@pytest.mark.parametrize(
    ("run", "transfer"),
    [
        (lambda m, x: torch.ones_like(x), "other"),
        (lambda m, x: x + torch.ones_like(x), "other"),
        (lambda m, x: x + x.new_ones(x.shape), "other"),
        (lambda m, x: x + x.relu(), "homogeneous"),
    ],
)
def test_values_like_others_are_not_these_values(run: Any, transfer: str) -> None:
    (reader,) = trace(Between(run), torch.zeros(2, 4)).groups[0].consumers
    assert reader.transfer == transfer


def changed_in_part(m: Any, x: Tensor) -> Tensor:
    x[:, :3] *= 2
    return x


def changed_under_another_name(m: Any, x: Tensor) -> Tensor:
    y = x.view(-1, 7)
    y.mul_(3)
    return x.cos()


def changed_while_dropped(m: Any, x: Tensor) -> Tensor:
    y = F.dropout(x, training=False)
    y.relu_()
    return x + 1


def changed_as_a_whole(m: Any, x: Tensor) -> Tensor:
    x = x.relu_().mul_(2)
    return x.add_(1)


def changed_at_the_end_of_a_view(m: Any, x: Tensor) -> Tensor:
    return F.relu(x.unflatten(1, (-1, 1)), inplace=True).flatten(1)


@pytest.mark.parametrize(
    ("run", "operation"),
    [(changed_in_part, "mul"), (changed_under_another_name, "mul"), (changed_while_dropped, "relu")],
)
def test_what_changes_in_place_under_another_name_stays(run: Any, operation: str) -> None:
    frozen = trace(Between(run), torch.zeros(2, 4)).frozen
    assert frozen["a"] == f"'{operation}' in the model's forward changes in place what has other names"


@pytest.mark.parametrize("run", [changed_as_a_whole, changed_at_the_end_of_a_view])
def test_what_changes_in_place_under_its_only_name_goes(run: Any) -> None:
    torch.manual_seed(0)
    model, x = settled(Between(run)), drawn(5, 4)
    plan = P.plan(model, x, score=P.L1(), amount=0.4)
    assert relative_gap(masked_run(model, (x,), consumed(plan)), P.apply(model, plan, x)(x)) < 1e-12


def test_the_last_unit_may_not_follow_where_the_first_does() -> None:
    """The last three channels are added up: the code counts them from the end, and others take their place."""
    run = lambda m, x: x * x[:, -3:].sum(1, keepdim=True)  # noqa: E731
    torch.manual_seed(0)
    model, x = settled(Between(run)), drawn(5, 4)
    for group in P.trace(model, x).prunable:
        for unit in range(group.units):
            amount = {group.name: 1 / group.units}
            plan = P.plan(model, x, score=P.Random(seed=unit), amount=amount)
            P.apply(model, plan, x)


def test_fixed_weights_have_no_units() -> None:
    blur = lambda m, x: F.conv1d(x[:, :, None], torch.ones(7, 1, 1), groups=7).squeeze(2)  # noqa: E731
    graph = trace(Between(blur), torch.zeros(2, 4))
    assert graph.frozen["a"] == "'conv1d' in the model's forward has a weight that is no parameter's"
    literal = lambda m, x: F.conv1d(x[:, :, None], torch.tensor([[[2.0]]]).repeat(7, 1, 1), groups=7).squeeze(2)  # noqa: E731
    assert (
        P.trace(Between(literal), torch.zeros(2, 4)).frozen["a"]
        == "the forward of the model writes the size 7 in its code"
    )


class SecondFirst(nn.Module):
    """Samples are the second dimension inside, as in torch's own attention."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.mix, self.b = nn.Linear(3, 6), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        x = self.mix(torch.tanh(self.a(x)).transpose(0, 1).reshape(length * n, 6))
        return self.b(x.view(length, n, 5).transpose(0, 1))


def test_representations_are_of_samples_also_where_these_come_second() -> None:
    torch.manual_seed(0)
    model, x = settled(SecondFirst()), drawn(2, 4, 3)
    mix = next(group for group in trace(model, x).groups if group.name == "mix")
    assert mix.post is not None
    captured = capture(model, x)
    values: dict[str, Tensor] = {}

    class Keep(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            values[n.name] = super().run_node(n)
            return values[n.name]

    Keep(captured.module).run(*captured.arguments((x,)), enable_io_processing=False)
    expected = model.mix(torch.tanh(model.a(x)))  # type: ignore[operator]
    found = mix.post.read(values[mix.post.node], mix.units, 2)
    torch.testing.assert_close(found, expected.transpose(1, 2))
