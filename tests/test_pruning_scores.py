"""What goes first: L1, random and CKA damage against brute force."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import simkit as sk
from simkit import pruning as P
from simkit.pruning import representations

pytestmark = pytest.mark.usefixtures("one_thread")


FloatArray = npt.NDArray[np.float64]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 5, 3),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(45, 6),
        nn.ReLU(),
        nn.Linear(6, 3),
    )
    for _ in range(3):
        model(torch.randn(20, 1, 8, 8))
    return model.double()


@pytest.fixture
def data() -> Tensor:
    return torch.randn(50, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def cka(x: FloatArray, y: FloatArray) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    return float((y.T @ x).ravel() @ (y.T @ x).ravel() / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y))


def brute_force(blocks: FloatArray, count: int, mode: str) -> tuple[list[int], list[float]]:
    """Blocks [n, units, positions]: try every removal at every step (greedy), or rank by the first step only."""
    n, units, _ = blocks.shape
    whole = blocks.reshape(n, -1)

    def without(gone: list[int]) -> float:
        return cka(whole, np.delete(blocks, gone, axis=1).reshape(n, -1))

    order: list[int] = []
    first = [without([unit]) for unit in range(units)]
    for _ in range(count):
        left = [unit for unit in range(units) if unit not in order]
        order.append(max(left, key=lambda u: without([*order, u]) if mode == "greedy" else first[u]))
    return order, [1 - without(order[: k + 1]) for k in range(count)]


@pytest.mark.parametrize("mode", ["greedy", "oneshot"])
@pytest.mark.parametrize("reduce", ["flatten", "positions"])
def test_cka_damage_equals_brute_force_on_post_activations(mode: str, reduce: str, data: Tensor) -> None:
    model = network().eval()
    plan = P.plan(model, data[:2], data=data, score=P.CKADamage(reduce=reduce, mode=mode), amount=0.6)
    with torch.no_grad():
        values = {"0": model[:3](data).flatten(2).numpy(), "5": model[:7](data)[:, :, None].numpy()}
    for name, blocks in values.items():
        if reduce == "positions":
            blocks = blocks.transpose(0, 2, 1).reshape(-1, blocks.shape[1])[:, :, None]
        order, damage = brute_force(blocks, len(plan[name].removed), mode)
        assert list(plan[name].removed) == order
        np.testing.assert_allclose(plan[name].scores, damage, atol=1e-9)


def test_silent_units_go_first_and_do_no_damage(data: Tensor) -> None:
    model = network().eval()
    with torch.no_grad():
        model[5].weight[4] = 0
        model[1].weight[2] = 0
        model[1].bias[2] = -1
        silent = torch.nonzero(model[:7](data).std(0) == 0).flatten().tolist()
    assert 4 in silent
    plan = P.plan(model, data[:1], data=data, amount={"0": 0.2, "5": len(silent) / 6})
    assert (plan["0"].removed, plan["5"].removed) == ((2,), tuple(silent))
    assert max(plan["0"].scores + plan["5"].scores) < 1e-15


def test_l1_is_the_sum_of_absolute_weights_and_ties_go_to_the_lowest_index() -> None:
    model = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 0], [1, -1], [0, 2], [-2, 0], [9, 9]]))
    plan = P.plan(model, torch.zeros(1, 2), score=P.L1(), amount=0.8)
    assert plan["0"].removed == (1, 2, 3, 0)
    assert plan["0"].scores == (2.0, 2.0, 2.0, 3.0)


def test_non_finite_weights_are_named() -> None:
    model = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 1))
    with torch.no_grad():
        model[0].weight[3, 1] = torch.nan
    with pytest.raises(ValueError, match="unit 3 of layer '0' has a non-finite weight"):
        P.plan(model, torch.zeros(1, 2), score=P.L1())


def test_random_is_one_order_per_seed_and_layer() -> None:
    model = nn.Sequential(nn.Linear(2, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
    x = torch.zeros(1, 2)
    small, large = (P.plan(model, x, score=P.Random(5), amount=amount) for amount in (0.25, 0.5))
    for layer in small.layers:
        assert large[layer.name].removed[: len(layer.removed)] == layer.removed
    assert small["0"].removed != small["2"].removed
    assert small.removed == P.plan(model, x, score=P.Random(5), amount=0.25).removed
    assert small.removed != P.plan(model, x, score=P.Random(6), amount=0.25).removed


def batches_of(data: Tensor, kind: str) -> object:
    pairs = TensorDataset(data, torch.zeros(len(data)))
    if kind == "loader":
        return DataLoader(pairs, batch_size=7)
    if kind == "dicts":
        return [{"x": data[:20]}, {"x": data[20:]}]
    if kind == "generator":
        return (batch for batch in data.split(13))
    return data


@pytest.mark.parametrize("kind", ["loader", "dicts", "generator"])
def test_batches_of_any_kind_give_the_same_plan_as_a_tensor(kind: str, data: Tensor) -> None:
    model = network()
    plans = [P.plan(model, data[:2], data=batches_of(data, k), score=P.CKADamage(samples=33)) for k in (kind, "tensor")]
    assert plans[0] == plans[1]
    assert plans[0] == P.plan(model, data[:2], data=data[:33], score=P.CKADamage(samples=33))


def test_the_answer_does_not_depend_on_how_layers_share_memory(data: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    whole = P.plan(model, data[:2], data=data)
    monkeypatch.setattr(representations, "HELD_BYTES", 1)
    assert P.plan(model, data[:2], data=data) == whole
    monkeypatch.setattr(representations, "BATCH", 7)
    assert P.plan(model, data[:2], data=data).removed == whole.removed


def test_no_more_samples_are_drawn_than_asked_for(data: Tensor) -> None:
    drawn = 0

    def endless() -> Iterator[Tensor]:
        nonlocal drawn
        while True:
            drawn += 1
            yield data[:10]

    P.plan(network(), data[:2], data=endless(), score=P.CKADamage(samples=25))
    assert drawn == 3


ONES = torch.ones(4, 1, 8, 8, dtype=torch.float64)


@pytest.mark.parametrize(
    ("bad", "error", "sentence"),
    [
        (None, ValueError, "CKADamage needs data="),
        (3, TypeError, "data must be a tensor or an iterable of batches, not int"),
        ([], ValueError, "data yields no batches"),
        ([torch.zeros(0, 1, 8, 8).double()], ValueError, "data holds no samples"),
        ([np.zeros((4, 1, 8, 8))], TypeError, "data must yield tensors or tuples that start with one, not ndarray"),
        ([{}], TypeError, "not NoneType"),
        (torch.tensor(1.0), ValueError, "data holds no samples"),
        (
            (ONES, ONES),
            ValueError,
            r"^data is a tuple of tensors \[4, .* and \[4, 1, 8, 8\]: pass \[\(inputs, ta",
        ),
        ([ONES, ONES[..., 1:]], ValueError, r"^data is a list of tensors .* and \[4, 1, 8, 7\]: pass \[\(inputs, targ"),
        ((ONES, torch.ones(3)), ValueError, r" and \[3\]: inputs and targets must be of as many samples$"),
        (
            [ONES, ONES[:3, ..., 1:]],
            ValueError,
            r"^data holds batches whose samples have shapes \(1, 8, 8\) and \(1, ",
        ),
    ],
)
def test_bad_data(bad: object, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        P.plan(network(), torch.zeros(1, 1, 8, 8).double(), data=bad)


@pytest.mark.parametrize("options", [{}, {"compensate": P.LeastSquares()}, {"score": P.CKADamage(reduce="positions")}])
def test_targets_are_not_run_as_inputs(data: Tensor, options: dict[str, Any]) -> None:
    """Inputs and targets are one batch, whatever else takes them; slices as ``split`` gives them are batches."""
    labels = torch.arange(len(data)) % 3
    want = P.plan(network(), data[:2], data=data, **options)
    for same in ((data, labels), [data, labels], [(data, data)], data.split(len(data) // 3), list(data.split(7))):
        assert P.plan(network(), data[:2], data=same, **options).to_json() == want.to_json()


def test_a_constant_layer_is_named(data: Tensor) -> None:
    model = network()
    with torch.no_grad():
        model[5].weight.zero_()
    with pytest.warns(sk.DegenerateWarning, match="^no unit of layer '5' varies on the data"):
        plan = P.plan(model, data[:1], data=data)
    assert plan["5"].removed == tuple(range(len(plan["5"].removed)))
    with pytest.raises(ValueError, match=r"^5 is degenerate: every feature is constant"):
        P.plan(model, data[:1], data=data, amount={"5": 0.5})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"reduce": "mean"}, "reduce must be one of flatten, positions, not 'mean'"),
        ({"mode": "lazy"}, "mode must be one of greedy, oneshot, not 'lazy'"),
        ({"estimator": "best"}, "estimator must be one of biased, debiased, not 'best'"),
        ({"activation": "both"}, "activation must be one of post, pre, not 'both'"),
        ({"samples": 3}, "samples must be an integer of at least 4, not 3"),
        ({"samples": 2.5}, "samples must be an integer of at least 4, not 2.5"),
    ],
)
def test_bad_options_of_cka_damage(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        P.CKADamage(**options)  # type: ignore[arg-type]


def test_bad_seed() -> None:
    with pytest.raises(ValueError, match="seed must be an integer of at least 0, not -1"):
        P.Random(-1)
