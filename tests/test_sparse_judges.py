"""What criteria are judged by: the oracle, the agreement of ranks, and controls."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from scored_networks import batch, convnet, entries, mean_loss, mlp  # noqa: E402
from torch import nn  # noqa: E402

from simkit import pruning as P  # noqa: E402
from simkit.errors import ControlEqualsCriterion  # noqa: E402
from simkit.pruning.sparse.masks import score_all  # noqa: E402

pytestmark = pytest.mark.usefixtures("seeded_torch")


def test_the_oracle_removes_each_unit_and_each_weight() -> None:
    model = convnet().eval()
    data = batch(model)
    found = score_all(model, P.Oracle(absolute=False), data=data)
    single = score_all(model, P.Oracle(absolute=False, units=False), data=data)
    base = mean_loss(model, data)
    for name in ("0.weight", "4.weight"):
        layer = model.get_submodule(name[0])
        for unit in range(3):
            held = layer.weight[unit].clone(), layer.bias[unit].clone()
            with torch.no_grad():
                layer.weight[unit], layer.bias[unit] = 0.0, 0.0
                assert float(found[name][unit]) == pytest.approx(mean_loss(model, data) - base, abs=1e-12)
                layer.weight[unit], layer.bias[unit] = held
        for place in list(entries(layer.weight))[::5]:
            with torch.no_grad():
                kept = layer.weight[place].item()
                layer.weight[place] = 0.0
                assert float(single[name][place]) == pytest.approx(mean_loss(model, data) - base, abs=1e-12)
                layer.weight[place] = kept


def test_agreement_is_spearmans() -> None:
    from scipy import stats

    model = mlp()
    data = batch(model, 30)
    assert P.agreement(model, P.Oracle(), data=data).overall == pytest.approx(1.0)
    found = P.agreement(model, P.SNIP(), P.Magnitude(), data=data)
    first, second = score_all(model, P.SNIP(), data=data), score_all(model, P.Magnitude())
    for name, rho in found.layers.items():
        assert rho == pytest.approx(stats.spearmanr(first[name].flatten(), second[name].flatten()).statistic)
    with pytest.raises(ValueError, match=r"SNIP\(iterations=1\) and Oracle\(.*\) score '0\.weight' in shapes"):
        P.agreement(model, P.SNIP(), data=data)
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    assert np.isnan(P.agreement(model, P.Magnitude(), P.Magnitude()).layers["0.weight"])


def test_a_control_has_the_criterions_densities_and_other_weights() -> None:
    model = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 5))
    first = P.masks(model, amount=0.5)
    previous = None
    for amount in (0.5, 0.8):
        masks = P.masks(model, amount=amount, previous=first if amount == 0.8 else None)
        control = P.masks(model, score=P.Shuffled(seed=1), amount=amount, previous=previous)
        if previous is None:
            assert all(int(control[name].sum()) == int(masks[name].sum()) for name in masks)
        assert any(not torch.equal(control[name], masks[name]) for name in masks)
        previous = control
    other = P.masks(model, score=P.Shuffled(seed=2), amount=0.5)
    assert any(not torch.equal(P.masks(model, score=P.Shuffled(seed=1), amount=0.5)[n], other[n]) for n in other)


def test_a_control_that_equals_the_criterion_is_an_error() -> None:
    model = nn.Linear(1, 2)
    (kept,) = P.masks(model, amount=0.5)["weight"].nonzero()[:1, 0]
    drawn = {seed: control_of_two(seed) for seed in range(8)}
    assert set(drawn.values()) == {0, 1}
    for seed, place in drawn.items():
        if place == int(kept):
            with pytest.raises(ControlEqualsCriterion, match="keeps the same 1 weights as the criterion: it controls"):
                P.masks(model, score=P.Shuffled(seed=seed), amount=0.5)
        else:
            assert int(P.masks(model, score=P.Shuffled(seed=seed), amount=0.5)["weight"].flatten().nonzero()) == place


def control_of_two(seed: int) -> int:
    """Which of two weights a control keeps, by asking it for the control of either."""
    full = {"weight": torch.ones(2, 1) > 0}
    for place in range(2):
        masks = {"weight": (torch.arange(2) == place)[:, None]}
        try:
            return int(P.Shuffled(seed=seed).revise(masks, full)["weight"].flatten().nonzero())
        except ControlEqualsCriterion:
            continue
    raise AssertionError("a control of one weight equals both masks of one")
