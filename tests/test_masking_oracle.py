"""The masking oracle against cuts made by hand: right ones agree with it, wrong ones do not."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from masking_oracle import Removed, masked_run, relative_gap
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import ZOO, build, fresh

EXACT = 1e-12


def redrawn(model: nn.Module) -> nn.Module:
    """In float64 and eval mode, with statistics, scales and shifts that are not those of a new model."""
    torch.manual_seed(3)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data = torch.rand_like(tensor) + 0.2 if tensor.dim() == 1 else torch.randn_like(tensor) * 0.4
    return model.double().eval()


def cut(model: nn.Module, **kept: Any) -> nn.Module:
    """A copy whose tensors ``a__weight=(dim, kept)`` hold only the kept indices; several cuts of one in a list."""
    small = copy.deepcopy(model)
    for key, cuts in kept.items():
        path, _, leaf = key.replace("__", ".").rpartition(".")
        owner = small.get_submodule(path)
        for dim, indices in [cuts] if isinstance(cuts, tuple) else cuts:
            old = getattr(owner, leaf)
            new = old.detach().index_select(dim, torch.tensor(indices))
            setattr(owner, leaf, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
    return small


def gap(model: nn.Module, small: nn.Module, inputs: Sequence[Any], *consumers: Removed, **options: Any) -> float:
    with torch.no_grad():
        return relative_gap(masked_run(model, inputs, consumers, **options), small(*inputs))


class Chain(nn.Module):
    """conv - BatchNorm - sigmoid - flatten - linear: f(0) is not 0, and a channel is nine columns."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.Linear(45, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.sigmoid(self.bn(self.conv(x))).flatten(1))


def columns(channels: Sequence[int], size: int = 9) -> list[int]:
    return [channel * size + i for channel in channels for i in range(size)]


def chain_cut(model: nn.Module, kept: list[int], read: list[int]) -> nn.Module:
    carried = {f"bn__{name}": (0, kept) for name in ("weight", "bias", "running_mean", "running_var")}
    return cut(model, conv__weight=(0, kept), conv__bias=(0, kept), fc__weight=(1, columns(read)), **carried)


def test_a_right_cut_agrees_and_every_wrong_one_is_caught() -> None:
    model, inputs = redrawn(Chain()), [torch.randn(3, 2, 5, 5, dtype=torch.float64)]
    removed = Removed("fc.weight", 1, tuple(columns([1, 3])))
    assert gap(model, chain_cut(model, [0, 2, 4], [0, 2, 4]), inputs, removed) < EXACT
    for read in ([0, 2, 3], [0, 4, 2], [1, 2, 4]):
        assert gap(model, chain_cut(model, [0, 2, 4], read), inputs, removed) > 1e-3
    # Columns taken position by position and not channel by channel.
    strided = [i for i in range(45) if i % 5 not in (1, 3)]
    wrong = cut(chain_cut(model, [0, 2, 4], [0, 1, 2, 3, 4]), fc__weight=(1, strided))
    assert gap(model, wrong, inputs, removed) > 1e-3
    # One carrier out of step.
    wrong = cut(model, bn__weight=(0, [1, 2, 4, 0, 3]))
    wrong = chain_cut(wrong, [0, 2, 4], [0, 2, 4])
    assert gap(model, wrong, inputs, removed) > 1e-3
    assert gap(model, model, inputs, removed) > 1e-3
    assert gap(model, model, inputs) == 0


class Residual(nn.Module):
    """Two producers add up; two layers read the sum, one of them a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 6, 1)
        self.up, self.down = nn.ConvTranspose2d(6, 4, 2), nn.Conv2d(6, 5, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x = torch.cos(self.a(x) + self.b(x))
        return self.up(x), {"down": self.down(x)}


def test_both_readers_of_a_sum_and_both_its_producers() -> None:
    model, inputs = redrawn(Residual()), [torch.randn(2, 3, 4, 4, dtype=torch.float64)]
    removed = [Removed("up.weight", 0, (0, 4)), Removed("down.weight", 1, (0, 4))]
    kept = [1, 2, 3, 5]
    rest = {"b__bias": (0, kept), "up__weight": (0, kept), "down__weight": (1, kept)}
    right = cut(model, a__weight=(0, kept), a__bias=(0, kept), b__weight=(0, kept), **rest)
    assert gap(model, right, inputs, *removed) < EXACT
    wrong = cut(model, a__weight=(0, kept), a__bias=(0, kept), b__weight=(0, [0, 2, 3, 5]), **rest)
    assert gap(model, wrong, inputs, *removed) > 1e-3
    assert gap(model, right, inputs, removed[0]) > 1e-3  # a reader that the plan forgot


class Bare(nn.Module):
    """A parameter read by matmul; a Linear's weight read transposed; a Linear called twice; keyword inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(7, 6))
        self.twice, self.tied = nn.Linear(6, 6), nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.exp(self.twice(input=torch.sin(self.twice(x @ self.w))))
        return F.linear(torch.tanh(self.tied(x)), self.tied.weight.t())


def test_parameters_that_no_layer_reads() -> None:
    model, inputs = redrawn(Bare()), [torch.randn(3, 7, dtype=torch.float64)]
    kept = [0, 1, 2, 4, 5, 7]
    small = cut(model, tied__weight=(0, kept), tied__bias=(0, kept))
    assert gap(model, small, inputs, Removed("tied.weight", 0, (3, 6))) < EXACT
    assert gap(model, small, inputs, Removed("tied.weight", 0, (3, 5))) > 1e-3
    kept = [0, 2, 3, 5]
    square = [(0, kept), (1, kept)]
    small = cut(model, w=(1, kept), twice__weight=square, twice__bias=(0, kept), tied__weight=(1, kept))
    readers = [Removed("twice.weight", 1, (1, 4)), Removed("tied.weight", 1, (1, 4))]
    with torch.no_grad():  # the last product puts those channels out, which the cut model does not
        expected = masked_run(model, inputs, readers)[:, kept]
        assert relative_gap(expected, small(*inputs)) < EXACT
        assert relative_gap(masked_run(model, inputs, readers[1:])[:, kept], small(*inputs)) > 1e-3
    state = masked_run(model, inputs, [Removed("w", 0, (2,))])
    other = [inputs[0].index_fill(1, torch.tensor([2]), 0)]
    assert relative_gap(state, model(*other)) < EXACT


