"""Every criterion against its definition, written out or by finite differences, on networks of a few weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from simkit import pruning as P  # noqa: E402
from simkit.errors import ControlEqualsCriterion, LayerCollapseWarning  # noqa: E402
from simkit.pruning.sparse.masks import score_all  # noqa: E402

pytestmark = pytest.mark.usefixtures("seeded_torch")

Batches = list[tuple[Tensor, Tensor]]


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()


def convnet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(12, 3)
    ).double()


def batch(model: nn.Module, samples: int = 10) -> tuple[Tensor, Tensor]:
    shape = (2, 4, 4) if isinstance(model[0], nn.Conv2d) else (4,)
    return torch.randn(samples, *shape, dtype=torch.float64), torch.arange(samples) % 3


def mean_loss(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    with torch.no_grad():
        return float(functional.cross_entropy(model(data[0]), data[1]))


def entries(weight: Tensor) -> Iterator[tuple[int, ...]]:
    return itertools.product(*map(range, weight.shape))


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
            values = []
            start = weight[place].item()
            for sign in (1, -1):
                with torch.no_grad():
                    weight[place] = start * (1 + sign * 1e-4)
                values.append(half_norm())
                with torch.no_grad():
                    weight[place] = start
            assert float(found[name][place]) == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-4, abs=1e-10)


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


@pytest.mark.parametrize("score", [P.SNIP(), P.GraSP(), P.Taylor(), P.Fisher(), P.OBD(), P.OBS(), P.Oracle()], ids=repr)
def test_missing_and_odd_data_get_one_sentence(score: Any) -> None:
    model = mlp()
    name = type(score).__name__
    inputs, labels = batch(model)
    with pytest.raises(ValueError, match=rf"{name}\(\) needs data=: \(inputs, targets\) tensors, or batches of them"):
        P.masks(model, score=score)
    with pytest.raises(TypeError, match=rf"{name}\(\) needs data= of \(inputs, targets\), not Tensor"):
        P.masks(model, score=score, data=inputs)
    with pytest.raises(ValueError, match=rf"{name}\(\) needs samples, but data= has none"):
        P.masks(model, score=score, data=[])
    with pytest.raises(ValueError, match="data has 10 inputs and 9 targets"):
        P.masks(model, score=score, data=(inputs, labels[:9]))
    with pytest.raises(TypeError, match=r"data must yield \(inputs, targets\) tensors, not Tensor"):
        P.masks(model, score=score, data=[inputs])


@pytest.mark.parametrize("score", [P.SNIP(), P.GraSP(), P.Taylor(), P.Fisher(), P.OBD(), P.Oracle()], ids=repr)
def test_a_loss_that_is_no_finite_mean_gets_one_sentence(score: Any) -> None:
    model = mlp()
    inputs, labels = batch(model)
    kind = type(score)
    with pytest.raises(ValueError, match=r"loss must be a mean over the samples, not of shape \(\d+,\)"):
        P.masks(
            model, score=kind(loss=lambda o, t: functional.cross_entropy(o, t, reduction="none")), data=(inputs, labels)
        )
    with pytest.raises(ValueError, match="the loss is nan"):
        P.masks(model, score=kind(loss=lambda o, t: o.mean() * float("nan")), data=(inputs, labels))


def test_options_get_one_sentence() -> None:
    bad: list[tuple[Callable[[], object], str]] = [
        (lambda: P.SNIP(iterations=0), "iterations must be an integer of at least 1, not 0"),
        (lambda: P.SynFlow(iterations=1.5), r"iterations must be an integer of at least 1, not 1\.5"),
        (lambda: P.GraSP(temperature=0), "temperature must be a positive number, not 0"),
        (lambda: P.Taylor(cost=-1), "cost must be a number of at least 0, not -1"),
        (lambda: P.Fisher(cost=float("nan")), "cost must be a number of at least 0, not nan"),
        (lambda: P.OBD(diagonal="full"), "diagonal must be one of gauss-newton, exact, hutchinson, not 'full'"),
        (lambda: P.OBD(samples=0), "samples must be an integer of at least 1, not 0"),
        (lambda: P.OBS(form="block"), "form must be one of layer, full, exact, not 'block'"),
        (lambda: P.OBS(damping=0), "damping must be a positive number, not 0"),
        (lambda: P.Zhou("big"), "criterion must be one of large_final, .*, not 'big'"),
        (lambda: P.Zhou(scale=-1), "scale must be a positive number, not -1"),
        (lambda: P.masks(mlp(), score=P.Zhou()), "the other value of '0.weight' is needed"),
        (lambda: P.masks(mlp(), score=P.SynFlow()), "SynFlow needs shape=, the shape of one input, or data="),
        (
            lambda: P.masks(mlp(), score=P.SynFlow(), data=torch.ones(2, 4).long()),
            "SynFlow needs inputs of real numbers",
        ),
        (lambda: P.Shuffled(seed=-1), "seed must be an integer of at least 0, not -1"),
        (lambda: P.supermask(mlp(), {}, kept="x"), "kept must be one of init, constant, not 'x'"),
        (lambda: P.supermask(mlp(), {}, pruned="x"), "pruned must be one of zero, init, toward-zero, not 'x'"),
    ]
    for call, text in bad:
        with pytest.raises(ValueError, match=text):
            call()
    with pytest.raises(NotImplementedError, match=r"UnitMagnitude\(\) scores units; Shuffled exchanges single weights"):
        P.Shuffled(P.UnitMagnitude())


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
