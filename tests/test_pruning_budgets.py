"""Budgets: shares of parameters, multiply-adds and latency, met exactly and by the least that meets them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from zoo import ZOO, build

from simkit import pruning as P
from simkit.pruning import budget as budgets
from simkit.pruning.budget import Request, decide
from simkit.pruning.ledger import Ledger, macs_ledger, params_ledger, units_ledger
from simkit.pruning.scores import Scope, Score, Subject

Counted = Literal["params", "macs"]


pytestmark = pytest.mark.usefixtures("one_thread")


class Network(nn.Module):
    """A residual stream of six channels, a depthwise layer, a concatenation, a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.inner = nn.Conv2d(6, 10, 3, padding=1)
        self.norm = nn.BatchNorm2d(10)
        self.deep = nn.Conv2d(10, 10, 3, padding=1, groups=10)
        self.back = nn.Conv2d(10, 6, 1)
        self.side = nn.Conv2d(6, 5, 1)
        self.hidden = nn.Linear(11, 8)
        self.same = nn.Linear(11, 8)
        self.same.weight = self.hidden.weight
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.back(self.deep(self.norm(self.inner(x)).relu()).relu())
        x = torch.cat([x, self.side(x).relu()], dim=1).mean((2, 3))
        result: Tensor = self.head(self.hidden(x).relu() * self.same(x).relu())
        return result


@pytest.fixture(scope="module")
def subject() -> Subject:
    torch.manual_seed(0)
    model, x = Network().eval(), torch.randn(2, 1, 6, 6)
    graph = P.trace(model, x)
    return Subject(model, graph, graph.prunable, x, None)


def orders(subject: Subject) -> dict[str, tuple[int, ...]]:
    rankings = P.Random(3).rank(subject, {group.name: group.units for group in subject.groups})
    return {name: ranking.order[:-1] for name, ranking in rankings.items()}


def cut(subject: Subject, counts: Mapping[str, int]) -> nn.Module:
    """The first units of the random order, cut."""
    rankings = P.Random(3).rank(subject, {group.name: group.units for group in subject.groups})
    request = Request(0.5, "layer", "units", 1, subject.groups)
    return budgets._cut(request, subject.model, rankings, counts)


