"""Surgery that does not fit, does not verify or hard-codes a size is refused; nothing that goes in is changed."""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from simkit import pruning as P

pytestmark = pytest.mark.usefixtures("one_thread")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(6 * 36, 8),
        nn.Sigmoid(),
        nn.Dropout(0.5),
        nn.Linear(8, 3),
    )
    model(torch.randn(16, 1, 8, 8))
    return model


X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def edit_slots(plan: P.PruningPlan, name: str, change: Callable[[Any], Any]) -> P.PruningPlan:
    layers = tuple(
        dataclasses.replace(layer, slots=tuple(s for s in map(change, layer.slots) if s))
        if layer.name == name
        else layer
        for layer in plan.layers
    )
    return dataclasses.replace(plan, layers=layers)


def test_a_plan_that_cuts_the_wrong_columns_is_caught_at_the_reader() -> None:
    model = network()
    plan = P.plan(model, X, score=P.L1())
    mirrored = tuple((216 - stop, 216 - start) for start, stop in reversed(plan_slot(plan, "0", "consumer").removed))
    wrong = edit_slots(
        plan, "0", lambda slot: dataclasses.replace(slot, removed=mirrored) if slot.role == "consumer" else slot
    )
    assert wrong != plan
    with pytest.raises(ValueError, match=r"module '4' differs between the masked and the cut model"):
        P.apply(model, wrong, X)
    assert isinstance(P.apply(model, wrong, X, verify=False), nn.Module)


def plan_slot(plan: P.PruningPlan, layer: str, role: str) -> Any:
    return next(slot for slot in plan[layer].slots if slot.role == role)


def test_a_forgotten_batch_norm_is_named() -> None:
    model = network()
    plan = P.plan(model, X, score=P.L1())
    wrong = edit_slots(plan, "0", lambda slot: None if slot.role == "carrier" else slot)
    with pytest.raises(ValueError, match=r"the cut model fails after '0': .*may hard-code a size"):
        P.apply(model, wrong, X)


class Hard(nn.Module):
    """The number of values that the convolution leaves is written into the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc1, self.fc2 = nn.Conv2d(1, 4, 3), nn.Linear(144, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(torch.relu(self.conv(x)).view(-1, 144))))


def test_a_hard_coded_size_is_found_when_planning() -> None:
    plan = P.plan(Hard(), X, score=P.L1())
    assert list(plan.removed) == ["fc1"]
    reason = "the forward of the model writes the size 144 in its code"
    assert {layer.name: layer.reason for layer in plan.frozen}["conv"] == reason
    assert P.trace(Hard(), X).frozen["conv"] == reason


def test_a_size_in_an_attribute_is_changed_with_the_channels() -> None:
    class Soft(Hard):
        def __init__(self) -> None:
            super().__init__()
            self.sizes = [144, 2]

        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(torch.relu(self.fc1(torch.relu(self.conv(x)).view(-1, self.sizes[0]))))

    model = Soft()
    small = P.apply(model, P.plan(model, X, score=P.L1()), X)
    assert (small.sizes, model.sizes) == ([72, 2], [144, 2])
    assert (small.conv.out_channels, small.fc1.in_features) == (2, 72)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forwards_that_insist_on_a_precision_are_checked_in_it(dtype: torch.dtype) -> None:
    class Insisting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 6, dtype=dtype), nn.Linear(6, 2, dtype=dtype)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(x.to(dtype))))

    torch.manual_seed(0)
    model, x = Insisting(), torch.randn(4, 3)
    plan = P.plan(model, x, score=P.L1())
    small = P.apply(model, plan, x)
    torch.testing.assert_close(small(x), P.masked(model, plan)(x))
    wrong = edit_slots(
        plan, "a", lambda slot: dataclasses.replace(slot, removed=((0, 3),)) if slot.role == "consumer" else slot
    )
    assert wrong != plan
    with pytest.raises(ValueError, match="module 'b' differs between the masked and the cut model"):
        P.apply(model, wrong, x)


def test_a_forward_that_scrambles_silently_is_found_out() -> None:
    class Reshaped(nn.Module):
        """Twice as many channels are read two by two: any even number of them runs, but means something else."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 6), nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            scale = self.a.weight.shape[0] ** 0.5
            return self.c(torch.relu(self.a(x) * scale + self.b(x)))

    torch.manual_seed(0)
    graph = P.trace(Reshaped(), torch.randn(2, 3))
    assert not graph.prunable
    assert graph.frozen["a"].endswith("its code writes no size")


