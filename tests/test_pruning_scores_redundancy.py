"""Structural redundancy: which layers lose units, measured again after every one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

import simkit as sk
from simkit import pruning as P
from simkit.errors import DegenerateWarning
from simkit.pruning import budget as budgets
from simkit.pruning.budget import Request
from simkit.pruning.scores import Score, Subject

FloatArray = npt.NDArray[np.float64]


pytestmark = pytest.mark.usefixtures("one_thread")


def network(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in zip((6, *widths), (*widths, 2), strict=True):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double()


def subject_of(model: nn.Module, inputs: Tensor) -> Subject:
    graph = P.trace(model, inputs)
    return Subject(model, graph, graph.prunable, inputs, None)


@pytest.fixture(scope="module")
def traced() -> Subject:
    return subject_of(network(12, 12), torch.zeros(1, 6, dtype=torch.float64))


def filled(traced: Subject, first: FloatArray, second: FloatArray) -> Subject:
    """The same network with other weights of its hidden layers."""
    model = network(len(first), len(second))
    with torch.no_grad():
        model[0].weight.copy_(torch.from_numpy(first))
        model[2].weight.copy_(torch.from_numpy(second))
    return replace(traced, model=model)


def turns(subject: Subject, score: P.Redundancy, count: int | None = None) -> list[str]:
    rankings = score.rank(subject, {group.name: group.units for group in subject.groups})
    return list(islice(score.allocate(subject, rankings, lambda name: 1.0), count))


def blocks(sizes: list[int], width: int, seed: int = 0) -> FloatArray:
    """Filters in as many orthogonal directions as there are sizes, so many in each, of different lengths."""
    lengths = np.random.default_rng(seed).uniform(0.5, 2.0, sum(sizes))
    return np.eye(width)[np.repeat(np.arange(len(sizes)), sizes)] * lengths[:, None]


def test_the_most_redundant_layer_goes_first_until_another_one_is(traced: Subject) -> None:
    # 12 filters in 2 directions: redundancy 6, 5.5, 5, 4.5, 4 after four removals, and 12 in 3 directions: 4.
    rows = np.arange(1.0, 13)[:, None]
    first = np.eye(6)[np.arange(12) % 2] * rows  # the smallest go first, from both directions in turn
    second = np.eye(12)[np.arange(12) % 3] * rows
    found = turns(filled(traced, first, second), P.Redundancy(threshold=0.5, fan_in="whole"))
    assert found[:4] == ["0"] * 4
    assert found[4] == "2"  # 4 and 4: all of its units are left
    assert sorted(found) == ["0"] * 11 + ["2"] * 11


@pytest.mark.filterwarnings("ignore::simkit.errors.DegenerateWarning")
@pytest.mark.parametrize("estimator", ["greedy", "total_degree"])
def test_every_turn_is_that_of_graphs_built_from_the_filters_that_are_left(traced: Subject, estimator: str) -> None:
    generator = np.random.default_rng(3)
    weights = [generator.standard_normal((12, 6)), generator.standard_normal((12, 12))]
    for own in weights:
        own[4:9] = own[0] + 0.2 * own[4:9]
    score = P.Redundancy(threshold=0.9, estimator=estimator, fan_in="whole")  # type: ignore[arg-type]
    left = [list(range(12)), list(range(12))]
    expected = []
    while max(map(len, left)) > 1:
        values = [
            float(sk.redundancy(own[kept], threshold=0.9, estimator=estimator)) if len(kept) > 1 else -math.inf  # type: ignore[call-overload]
            for own, kept in zip(weights, left, strict=True)
        ]
        near = [max(values) - value < 1e-9 for value in values]
        layer = max((0, 1), key=lambda index: (near[index], len(left[index]), -index))
        sums = np.abs(weights[layer]).sum(axis=1)
        left[layer].remove(min(left[layer], key=lambda unit: sums[unit]))
        expected.append("02"[layer])
    assert turns(filled(traced, *weights), score) == expected


@pytest.mark.filterwarnings("ignore::simkit.errors.DegenerateWarning")
def test_equally_redundant_layers_lose_the_same_share() -> None:
    subject = subject_of(network(12, 6), torch.zeros(1, 6, dtype=torch.float64))
    with torch.no_grad():
        subject.model[0].weight.copy_(torch.eye(6).repeat(2, 1) * torch.tensor([1.0] * 6 + [2.0] * 6)[:, None])
        subject.model[2].weight.copy_(torch.eye(6, 12))
    one_each = turns(subject, P.Redundancy(threshold=0.1, fan_in="whole"))
    assert sorted(one_each[:6]) == ["0"] * 6  # down to one filter in every direction
    # From 6 of 12 and 6 of 6, all graphs empty: the layer that has the larger share of its units left.
    assert one_each[6:9] == ["2"] * 3
    assert one_each[9:12] == ["0", "2", "0"]


@pytest.mark.filterwarnings("ignore::simkit.errors.DegenerateWarning")
def test_the_rule_of_the_reproduction_removes_by_width() -> None:
    # Complete graphs: r = 64, so 2√64 = 16 of the widest; then ⌊2√48⌋ = 13; then 36 > 35, so ⌊2√36⌋ = 12 of the other.
    subject = subject_of(network(36, 64), torch.zeros(1, 6, dtype=torch.float64))
    with torch.no_grad():
        for layer in (subject.model[0], subject.model[2]):
            layer.weight.copy_(torch.rand_like(layer.weight) + 5.0)
    score = P.Redundancy(threshold=0.2, norm="sqrt_fan_in", estimator="total_degree", step="two_sqrt", fan_in="whole")
    assert turns(subject, score, 41) == ["2"] * 29 + ["0"] * 12
    assert [math.floor(2 * math.sqrt(width)) for width in (512, 467)] == [45, 43]


def test_units_that_several_layers_compute_are_one_filter_of_all_their_weights() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x).relu()
            result: Tensor = self.head(x + self.second(x))
            return result

    torch.manual_seed(1)
    subject = subject_of(Residual().double(), torch.zeros(1, 3, dtype=torch.float64))
    joined = np.hstack([layer.weight.detach().numpy() for layer in (subject.model.first, subject.model.second)])
    score = P.Redundancy(threshold=1.3)
    assert (
        score._layer(subject, subject.groups[0]).graph(1.3, "distance").edges
        == sk.filter_graph(joined, threshold=1.3).edges
        > 0
    )


def perceptron() -> tuple[nn.Module, Tensor]:
    return network(9, 7, 6), torch.randn(1, 6, dtype=torch.float64)


def flattened() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(
        nn.Conv2d(2, 7, 3), nn.ReLU(), nn.Conv2d(7, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 8), nn.ReLU(),
        nn.Linear(8, 2),
    )  # fmt: skip
    return model.double(), torch.randn(1, 2, 6, 6, dtype=torch.float64)


class Stream(nn.Module):
    """A residual stream, whose own layers read it, a depthwise layer, and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.back = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(8, 6, 1)
        self.deep, self.same = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(6, 6, 3, padding=1)
        self.side, self.head = nn.Conv2d(6, 5, 1), nn.Conv2d(11, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.back(self.deep(self.inner(x).relu()).relu())
        x = x + self.same(x)
        return self.head(torch.cat([x, self.side(x).relu()], 1))  # type: ignore[no-any-return]


def stream() -> tuple[nn.Module, Tensor]:
    return Stream().double(), torch.randn(1, 1, 7, 7, dtype=torch.float64)


@pytest.mark.filterwarnings("ignore::simkit.errors.DegenerateWarning")
@pytest.mark.parametrize(("make", "threshold"), [(perceptron, 1.2), (flattened, None), (stream, None)])
def test_every_turn_is_that_of_the_model_cut_so_far(
    make: Callable[[], tuple[nn.Module, Tensor]], threshold: float | None
) -> None:
    """The oracle cuts the model, traces it again and measures the filters that it finds there."""
    torch.manual_seed(2)
    model, x = make()
    subject = subject_of(model, x)
    score = P.Redundancy(threshold=threshold)
    rankings = score.rank(subject, {group.name: group.units for group in subject.groups})
    request = Request(0.5, "global", "units", 1, subject.groups)
    units = {group.name: group.units for group in subject.groups}
    gone = dict.fromkeys(units, 0)
    found = turns(subject, score)
    assert sorted(found) == sorted(name for name, count in units.items() for _ in range(count - 1))
    for turn in found[:14]:
        small = budgets._cut(request, model, rankings, gone)
        now = subject_of(small, x)
        value = {
            group.name: float(sk.redundancy(np.hstack(now.filters(group)), threshold=threshold))
            for group in now.groups
            if gone[group.name] < units[group.name] - 1
        }
        best = max(value.values())
        near = [name for name in value if best - value[name] < 1e-9]
        assert turn == max(near, key=lambda name: (1 - gone[name] / units[name], -list(units).index(name)))
        gone[turn] += 1


def test_a_plan_takes_the_share_of_all_units_and_the_smallest_filters(traced: Subject) -> None:
    model = network(12, 12)
    with torch.no_grad():
        model[0].weight.copy_(torch.from_numpy(blocks([6, 6], 6)))
        model[2].weight.copy_(torch.from_numpy(blocks([2] * 6, 12)))
    plan = P.plan(
        model, traced.example_inputs, score=P.Redundancy(threshold=0.1, fan_in="whole"), amount=0.25, scope="global"
    )
    assert plan.removed == {"0": tuple(np.argsort(model[0].weight.detach().abs().sum(1).numpy())[:6].tolist())}
    assert "as many as the criterion takes from this layer, amount 0.25 over all" in plan.explain()
    assert P.PruningPlan.from_json(plan.to_json()) == plan


def test_graphs_that_say_nothing_are_named(traced: Subject) -> None:
    score = P.Redundancy(threshold=0.0)
    with pytest.warns(DegenerateWarning, match="^layer '0': the graph of weight is empty"):
        turns(filled(traced, np.random.default_rng(0).random((12, 6)), blocks([2] * 6, 12)), score)


def test_layer_scope_is_refused(traced: Subject) -> None:
    score = P.Redundancy()
    with pytest.raises(ValueError, match=r"^scope='layer' does not go with Redundancy\(.*\): it decides over all lay"):
        P.plan(traced.model, traced.example_inputs, score=score)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"step": "two"}, r"step must be one of one, two_sqrt, not 'two'"),
        ({"estimator": "best"}, r"estimator must be one of greedy, total_degree, not 'best'"),
        ({"fan_in": "both"}, r"fan_in must be one of left, whole, not 'both'"),
        ({"norm": "l1"}, r"norm must be one of .*, not 'l1'"),
        ({"threshold": -1.0}, r"must not be negative"),
        ({"threshold": (0.1, 0.2)}, r"threshold must be one number or None, not \(0.1, 0.2\)"),
    ],
)
def test_bad_options(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        P.Redundancy(**options)  # type: ignore[arg-type]


def test_weights_that_are_not_finite_are_named(traced: Subject) -> None:
    weights = blocks([6, 6], 6)
    weights[5, 2] = np.inf
    score: Score = P.Redundancy()
    with pytest.raises(ValueError, match=r"^unit 5 of layer '0' has a non-finite weight$"):
        score.rank(filled(traced, weights, blocks([12], 12)), {"0": 1})
