"""Every criterion against its definition, written out or by finite differences, on networks of a few weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from scored_networks import batch, convnet, entries, mean_loss, mlp, slope_of_scaling  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from simkit import pruning as P  # noqa: E402
from simkit.errors import LayerCollapseWarning  # noqa: E402
from simkit.pruning.sparse.masks import score_all  # noqa: E402

pytestmark = pytest.mark.usefixtures("seeded_torch")

Batches = list[tuple[Tensor, Tensor]]


def slope(model: nn.Module, weight: Tensor, place: tuple[int, ...], data: tuple[Tensor, Tensor], by: float) -> float:
    """The central difference of the loss by one weight."""
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[place] += sign * by
            values.append(mean_loss(model, data))
            weight[place] -= sign * by
    return (values[0] - values[1]) / (2 * by)


WEIGHTS = ("0.weight", "2.weight")


@pytest.mark.parametrize("score", [P.SNIP(), P.GradientMagnitude()])
def test_sensitivity_is_the_finite_difference_slope_times_the_weight(score: Any) -> None:
    model = mlp()
    data = batch(model)
    found = score_all(model, score, data=data)
    expected = {
        name: torch.tensor(
            [abs(slope(model, w, p, data, 1e-5) * w[p].item()) for p in entries(w)], dtype=torch.float64
        ).reshape(w.shape)
        for name in WEIGHTS
        for w in [model.get_parameter(name)]
    }
    total = sum(float(values.sum()) for values in expected.values())
    for name in WEIGHTS:
        torch.testing.assert_close(found[name], expected[name] / total, rtol=1e-6, atol=1e-10)
    assert sum(float(values.sum()) for values in found.values()) == pytest.approx(1.0)


def test_snip_takes_one_batch_and_gradient_magnitude_all() -> None:
    model = mlp()
    inputs, labels = batch(model, 12)
    split = [(inputs[:5], labels[:5]), (inputs[5:], labels[5:])]
    torch.testing.assert_close(
        score_all(model, P.SNIP(), data=split), score_all(model, P.SNIP(), data=(inputs[:5], labels[:5]))
    )
    whole = score_all(model, P.GradientMagnitude(), data=(inputs, labels))
    torch.testing.assert_close(score_all(model, P.GradientMagnitude(), data=split), whole)


def test_unit_magnitude_is_the_sum_of_incoming_weights_and_takes_the_bias() -> None:
    model = convnet()
    found = score_all(model, P.UnitMagnitude())
    for name, values in found.items():
        torch.testing.assert_close(values, model.get_parameter(name).abs().flatten(1).sum(dim=1))
    masks = P.masks(model, score=P.UnitMagnitude(), amount=1 / 3, keep=["4"])
    gone = int(found["0.weight"].argmin())
    assert list(masks) == ["0.weight", "0.bias"]
    assert [int((~masks[name]).sum()) for name in masks] == [18, 1]
    assert not masks["0.weight"][gone].any()
    assert not masks["0.bias"][gone]
    again = P.masks(model, score=P.UnitMagnitude(), amount=2 / 3, keep=["4"], previous=masks)
    assert int((~again["0.bias"]).sum()) == 2
    bridged = P.masks(model, score=P.L1(), amount=1 / 3, keep=["4"])
    assert all(torch.equal(bridged[name], masks[name]) for name in masks)
    below = P.masks(model, score=P.UnitMagnitude(), amount=P.Threshold(float(found["0.weight"].median())), keep=["4"])
    assert int((~below["0.bias"]).sum()) == 1


def test_transposed_convolutions_have_their_units_second() -> None:
    model = nn.ConvTranspose2d(3, 5, 2)
    values = score_all(model, P.UnitMagnitude())["weight"]
    torch.testing.assert_close(values, model.weight.detach().double().abs().sum(dim=(0, 2, 3)))
    masks = P.masks(model, score=P.UnitMagnitude(), amount=0.4)
    assert int((~masks["weight"].any(dim=3).any(dim=2).any(dim=0)).sum()) == int((~masks["bias"]).sum()) == 2


def test_zhou_criteria_are_their_formulas() -> None:
    model = mlp()
    first = {name: torch.randn_like(model.get_parameter(name)) for name in WEIGHTS}
    formulas: dict[str, Callable[[Any, Any], Any]] = {
        "large_final": lambda i, f: abs(f),
        "small_final": lambda i, f: -abs(f),
        "large_init": lambda i, f: abs(i),
        "small_init": lambda i, f: -abs(i),
        "large_init_large_final": lambda i, f: min(2 * abs(f), abs(i)),
        "small_init_small_final": lambda i, f: -max(2 * abs(f), abs(i)),
        "magnitude_increase": lambda i, f: abs(f) - 2 * abs(i),
        "movement": lambda i, f: abs(f - i),
        "large_final_same_sign": lambda i, f: abs(f) if i * f > 0 else 0.0,
        "large_final_diff_sign": lambda i, f: abs(f) if i * f < 0 else 0.0,
    }
    for criterion, formula in formulas.items():
        found = score_all(model, P.Zhou(criterion, scale=2.0), initial=first)
        for name in WEIGHTS:
            last = model.get_parameter(name)
            expected = [formula(float(first[name][p]), last[p].item()) for p in entries(last)]
            np.testing.assert_allclose(found[name].flatten().numpy(), expected, rtol=1e-12, err_msg=criterion)


def test_supermask_actions() -> None:
    model = mlp()
    masks = P.masks(model, amount=0.5)
    final = {name: torch.randn_like(model.get_parameter(name)) for name in WEIGHTS}
    for name in WEIGHTS:
        start, mask = model.get_parameter(name).detach(), masks[name]
        constant = P.supermask(model, masks).get_parameter(name)
        torch.testing.assert_close(constant, start.sign() * start.std(correction=0) * mask)
        assert torch.equal(P.supermask(model, masks, kept="init").get_parameter(name), start * mask)
        assert torch.equal(P.supermask(model, masks, kept="init", pruned="init").get_parameter(name), start)
        partly = P.supermask(model, masks, kept="init", pruned="toward-zero", final=final).get_parameter(name)
        assert torch.equal(partly, torch.where(~mask & (final[name].abs() < start.abs()), 0.0, start))


def relu_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 2), nn.ReLU(), nn.Flatten(),
        nn.Linear(20, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3),
    )  # fmt: skip


def test_synaptic_flow_is_conserved() -> None:
    """Through every hidden unit, and so through every layer."""
    model = relu_net()
    with torch.no_grad():
        model[1].running_mean.normal_()
        model[1].running_var.uniform_(0.5, 2.0)
        model[1].bias.normal_()
    flows = score_all(model, P.SynFlow(shape=(1, 8, 8)))
    into, out = flows["4.weight"].sum(dim=(1, 2, 3)), flows["7.weight"].sum(dim=0).reshape(5, 4).sum(dim=1)
    torch.testing.assert_close(into, out, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(
        flows["0.weight"].sum(dim=(1, 2, 3)), flows["4.weight"].sum(dim=(0, 2, 3)), rtol=1e-12, atol=0.0
    )
    torch.testing.assert_close(flows["7.weight"].sum(dim=1), flows["10.weight"].sum(dim=0), rtol=1e-12, atol=0.0)
    totals = [float(flow.sum()) for flow in flows.values()]
    np.testing.assert_allclose(totals, totals[0], rtol=1e-12)


def test_synaptic_flow_of_a_linear_network_is_the_product_over_paths() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    first, second = (model[k].weight.detach().double().abs() for k in (0, 2))
    flows = score_all(model, P.SynFlow(shape=(2,)))
    for unit, source in itertools.product(range(2), range(2)):
        assert float(flows["0.weight"][unit, source]) == pytest.approx(float(first[unit, source] * second[0, unit]))
    for unit in range(2):
        assert float(flows["2.weight"][0, unit]) == pytest.approx(float(first[unit].sum() * second[0, unit]))


def test_synaptic_flow_survives_what_float32_does_not() -> None:
    model = nn.Sequential(*(layer for _ in range(40) for layer in (nn.Linear(64, 64), nn.ReLU())))
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight.mul_(20.0)
    flows = score_all(model, P.SynFlow(shape=(64,)))
    totals = [float(flow.sum()) for flow in flows.values()]
    assert totals[0] > 1e38
    np.testing.assert_allclose(totals, totals[0], rtol=1e-9)
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight.mul_(1e8)
    with pytest.raises(ValueError, match="the synaptic flow through the network is inf, beyond float64"):
        score_all(model, P.SynFlow(shape=(64,)))


def test_synflow_prunes_in_steps_and_does_not_collapse_where_magnitude_does() -> None:
    model = nn.Sequential(nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 2))
    with torch.no_grad():
        model[2].weight.mul_(1e-3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    masks = P.masks(model, score=P.SynFlow(shape=(30,)), amount=0.98)
    assert sum(int(mask.sum()) for mask in masks.values()) == 1860 - round(0.98 * 1860)
    assert all(mask.any() for mask in masks.values())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.warns(LayerCollapseWarning, match="layer collapse: no weight is left of .2.weight. .900."):
        P.masks(model, amount=0.98)


def test_grasp_is_the_change_of_the_gradients_norm() -> None:
    """θ_q (Hg)_q is the slope of ½|g|² as weight q is scaled."""
    model = mlp()
    data = batch(model)
    weights = [model.get_parameter(name) for name in WEIGHTS]

    def half_norm() -> float:
        value = functional.cross_entropy(model(data[0]) / 2.0, data[1])
        return 0.5 * sum(float(g.square().sum()) for g in torch.autograd.grad(value, weights))

    found = score_all(model, P.GraSP(temperature=2.0), data=data)
    for name, weight in zip(WEIGHTS, weights, strict=True):
        for place in entries(weight):
            slope = slope_of_scaling(half_norm, weight, place)
            assert float(found[name][place]) == pytest.approx(slope, rel=1e-4, abs=1e-10)


def test_grasp_does_not_depend_on_the_batches() -> None:
    model = mlp()
    inputs, labels = batch(model, 12)
    split = [(inputs[:5], labels[:5]), (inputs[5:], labels[5:])]
    torch.testing.assert_close(
        score_all(model, P.GraSP(), data=split), score_all(model, P.GraSP(), data=(inputs, labels))
    )


def unit_terms(model: nn.Module, layer: int, data: tuple[Tensor, Tensor]) -> Tensor:
    """Σ_positions a ∂L_n/∂a of each sample n and unit, one sample at a time."""
    found = []
    for inputs, label in zip(*data, strict=True):
        kept: list[Tensor] = []
        handle = model[layer].register_forward_hook(lambda m, a, out, kept=kept: kept.append(out) or out.clone())
        value = functional.cross_entropy(model(inputs[None]), label[None])
        handle.remove()
        (gradient,) = torch.autograd.grad(value, kept[0])
        found.append((kept[0] * gradient).detach().reshape(kept[0].shape[1], -1))
    return torch.stack(found)


@pytest.mark.parametrize("make", [mlp, convnet])
def test_taylor_and_fisher_are_their_definitions(make: Callable[[], nn.Sequential]) -> None:
    model = make()
    last = len(model) - 1
    data = batch(model)
    model.eval()
    terms = {f"{layer}.weight": unit_terms(model, layer, data) for layer in (0, last)}
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    split = [(data[0][:3], data[1][:3]), (data[0][3:], data[1][3:])]
    for given in (data, split):
        taylor = score_all(model, P.Taylor(), data=given)
        fisher = score_all(model, P.Fisher(), data=given)
        for name, values in terms.items():
            plain = values.mean(dim=2).abs().mean(dim=0)
            torch.testing.assert_close(taylor[name], plain / plain.norm())
            torch.testing.assert_close(fisher[name], 0.5 * values.sum(dim=2).square().mean(dim=0))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_taylor_approximates_the_loss_of_a_linear_layer_exactly() -> None:
    """Where the loss is linear in a unit, removing it changes the loss by what Taylor says."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1)).double()
    inputs = torch.randn(1, 4, dtype=torch.float64)
    score = {"loss": lambda out, target: (out * target).mean()}
    data = (inputs, torch.ones(1, 1, dtype=torch.float64))
    taylor = score_all(model, P.Taylor(**score), data=data, keep=["1"])["0.weight"]
    oracle = score_all(model, P.Oracle(**score), data=data, keep=["1"])["0.weight"]
    torch.testing.assert_close(taylor, oracle / oracle.norm())


