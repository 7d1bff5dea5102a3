"""The optimiser of a cut model goes on where the dense model's was; BatchNorm statistics are estimated again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from simkit import pruning as P


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)
    ).double()


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    model(x).square().sum().backward()
    optimizer.step()


OPTIMIZERS: list[Callable[[Any], torch.optim.Optimizer]] = [
    lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-3),
    lambda p: torch.optim.SGD(p, lr=0.01),
    lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    lambda p: torch.optim.AdamW(p, lr=0.01),
    lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    lambda p: torch.optim.Adagrad(p, lr=0.01),
]


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_a_step_of_the_cut_model_is_that_of_the_masked_one(make: Callable[[Any], torch.optim.Optimizer]) -> None:
    """Removed units get no gradient in either model, so kept entries move alike."""
    model, x = network(), torch.randn(8, 2, 6, 6, dtype=torch.float64)
    parts = [list(model[0].parameters()), [one for module in model[1:] for one in module.parameters()]]
    optimizer = make([{"params": parts[0], "lr": 0.003}, {"params": parts[1]}])
    for _ in range(3):
        step(model, optimizer, x)
    model.eval()
    plan = P.plan(model, x, score=P.L1(), amount=0.5)
    small = P.apply(model, plan, x)
    new = P.rebind(optimizer, model, small, plan)
    assert type(new) is type(optimizer)
    assert [group["lr"] for group in new.param_groups] == [0.003, 0.01]
    assert {id(one) for group in new.param_groups for one in group["params"]} == {id(one) for one in small.parameters()}
    with torch.no_grad():  # the masked model: what the removed units feed on is zero
        for slot in (slot for layer in plan.layers for slot in layer.slots if slot.role == "consumer"):
            model.get_parameter(slot.tensor).index_fill_(slot.dim, torch.tensor(slot.positions), 0.0)
    torch.testing.assert_close(small(x), model(x))
    step(model, optimizer, x)
    step(small, new, x)
    for name, parameter in small.named_parameters():
        expected = model.get_parameter(name).detach()
        for slot in (slot for layer in plan.layers for slot in layer.slots if slot.tensor == name):
            expected = expected.index_select(slot.dim, torch.tensor(slot.kept))
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-9, atol=1e-12)


def test_the_dense_optimiser_is_left_alone() -> None:
    model, x = network(), torch.randn(4, 2, 6, 6, dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters())
    step(model, optimizer, x)
    before = optimizer.state_dict()
    plan = P.plan(model, x, score=P.L1(), amount=0.5)
    new = P.rebind(optimizer, model, P.apply(model, plan, x), plan)
    assert torch.equal(before["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])
    assert new.state_dict()["state"][0]["exp_avg"].shape[0] == 4
    assert new.state_dict()["state"][0]["step"] == 1


def test_wrong_optimisers_are_refused() -> None:
    model, x = network(), torch.randn(4, 2, 6, 6, dtype=torch.float64)
    plan = P.plan(model, x, score=P.L1(), amount=0.5)
    small = P.apply(model, plan, x)
    stranger = torch.optim.SGD([nn.Parameter(torch.zeros(3, 7))], lr=0.1)
    with pytest.raises(ValueError, match=r"holds a parameter of shape \(3, 7\) that is none of the model's"):
        P.rebind(stranger, model, small, plan)
    with pytest.raises(ValueError, match=r"'0.weight' has shape \(8, 2, 3, 3\) and not \(4, 2, 3, 3\)"):
        P.rebind(torch.optim.SGD(model.parameters(), lr=0.1), model, model, plan)


@pytest.mark.parametrize("samples", [255, 256, 257, 700])
def test_recalibrated_statistics_are_those_of_the_data(samples: int) -> None:
    model, x = network().eval(), torch.randn(700, 2, 6, 6, dtype=torch.float64) + 1.0
    state = {name: value.clone() for name, value in model.state_dict().items()}
    rng = torch.get_rng_state()
    small = P.recalibrated(model, x, samples=samples)
    assert torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in small.modules())
    used = samples if samples % 256 != 1 else samples - 1
    values = model[0](x[:used])
    torch.testing.assert_close(small[1].running_mean, values.mean(dim=(0, 2, 3)).detach())
    torch.testing.assert_close(small[1].running_var, values.var(dim=(0, 2, 3)).detach())
    assert small[1].momentum == model[1].momentum
    assert small[1].num_batches_tracked == model[1].num_batches_tracked


def test_statistics_of_images_without_channels_are_the_users_error() -> None:
    model = nn.Sequential(nn.BatchNorm2d(5), nn.Conv2d(5, 8, 1))
    with pytest.raises(
        ValueError, match=r"^Sequential does not run on data of torch.float32 \[6, 5\]: expected 4D input"
    ):
        P.recalibrated(model, torch.zeros(6, 5))


def test_statistics_of_data_that_does_not_fit_are_the_users_error() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8))
    for data, found in (
        (torch.zeros(6, 4), r"float32 \[6, 4\]: mat1"),
        (torch.zeros(6, 5).double(), r"float64 .*: mat1"),
    ):
        with pytest.raises(ValueError, match=rf"^Sequential does not run on data of torch.{found}[^\n]*$"):
            P.recalibrated(model, data)


def test_a_cut_model_may_be_recalibrated_at_once(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model, x = network().eval(), torch.randn(200, 2, 6, 6, dtype=torch.float64) + 1.0
    plan = P.plan(model, x[:2], score=P.L1(), amount=0.5)
    bare, small = P.apply(model, plan, x[:2]), P.apply(model, plan, x[:2], recalibrate=[(x, None)])
    by_hand = copy.deepcopy(bare)
    for module in by_hand.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
            module.momentum = 1.0
    by_hand(x)
    assert not torch.equal(bare.eval()(x), small.eval()(x))
    torch.testing.assert_close(small(x), by_hand.eval()(x), rtol=1e-12, atol=1e-12)
    assert (small.simkit_recalibrated, small.simkit_kept) == (200, bare.simkit_kept)
    assert not hasattr(bare, "simkit_recalibrated")
    P.save(small, tmp_path / "small.safetensors")
    again = P.load(tmp_path / "small.safetensors", network)
    assert again.simkit_recalibrated == 200
    assert torch.equal(again.eval()(x), small(x))
    further = P.apply(again, P.plan(again, x[:2], score=P.L1(), amount=0.5), x[:2])
    assert not hasattr(further, "simkit_recalibrated")
    with pytest.raises(ValueError, match="statistics need at least 2 samples, not 1"):
        P.apply(model, plan, x[:2], recalibrate=x[:1])
    rounds = list(P.structured_rounds(model, x[:2], rounds=2, score=P.L1(), recalibrate=x))
    assert [one.model.simkit_recalibrated for one in rounds] == [200, 200]


def test_sorted_data_and_layers_called_twice_pool_all_values() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(x) + self.bn(10 * x + 5)

    x = torch.cat([torch.randn(1000, 3), 10 + torch.randn(1000, 3)]).double()
    small = P.recalibrated(Twice().double().eval(), x)
    seen = torch.cat([x, 10 * x + 5])
    torch.testing.assert_close(small.bn.running_mean, seen.mean(dim=0))
    torch.testing.assert_close(small.bn.running_var, seen.var(dim=0))
    assert not small.bn._forward_pre_hooks


@pytest.mark.parametrize("samples", [-3, 0, 1, 2.5])
def test_bad_samples(samples: object) -> None:
    with pytest.raises(ValueError, match=f"samples must be an integer of at least 2, not {samples}"):
        P.recalibrated(network(), torch.zeros(4, 2, 6, 6), samples=samples)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="statistics need at least 2 samples, not 1"):
        P.recalibrated(nn.Sequential(nn.BatchNorm1d(3, affine=False)), torch.zeros(1, 3))


def test_state_that_is_not_entry_by_entry_is_refused() -> None:
    model, x = network().float(), torch.randn(4, 2, 6, 6)
    plan = P.plan(model, x, score=P.L1(), amount=0.5)
    small = P.apply(model, plan, x)
    optimizer = torch.optim.Adafactor(model.parameters())
    step(model, optimizer, x)
    with pytest.raises(NotImplementedError, match="of Adafactor is not entry by entry"):
        P.rebind(optimizer, model, small, plan)
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer, not Sequential"):
        P.rebind(model, optimizer, small, plan)  # type: ignore[arg-type]


def test_nothing_to_recalibrate() -> None:
    with pytest.raises(ValueError, match="Sequential has no BatchNorm layer that keeps running statistics"):
        P.recalibrated(nn.Sequential(nn.Linear(2, 2)), torch.zeros(4, 2))
