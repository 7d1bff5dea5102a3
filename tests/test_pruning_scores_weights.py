"""Criteria that read weights alone: L2, geometric median, BatchNorm scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from simkit import pruning as P
from simkit.pruning.scores import Ranking, Score, Subject, geometric_median

pytestmark = pytest.mark.usefixtures("one_thread")


class Residual(nn.Module):
    """``first`` and ``second`` compute the same four channels, each with a BatchNorm behind it; ``hidden`` has none."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 4, 2, bias=False), nn.BatchNorm2d(4))
        self.hidden = nn.Conv2d(4, 5, 1)
        self.second = nn.Sequential(nn.Conv2d(5, 4, 1), nn.BatchNorm2d(4))
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        result: Tensor = self.head(x + self.second(self.hidden(x).relu()))
        return result


def subject_of(model: nn.Module, inputs: Tensor) -> Subject:
    model.eval()
    graph = P.trace(model, inputs)
    return Subject(model, graph, graph.prunable, inputs, None)


def ranking(subject: Subject, score: Score, name: str = "0") -> Ranking:
    return score.rank(subject, {name: 1})[name]


@pytest.fixture(scope="module")
def traced() -> Subject:
    return subject_of(nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 1)), torch.zeros(2, 2))


def filled(traced: Subject, rows: Sequence[Sequence[float]]) -> Subject:
    """The same network with other weights of its hidden layer."""
    model = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 1)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor(rows, dtype=torch.float64))
    return replace(traced, model=model)


@pytest.fixture(scope="module")
def residual() -> Subject:
    torch.manual_seed(0)
    return subject_of(Residual().double(), torch.randn(2, 1, 4, 4, dtype=torch.float64))


def test_l2_is_the_euclidean_norm_and_ties_go_to_the_lowest_index(traced: Subject) -> None:
    subject = filled(traced, [[3, 4], [-1, 0], [0, 1], [0, 0], [4, 3]])
    found = ranking(subject, P.L2(normalize=False))
    assert found == Ranking((3, 1, 2, 0, 4), (0.0, 1.0, 1.0, 5.0, 5.0))
    scaled = ranking(subject, P.L2())
    assert scaled.order == found.order
    np.testing.assert_allclose(scaled.scores, np.array(found.scores) / np.sqrt(52), rtol=1e-15)


def test_normalised_l2_does_not_depend_on_the_scale_of_the_layer(traced: Subject) -> None:
    rows = np.random.default_rng(0).standard_normal((5, 2))
    one, other = (ranking(filled(traced, (scale * rows).tolist()), P.L2()) for scale in (1.0, 1e-30))
    assert one.order == other.order
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-12)
    assert ranking(filled(traced, np.zeros((5, 2)).tolist()), P.L2()) == Ranking((0, 1, 2, 3, 4), (0.0,) * 5)


def test_only_scores_on_one_scale_are_ranked_over_layers(traced: Subject) -> None:
    assert [score.scopes for score in (P.L1(), P.L2(), P.BNScale(), P.Random())] == [("layer", "global")] * 4
    assert [score.scopes for score in (P.L2(normalize=False), P.GeometricMedian())] == [("layer",)] * 2
    with pytest.raises(
        ValueError, match=r"^scope='global' does not go with GeometricMedian\(\): its scores do not com"
    ):
        P.plan(traced.model, traced.example_inputs, score=P.GeometricMedian(), scope="global")


def test_geometric_median_sums_the_distances_to_all_filters(traced: Subject) -> None:
    # On a line, at 0, 5, 0, 10 and -5.
    found = ranking(filled(traced, [[0, 0], [3, 4], [0, 0], [6, 8], [-3, -4]]), P.GeometricMedian())
    assert found.order == (0, 2, 1, 4, 3)
    np.testing.assert_allclose(found.scores, (20.0, 20.0, 25.0, 35.0, 40.0), rtol=1e-14)


def test_geometric_median_equals_the_double_loop_wherever_the_filters_lie(traced: Subject) -> None:
    rows = np.random.default_rng(1).standard_normal((5, 2))
    found = ranking(filled(traced, rows.tolist()), P.GeometricMedian())
    sums = [sum(float(np.linalg.norm(row - other)) for other in rows) for row in rows]
    assert list(found.order) == np.argsort(sums, kind="stable").tolist()
    np.testing.assert_allclose(found.scores, np.sort(sums), rtol=1e-14)
    turned = rows @ np.array([[0.6, 0.8], [-0.8, 0.6]]) + 7.0
    np.testing.assert_allclose(ranking(filled(traced, turned.tolist()), P.GeometricMedian()).scores, found.scores)


