"""Rounds of pruning and retraining: exact counts on any schedule, each round on the model of the one before."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from simkit import pruning as P


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 17, 3),
        nn.BatchNorm2d(17),
        nn.ReLU(),
        nn.Conv2d(17, 10, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(40, 3),
    )


X = torch.randn(64, 2, 6, 6)


def test_shares() -> None:
    assert P.shares(0.75, 2) == pytest.approx((0.5, 0.75))
    assert P.shares(0.6, 3, "linear") == pytest.approx((0.2, 0.4, 0.6))
    assert P.shares(0.8, 2, "cubic") == pytest.approx((0.7, 0.8))
    assert P.shares(0.5, 1) == (0.5,)
    assert P.shares(0.5, 2, [0.1, 0.5]) == (0.1, 0.5)


@pytest.mark.parametrize(
    ("amount", "rounds", "schedule", "said"),
    [
        (0.5, 0, "linear", "rounds must be an integer of at least 1, not 0"),
        (1.0, 2, "linear", r"amount must lie between 0 and 1, both excluded, not 1\.0"),
        (True, 2, "linear", "amount must lie between 0 and 1, both excluded, not True"),
        (0.5, 2, "square", "schedule must be 'exponential', 'linear', 'cubic' or a sequence, not 'square'"),
        (0.5, 2, [0.4, 0.3], r"schedule must rise to 0\.5 in 2 rounds, not \[0\.4, 0\.3\]"),
        (0.5, 2, [0.5], r"schedule must rise to 0\.5 in 2 rounds, not \[0\.5\]"),
        (0.5, 1, [0.4], r"schedule must rise to 0\.5 in 1 rounds, not \[0\.4\]"),
    ],
)
def test_bad_shares(amount: float, rounds: int, schedule: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        P.shares(amount, rounds, schedule)  # type: ignore[arg-type]


@pytest.mark.parametrize("schedule", ["exponential", "linear", "cubic", [0.05, 0.2, 0.25, 0.8]])
def test_counts_are_exact_in_every_round(schedule: object) -> None:
    model = network()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    wanted = P.shares(0.8, 4, schedule)  # type: ignore[arg-type]
    found = list(P.structured_rounds(model, X[:2], amount=0.8, rounds=4, schedule=schedule, score=P.L1()))  # type: ignore[arg-type]
    assert [one.number for one in found] == [1, 2, 3, 4]
    for one, share in zip(found, wanted, strict=True):
        assert one.share == share
        assert one.model[0].weight.shape[0] == 17 - round(share * 17)
        assert one.model[3].weight.shape[0] == 10 - round(share * 10)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_each_round_judges_the_retrained_model() -> None:
    seen = []

    def retrain(model: nn.Module, number: int) -> str:
        with torch.no_grad():
            model[0].weight[0] *= 1e-6  # the smallest of the next round
        seen.append((number, model[0].weight.shape[0]))
        return f"round {number}"

    found = list(P.structured_rounds(network(), X[:2], amount=0.5, rounds=3, score=P.L1(), retrain=retrain))
    assert seen == [(one.number, one.model[0].weight.shape[0]) for one in found]
    assert [one.retrained for one in found] == ["round 1", "round 2", "round 3"]
    assert [one.plan["0"].removed[0] for one in found[1:]] == [0, 0]


def test_never_the_last_unit_and_kept_layers_stay() -> None:
    last = list(P.structured_rounds(network(), X[:2], amount=0.99, rounds=2, score=P.L1(), keep=["3"]))[-1]
    assert last.model[0].weight.shape[0] == 1
    assert last.model[3].weight.shape[0] == 10


def test_a_step_too_small_for_a_unit_is_no_round() -> None:
    found = list(P.structured_rounds(network(), X[:2], amount=0.5, rounds=2, schedule=[0.01, 0.5], score=P.L1()))
    assert [one.number for one in found] == [2]


def test_data_and_compensation_reach_every_round() -> None:
    found = list(
        P.structured_rounds(
            network(), X[:2], amount=0.5, rounds=2, score=P.CKADamage(samples=32), data=X, compensate=P.LeastSquares()
        )
    )
    assert all(layer.repairs for one in found for layer in one.plan.layers)


def test_options_are_checked_before_the_first_round() -> None:
    with pytest.raises(ValueError, match="keep names 'layerX', which holds no layer of the model"):
        P.structured_rounds(network(), X[:2], score=P.L1(), keep=["layerX"])
    with pytest.raises(TypeError, match="keep must be a collection of names, not the string '3'"):
        P.structured_rounds(network(), X[:2], score=P.L1(), keep="3")
    with pytest.raises(ValueError, match="rounds must be"):
        P.structured_rounds(network(), X[:2], rounds=0)