@pytest.mark.parametrize("amount", [0.34, 0.5])
def test_approximate_cuts_are_held_to_norms_over_the_kept_channels(amount: float) -> None:
    class Normed(nn.Module):
        def __init__(self, norm: nn.Module) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Conv2d(1, 6, 3), norm, nn.Conv2d(6, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.norm(self.a(x)))

    class Last(nn.Module):
        def __init__(self, norm: nn.Module) -> None:
            super().__init__()
            self.norm = norm

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x.movedim(1, -1)).movedim(-1, 1)

    torch.manual_seed(0)
    for norm in (nn.GroupNorm(1, 6), Last(nn.LayerNorm(6)), Last(nn.RMSNorm(6)), Last(nn.LayerNorm(6, bias=False))):
        model = Normed(norm)
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        plan = P.plan(model, X, score=P.Random(), amount=amount)
        assert not plan.exact
        small, silent = P.apply(model, plan, X), P.masked(model, plan)
        kept = list(plan["a"].kept)
        expected = copy.deepcopy(model)
        first = type(norm.norm if isinstance(norm, Last) else norm)
        layer = nn.GroupNorm(1, len(kept)) if first is nn.GroupNorm else first(len(kept))
        weight, bias = model.get_parameter("norm.norm.weight" if isinstance(norm, Last) else "norm.weight"), None
        bias = getattr(norm.norm if isinstance(norm, Last) else norm, "bias", None)
        with torch.no_grad():
            layer.weight.copy_(weight[kept])
            if bias is not None:
                layer.bias.copy_(bias[kept])
            expected.norm = Last(layer) if isinstance(norm, Last) else layer
            expected.a.weight, expected.a.bias = (nn.Parameter(p[kept]) for p in (model.a.weight, model.a.bias))
            expected.b.weight = nn.Parameter(model.b.weight[:, kept])
            torch.testing.assert_close(small(X), expected(X))
            assert not torch.allclose(small(X), silent(X))


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (nn.Sequential(nn.Linear(3, 4)), r"the plan expects size 6 in dimension 0 of '0.weight', not shape \(4, 3\)"),
        (nn.Linear(3, 4), r"the plan cuts '0.weight', which Linear does not have"),
    ],
)
def test_plans_for_other_models_do_not_fit(other: nn.Module, sentence: str) -> None:
    plan = P.plan(network(), X, score=P.L1())
    for act in (lambda: P.apply(other, plan, X), lambda: P.masked(other, plan)):
        with pytest.raises(ValueError, match=sentence):
            act()


def test_attributes_that_do_not_fit_are_named() -> None:
    plan = P.plan(network(), X, score=P.L1())
    other = network()
    other[1].num_features = 7
    with pytest.raises(ValueError, match="the plan expects 'num_features' of module '1' to be 6, not 7"):
        P.apply(other, plan, X)


def test_bad_arguments() -> None:
    plan = P.plan(network(), X, score=P.L1())
    with pytest.raises(TypeError, match="plan must be a PruningPlan, not str"):
        P.apply(network(), plan.to_json(), X)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"the model does not run on example_inputs: "):
        P.apply(network(), plan, torch.zeros(1, 2, 8, 8))


class State:
    """Everything about a model and the process that must not change."""

    def __init__(self, model: nn.Module) -> None:
        self.tensors = {name: (id(t), t.clone()) for name, t in model.state_dict(keep_vars=True).items()}
        self.modes = [module.training for module in model.modules()]
        self.flags = [(p.requires_grad, p.grad is None) for p in model.parameters()]
        self.hooks = [
            [list(getattr(module, kind)) for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")]
            for module in model.modules()
        ]
        self.attributes = [sorted(vars(module)) for module in model.modules()]
        self.random = (random.getstate(), torch.get_rng_state().tolist())
        self.numpy = np.random.get_state()[1].tolist()  # noqa: NPY002
        self.settings = (torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype())

    def require_equal(self, other: State) -> None:
        assert self.tensors.keys() == other.tensors.keys()
        for name, (identity, value) in self.tensors.items():
            assert identity == other.tensors[name][0]
            assert torch.equal(value, other.tensors[name][1])
        for part in ("modes", "flags", "hooks", "attributes", "random", "numpy", "settings"):
            assert getattr(self, part) == getattr(other, part), part


@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_mutated(training: bool, tmp_path: Path) -> None:
    model = network().train(training)
    model[1].train(not training)
    model[0].weight.requires_grad_(False)
    calls: list[Tensor] = []
    model[2].register_forward_hook(lambda m, args, out: calls.append(out))
    model[4].register_forward_pre_hook(lambda m, args: calls.append(args[0]))
    loader = DataLoader(TensorDataset(torch.randn(40, 1, 8, 8), torch.arange(40)), batch_size=8, shuffle=True)
    before = State(model)
    P.trace(model, X)
    for score in (P.CKADamage(), P.L1(), P.Random()):
        plan = P.plan(model, X, data=loader, score=score)
        P.masked(model, plan)
        small = P.apply(model, plan, X)
        P.save(small, tmp_path / "small.safetensors")
        P.load(tmp_path / "small.safetensors", network)
    with pytest.raises(ValueError, match="removes all"):
        P.plan(model, X, score=P.L1(), amount=1.0)
    with pytest.raises(ValueError, match="does not run"):
        P.plan(model, torch.zeros(1), score=P.L1())
    before.require_equal(State(model))
    assert calls == []


def test_the_small_model_shares_no_memory_with_the_large_one() -> None:
    model = network()
    small = P.apply(model, P.plan(model, X, score=P.L1()), X)
    large = {t.untyped_storage().data_ptr() for t in model.state_dict().values()}
    assert not large & {t.untyped_storage().data_ptr() for t in small.state_dict().values()}