def test_cost_counts_multiply_adds() -> None:
    model = convnet()
    data = batch(model)
    for kind in (P.Taylor, P.Fisher):
        plain, costly = (score_all(model, kind(cost=cost), data=data) for cost in (0.0, 1e3))
        torch.testing.assert_close(plain["0.weight"] - costly["0.weight"], torch.full((3,), 18 * 4e-3).double())
        torch.testing.assert_close(plain["4.weight"] - costly["4.weight"], torch.full((3,), 12e-3).double())


def test_a_frozen_model_is_scored_all_the_same() -> None:
    model = convnet()
    data = batch(model)
    for score in (P.SNIP(), P.Taylor(), P.Fisher(), P.GraSP(), P.OBD()):
        expected = score_all(model, score, data=data)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        with torch.no_grad():
            found = score_all(model, score, data=data)
        assert not any(parameter.requires_grad for parameter in model.parameters())
        torch.testing.assert_close(found, expected)
        for parameter in model.parameters():
            parameter.requires_grad_(True)


def test_taylor_ranks_channel_groups_of_a_plan() -> None:
    """Coupled layers add up; the ranks are those of the products at the layers that compute the units."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.a(x))
            x = torch.relu(x + self.b(x))
            return self.c(x.mean(dim=(2, 3)))

    model = Residual()
    data = torch.randn(12, 2, 5, 5), torch.arange(12) % 3
    plan = P.plan(model, data[0][:2], data=data, score=P.Taylor(), amount=0.5)
    (layer,) = plan.layers
    double = Residual().double()
    double.load_state_dict(model.state_dict())
    kept: list[Tensor] = []
    for part in (double.a, double.b):
        part.register_forward_hook(lambda module, inputs, output: kept.append(output) or output.clone())
    sums = torch.zeros(12, 6).double()
    for sample in range(12):
        kept.clear()
        value = functional.cross_entropy(double(data[0][sample : sample + 1].double()), data[1][sample : sample + 1])
        for output, gradient in zip(kept, torch.autograd.grad(value, kept), strict=True):
            sums[sample] += (output * gradient).detach().mean(dim=(0, 2, 3))
    expected = sums.abs().mean(dim=0).argsort()[:3].tolist()
    assert list(layer.removed) == expected
    small = P.apply(model, plan, data[0][:2])
    assert small.a.out_channels == 3
    with pytest.raises(ValueError, match=r"Taylor\(\) needs data="):
        P.plan(model, data[0][:2], score=P.Taylor())