def test_equal_filters_tie_exactly(traced: Subject) -> None:
    rows = [[0.1, 0.7], [1e8, 0.3], [0.1, 0.7], [0.2, -3.0], [0.1, 0.7]]
    found = ranking(filled(traced, rows), P.GeometricMedian())
    assert found.order[:3] == (0, 2, 4)
    assert len(set(found.scores[:3])) == 1


def test_distances_keep_their_digits_where_filters_nearly_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(4).standard_normal((40, 30))
    rows[10:30] = rows[0] + np.logspace(-12, 0, 20)[:, None] * rows[10:30]
    expected = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    np.testing.assert_allclose(geometric_median._distances(rows), expected, rtol=1e-11)
    monkeypatch.setattr(geometric_median, "HELD", 64)
    np.testing.assert_allclose(geometric_median._distances(rows), expected, rtol=1e-11)


def test_layers_that_compute_the_same_units_add_up(residual: Subject) -> None:
    first, second = (
        module.weight.detach().flatten(1).numpy() for module in (residual.model.first[0], residual.model.second[0])
    )
    l2 = np.linalg.norm(first, axis=1) + np.linalg.norm(second, axis=1)
    apart = sum(np.linalg.norm(rows[:, None] - rows[None], axis=2).sum(axis=1) for rows in (first, second))
    scales = sum(bn.weight.detach().abs().numpy() for bn in (residual.model.first[1], residual.model.second[1]))
    for score, expected in (
        (P.L1(), np.abs(first).sum(axis=1) + np.abs(second).sum(axis=1)),
        (P.L2(normalize=False), l2),
        (P.GeometricMedian(), apart),
        (P.BNScale(), scales),
    ):
        found = ranking(residual, score, "first.0")
        assert list(found.order) == np.argsort(expected, kind="stable").tolist()
        np.testing.assert_allclose(found.scores, np.sort(expected), rtol=1e-13)


def test_bn_scale_is_the_absolute_scale_of_the_batch_norm_that_follows(residual: Subject) -> None:
    model = Residual()
    with torch.no_grad():
        model.first[1].weight.copy_(torch.tensor([1.0, -2.0, 0.5, -0.25]))
        model.second[1].weight.copy_(torch.tensor([0.5, 1.0, -1.0, 0.25]))
    found = ranking(replace(residual, model=model), P.BNScale(), "first.0")
    assert found == Ranking((3, 0, 2, 1), (0.5, 1.5, 1.5, 3.0))


def test_layers_without_a_batch_norm_are_refused_by_name(residual: Subject) -> None:
    with pytest.raises(ValueError, match=r"^layer 'hidden' has no BatchNorm with a scale after it, so BNScale cannot"):
        P.BNScale().rank(residual, {"first.0": 1, "hidden": 1})
    model = Residual()
    model.first[1] = nn.BatchNorm2d(4, affine=False)
    model.second[1] = nn.InstanceNorm2d(4, affine=True)
    with pytest.raises(ValueError, match=r"^layer 'first\.0' has no BatchNorm with a scale after it"):
        ranking(subject_of(model, torch.zeros(2, 1, 4, 4)), P.BNScale(), "first.0")


@pytest.mark.parametrize("score", [P.L1(), P.L2(), P.GeometricMedian()])
def test_weights_that_are_not_finite_are_named(score: Score, traced: Subject) -> None:
    subject = filled(traced, [[0, 1], [2, 3], [4, 5], [6, float("nan")], [8, 9]])
    with pytest.raises(ValueError, match=r"^unit 3 of layer '0' has a non-finite weight$"):
        ranking(subject, score)


def test_scales_that_are_not_finite_are_named(residual: Subject) -> None:
    model = Residual()
    with torch.no_grad():
        model.second[1].weight[2] = torch.inf
    with pytest.raises(ValueError, match=r"^unit 2 of layer 'first\.0' has a non-finite weight$"):
        ranking(replace(residual, model=model), P.BNScale(), "first.0")


def test_bad_options() -> None:
    with pytest.raises(ValueError, match=r"^normalize must be True or False, not 'layer'$"):
        P.L2(normalize="layer")  # type: ignore[arg-type]


@pytest.mark.parametrize("score", [P.L2(), P.GeometricMedian(), P.BNScale()])
def test_plans_by_every_criterion_cut_to_the_masked_model(score: Score) -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2)).eval()
    x = torch.randn(3, 1, 4, 4)
    plan = P.plan(model, x, score=score)
    assert len(plan["0"].removed) == 3
    assert plan.score == score.name
    assert P.PruningPlan.from_json(plan.to_json()) == plan
    torch.testing.assert_close(P.apply(model, plan, x)(x), P.masked(model, plan)(x))
