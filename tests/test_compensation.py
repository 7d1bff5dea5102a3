"""Merging and least squares in whole models: duplicates merge exactly, errors shrink, refusals are named."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from merging_networks import FLAT, MAP, flattened, leaky, linear, normed, normed_conv, plain_conv, residual
from torch import Tensor, nn

from simkit import pruning as P
from simkit.pruning.decisions import PruningPlan

PATHS: list[tuple[Callable[[], nn.Module], tuple[int, ...], str, str | None]] = [
    (linear, FLAT, "0", None),
    (leaky, FLAT, "0", None),
    (plain_conv, MAP, "0", None),
    (normed_conv, MAP, "0", "1"),
    (flattened, MAP, "0", "1"),
    (residual, MAP, "1.conv1", "1.bn1"),
]


def duplicate(model: nn.Module, layer: str, norm: str | None, *, of: int, at: int, scale: float) -> None:
    """Make unit ``at`` of the layer ``scale`` times unit ``of`` once it has passed its BatchNorm."""
    conv = model.get_submodule(layer)
    with torch.no_grad():
        conv.weight[at] = scale * conv.weight[of]
        if conv.bias is not None:
            conv.bias[at] = scale * conv.bias[of]
        if norm is not None:
            bn = model.get_submodule(norm)
            bn.running_mean[at] = scale * bn.running_mean[of]
            bn.running_var[at] = scale**2 * (bn.running_var[of] + bn.eps) - bn.eps
            bn.weight[at], bn.bias[at] = 0.7 * bn.weight[of], 0.7 * bn.bias[of]


def remove(model: nn.Module, inputs: Tensor, layer: str, units: list[int]) -> PruningPlan:
    """A plan that removes exactly these units: they are made the smallest for the time of planning."""
    judged = copy.deepcopy(model)
    with torch.no_grad():
        for unit in units:
            judged.get_submodule(layer).weight[unit] *= 1e-9
    count = judged.get_submodule(layer).weight.shape[0]
    return P.plan(judged, inputs, score=P.L1(), amount={layer: len(units) / count})


@pytest.mark.parametrize(("make", "shape", "layer", "norm"), PATHS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_duplicates_merge_exactly(
    make: Callable[[], nn.Module],
    shape: tuple[int, ...],
    layer: str,
    norm: str | None,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    torch.manual_seed(1)
    model = make().to(dtype).eval()
    duplicate(model, layer, norm, of=2, at=5, scale=1.7)
    duplicate(model, layer, norm, of=2, at=7, scale=0.4)
    x = torch.randn(5, *shape, dtype=dtype)
    plan = remove(model, x, layer, [5, 7])
    small = P.merge(model, plan, x)
    with torch.no_grad():
        expected, found = model(x), small(x)
    assert small.get_submodule(layer).weight.shape[0] == 7
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())
    pruned = P.apply(model, plan, x)(x).detach()
    assert float((pruned - expected).abs().max()) > 1e-3 * float(expected.abs().max())


@pytest.mark.parametrize(("make", "shape", "layer", "norm"), PATHS)
def test_linear_mixtures_are_repaired_by_least_squares(
    make: Callable[[], nn.Module], shape: tuple[int, ...], layer: str, norm: str | None
) -> None:
    torch.manual_seed(2)
    model = make().double().eval()
    duplicate(model, layer, norm, of=2, at=5, scale=1.7)
    x = torch.randn(300, *shape, dtype=torch.float64)
    plan = remove(model, x[:4], layer, [5])
    repaired = P.compensated(model, plan, x[:4], P.LeastSquares(), data=x)
    small = P.apply(model, repaired, x[:4])
    torch.testing.assert_close(small(x), model(x), rtol=1e-8, atol=1e-8)
    (one,) = repaired[layer].repairs
    assert one.before is not None
    assert one.after is not None
    assert one.after < 1e-12 * one.before


def test_least_squares_is_the_best_linear_reader() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 12), nn.Sigmoid(), nn.Linear(12, 4)).double()
    x = torch.randn(500, 6, dtype=torch.float64)
    plan = P.plan(model, x[:4], score=P.L1(), amount=0.5, data=x, compensate=P.LeastSquares())
    small = P.apply(model, plan, x[:4])
    hidden = torch.sigmoid(model[0](x))[:, list(plan["0"].kept)].detach().numpy()
    design = np.column_stack([hidden, np.ones(len(hidden))])
    target = model(x).detach().numpy()
    best = design @ np.linalg.lstsq(design, target, rcond=None)[0]
    np.testing.assert_allclose(small(x).detach().numpy(), best, atol=1e-9)
    (one,) = plan["0"].repairs
    pruned = P.apply(model, P.plan(model, x[:4], score=P.L1(), amount=0.5), x[:4])
    for found, said in ((small, one.after), (pruned, one.before)):
        with torch.no_grad():
            assert said == pytest.approx(float(((found(x) - model(x)) ** 2).sum(1).mean()), rel=1e-8)


def test_without_a_bias_the_mean_is_mixed_in() -> None:
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(6, 12), nn.Sigmoid(), nn.Linear(12, 4, bias=False)).double()
    x = torch.randn(500, 6, dtype=torch.float64)
    plan = P.plan(model, x[:4], score=P.L1(), amount=0.5, data=x, compensate=P.LeastSquares())
    (one,) = plan["0"].repairs
    assert one.constant is None
    hidden = torch.sigmoid(model[0](x))[:, list(plan["0"].kept)].detach().numpy()
    best = hidden @ np.linalg.lstsq(hidden, model(x).detach().numpy(), rcond=None)[0]
    np.testing.assert_allclose(P.apply(model, plan, x[:4])(x).detach().numpy(), best, atol=1e-9)


def test_constants_go_into_the_running_mean_of_a_batch_norm() -> None:
    torch.manual_seed(5)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 3, bias=False), normed(6), nn.ReLU(), nn.Conv2d(6, 2, 1)
    ).double().eval()  # fmt: skip
    x = torch.randn(200, 3, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        model[0].weight[3] = 0.0  # a constant unit
        model[0].bias[3] = 2.0
    plan = remove(model, x[:2], "0", [3])
    repaired = P.compensated(model, plan, x[:2], P.LeastSquares(), data=x)
    assert repaired["0"].repairs[0].constant == "3.running_mean"
    torch.testing.assert_close(P.apply(model, repaired, x[:2])(x), model(x), rtol=1e-9, atol=1e-9)


def test_the_residue_goes_into_the_next_bias() -> None:
    """Two units of one filter and different offsets: what merging leaves is a constant only on average."""
    torch.manual_seed(6)
    model = nn.Sequential(nn.Conv2d(3, 6, 1, bias=False), normed(6), nn.ReLU(), nn.Conv2d(6, 3, 1)).double().eval()
    with torch.no_grad():
        model[0].weight[4] = model[0].weight[1]
        for unit in (1, 4):  # what the BatchNorm says of its input is true
            model[1].running_mean[unit] = 0.0
            model[1].running_var[unit] = float((model[0].weight[unit] ** 2).sum())
        model[1].bias[4] = model[1].bias[1] + 0.8
        model[1].weight[4] = model[1].weight[1]
    x = torch.randn(4000, 3, 2, 2, dtype=torch.float64)
    plan = remove(model, x[:2], "0", [4])
    errors = []
    for compensate_bias in (True, False):
        small = P.merge(model, plan, x[:2], compensate_bias=compensate_bias)
        errors.append(float((small(x) - model(x)).detach().mean(dim=(0, 2, 3)).abs().max()))
    assert errors[0] < 0.1 * errors[1]


def test_reference_algebra_differs() -> None:
    torch.manual_seed(7)
    model = normed_conv().eval()
    x = torch.randn(2, *MAP)
    plan = P.plan(model, x, score=P.L1(), amount=0.4)
    exact, reference = (P.merge(model, plan, x, threshold=-1.0, bn_scale=how)(x) for how in ("exact", "reference"))
    assert not torch.allclose(exact, reference)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.sigmoid(self.a(x)))


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.a(x) + self.b(x)))


class Summed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.a(x))
        return self.b(hidden) + hidden.sum(dim=-1, keepdim=True)


class Shifted(nn.Module):
    """What is added to the hidden units does not scale with them."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.how = nn.Linear(6, 8), nn.Linear(8, 3), how

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.a(x))
        if self.how == "input":
            return self.b(hidden + 3 * x[:, :1])
        return self.b(nn.functional.pad(hidden[:, None], (0, 0, 1, 1), value=1.0))


