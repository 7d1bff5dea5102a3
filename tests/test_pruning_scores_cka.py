"""CKA damage: streams, kernels, a floor for CKA, allocation over layers."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import simkit as sk
from simkit import pruning as P
from simkit.metrics.greedy import greedy_cka_of_covariance
from simkit.pruning import representations
from simkit.pruning.scores import Ranking, Scope, Subject
from simkit.streaming.covariance import CovarianceStream

pytestmark = pytest.mark.usefixtures("one_thread")


def subject_of(model: nn.Module, data: Tensor) -> Subject:
    graph = P.trace(model, data[:2])
    return Subject(model, graph, graph.prunable, data[:2], data)


@pytest.fixture(scope="module")
def subject() -> Subject:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 7, 3), nn.BatchNorm2d(7), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(63, 9), nn.Tanh(),
        nn.Linear(9, 3),
    )  # fmt: skip
    return subject_of(model.double().eval(), torch.randn(90, 1, 8, 8, dtype=torch.float64) + 3.0)


def full(subject: Subject) -> dict[str, int]:
    return {group.name: group.units - 1 for group in subject.groups}


def close(one: Mapping[str, Ranking], other: Mapping[str, Ranking]) -> None:
    for name in one:
        assert one[name].order == other[name].order
        np.testing.assert_allclose(one[name].scores, other[name].scores, atol=1e-10)


def rows_of(subject: Subject) -> dict[str, np.ndarray]:
    """Post-activation channels ``[n, units, positions]`` of both layers."""
    with torch.no_grad():
        first = subject.model[:3](subject.data)
        return {"0": first.flatten(2).numpy(), "5": subject.model[:7](subject.data)[:, :, None].numpy()}


@pytest.mark.parametrize("mode", ["greedy", "oneshot"])
def test_streamed_positions_give_the_order_of_all_rows_at_once(subject: Subject, mode: str) -> None:
    found = P.CKADamage(reduce="positions", mode=mode).rank(subject, full(subject))  # type: ignore[arg-type]
    for name, values in rows_of(subject).items():
        rows = values.transpose(0, 2, 1).reshape(-1, values.shape[1])
        expected = sk.greedy_cka(rows, mode=mode, count=values.shape[1] - 1)
        assert found[name].order == tuple(expected.order)
        np.testing.assert_allclose(found[name].scores, expected.damage, atol=1e-12)


def test_a_stream_does_not_depend_on_its_batches(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    score = P.CKADamage(reduce="positions")
    whole = score.rank(subject, full(subject))
    loader = DataLoader(TensorDataset(subject.data, torch.zeros(90)), batch_size=7)
    assert score.rank(replace(subject, data=loader), full(subject)) == whole
    assert replace(score, samples=90).rank(replace(subject, data=iter(subject.data.split(31))), full(subject)) == whole
    monkeypatch.setattr(representations, "BATCH", 11)
    close(score.rank(subject, full(subject)), whole)


def test_a_stream_reads_all_data_once_and_holds_none(subject: Subject) -> None:
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def numbers(seed: int) -> np.ndarray:
        return np.random.default_rng(seed).standard_normal((256, 1, 8, 8))

    def batches() -> Iterator[Tensor]:
        nonlocal most
        for seed in range(8):
            array = numbers(seed)
            alive.append(weakref.ref(array))  # a tensor's memory belongs to it
            batch = torch.from_numpy(array)
            del array
            yield batch
            del batch
            most = max(most, sum(ref() is not None for ref in alive))

    found = P.CKADamage(reduce="positions").rank(replace(subject, data=batches()), {"5": 4})
    assert len(alive) == 8
    assert most <= 2
    everything = torch.from_numpy(np.concatenate([numbers(seed) for seed in range(8)]))
    assert found == P.CKADamage(reduce="positions").rank(replace(subject, data=everything), {"5": 4})
    few = P.CKADamage(reduce="positions", samples=300).rank(replace(subject, data=everything), {"5": 4})
    assert few == P.CKADamage(reduce="positions").rank(replace(subject, data=everything[:300]), {"5": 4})


def test_debiased_positions_are_held(subject: Subject) -> None:
    found = P.CKADamage(reduce="positions", estimator="debiased").rank(subject, {"0": 6})
    values = rows_of(subject)["0"]
    expected = sk.greedy_cka(values.transpose(0, 2, 1).reshape(-1, 7), estimator="debiased", count=6)
    close(found, {"0": Ranking(tuple(expected.order), tuple(expected.damage))})


@pytest.mark.parametrize("estimator", ["biased", "debiased"])
def test_units_of_several_channels_have_a_column_for_each(estimator: str) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(1, 12, 3), nn.GroupNorm(4, 12), nn.ReLU(), nn.Conv2d(12, 2, 1)).double().eval()
    data = torch.randn(20, 1, 5, 5, dtype=torch.float64)
    subject = subject_of(model, data)
    found = P.CKADamage(reduce="positions", estimator=estimator).rank(subject, {"0": 3})  # type: ignore[arg-type]
    rows = model[:3](data).detach().movedim(1, 3).reshape(-1, 12).numpy()
    expected = sk.greedy_cka(rows, units=4, estimator=estimator, count=3)
    close(found, {"0": Ranking(tuple(expected.order), tuple(expected.damage))})


def test_other_kernels_evaluate_every_candidate_on_fewer_samples(subject: Subject) -> None:
    score = P.CKADamage(kernel=sk.RBF(), samples=40)
    found = score.rank(subject, {"5": 5})
    expected = sk.greedy_cka(rows_of(subject)["5"][:40, :, 0], kernel=sk.RBF(), count=5)
    close(found, {"5": Ranking(tuple(expected.order), tuple(expected.damage))})
    assert P.CKADamage(kernel=sk.RBF()).samples == 256
    assert (P.CKADamage().samples, P.CKADamage(reduce="positions").samples) == (2000, None)


@pytest.mark.parametrize("reduce", ["flatten", "positions"])
def test_layers_stop_before_their_cka_falls_below_the_floor(subject: Subject, reduce: str) -> None:
    free = P.CKADamage(reduce=reduce).rank(subject, full(subject))["5"]  # type: ignore[arg-type]
    floor = 1.0 - (free.scores[3] + free.scores[4]) / 2
    score = P.CKADamage(reduce=reduce, min_cka=floor)  # type: ignore[arg-type]
    plan = P.plan(subject.model, subject.example_inputs, data=subject.data, score=score, amount={"5": 0.8, "0": 0.2})
    assert plan["5"].removed == free.order[:4]
    assert plan["5"].reason.endswith(f"no more, as CKA would fall from {1 - free.scores[3]:.6g} below {floor}")
    assert plan["5"].reason in plan.explain()
    with pytest.raises(ValueError, match=r"removes nothing; open to removal: .*; CKA would fall from 1 below 1.0$"):
        P.plan(
            subject.model,
            subject.example_inputs,
            data=subject.data,
            score=replace(score, min_cka=1.0),
            amount={"5": 0.8},
        )


@pytest.mark.parametrize("budget", ["units", "macs"])
def test_over_all_layers_the_least_damage_for_what_it_saves_goes_first(subject: Subject, budget: str) -> None:
    score = P.CKADamage()
    rankings = score.rank(subject, full(subject))
    gone = {"0": 0, "5": 0}

    def saved(name: str) -> float:
        more = {**gone, name: gone[name] + 1}
        counts = (subject.graph.macs({n: rankings[n].order[:k] for n, k in one.items()}) for one in (gone, more))
        before, after = counts
        return before - after if budget == "macs" else 1

    while (
        sum(gone.values()) < 6
        if budget == "units"
        else subject.graph.macs({n: rankings[n].order[:k] for n, k in gone.items()}) > 0.6 * subject.graph.macs()
    ):
        added = {
            name: (rankings[name].scores[k] - (rankings[name].scores[k - 1] if k else 0.0)) / saved(name)
            for name, k in gone.items()
            if k < len(rankings[name].order)
        }
        gone[min(added, key=lambda name: added[name])] += 1
    plan = P.plan(
        subject.model, subject.example_inputs, data=subject.data, score=score, scope="global", budget=budget,  # type: ignore[arg-type]
        amount=6 / 16 if budget == "units" else 0.4,
    )  # fmt: skip
    assert {name: len(units) for name, units in plan.removed.items()} == {n: k for n, k in gone.items() if k}
    assert all(plan.removed[name] == rankings[name].order[: gone[name]] for name in plan.removed)


def test_damage_per_multiply_add_is_that_of_brute_force() -> None:
    """No closed form, no ledger: CKA of the activations themselves, multiply-adds counted by hand."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Conv2d(5, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1)).double()
    x = torch.randn(60, 1, 7, 7, dtype=torch.float64)
    with torch.no_grad():
        maps = {"0": model[:2](x).numpy(), "2": model[:4](x).numpy()}

    def damage(name: str, kept: list[int]) -> float:
        whole = maps[name]
        return 1.0 - sk.cka(whole.reshape(60, -1), whole[:, kept].reshape(60, -1), estimator="biased")

    def macs(kept: Mapping[str, list[int]]) -> int:
        first, second = len(kept["0"]), len(kept["2"])
        return 25 * 9 * first + 9 * 9 * first * second + 9 * second * 2

    kept = {"0": list(range(5)), "2": list(range(6))}
    done = {"0": 0.0, "2": 0.0}
    total, order = macs(kept), []
    while macs(kept) > 0.5 * total:
        offers = []
        for name, units in kept.items():
            if len(units) > 1:
                after, unit = min((damage(name, [u for u in units if u != unit]), unit) for unit in units)
                fewer = {**kept, name: [u for u in units if u != unit]}
                offers.append(((after - done[name]) / (macs(kept) - macs(fewer)), name, unit, after))
        _, name, unit, after = min(offers)
        kept[name].remove(unit)
        done[name] = after
        order.append((name, unit))
    options: dict[str, Any] = {"data": x, "score": P.CKADamage(), "amount": 0.5, "budget": "macs"}
    plan = P.plan(model, x[:2], scope="global", **options)
    assert plan.macs_before == total
    assert plan.macs_after == macs(kept)
    assert plan.removed == {one: tuple(u for name, u in order if name == one) for one in dict.fromkeys(plan.removed)}
    for name, value in done.items():
        assert plan[name].scores[-1] == pytest.approx(value, abs=1e-9)
        assert f"  {name}: {len(plan[name].removed)} of {len(maps[name][0])} units removed" in plan.explain()
    # The same share of every layer's units, the least that meets the same budget.
    uniform = P.plan(model, x[:2], scope="layer", **options)
    shares = (number / 1000 for number in range(1001))
    by_share = ((round(share * 5 - 1e-9), round(share * 6 - 1e-9)) for share in shares)
    first, second = next(
        gone for gone in by_share if macs({"0": list(range(5 - gone[0])), "2": list(range(6 - gone[1]))}) <= 0.5 * total
    )
    assert [len(uniform.removed[name]) for name in maps] == [first, second]
    for layer in uniform.layers:
        assert f"  {layer.name}: {len(layer.removed)} of {layer.units} units removed" in uniform.explain()


