"""OBD's diagonal against finite differences, OBS's update against constrained least squares."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from simkit import pruning as P  # noqa: E402
from simkit.errors import MaskGrowth  # noqa: E402
from simkit.pruning.sparse.masks import score_all  # noqa: E402
from simkit.pruning.sparse.scores import curvature  # noqa: E402

pytestmark = pytest.mark.usefixtures("seeded_torch")

NAMES = ("0.weight", "2.weight")


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()


def batch(samples: int = 12) -> tuple[Tensor, Tensor]:
    return torch.randn(samples, 3, dtype=torch.float64), torch.arange(samples) % 3


def gradient(model: nn.Module, data: tuple[Tensor, Tensor], loss: Any = functional.cross_entropy) -> Tensor:
    weights = [model.get_parameter(name) for name in NAMES]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss(model(data[0]), data[1]), weights)])


def finite_hessian(model: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    """Central differences of the gradient."""
    rows = []
    for name in NAMES:
        weight = model.get_parameter(name)
        for place in itertools.product(*map(range, weight.shape)):
            ends = []
            for step in (1e-5, -2e-5, 1e-5):
                ends.append(gradient(model, data))
                with torch.no_grad():
                    weight[place] += step
            rows.append((ends[1] - ends[2]) / 2e-5)
    return torch.stack(rows)


def flat(values: dict[str, Tensor]) -> Tensor:
    return torch.cat([values[name].flatten() for name in NAMES])


def flat_weights(model: nn.Module) -> Tensor:
    return flat({name: model.get_parameter(name).detach() for name in NAMES})


def test_obd_equals_the_finite_difference_diagonal() -> None:
    model, data = network(), batch()
    expected = finite_hessian(model, data).diagonal() * flat_weights(model).square() / 2
    found = flat(score_all(model, P.OBD(diagonal="exact"), data=data))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    split = [(data[0][:5], data[1][:5]), (data[0][5:], data[1][5:])]
    torch.testing.assert_close(flat(score_all(model, P.OBD(diagonal="exact"), data=split)), found)


def test_obd_predicts_the_loss_of_removing_a_weight_at_a_minimum() -> None:
    model, data = network(), batch(30)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2000, tolerance_grad=1e-12, tolerance_change=1e-14)

    def penalised(outputs: Tensor, labels: Tensor) -> Tensor:
        decay = sum(p.square().sum() for p in model.parameters())
        return functional.cross_entropy(outputs, labels) + 0.02 * decay

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = penalised(model(data[0]), data[1])
        value.backward()
        return value

    optimizer.step(closure)
    assert float(gradient(model, data, penalised).abs().max()) < 1e-6
    weight = model[2].weight
    base = penalised(model(data[0]), data[1]).item()
    # The penalty is outside the network's copy, so its share of the Hessian, 0.04 on the diagonal, is added here.
    found = score_all(model, P.OBD(diagonal="exact"), data=data)["2.weight"] + 0.04 * weight.detach().square() / 2
    with torch.no_grad():
        for place in itertools.product(range(3), range(3)):
            held = weight[place].item()
            weight[place] *= 0.99  # near the minimum: the third order is small
            change = penalised(model(data[0]), data[1]).item() - base
            weight[place] = held
            assert change == pytest.approx(float(found[place]) * 1e-4, rel=0.05, abs=1e-10)


def test_gauss_newton_is_the_hessian_of_a_linear_network() -> None:
    model = nn.Sequential(nn.Linear(4, 3)).double()
    data = torch.randn(9, 4, dtype=torch.float64), torch.arange(9) % 3
    for loss, given in ((functional.cross_entropy, data), (functional.mse_loss, (data[0], torch.randn(9, 3).double()))):
        exact, approximate = (
            score_all(model, P.OBD(loss=loss, diagonal=kind), data=given)["0.weight"]
            for kind in ("exact", "gauss-newton")
        )
        torch.testing.assert_close(approximate, exact)


def test_gauss_newton_is_never_negative() -> None:
    model, data = network(), batch()
    assert flat(score_all(model, P.OBD(), data=data)).min() >= 0
    assert flat(score_all(model, P.OBD(diagonal="exact"), data=data)).min() < 0


def test_hutchinson_converges_to_the_exact_diagonal_and_repeats_by_seed() -> None:
    model, data = network(), batch()
    exact = flat(score_all(model, P.OBD(diagonal="exact"), data=data))
    errors = []
    for samples in (10, 640):
        found = flat(score_all(model, P.OBD(diagonal="hutchinson", samples=samples), data=data))
        errors.append(float((found - exact).norm() / exact.norm()))
    assert errors[1] < min(0.2, errors[0] / 3)
    first, again, other = (
        flat(score_all(model, P.OBD(diagonal="hutchinson", samples=3, seed=seed), data=data)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_matrices_and_diagonals_that_are_too_large_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = torch.randn(2, 60), torch.arange(2)
    with pytest.raises(ValueError, match=r"form='full' of 3600 weights is too large: at most 2048"):
        P.masks(nn.Linear(60, 60), score=P.OBS(form="full"), data=data)
    monkeypatch.setattr("simkit.pruning.sparse.scores.obd.LARGEST", 3000)
    with pytest.raises(ValueError, match=r"an exact Hessian of 3600 weights is too large: at most 3000"):
        P.masks(nn.Linear(60, 60), score=P.OBD(diagonal="exact"), data=data)
    assert curvature.LARGEST == 20_000


def constrained(values: Tensor, matrix: Tensor, gone: Tensor) -> Tensor:
    """The minimum of δᵀHδ under w_S + δ_S = 0, from its Lagrange conditions."""
    size, count = len(values), int(gone.sum())
    select = torch.eye(size, dtype=values.dtype)[gone]
    system = torch.zeros(size + count, size + count, dtype=values.dtype)
    system[:size, :size], system[:size, size:], system[size:, :size] = matrix, select.T, select
    right = torch.cat([torch.zeros(size, dtype=values.dtype), -values[gone]])
    return values + torch.linalg.solve(system, right)[:size]


def test_obs_removes_the_weight_of_least_increase_and_its_update_is_the_constrained_minimum() -> None:
    model, data = network(), batch(30)
    values = flat_weights(model)
    score = P.OBS(form="exact", damping=0.5)  # which makes the Hessian positive far from a minimum
    matrix = finite_hessian(model, data) + 0.5 * torch.eye(18).double()
    saliency = values.square() / (2 * torch.linalg.inv(matrix).diagonal())
    masks = P.masks(model, score=score, data=data, amount=1 / 18)
    gone = ~flat(masks)
    assert int(gone.nonzero()) == int(saliency.argmin())
    moved = flat_weights(P.updated(model, masks, score=score, data=data))
    torch.testing.assert_close(moved, constrained(values, matrix, gone), rtol=1e-5, atol=1e-8)
    assert moved[gone] == 0
    change = moved - values
    assert float(change @ matrix @ change / 2) == pytest.approx(float(saliency.min()), rel=1e-5)
    # The survey's misprint, +w_q/[H⁻¹]_qq, would double the weight.
    column = torch.linalg.inv(matrix)[:, gone].flatten()
    torch.testing.assert_close(change, -values[gone] / column[gone] * column, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("amount", [0.2, 0.5, 0.8])
def test_obs_for_many_weights_is_constrained_least_squares(amount: float) -> None:
    model, data = network(), batch(30)
    values = flat_weights(model)
    score = P.OBS(form="full", damping=1e-3)
    rows, factors = zip(
        *curvature.gauss_newton_rows(
            model, [model.get_parameter(n) for n in NAMES], functional.cross_entropy, [(*data, 30)]
        ),
        strict=True,
    )
    matrix = sum(f * torch.outer(r, r) for r, f in zip(rows, factors, strict=True)) + 1e-3 * torch.eye(18).double()
    masks = P.masks(model, score=score, data=data, amount=amount)
    moved = flat_weights(P.updated(model, masks, score=score, data=data))
    torch.testing.assert_close(moved, constrained(values, matrix, ~flat(masks)), rtol=1e-7, atol=1e-9)
    # One at a time, each with its own update, comes to the same weights and makes the same choices.
    current, inverse, left = values.clone(), torch.linalg.inv(matrix), list(range(18))
    for _ in range(round(amount * 18)):
        chosen = min(left, key=lambda q: float(current[q] ** 2 / (2 * inverse[q, q])))
        left.remove(chosen)
        column = inverse[:, chosen].clone()
        current = current - current[chosen] / column[chosen] * column
        inverse = inverse - torch.outer(column, column) / column[chosen]
        current[chosen], inverse[chosen, chosen] = 0.0, 1.0
    assert sorted(left) == flat(masks).nonzero().flatten().tolist()
    torch.testing.assert_close(moved, current, rtol=1e-7, atol=1e-9)


def test_the_matrix_is_hassibis_recursion_for_squared_errors() -> None:
    """H⁻¹ by one rank-one update for each sample, from α⁻¹I, with X the gradient of the only output."""
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    inputs, targets = torch.randn(20, 3, dtype=torch.float64), torch.randn(20, 1, dtype=torch.float64)
    weights = [model.get_parameter(name) for name in NAMES]

    def half(outputs: Tensor, wanted: Tensor) -> Tensor:
        return 0.5 * functional.mse_loss(outputs, wanted)

    inverse = torch.eye(8, dtype=torch.float64) / 1e-4
    for sample in inputs:
        x = torch.cat([g.flatten() for g in torch.autograd.grad(model(sample[None]).sum(), weights)])
        pulled = inverse @ x
        inverse = inverse - torch.outer(pulled, pulled) / (20 + x @ pulled)
    values = flat_weights(model)
    saliency = values.square() / (2 * inverse.diagonal())
    score = P.OBS(loss=half, form="full", damping=1e-4)
    masks = P.masks(model, score=score, data=(inputs, targets), amount=1 / 8)
    assert int((~flat(masks)).nonzero()) == int(saliency.argmin())
    moved = flat_weights(P.updated(model, masks, score=score, data=(inputs, targets)))
    torch.testing.assert_close(
        moved, constrained(values, torch.linalg.inv(inverse), ~flat(masks)), rtol=1e-5, atol=1e-6
    )


def test_layerwise_obs_is_least_squares_on_the_layers_outputs() -> None:
    """The kept weights of each unit are the ridge regression of what the unit computed before."""
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    inputs = torch.randn(50, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    data = [(inputs[:20], torch.zeros(20)), (inputs[20:], torch.zeros(30))]
    score = P.OBS(damping=1e-8)
    masks = P.masks(model, score=score, data=data, amount=0.5, scope="layer")
    moved = P.updated(model, masks, score=score, data=data)
    for name, layer_inputs in (("0", inputs), ("2", torch.relu(model[0](inputs)).detach())):
        weight, kept = model.get_submodule(name).weight.detach(), masks[f"{name}.weight"]
        for unit in range(len(weight)):
            wanted = layer_inputs @ weight[unit]
            found = np.linalg.lstsq(layer_inputs[:, kept[unit]].numpy(), wanted.numpy(), rcond=None)[0]
            np.testing.assert_allclose(
                moved.get_submodule(name).weight.detach()[unit][kept[unit]], found, rtol=1e-4, atol=1e-6
            )
        assert (moved.get_submodule(name).weight[~kept] == 0).all()
        products = layer_inputs.T @ layer_inputs / 50 + 1e-8 * torch.eye(layer_inputs.shape[1]).double()
        saliency = weight.square() / (2 * torch.linalg.inv(products).diagonal())
        assert torch.equal(~kept, saliency <= saliency.flatten().sort().values[weight.numel() // 2 - 1])


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.Conv2d(4, 6, (2, 3), groups=2, padding=(1, 0), dilation=(1, 2)),
        nn.Conv2d(4, 6, 3, padding="same", dilation=2),
        nn.Conv1d(4, 6, 3, padding=1),
        nn.Linear(7, 5),
    ],
    ids=repr,
)
def test_layer_inputs_give_the_layers_squared_outputs(layer: nn.Module) -> None:
    """w (X Xᵀ / n) wᵀ is the mean square of what a unit computes, whatever the layer's kind."""
    from simkit.pruning.sparse.network import Network
    from simkit.pruning.sparse.scores.layer_inputs import input_products

    model = nn.Sequential(layer).double()
    shape = (4, 6, 7) if isinstance(layer, nn.Conv2d) else (4, 7)
    inputs = torch.randn(5, *shape, dtype=torch.float64)
    weight = layer.weight.detach()
    network = Network(model, ("0.weight",), {}, (inputs, torch.zeros(5)), None)
    blocks = input_products(network, "OBS()")["0.weight"]
    with torch.no_grad():
        layer.bias.zero_()
        outputs = layer(inputs)
    units = outputs.movedim(-1 if isinstance(layer, nn.Linear) else 1, 0).flatten(1)
    rows = torch.chunk(weight.flatten(1), len(blocks))
    found = torch.cat([(row @ block * row).sum(dim=1) for row, block in zip(rows, blocks, strict=True)])
    torch.testing.assert_close(found, units.square().mean(dim=1))