class Beside(nn.Module):
    """What passes the norm meets what does not."""

    def __init__(self, run: Callable[[Beside, Tensor], Tensor], width: int = 8) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.run = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(width, 3), run
        for parameter in self.norm.parameters():
            parameter.data.uniform_(0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.run(self, self.a(x))))


class Rounded(nn.Linear):
    """Computes with other weights than those it has."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, torch.round(self.weight * 8) / 8, self.bias)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)
        self.c.weight = self.b.weight

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.a(x))
        return self.b(hidden) + 2 * self.c(hidden)


class LateBias(nn.Linear):
    """Its bias is not what it adds to its product."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(nn.functional.linear(x, self.weight)) + self.bias


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 4, 2, stride=2)),
        lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), LateBias(8 * 16, 4)),
    ],
)
def test_constants_only_go_where_every_output_meets_them_once(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(9)
    model, x = make().double().eval(), torch.randn(300, 3, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        model[0].bias.fill_(2.0)
    plan = P.plan(model, x[:2], score=P.L1(), amount=0.5, data=x, compensate=P.LeastSquares())
    assert [one.constant for one in plan.layers[0].repairs] == [None]
    bare = P.plan(model, x[:2], score=P.L1(), amount=0.5)
    errors = [float((P.apply(model, one, x[:2])(x) - model(x)).detach().square().mean()) for one in (plan, bare)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Shifted("input"), "add on the way to b is not positively homogeneous"),
        (lambda: Shifted("pad"), "pad on the way to b is not positively homogeneous"),
        (Tied, "b.weight and c.weight are one tensor"),
        (Summed, "'sum_1' adds its units up without weights"),
        (Gated, "sigmoid on the way to b is not positively homogeneous"),
        (Two, "several layers compute its units: a, b"),
        (lambda: nn.Sequential(nn.Linear(6, 8), nn.PReLU(8), nn.Linear(8, 2)), "1 treats each of its units in its own"),
        (
            lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 2)),
            "2 does not come right after the layer",
        ),
        (lambda: Beside(lambda m, x: m.norm(x) + x), "norm is not once on every way to b"),
        (lambda: Beside(lambda m, x: torch.cat([m.norm(x), x], 1), 16), "norm is not once on every way to b"),
        (lambda: Beside(lambda m, x: m.norm(m.norm(x))), "norm is not once on every way to b"),
        (
            lambda: nn.Sequential(
                nn.Unflatten(1, (2, 3)), nn.Conv1d(2, 4, 1), nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 2)
            ),
            "a unit is several channels of 3",
        ),
        (lambda: nn.Sequential(Rounded(6, 8), nn.ReLU(), nn.Linear(8, 2)), "computes with other values than 0.weight"),
        (
            lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), Rounded(8, 2)),
            "the weight that reads its units is computed from 2.weight",
        ),
    ],
)
def test_refusals_are_named(make: Callable[[], nn.Module], reason: str) -> None:
    model, x = make().eval(), torch.randn(3, 6)
    plan = P.plan(model, x, score=P.L1(), amount=0.5)
    with pytest.raises(ValueError, match="no layer can be merged") as refused:
        P.merge(model, plan, x)
    assert reason in str(refused.value)
    with_note = P.plan(model, x, score=P.L1(), amount=0.5, compensate=P.Merge())
    assert reason in with_note.layers[0].compensation
    assert reason in with_note.explain()
    torch.testing.assert_close(P.apply(model, with_note, x)(x), P.apply(model, plan, x)(x))