def test_a_floor_holds_over_all_layers_too(subject: Subject) -> None:
    score = P.CKADamage(min_cka=0.99)
    allowed = score.rank(subject, full(subject))
    plan = P.plan(subject.model, subject.example_inputs, data=subject.data, score=score, scope="global", amount=0.9)
    assert plan.removed == {name: ranking.order for name, ranking in allowed.items() if ranking.order}
    free = P.CKADamage().rank(subject, full(subject))
    for layer in plan.layers:
        gone = len(layer.removed)
        assert free[layer.name].scores[gone - 1] <= 0.01 < free[layer.name].scores[gone]
        assert layer.reason.endswith(f"; no more, as CKA would fall from {1 - layer.scores[-1]:.6g} below 0.99")
    met = P.plan(subject.model, subject.example_inputs, data=subject.data, score=score, scope="global", amount=2 / 16)
    assert not any("no more" in layer.reason for layer in met.layers)


@pytest.mark.parametrize(("scope", "budget"), [("layer", "units"), ("layer", "macs"), ("global", "macs")])
def test_a_floor_holds_under_rounding_and_budgets(subject: Subject, scope: Scope, budget: Any) -> None:
    free = P.CKADamage().rank(subject, full(subject))
    floor = 1.0 - (free["0"].scores[4] + free["0"].scores[5]) / 2  # five may go
    plan = P.plan(
        subject.model, subject.example_inputs, data=subject.data, score=P.CKADamage(min_cka=floor), amount=0.8,
        scope=scope, budget=budget, round_to=3,
    )  # fmt: skip
    assert plan["0"].removed == free["0"].order[:4]  # three stay, a multiple
    if budget != "units":  # else the rounding alone stops it
        assert "no more, as CKA would fall from" in plan["0"].reason
    for layer in plan.layers:
        assert 1.0 - layer.scores[-1] >= floor