def test_obs_goes_on_from_a_mask() -> None:
    model = nn.Sequential(nn.Linear(6, 4)).double()
    data = (torch.randn(40, 6, dtype=torch.float64), torch.zeros(40))
    score = P.OBS()
    first = P.masks(model, score=score, data=data, amount=0.25)
    half = P.updated(model, first, score=score, data=data)
    second = P.masks(half, score=score, data=data, amount=0.5, previous=first)
    moved = P.updated(half, second, score=score, data=data, previous=first)
    at_once = P.updated(model, second, score=score, data=data)
    torch.testing.assert_close(moved[0].weight, at_once[0].weight, rtol=1e-8, atol=1e-10)
    with pytest.raises(MaskGrowth, match="weights that were gone before"):
        P.updated(half, first, score=score, data=data, previous=second)


def test_the_update_lowers_the_layers_error() -> None:
    model = nn.Sequential(nn.Linear(20, 15), nn.ReLU(), nn.Linear(15, 3))
    inputs = torch.randn(100, 5) @ torch.randn(5, 20)
    masks = P.masks(model, score=P.OBS(), data=(inputs, torch.zeros(100)), amount=0.6, keep=["2"])
    moved = P.updated(model, masks, score=P.OBS(), data=(inputs, torch.zeros(100)))
    plain = nn.Linear(20, 15)
    with torch.no_grad():
        plain.weight.copy_(model[0].weight * masks["0.weight"])
        plain.bias.copy_(model[0].bias)
        errors = [float((layer(inputs) - model[0](inputs)).square().mean()) for layer in (moved[0], plain)]
    assert errors[0] < 0.2 * errors[1]