def test_layers_whose_forward_is_never_called() -> None:
    """nn.MultiheadAttention reads out_proj.weight itself; the columns of the last head are zeroed instead."""
    torch.manual_seed(0)
    model = nn.MultiheadAttention(6, 2, batch_first=True).double().eval()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    found = masked_run(model, [x, x, x], [Removed("out_proj.weight", 1, (3, 4, 5))])
    q, k, v = (t.view(2, 5, 2, 3).transpose(1, 2) for t in F.linear(x, model.in_proj_weight).chunk(3, dim=-1))
    heads = F.scaled_dot_product_attention(q, k, v)[:, 0]
    assert relative_gap(heads @ model.out_proj.weight[:, :3].T + model.out_proj.bias, found[0]) < EXACT


def test_columns_of_grouped_convolutions() -> None:
    model = redrawn(nn.Sequential(nn.Conv1d(6, 4, 3, groups=2)))
    x = torch.randn(2, 6, 7, dtype=torch.float64)
    found = masked_run(model, [x], [Removed("0.weight", 1, (2,))])
    assert relative_gap(model(x.index_fill(1, torch.tensor([2, 5]), 0)), found) < EXACT


def test_readers_without_a_parameter() -> None:
    model = redrawn(nn.Sequential(nn.Linear(3, 5), nn.Softplus(), nn.Softmax(dim=1)))
    x = torch.randn(4, 3, dtype=torch.float64)
    found = masked_run(model, [x], [], silenced=[Removed("1", 1, (0, 2))])
    assert relative_gap(F.softmax(F.softplus(model[0](x)).index_fill(1, torch.tensor([0, 2]), 0), dim=1), found) == 0


@pytest.mark.parametrize(
    ("norm", "small"),
    [
        (nn.LayerNorm(6), nn.LayerNorm(4)),
        (nn.LayerNorm((6, 5, 5), bias=False), nn.LayerNorm((4, 5, 5), bias=False)),
        (nn.RMSNorm((6, 5, 5)), nn.RMSNorm((4, 5, 5))),
        (nn.GroupNorm(1, 6, eps=0.1), nn.GroupNorm(1, 4, eps=0.1)),
    ],
    ids=["layer", "layer3", "rms", "group"],
)
def test_statistics_over_the_kept_channels(norm: nn.Module, small: nn.Module) -> None:
    model = redrawn(nn.Sequential(norm))
    kept = torch.tensor([0, 2, 3, 5])
    axis = 1 if norm.weight.dim() == 3 or isinstance(norm, nn.GroupNorm) else 3
    x = torch.randn((2, 6, 5, 5) if axis == 1 else (2, 5, 5, 6), dtype=torch.float64)
    found = masked_run(model, [x], [], norms=[Removed("0.weight", 0, (1, 4))])
    small.double().load_state_dict({name: value[kept] for name, value in norm.state_dict().items()})
    assert relative_gap(small(x.index_select(axis, kept)), found.index_select(axis, kept)) < EXACT
    assert relative_gap(model(x).index_select(axis, kept), found.index_select(axis, kept)) > 1e-3


def test_what_is_impossible_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.GroupNorm(5, 5))
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"'0.weight' has 3 indices along 1, not \[1, 1\]"):
        masked_run(model, [x], [Removed("0.weight", 1, (1, 1))])
    with pytest.raises(ValueError, match=r"'0.weight' has 3 indices along 1, not \[3\]"):
        masked_run(model, [x], [Removed("0.weight", 1, (3,))])
    with pytest.raises(ValueError, match=r"Sequential has no tensor '7.weight'"):
        masked_run(model, [x], [Removed("7.weight", 1, (0,))])
    with pytest.raises(ValueError, match=r"'1.weight' belongs to a GroupNorm that does not norm over all channels"):
        masked_run(model, [x], [], norms=[Removed("1.weight", 0, (0,))])


def test_gaps_of_results_that_cannot_be_compared() -> None:
    one = torch.ones(2)
    for other in (torch.ones(3), torch.ones(2).double(), torch.tensor([1.0, torch.nan]), [one, one], []):
        assert relative_gap(one, other) == float("inf")
    assert relative_gap([one, torch.tensor([1, 2])], (one, torch.tensor([1, 3]))) == float("inf")
    assert relative_gap({"a": one * 4, "b": None}, {"a": one * 3, "b": None}) == 0.25


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo_is_the_same_at_every_call(name: str) -> None:
    """Models and inputs are reproducible, leave the RNG alone, take other batch sizes and answer to their input."""
    torch.manual_seed(sum(name.encode()) + 1)
    states = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())  # noqa: NPY002
    (model, inputs), (again, _) = build(name), build(name)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    other = fresh(inputs, 3, seed=1)
    with torch.no_grad():
        result, second = model(*other), masked_run(model, other, [])
        assert relative_gap(result, second) < EXACT
        assert relative_gap(result, model(*fresh(inputs, 3, seed=2))) > 1e-6
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (np.random.get_state()[1].tolist(), random.getstate())  # noqa: NPY002


def test_the_zoo_is_large() -> None:
    assert len(ZOO) >= 50