class Branches(nn.Module):
    """Two layers, of which the second never wakes up, and a dead unit in the first."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 6, 3), nn.Conv2d(1, 4, 3), nn.Conv2d(10, 2, 1)
        with torch.no_grad():
            self.a.bias[[2, 5]] = -1e3
            self.b.bias.fill_(-1e3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.cat([self.a(x).relu(), self.b(x).relu()], 1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("reduce", ["flatten", "positions"])
def test_dead_units_and_layers_go_first_and_say_so(reduce: Any, scope: Scope) -> None:
    torch.manual_seed(0)
    model, data = Branches().double().eval(), torch.randn(11, 1, 6, 6, dtype=torch.float64)
    with pytest.warns(sk.DegenerateWarning, match=r"^no unit of layer 'b' varies on the data: CKA is undefined"):
        plan = P.plan(model, data[:2], data=data, score=P.CKADamage(reduce=reduce), amount=0.5, scope=scope)
    assert plan["a"].removed[:2] == (2, 5)
    assert plan["b"].removed == ((0, 1) if scope == "layer" else (0, 1, 2))  # every layer keeps a unit
    assert "; 2 without effect on the data, which go first and by index" in plan["a"].reason
    gone = len(plan["b"].removed)
    assert f"; {gone} without effect on the data, which go first and by index" in plan["b"].reason
    assert plan["b"].scores == (0.0,) * gone
    with torch.no_grad():
        keeping = P.plan(model, data[:2], data=data, score=P.CKADamage(reduce=reduce), amount=0.34, keep=["b"])
        torch.testing.assert_close(P.apply(model, keeping, data[:2])(data), model(data))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"kernel": sk.RBF(), "reduce": "positions"}, r"kernel=RBF\(.*\) takes reduce='flatten', not 'positions'"),
        ({"min_cka": 1.5}, r"min_cka must be a number from 0 to 1, not 1.5"),
        ({"min_cka": float("nan")}, r"min_cka must be a number from 0 to 1, not nan"),
        ({"samples": 2}, r"samples must be an integer of at least 4, not 2"),
    ],
)
def test_bad_options(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        P.CKADamage(**options)  # type: ignore[arg-type]


def test_a_covariance_gives_the_order_of_its_rows_whatever_their_scale() -> None:
    rows = np.random.default_rng(0).standard_normal((300, 8)) @ np.random.default_rng(1).standard_normal((8, 8)) + 5.0
    ids = np.array([3, 0, 0, 7, 7, 3, 1, 1])
    for scale in (1.0, 1e-120, 1e120):
        stream = CovarianceStream(8)
        stream.update(rows * scale)
        for units in (None, ids):
            found = greedy_cka_of_covariance(stream.result(), units=units, count=3)
            expected = sk.greedy_cka(rows, units=units, count=3)
            assert found.order.tolist() == expected.order.tolist()
            np.testing.assert_allclose(found.cka, expected.cka, rtol=1e-12)


def test_a_covariance_of_constant_columns_or_one_row_is_refused() -> None:
    for rows, sentence in (
        (np.full((5000, 3), 0.1), r"layer.*every feature is constant"),
        (np.ones((1, 3)), r"layer has 1 rows: at least 2 are needed"),
    ):
        stream = CovarianceStream(3)
        stream.update(rows)
        with pytest.raises(ValueError, match=sentence):
            greedy_cka_of_covariance(stream.result(), name="layer")


def test_a_constant_layer_and_values_that_are_not_finite_are_refused_in_a_stream(subject: Subject) -> None:
    score = P.CKADamage(reduce="positions")
    with pytest.raises(ValueError, match=r"^0.*every feature is constant"):
        score.rank(replace(subject, data=torch.zeros(30, 1, 8, 8).double()), full(subject))
    with pytest.raises(ValueError, match="not finite"):
        score.rank(replace(subject, data=torch.full((30, 1, 8, 8), float("nan")).double()), full(subject))