def test_constants_stay_out_of_a_norm_that_not_all_of_them_pass() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), Beside(lambda m, x: m.norm(x) + x)).double().eval()
    model[2].a = nn.Linear(8, 8, bias=False).double()
    x = torch.randn(400, 6, dtype=torch.float64)
    plan = P.plan(model, x[:2], score=P.L1(), amount={"0": 0.5}, data=x, compensate=P.LeastSquares())
    assert [one.constant for one in plan.layers[0].repairs] == [None]


def test_a_bias_that_passes_an_activation_on_one_way_only_is_no_constant() -> None:
    model, x = Beside(lambda m, x: x + torch.relu(x)).eval(), torch.randn(3, 6)
    plan = P.plan(model, x, score=P.L1(), amount=0.5, compensate=P.LiveBias())
    assert plan.layers[0].compensation == "biases removed with their units: several activations are on the way to b"


class Pooled(nn.Module):
    """Two pools and two activations, as functions or as modules."""

    def __init__(self, *, modules: bool) -> None:
        super().__init__()
        self.conv1, self.norm, self.conv2 = nn.Conv2d(3, 9, 3), normed(9), nn.Conv2d(9, 4, 1)
        self.pools = nn.ModuleList([nn.MaxPool2d(2), nn.MaxPool2d(2)] if modules else [])

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv1(x)))
        for pool in self.pools or [lambda y: nn.functional.max_pool2d(y, 2)] * 2:
            x = pool(x)
        return self.conv2(x)


