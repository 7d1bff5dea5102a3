"""Cutting equals masking, to float64 rounding, for every kind of chain and every criterion."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from simkit import pruning as P
from simkit.graph import trace

pytestmark = pytest.mark.usefixtures("one_thread")


class Functional(nn.Module):
    """BatchNorm without a scale, PReLU per channel, functions between layers, the activation after the pool."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding="same", bias=False)
        self.bn1 = nn.BatchNorm2d(6, affine=False)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.prelu = nn.PReLU(8)
        self.fc1 = nn.Linear(8 * 4, 9)
        self.fc2 = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(functional.max_pool2d(self.bn1(self.conv1(x)), 2))
        x = functional.adaptive_avg_pool2d(self.prelu(self.conv2(x)), 2)
        x = self.relu(self.fc1(x.reshape(x.shape[0], -1)))
        return self.fc2(x * 0.5)


class Tokens(nn.Module):
    """Linear layers along the last of three dimensions; the tokens are averaged at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(8, 10), nn.Linear(10, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.down(functional.relu(self.up(x.squeeze(1)))))
        return self.head(x.mean(dim=1))


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 9), nn.BatchNorm1d(9), nn.GELU(), nn.Linear(9, 4)
    )


def conv_batch_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 7, 3, padding=1),
        nn.BatchNorm2d(7, track_running_stats=False),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Flatten(),
        nn.Linear(7 * 16, 10),
        nn.BatchNorm1d(10),
        nn.ReLU(),
        nn.Linear(10, 4),
    )


def conv_flatten_linear() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 5, 3),
        nn.Tanh(),
        nn.Flatten(),
        nn.BatchNorm1d(5 * 36),
        nn.Linear(5 * 36, 7),
        nn.SiLU(),
        nn.Linear(7, 4),
    )


def conv_average_pool() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.BatchNorm2d(6),
        nn.Sigmoid(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 8, 2),
        nn.Softplus(),
        nn.AdaptiveAvgPool2d((2, 1)),
        nn.Flatten(),
        nn.Linear(16, 6),
        nn.Sigmoid(),
        nn.Linear(6, 4),
    )


def batch_norm_last() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.ReLU(),
        nn.BatchNorm2d(6),
        nn.Conv2d(6, 5, 3),
        nn.BatchNorm2d(5),
        nn.Flatten(),
        nn.Linear(80, 4),
    )


def conv1d() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Unflatten(1, (1, 64)),
        nn.Conv1d(1, 6, 5, stride=2, padding=2),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(6, 5, 3, dilation=2),
        nn.ELU(),
        nn.Flatten(),
        nn.Linear(5 * 12, 4),
    )


ZOO = [mlp, conv_batch_norm, conv_flatten_linear, conv_average_pool, batch_norm_last, conv1d, Tokens, Functional]
SCORES = [
    P.CKADamage(),
    P.CKADamage(reduce="positions", mode="oneshot", samples=40),
    P.CKADamage(estimator="debiased"),
    P.L1(),
    P.Random(seed=3),
]


def trained(make: Callable[[], nn.Module]) -> nn.Module:
    """A few steps on noise with a shift: every bias, scale and running statistic is off its initial value."""
    torch.manual_seed(7)
    model = make().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(5):
        x = torch.randn(24, 1, 8, 8) * 2 + 1
        optimizer.zero_grad()
        functional.cross_entropy(model(x), torch.arange(24) % 4).backward()
        optimizer.step()
    return model


def run(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def close(a: Tensor, b: Tensor) -> None:
    assert a.dtype == torch.float64
    assert float((a - b).abs().max()) <= 1e-12 * float(a.abs().max())


@pytest.mark.parametrize("make", ZOO, ids=lambda make: make.__name__)
@pytest.mark.parametrize("score", SCORES, ids=lambda score: score.name)
def test_cut_equals_masked(make: Callable[[], nn.Module], score: object) -> None:
    model = trained(make).double()
    x = torch.randn(6, 1, 8, 8, dtype=torch.float64)
    plan = P.plan(model, x[:2], data=torch.randn(60, 1, 8, 8, dtype=torch.float64), score=score, amount=0.4)
    silent, small = P.masked(model, plan), P.apply(model, plan, x[:2])
    assert plan.exact
    close(run(silent.eval(), x), run(small.eval(), x))
    assert not torch.allclose(run(model.eval(), x), run(small, x))
    # In train mode batch statistics of silent channels are theirs alone, so nothing else moves.
    close(run(silent.train(), x), run(small.train(), x))
    close(run(silent.eval(), x), run(small.eval(), x))


@pytest.mark.parametrize("make", ZOO, ids=lambda make: make.__name__)
@pytest.mark.parametrize("amount", [0.2, 0.5, 0.8])
def test_sizes_and_counts_are_exact(make: Callable[[], nn.Module], amount: float) -> None:
    model = trained(make).eval()
    x = torch.randn(2, 1, 8, 8)
    graph = trace(model, x)
    plan = P.plan(model, x, score=P.L1(), amount=amount)
    small = P.apply(model, plan, x)
    for group in graph.groups:
        removed = int(round(amount * group.units)) if group.frozen is None else 0  # noqa: RUF046
        assert small.get_submodule(group.name).weight.shape[0] == group.units - removed
    assert plan.params_before == sum(p.numel() for p in model.parameters())
    assert plan.params_after == sum(p.numel() for p in small.parameters())
    assert plan.macs_before == counted_macs(model, x)
    assert plan.macs_after == counted_macs(small, x)
    for module in small.modules():
        sizes_match(module)


def counted_macs(model: nn.Module, x: Tensor) -> int:
    """Multiply-adds per sample, from what each layer really put out and reads per output value."""
    total = 0

    def count(module: nn.Module, args: object, output: Tensor) -> None:
        nonlocal total
        reads = module.weight[0].numel()  # type: ignore[union-attr,index]
        total += output[0].numel() * reads

    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    run(model, x)
    for handle in handles:
        handle.remove()
    return total


def sizes_match(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        assert (module.out_features, module.in_features) == tuple(module.weight.shape)
        assert module.bias is None or len(module.bias) == module.out_features
    elif isinstance(module, nn.Conv1d | nn.Conv2d):
        assert (module.out_channels, module.in_channels) == tuple(module.weight.shape[:2])
    elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        tensors = [module.weight, module.bias, module.running_mean, module.running_var]
        assert {len(tensor) for tensor in tensors if tensor is not None} <= {module.num_features}
    elif isinstance(module, nn.PReLU):
        assert module.num_parameters == len(module.weight)


@pytest.mark.parametrize("make", ZOO, ids=lambda make: make.__name__)
def test_masking_zeroes_what_consumers_read_and_nothing_else(make: Callable[[], nn.Module]) -> None:
    model = trained(make).double().eval()
    x = torch.randn(5, 1, 8, 8, dtype=torch.float64)
    plan = P.plan(model, x, score=P.Random(1), amount=0.5)
    silent = P.masked(model, plan).eval()
    read = {slot.tensor: slot for layer in plan.layers for slot in layer.slots if slot.role == "consumer"}
    for name, value in model.state_dict().items():
        expected = value.clone()
        if name in read:
            expected.index_fill_(read[name].dim, torch.tensor(read[name].positions), 0)
        assert torch.equal(silent.state_dict()[name], expected)
    # The same by hooks: the removed channels are zero at every reader's input.
    hooked = copy.deepcopy(model)
    for slot in read.values():
        reader = hooked.get_submodule(slot.module)
        axis = -1 if isinstance(reader, nn.Linear) else 1
        gone = torch.tensor(slot.positions)
        reader.register_forward_pre_hook(lambda m, args, a=axis, g=gone: (args[0].index_fill(a, g, 0),))
    close(run(hooked, x), run(silent, x))


def test_two_rounds_keep_track_of_the_first_model() -> None:
    model = trained(conv_batch_norm).eval()
    x = torch.randn(2, 1, 8, 8)
    first = P.apply(model, P.plan(model, x, score=P.Random(0), amount=0.5), x)
    second = P.apply(first, P.plan(first, x, score=P.Random(1), amount=0.5), x)
    assert {name for name, _ in second.simkit_kept} == {"0.weight", "4.weight", "4.bias", "8.weight", "8.bias"}
    for (name, dim), kept in second.simkit_kept.items():
        assert (dim, len(kept)) == (0, len(second.get_parameter(name)))
        if name.endswith("bias"):
            torch.testing.assert_close(second.get_parameter(name), model.get_parameter(name)[list(kept)])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dtype_requires_grad_and_mode_are_kept(dtype: torch.dtype) -> None:
    model = trained(mlp).to(dtype)
    model[1].weight.requires_grad_(False)
    model[4].eval()
    x = torch.randn(3, 1, 8, 8, dtype=dtype)
    small = P.apply(model, P.plan(model, x, score=P.L1()), x)
    assert {p.dtype for p in small.parameters()} == {dtype}
    assert [p.requires_grad for p in small.parameters()] == [p.requires_grad for p in model.parameters()]
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]


def test_a_small_model_trains_on() -> None:
    model = trained(conv_batch_norm)
    x = torch.randn(16, 1, 8, 8)
    small = P.apply(model, P.plan(model, x[:1], data=x, amount=0.5), x[:1])
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = functional.cross_entropy(small(x), torch.arange(16) % 4)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