def numbers(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_a_ledger_is_exact_at_every_step(subject: Subject) -> None:
    order = orders(subject)
    ledgers: dict[str, Ledger] = {
        "params": params_ledger(subject.model, subject.groups, order),
        "macs": macs_ledger(subject.graph, order),
        "units": units_ledger(subject.groups, order),
    }
    assert ledgers["params"].total == numbers(subject.model)
    assert ledgers["macs"].total == 2 * subject.graph.macs()
    counts = dict.fromkeys(order, 0)
    fresh = macs_ledger(subject.graph, order), params_ledger(subject.model, subject.groups, order)
    names = [name for step in range(9) for name in order if step < len(order[name])]
    for step, name in enumerate(names):
        costs = {kind: ledger.cost(name) for kind, ledger in ledgers.items()}
        before = {kind: ledger.saved for kind, ledger in ledgers.items()}
        counts[name] += 1
        for kind, ledger in ledgers.items():
            ledger.take(name)
            assert ledger.saved == before[kind] + costs[kind]
        left = {one: order[one][:count] for one, count in counts.items()}
        assert ledgers["macs"].total - ledgers["macs"].saved == 2 * subject.graph.macs(left)
        assert ledgers["units"].saved == step + 1
        assert fresh[0].saved_by(counts) == ledgers["macs"].saved == ledgers["macs"].saved_by(counts)
        assert fresh[1].saved_by(counts) == ledgers["params"].saved
        if step % 7 == 0:
            assert ledgers["params"].total - ledgers["params"].saved == numbers(cut(subject, counts))
    assert ledgers["macs"].saved_by(dict.fromkeys(order, 0)) == 0


@pytest.mark.parametrize("amount", [0.02, 0.3, 0.55])
@pytest.mark.parametrize("budget", ["params", "macs"])
def test_the_smallest_uniform_share_that_meets_the_budget(subject: Subject, budget: Counted, amount: float) -> None:
    decision = decide(Request(amount, "layer", budget, 1, subject.groups), subject, P.Random(3))
    shares = sorted({(k - 0.5) / group.units + 1e-9 for group in subject.groups for k in range(1, group.units)})
    order = orders(subject)
    ledger = params_ledger(subject.model, subject.groups, order) if budget == "params" else macs_ledger(
        subject.graph, order
    )  # fmt: skip
    met = (
        counts
        for share in shares
        if ledger.saved_by(counts := {group.name: int(share * group.units + 0.5) for group in subject.groups})
        >= amount * ledger.total
    )
    assert decision.counts == next(met)


@pytest.mark.parametrize("round_to", [1, 3])
@pytest.mark.parametrize("budget", ["params", "macs"])
def test_over_all_layers_units_go_until_the_budget_is_met(subject: Subject, budget: Counted, round_to: int) -> None:
    request = Request(0.4, "global", budget, round_to, subject.groups)
    decision = decide(request, subject, P.Random(3))
    ledger = budgets._ledger(request, subject, decision.rankings)
    assert ledger.saved_by(decision.counts) >= 0.4 * ledger.total
    queue = sorted(
        (score, name) for name, ranking in decision.rankings.items() for score in ranking.scores
    )  # random scores differ
    counts = dict.fromkeys(decision.rankings, 0)
    for _, name in queue:
        previous = request.rounded(counts)
        counts[name] += 1
        if request.rounded(counts) == decision.counts:
            break
    assert request.rounded(counts) == decision.counts
    assert ledger.saved_by(previous) < 0.4 * ledger.total
    for group in subject.groups:
        left = group.units - decision.counts[group.name]
        assert left % round_to == 0 or left == group.units


@pytest.mark.parametrize("score", [P.L1(), P.Redundancy(threshold=1.2)])
@pytest.mark.parametrize("budget", ["params", "macs"])
def test_plans_say_what_the_budget_got(subject: Subject, budget: Counted, score: Score) -> None:
    plan = P.plan(subject.model, subject.example_inputs, score=score, amount=0.3, scope="global", budget=budget)
    before, after = (getattr(plan, f"{budget}_{when}") for when in ("before", "after"))
    assert after <= 0.7 * before
    assert plan.budget == budget
    assert f"amount 0.3 of the {budget} over all" in plan.explain()
    assert P.PruningPlan.from_json(plan.to_json()) == plan
    small = P.apply(subject.model, plan, subject.example_inputs)
    assert numbers(small) == plan.params_after


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_budget_out_of_reach_says_how_far_it_goes(subject: Subject, scope: Scope) -> None:
    sentence = r"^amount 0.999 of the macs is out of reach: the most that can go is 0\.9\d*, as every layer keeps 1 of"
    with pytest.raises(ValueError, match=sentence):
        decide(Request(0.999, scope, "macs", 1, subject.groups), subject, P.L1())
    with pytest.raises(ValueError, match=r"^amount 0.0 with round_to=1 removes nothing; open to removal: "):
        decide(Request(0.0, scope, "macs", 1, subject.groups), subject, P.L1())


def by_size(model: nn.Module, inputs: object) -> float:
    """A latency that can be told beforehand."""
    return numbers(model) * 1e-6


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_latency_is_met_by_few_models(subject: Subject, scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[int] = []

    def counted(model: nn.Module, inputs: object) -> float:
        timed.append(numbers(model))
        return by_size(model, inputs)

    monkeypatch.setattr(budgets, "latency", counted)
    options = {"score": P.Random(3), "amount": 0.4, "scope": scope, "budget": "latency"}
    plan = P.plan(subject.model, subject.example_inputs, **options)
    assert len(timed) <= 8
    assert plan.latency_before == pytest.approx(plan.params_before * 1e-6)
    assert plan.latency_after == pytest.approx(plan.params_after * 1e-6)
    assert plan.params_after <= 0.6 * plan.params_before
    assert plan.params_after > 0.4 * plan.params_before
    assert f"latency {plan.params_before / 1000:.3g} -> " in plan.explain()
    assert P.PruningPlan.from_json(plan.to_json()) == plan
    with pytest.raises(ValueError, match=r"^amount 0.999 of the latency is out of reach"):
        P.plan(subject.model, subject.example_inputs, **{**options, "amount": 0.999})


def test_latency_is_measured_without_touching_the_model() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()).train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    assert P.latency(model, torch.randn(3, 4, generator=torch.Generator().manual_seed(0))) > 0
    assert model.training
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    for passes in (4, 5.5, True):
        with pytest.raises(ValueError, match=f"^passes must be an integer of at least 5, not {passes}$"):
            P.latency(model, torch.zeros(3, 4), passes=passes)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_ledgers_and_plans_agree_on_every_architecture(name: str) -> None:
    model, inputs = build(name)
    graph = P.trace(model, inputs)
    if not graph.prunable:
        pytest.skip("nothing may go")
    plan = P.plan(model, inputs, score=P.Random(1), amount=0.5)
    order = {layer.name: layer.removed for layer in plan.layers}
    counts = {name: len(removed) for name, removed in order.items()}
    groups = [group for group in graph.prunable if group.name in order]
    parameters, operations = params_ledger(model, groups, order), macs_ledger(graph, order)
    assert (parameters.total, operations.total // graph.batch) == (plan.params_before, plan.macs_before)
    assert parameters.total - parameters.saved_by(counts) == plan.params_after
    assert (operations.total - operations.saved_by(counts)) // graph.batch == plan.macs_after
    for layer, count in counts.items():
        for _ in range(count):
            parameters.take(layer)
            operations.take(layer)
    assert parameters.total - parameters.saved == plan.params_after
    assert (operations.total - operations.saved) // graph.batch == plan.macs_after