@pytest.mark.parametrize("way", [P.Merge(threshold=-1.0), P.LiveBias()], ids=["merge", "biases"])
def test_an_operation_that_runs_twice_is_not_one_that_is_passed_by(way: P.Merge | P.LiveBias) -> None:
    torch.manual_seed(5)
    model = Pooled(modules=True).double().eval()
    other = Pooled(modules=False).double().eval()
    other.load_state_dict(model.state_dict())
    x = torch.randn(4, 3, 14, 14, dtype=torch.float64)
    first, second = (
        P.apply(one, P.plan(one, x, score=P.L1(), amount=0.5, compensate=way), x) for one in (model, other)
    )
    for name, value in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], value, rtol=0, atol=0)


def test_a_norm_without_shifts_merges() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).eval(), torch.randn(3, 6)
    with torch.no_grad():
        model[1].weight[::2] = 0.0
    P.merge(model, P.plan(model, x, score=P.L1(), amount=0.5), x, threshold=-1.0)


def test_plans_with_repairs_are_data() -> None:
    torch.manual_seed(8)
    model = flattened().eval()
    x = torch.randn(40, *MAP)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plan = P.plan(model, x[:2], score=P.L1(), amount=0.5, data=x, compensate=P.LeastSquares(samples=30))
    again = PruningPlan.from_json(plan.to_json())
    assert again == plan
    first, second = (P.apply(model, one, x[:2])(x) for one in (plan, again))
    assert torch.equal(first, second)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    masked = P.masked(model, plan)(x)
    torch.testing.assert_close(first, masked)


def test_bad_repairs_are_refused() -> None:
    model, x = linear(), torch.randn(60, 6)
    plan = P.plan(model, x, score=P.L1(), amount=0.5, data=x, compensate=P.LeastSquares())
    text = plan.to_json()
    data = plan.layers[0].repairs[0].mixing.data
    with pytest.raises(ValueError, match="does not unpack"):
        PruningPlan.from_json(text.replace(data, "@@@"))
    with pytest.raises(ValueError, match="does not have"):
        PruningPlan.from_json(text.replace(data, plan.layers[0].repairs[0].offset.data))
    (layer,) = plan.layers
    for field, value, said in (
        ("tensor", "3.weight", "the plan repairs '3.weight' at position 8 of dimension 1, not None"),
        ("dim", 0, r"the plan repairs '2.weight' at position 8 of dimension 0, not \(4, 9\)"),
        ("constant", "0.bias", "the plan puts constants of 4 outputs into '0.bias', which has not as many"),
    ):
        wrong = replace(layer, repairs=(replace(layer.repairs[0], **{field: value}),))
        with pytest.raises(ValueError, match=said):
            P.apply(model, replace(plan, layers=(wrong,)), x)


def test_bad_options() -> None:
    model, x = linear(), torch.randn(3, 6)
    with pytest.raises(ValueError, match=r"LeastSquares needs data="):
        P.plan(model, x, score=P.L1(), compensate=P.LeastSquares())
    with pytest.raises(TypeError, match=r"compensate must be Merge\(\), LeastSquares\(\) or None, not 'merge'"):
        P.plan(model, x, score=P.L1(), compensate="merge")  # type: ignore[arg-type]
    for options, said in (
        ({"threshold": "a"}, r"threshold must lie in \[-1, 1\], not 'a'"),
        ({"weight": 7}, r"weight must lie in \[0, 1\], not 7"),
        ({"bn_scale": "x"}, 'bn_scale must be "exact" or "reference", not \'x\''),
    ):
        with pytest.raises(ValueError, match=said):
            P.Merge(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"ridge must be at least 0 and finite, not '0\.1'"):
        P.LeastSquares(ridge="0.1")  # type: ignore[arg-type]
    for every in (1, 2.5, "five"):
        with pytest.raises(ValueError, match=f"hold_out must be an integer of at least 2 or None, not {every!r}"):
            P.LeastSquares(hold_out=every)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="samples must be an integer of at least 1, not 0"):
        P.LeastSquares(samples=0)
    with pytest.raises(ValueError, match=r"ridge must be at least 0 and finite, not -1\.0"):
        P.LeastSquares(ridge=-1.0)
    plan = P.plan(model, x, score=P.L1(), amount=0.5)
    with pytest.raises(ValueError, match="the plan prunes '0' of 9 units, of which the model has 5"):
        P.compensated(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)), plan, x, P.Merge())
