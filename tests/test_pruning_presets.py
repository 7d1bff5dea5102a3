"""The presets plan, and seed001 computes what weights set to zero compute."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from simkit import pruning as P


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)).double()


X = torch.randn(200, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.filterwarnings("ignore::simkit.DegenerateWarning")  # complete graphs are what seed002 has
@pytest.mark.parametrize("name", sorted(P.PRESETS))
def test_presets_plan_and_say_how_they_differ(name: str) -> None:
    preset = P.PRESETS[name]
    model = mlp()
    plan = P.plan(model, X[:2], data=X, amount=0.25, **preset.options)
    assert sum(len(layer.removed) for layer in plan.layers) == 7
    assert P.apply(model, plan, X[:2])(X).shape == (200, 3)
    assert len(preset.differs) > 40


def test_seed001_equals_weights_set_to_zero() -> None:
    model = mlp()
    plan = P.plan(model, X[:2], data=X, amount=0.5, **P.PRESETS["seed001"].options)
    zeroed = copy.deepcopy(model)
    with torch.no_grad():
        for layer in plan.layers:
            zeroed.get_submodule(layer.name).weight[list(layer.removed)] = 0.0
    torch.testing.assert_close(P.apply(model, plan, X[:2])(X), zeroed(X), rtol=1e-12, atol=1e-12)
    plain = P.plan(model, X[:2], data=X, amount=0.5, score=P.PRESETS["seed001"].score)
    assert not torch.allclose(P.apply(model, plain, X[:2])(X), zeroed(X))


def test_seed001_scores_by_one_cka_each() -> None:
    import simkit as sk

    model = mlp()
    plan = P.plan(model, X[:2], data=X, amount={"0": 0.5}, **P.PRESETS["seed001"].options)
    values = model[0](X).detach().numpy()
    scores = [sk.cka(values, _without(values, unit), estimator="biased") for unit in range(16)]
    first = sorted(range(16), key=lambda unit: -scores[unit])
    assert list(plan["0"].removed) == first[:8]


def _without(values, unit):  # type: ignore[no-untyped-def]
    changed = values.copy()
    changed[:, unit] = 0.0
    return changed


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.Sequential(nn.Linear(10, 8, bias=False), nn.ReLU(), nn.Linear(8, 2)), "the layer has no biases"),
        (
            lambda: nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 2, bias=False)),
            "2 has no bias to hold the constants",
        ),
        (lambda: nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 2)), "tanh on the way to 2"),
        (
            lambda: nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).eval(),
            "1 follows the layer",
        ),
    ],
)
def test_live_biases_that_cannot_be_kept_are_named(make, reason: str) -> None:  # type: ignore[no-untyped-def]
    model = make().double()
    plan = P.plan(model, X[:2], score=P.L1(), amount=0.5, compensate=P.LiveBias())
    assert reason in plan.layers[0].compensation
