"""Masks keep exactly k, whatever the ties, within the masks before."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

from simkit import pruning as P  # noqa: E402
from simkit.errors import LayerCollapseWarning, MaskGrowth, NothingPruned  # noqa: E402
from simkit.pruning.sparse.network import Network  # noqa: E402

pytestmark = pytest.mark.usefixtures("seeded_torch")


@dataclass(frozen=True)
class Given:
    """Scores as they are given."""

    values: dict[str, Tensor]

    def weights(self, network: Network) -> dict[str, Tensor]:
        return self.values


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3))


def gone(masks: dict[str, Tensor]) -> int:
    return sum(int((~mask).sum()) for mask in masks.values())


@pytest.mark.filterwarnings("ignore::simkit.errors.LayerCollapseWarning")
@pytest.mark.parametrize("levels", [1, 2, 3, 1000])
@pytest.mark.parametrize("amount", [0.02, 0.1, 0.25, 1 / 3, 0.5, 0.77, 0.9, 0.98])
def test_ties_at_any_amount_give_exact_counts_lowest_index_first(amount: float, levels: int) -> None:
    model = mlp()
    values = {n: torch.randint(levels, p.shape) * 1.0 for n, p in model.named_parameters() if p.dim() > 1}
    masks = P.masks(model, score=Given(values), amount=amount)
    flat = torch.cat([v.flatten() for v in values.values()]).numpy()
    kept = torch.cat([m.flatten() for m in masks.values()]).numpy()
    k = round(amount * 50)
    assert gone(masks) == k
    assert set(np.flatnonzero(~kept)) == set(np.argsort(flat, kind="stable")[:k])


@pytest.mark.parametrize("amount", [0.1, 0.5, 0.9])
def test_layer_scope_takes_the_share_of_each_layer(amount: float) -> None:
    masks = P.masks(mlp(), amount=amount, scope="layer")
    assert {name: gone({name: mask}) for name, mask in masks.items()} == {
        "0.weight": round(amount * 35),
        "2.weight": round(amount * 15),
    }


def test_amounts_by_layer_and_what_is_not_named_stays() -> None:
    model = mlp()
    assert gone(P.masks(model, amount={"2": 0.4}, scope="layer")) == 6
    masks = P.masks(model, amount={"0.weight": 0.2, "2": 0.4}, scope="layer")
    assert [gone({name: mask}) for name, mask in masks.items()] == [7, 6]


def test_masks_nest_round_after_round() -> None:
    model, previous = mlp(), None
    for step, amount in enumerate([0.2, 0.4, 0.6, 0.9], 1):
        masks = P.masks(model, score=P.Random(step), amount=amount, previous=previous)
        assert gone(masks) == round(amount * 50)
        for name in masks if previous else ():
            assert not (masks[name] & ~previous[name]).any()
        previous = masks


def test_the_masked_model_is_scored_and_the_callers_is_left_alone() -> None:
    model = mlp()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen: list[Tensor] = []

    class Look:
        def weights(self, network: Network) -> dict[str, Tensor]:
            seen.append(network.weights["0.weight"].detach().clone())
            torch.rand(3)
            return {name: weight.detach().abs() for name, weight in network.weights.items()}

    first = P.masks(model, amount=0.5)
    state = torch.get_rng_state()
    P.masks(model, score=Look(), amount=0.7, previous=first)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(seen[0], before["0.weight"] * first["0.weight"])
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_magnitude_is_the_brute_force_of_a_sort() -> None:
    model = mlp()
    masks = P.masks(model, amount=0.3)
    flat = torch.cat([p.detach().abs().flatten() for n, p in model.named_parameters() if p.dim() > 1])
    threshold = flat.sort().values[15]
    for name, mask in masks.items():
        assert torch.equal(mask, model.get_parameter(name).abs() >= threshold)


def test_thresholds_take_what_lies_below() -> None:
    model = mlp()
    masks = P.masks(model, amount=P.Threshold(0.2))
    for name, mask in masks.items():
        assert torch.equal(mask, model.get_parameter(name).abs() >= 0.2)


def test_distribution_is_the_distance_to_the_mean_of_the_layer() -> None:
    model = mlp()
    with torch.no_grad():
        model[0].weight.add_(5.0)
    masks = P.masks(model, score=P.Distribution(), amount=P.Threshold(0.1))
    for name, mask in masks.items():
        weight = model.get_parameter(name).double()
        assert torch.equal(mask, (weight - weight.mean()).abs() >= 0.1)
    masks = P.masks(model, score=P.Distribution(standardize=True), amount=P.Threshold(1.0))
    weight = model[0].weight.double()
    assert torch.equal(masks["0.weight"], (weight - weight.mean()).abs() / weight.std(correction=0) >= 1.0)


def test_only_weights_of_layers_are_open_and_keep_leaves_layers_whole() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    assert list(P.masks(model, amount=0.5)) == ["0.weight", "3.weight"]
    assert list(P.masks(model, amount=0.5, keep=["3"])) == ["0.weight"]
    assert list(P.masks(model, amount=0.5, parameters=["1.weight"], score=P.Random())) == ["1.weight"]


def test_random_is_the_same_by_seed_and_differs_between_seeds() -> None:
    model = mlp()
    first, again, other = (P.masks(model, score=P.Random(seed), amount=0.5) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_random_keeps_every_weight_equally_often() -> None:
    model = nn.Linear(4, 4)
    kept = sum(P.masks(model, score=P.Random(seed), amount=0.5)["weight"].double() for seed in range(400))
    assert (kept / 400 - 0.5).abs().max() < 0.12  # 4.8 standard deviations


def test_collapse_is_warned_of_by_name() -> None:
    model = mlp()
    with torch.no_grad():
        model[2].weight.mul_(1e-6)
    with pytest.warns(LayerCollapseWarning, match=r"no weight is left of '2\.weight' \(15\)"):
        P.masks(model, amount=0.5)


def test_nothing_pruned_is_an_error() -> None:
    model = mlp()
    with pytest.raises(NothingPruned, match=r"amount=0\.001 would prune nothing: all 50 weights"):
        P.masks(model, amount=0.001)
    first = P.masks(model, amount=0.5)
    with pytest.raises(NothingPruned, match="all 25 weights that are left stay"):
        P.masks(model, amount=0.5, previous=first)


def test_growth_is_an_error() -> None:
    model = mlp()
    first = P.masks(model, amount=0.5)
    with pytest.raises(MaskGrowth, match=r"25 of 50 weights are gone already: only 10 gone would revive 15"):
        P.masks(model, amount=0.2, previous=first)


BAD: list[tuple[Callable[[nn.Module], object], type[Exception], str]] = [
    (lambda m: P.masks(m, amount=1.5), ValueError, r"amount must be a share from 0 to 1, not 1\.5"),
    (lambda m: P.masks(m, amount="half"), ValueError, "not 'half'"),
    (lambda m: P.masks(m, scope="all"), ValueError, "scope must be 'global' or 'layer', not 'all'"),
    (lambda m: P.masks(m, amount={"0": 0.5}), ValueError, "amount by layer needs scope='layer'"),
    (lambda m: P.masks(m, amount={"9": 0.5}, scope="layer"), ValueError, "amount names '9', which is no open weight"),
    (lambda m: P.masks(m, amount={"0": 0.5, "0.weight": 0.1}, scope="layer"), ValueError, "'0.weight' twice"),
    (lambda m: P.masks(m, amount={"0": 2}, scope="layer"), ValueError, r"amount\['0'\] must be a share"),
    (lambda m: P.masks(m, score=P.Magnitude), TypeError, "score must be a criterion for weights"),
    (lambda m: P.masks(m, score=P.BNScale()), TypeError, r"not BNScale\(\)"),
    (lambda m: P.masks(m, keep=["nine"]), ValueError, "keep names 'nine', which holds no parameter"),
    (lambda m: P.masks(m, keep="0"), TypeError, "keep must be a collection of names, not the string '0'"),
    (lambda m: P.masks(m, keep=["0", "2"]), ValueError, "Sequential has no weights that can be pruned"),
    (lambda m: P.masks(m, parameters=["0.w"]), ValueError, "parameters names '0.w', which is no parameter"),
    (lambda m: P.masks(m, previous={"0.weight": torch.ones(2)}), TypeError, "must be a bool tensor, not torch.float32"),
    (lambda m: P.masks(m, previous={"0.weight": torch.ones(2) > 0}), ValueError, r"shape \(2,\), not \(5, 7\)"),
    (lambda m: P.masks(m, previous={"x": torch.ones(2) > 0}), ValueError, "name 'x', which is no parameter"),
    (lambda m: P.masks(m, previous=[]), TypeError, "masks must be a mapping of parameter names, not list"),
    (lambda m: P.masks(m, score=Given({})), ValueError, r"scores of shape None, not \(5, 7\)"),
    (lambda m: P.Threshold(float("nan")), ValueError, "a threshold must be a finite number, not nan"),
    (lambda m: P.Random(-1), ValueError, "seed must be an integer of at least 0, not -1"),
]


@pytest.mark.parametrize(("call", "kind", "text"), BAD)
def test_mistakes_get_one_sentence(call: Callable[[nn.Module], object], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        call(mlp())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_named(bad: float) -> None:
    model = mlp()
    with torch.no_grad():
        model[2].weight[1, 3] = bad
    with pytest.raises(ValueError, match=rf"the score of 2\.weight\[1, 3\] is {bad}"):
        P.masks(model)


@pytest.mark.parametrize(
    ("schedule", "rounds"), [*itertools.product(["exponential", "linear", "cubic"], [1, 2, 5, 13])]
)
def test_schedules_rise_to_the_amount(schedule: str, rounds: int) -> None:
    from simkit.pruning.sparse import amounts

    found = amounts(schedule, rounds, 0.9)
    assert len(found) == rounds
    assert found[-1] == 0.9
    assert all(a < b for a, b in itertools.pairwise((0.0, *found)))
    formula = {
        "exponential": lambda t: 1 - 0.1**t,
        "linear": lambda t: 0.9 * t,
        "cubic": lambda t: 0.9 - 0.9 * (1 - t) ** 3,
    }[schedule]
    np.testing.assert_allclose(found, [formula((r + 1) / rounds) for r in range(rounds)], rtol=1e-12)


def test_iterative_schedules_take_their_share_of_what_is_left() -> None:
    from simkit.pruning.sparse import amounts

    np.testing.assert_allclose(amounts(P.Iterative(0.2), 3, None), [0.2, 0.36, 0.488], rtol=1e-12)
    np.testing.assert_allclose(amounts(P.Iterative(0.2), 3, 0.4), [0.2, 0.36, 0.4], rtol=1e-12)
    with pytest.raises(ValueError, match=r"2 rounds of Iterative\(share=0\.2\) remove 0\.36, which does not reach"):
        amounts(P.Iterative(0.2), 2, 0.5)
    with pytest.raises(ValueError, match="prunes in one round, not 2"):
        amounts("one-shot", 2, 0.5)
    with pytest.raises(ValueError, match=r"schedule must rise to 0\.5 in 2 rounds, not \[0\.3, 0\.2\]"):
        amounts([0.3, 0.2], 2, 0.5)
    with pytest.raises(ValueError, match=r"LinearSteps\(\) needs amount=, the share that is gone in the end"):
        amounts("linear", 2, None)
    with pytest.raises(
        ValueError, match=r"Iterative\(share=0\.2\) removes nothing in round 4 of 5: 0\.4 is gone already"
    ):
        amounts("iterative", 5, 0.4)
    with pytest.raises(ValueError, match=r"schedule must list a share for every round, not \[\]"):
        amounts([], 1, None)
    with pytest.raises(ValueError, match="rounds must be an integer of at least 1, not 0"):
        amounts("linear", 0, 0.5)
    with pytest.raises(ValueError, match="schedule must be one of exponential, linear"):
        amounts("fast", 2, 0.5)
    assert amounts([0.1, 0.5], 2, None) == (0.1, 0.5)


@settings(deadline=None, max_examples=200)
@given(st.data())
@pytest.mark.filterwarnings("ignore::simkit.errors.LayerCollapseWarning")
def test_counts_are_exact_for_any_scores_amounts_and_earlier_masks(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    levels = data.draw(st.integers(1, 4))
    scores = {
        f"{n}": torch.tensor(data.draw(st.lists(st.integers(0, levels), min_size=size, max_size=size))) / 1.0
        for n, size in enumerate(sizes)
    }
    model = nn.ParameterDict({name: nn.Parameter(torch.zeros(len(values))) for name, values in scores.items()})
    scope = data.draw(st.sampled_from(["global", "layer"]))
    previous: dict[str, Tensor] | None = None
    for amount in sorted(data.draw(st.lists(st.floats(0, 1), min_size=1, max_size=3))):
        rest = {"scope": scope, "amount": amount, "parameters": list(scores), "previous": previous}
        parts = [len(values) for values in scores.values()] if scope == "layer" else [sum(sizes)]
        before = 0 if previous is None else gone(previous)
        wanted = sum(round(amount * part) for part in parts)
        if wanted == before:
            with pytest.raises(NothingPruned):
                P.masks(model, score=Given(scores), **rest)
            continue
        masks = P.masks(model, score=Given(scores), **rest)
        assert gone(masks) == wanted
        assert all(not (masks[name] & ~previous[name]).any() for name in masks if previous is not None)
        previous = masks