def test_rounds_take_the_update_where_weights_go_on() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    data = (torch.randn(40, 6), torch.zeros(40))
    starts: list[Tensor] = []

    def train(own: nn.Module) -> None:
        starts.append(own[0].weight.detach().clone())

    for retrain, updates in ((P.FineTune(), True), (P.RewindWeights(0), False)):
        starts.clear()
        (one,) = P.rounds(model, train=train, score=P.OBS(), amount=0.5, data=data, retrain=retrain)
        moved = P.updated(model, one.masks, score=P.OBS(), data=data)[0].weight
        plain = model[0].weight * one.masks["0.weight"]
        assert torch.equal(starts[1], moved if updates else plain)


def test_mistakes_get_one_sentence() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(2, 2, 3), nn.Flatten(), nn.Linear(50, 2))
    data = (torch.randn(4, 2, 3, 3), torch.arange(4) % 2)
    with pytest.raises(NotImplementedError, match=r"the inputs of '0\.weight' of a ConvTranspose2d are unknown"):
        P.masks(model, score=P.OBS(), data=data)
    assert list(P.masks(model, score=P.OBS(), data=data, keep=["0"])) == ["2.weight"]
    with pytest.raises(TypeError, match=r"score must be a criterion that updates weights, such as OBS\(\), not Magn"):
        P.updated(model, {}, score=P.Magnitude())
    small = network()
    with pytest.raises(ValueError, match=r"OBS needs a positive matrix, but pivot \d+ of 18 is not: raise damping="):
        P.masks(small, score=P.OBS(form="exact", damping=1e-8), data=batch())
