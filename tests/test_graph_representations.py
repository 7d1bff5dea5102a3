"""Representations are read from the captured graph: at the said place, unit by unit, for any number of samples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from traced_models import Attention, Functional, Residual

from simkit import pruning as P
from simkit.graph import trace
from simkit.pruning.representations import Source, home_of, representations

pytestmark = pytest.mark.usefixtures("one_thread")


def read(model: nn.Module, x: Tensor, name: str, *, pre: bool = False, example: Tensor | None = None) -> Tensor:
    shown = x[:2] if example is None else example
    graph = trace(model, shown)
    found = next(one for one in graph.groups if one.name == name)
    views = {name: found.pre if pre else found.post}
    ((_, value),) = representations(Source(model, graph, shown), [found], views, [x])
    return value


@pytest.mark.parametrize("samples", [1, 2, 3, 300])  # fewer than, as many as, and more than the example's and a batch
def test_the_representation_is_read_after_batch_norm_and_activation(samples: int) -> None:
    torch.manual_seed(0)
    model = Functional().eval()
    x = torch.randn(samples, 1, 8, 8)
    with torch.no_grad():
        before = model.bn1(model.conv1(x))
        conv1 = torch.relu(before)
        linear2 = model.conv2(functional.max_pool2d(conv1, 2))
        conv2 = torch.relu(linear2)
        flat = functional.adaptive_avg_pool2d(conv2, 2).flatten(1)
        fc1 = torch.sigmoid(model.bn2(model.prelu(model.fc1(flat))) * 2)
    example = torch.zeros(2, 1, 8, 8)
    for name, pre, expected in (
        ("conv1", False, conv1),
        ("conv1", True, before),
        ("conv2", False, conv2),
        ("conv2", True, linear2),
        ("fc1", False, fc1),
    ):
        value = read(model, x, name, pre=pre, example=example)
        torch.testing.assert_close(value, expected.reshape(samples, expected.shape[1], -1))


def test_a_representation_stays_on_a_device_that_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4000 * (1 + device.index), 10**6))
    host, first, second = torch.device("cpu"), torch.device("cuda", 0), torch.device("cuda", 1)
    assert home_of(first, 1000) == first
    assert home_of(first, 1001) == host
    assert home_of(second, 2000) == second
    assert home_of(host, 0) == host
    assert home_of(torch.device("meta"), 1) == host
    asked: list[int] = []
    monkeypatch.setattr(
        "simkit.pruning.representations.home_of",
        lambda device, size: asked.append(size) or torch.device("meta"),
    )
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    assert read(model, torch.randn(300, 3), "0").device.type == "meta"
    assert asked == [4 * 300 * 5]


def test_an_activation_after_pooling_belongs_to_the_representation() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.ReLU(), nn.Linear(12, 2)).eval()
    x = torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(read(model, x, "0"), model[:4](x).detach().reshape(5, 3, 4))


def test_the_representation_of_tokens_and_heads_has_units_second() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    x = torch.randn(4, 7, 3)
    torch.testing.assert_close(read(model, x, "0"), model[:2](x).detach().movedim(2, 1))
    heads = Attention(plain=True).eval()
    y = torch.randn(4, 7, 5)
    with torch.no_grad():
        q, k, v = heads.qkv(y).view(4, 7, 3, 3, 2).permute(2, 0, 3, 1, 4)
        expected = functional.scaled_dot_product_attention(q, k, v, is_causal=True).reshape(4, 3, -1)
    torch.testing.assert_close(read(heads, y, "qkv"), expected)


class Mixed(nn.Module):
    """Tokens are mixed by an equation; ``out`` puts the samples where it says."""

    def __init__(self, out: str) -> None:
        super().__init__()
        self.w, self.b, self.out = nn.Parameter(torch.randn(4, 2, 5)), nn.Linear(5, 3), out

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(torch.einsum(f"nld,dhe->{self.out}", x, self.w)))


def test_samples_are_followed_through_equations() -> None:
    torch.manual_seed(0)
    model, x = Mixed("nhle").eval(), torch.randn(3, 6, 4)
    hidden = torch.relu(torch.einsum("nld,dhe->nhle", x, model.w)).detach()
    torch.testing.assert_close(read(model, x, "w#1"), hidden.movedim(3, 1).flatten(2))


def test_where_samples_cannot_be_told_the_layer_is_named() -> None:
    model, x = Mixed("hnle").eval(), torch.randn(3, 6, 4)
    with pytest.raises(ValueError, match=r"^layer 'w#1' has no representation by sample: 'relu' does not hold .*0$"):
        P.plan(model, x, data=torch.randn(9, 6, 4), amount=0.4)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (torch.randn(9, 5), r"torch.float32 \[9, 5\]: mat1 and mat2 shapes cannot be multiplied"),
        (torch.randn(9, 4).double(), r"torch.float64 \[9, 4\]: mat1 and mat2 must have the same dtype"),
    ],
)
def test_data_that_does_not_fit_is_the_users_error(data: Tensor, found: str) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    for compensate in (None, P.LeastSquares()):
        score = P.CKADamage() if compensate is None else P.L1()
        with pytest.raises(ValueError, match=rf"^the model does not run on data of {found}[^\n]*$"):
            P.plan(model, torch.zeros(2, 4), data=data, score=score, compensate=compensate)


def test_an_index_out_of_range_is_the_users_error() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    sentence = r"^the model does not run on data of torch.int64 \[9, 3\]: index out of range[^\n]*$"
    with pytest.raises(ValueError, match=sentence):
        P.plan(model, torch.zeros(2, 3, dtype=torch.int64), data=torch.full((9, 3), 5), score=P.CKADamage())


def test_the_representation_of_a_stream_is_what_its_first_reader_reads() -> None:
    torch.manual_seed(0)
    model = Residual().eval()
    x = torch.randn(3, 3, 6, 6)
    torch.testing.assert_close(read(model, x, "stem"), model.stem(x).detach().flatten(2))
