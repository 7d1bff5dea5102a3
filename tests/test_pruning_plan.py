"""Plans: exact counts, keep, rounding, global scope, errors in one sentence, strict JSON round trip."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from simkit import pruning as P

pytestmark = pytest.mark.usefixtures("one_thread")


X = torch.zeros(2, 6)
SIZE = {"module": "", "attribute": "heads", "index": None, "size": 8, "removed": [[0, 2]]}
Edit = Callable[[str], str]


def chain(*widths: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in zip((6, *widths), (*widths, 3), strict=True):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Blocks(nn.Module):
    """Two containers and a head, for names with dots."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def gone(plan: P.PruningPlan) -> dict[str, int]:
    return {name: len(units) for name, units in plan.removed.items()}


@pytest.mark.parametrize("units", [2, 3, 5, 10, 33])
@pytest.mark.parametrize("amount", [0.1, 0.25, 0.5, 0.65, 0.9])
def test_exactly_the_rounded_share_goes(units: int, amount: float) -> None:
    removed = int(round(amount * units))  # noqa: RUF046
    if 0 < removed < units:
        plan = P.plan(chain(units), X, score=P.L1(), amount=amount)
        assert gone(plan) == {"0": removed}
        assert plan["0"].kept == tuple(sorted(set(range(units)) - set(plan["0"].removed)))
    else:
        with pytest.raises(ValueError, match=r"removes nothing|removes all"):
            P.plan(chain(units), X, score=P.L1(), amount=amount)


def test_amounts_by_layer() -> None:
    plan = P.plan(chain(10, 10, 10), X, score=P.L1(), amount={"0": 0.2, "4": 0.7})
    assert gone(plan) == {"0": 2, "4": 7}
    assert {layer.name: layer.reason for layer in plan.frozen} == {
        "2": "amount leaves it whole",
        "6": "its units are the model's output",
    }


def test_keep_names_layers_and_containers() -> None:
    plan = P.plan(Blocks(), X, score=P.L1(), keep=["body"])
    assert gone(plan) == {"head.0": 2}
    assert P.plan(Blocks(), X, score=P.L1(), keep=("body.2", "head.2")).removed.keys() == {"body.0", "head.0"}
    assert "body.0: all 8 units stay: keep names it" in plan.explain()


@pytest.mark.parametrize(("round_to", "left"), [(1, 5), (4, 8), (8, 8), (3, 6)])
def test_round_to_leaves_multiples(round_to: int, left: int) -> None:
    plan = P.plan(chain(10), X, score=P.L1(), amount=0.5, round_to=round_to)
    assert len(plan["0"].kept) == left


def test_global_scope_takes_the_lowest_of_all() -> None:
    model = chain(6, 6)
    with torch.no_grad():
        model[0].weight.copy_(torch.arange(1.0, 7)[:, None].expand(6, 6))
        model[2].weight.copy_(torch.arange(3.5, 9)[:, None].expand(6, 6))
    plan = P.plan(model, X, score=P.L1(), amount=0.5, scope="global")
    assert plan.removed == {"0": (0, 1, 2, 3), "2": (0, 1)}


def test_global_scope_leaves_every_layer_one_unit_and_removes_exactly_its_share() -> None:
    model = chain(6, 6)
    with torch.no_grad():
        model[0].weight.mul_(1e-3)
    plan = P.plan(model, X, score=P.L1(), amount=0.75, scope="global")
    assert gone(plan) == {"0": 5, "2": 4}
    with pytest.raises(ValueError, match=r"amount 0.95 removes 11 of 12 units, but every layer must keep one"):
        P.plan(model, X, score=P.L1(), amount=0.95, scope="global")


def test_plans_are_deterministic_and_frozen() -> None:
    model = chain(9, 7)
    plans = [P.plan(model, X, data=torch.randn(20, 6, generator=torch.Generator().manual_seed(0))) for _ in range(2)]
    assert plans[0] == plans[1]
    with pytest.raises(dataclasses.FrozenInstanceError):
        plans[0].exact = False  # type: ignore[misc]
    with pytest.raises(KeyError, match="4"):
        plans[0]["4"]


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"amount": 1.0}, ValueError, r"amount 1.0 removes all 10 units of layer '0'; at least one must stay"),
        ({"amount": {"2": 0.99}}, ValueError, r"amount 0.99 removes all 10 units of layer '2'"),
        ({"amount": 0.0}, ValueError, r"amount 0.0 with round_to=1 removes nothing; open to removal: '0' \(10 units\)"),
        ({"amount": {}}, ValueError, r"amount {} with round_to=1 removes nothing"),
        ({"amount": 0.5, "round_to": 16}, ValueError, r"with round_to=16 removes nothing"),
        (
            {"keep": ["0", "2"]},
            ValueError,
            r"^no layer has units that can be removed: layer '0': keep names '0'; layer '2': keep names '2'; "
            r"layer '4': its units are the model's output$",
        ),
        ({"amount": -0.1}, ValueError, r"amount must be a share from 0 to 1, not -0.1"),
        ({"amount": 1.5}, ValueError, r"amount must be a share from 0 to 1, not 1.5"),
        ({"amount": float("nan")}, ValueError, r"amount must be a share from 0 to 1, not nan"),
        ({"amount": True}, ValueError, r"amount must be a share from 0 to 1, not True"),
        ({"amount": "half"}, ValueError, r"amount must be a share from 0 to 1, not 'half'"),
        ({"amount": {"0": 2}}, ValueError, r"amount\['0'\] must be a share from 0 to 1, not 2"),
        ({"amount": {"1": 0.5}}, ValueError, r"amount names '1', which is no layer of the model; near names are '"),
        ({"amount": {"4": 0.5}}, ValueError, r"amount names '4', whose units stay: its units are the model's output"),
        ({"amount": {"0": 0.5}, "keep": ["0"]}, ValueError, r"amount names '0', whose units stay: keep names '0'"),
        ({"keep": ["9"]}, ValueError, r"keep names '9', which holds no layer of the model; near names are"),
        ({"keep": "0"}, TypeError, r"keep must be a collection of names, not the string '0'"),
        ({"scope": "model"}, ValueError, r"scope must be 'layer' or 'global', not 'model'"),
        ({"scope": "global", "amount": {"0": 0.5}}, ValueError, r"amount by layer needs scope='layer'"),
        (
            {"scope": "global", "score": P.L2(normalize=False)},
            ValueError,
            r"^scope='global' does not go with L2\(normalize=False\): its scores do not compare across layers$",
        ),
        ({"budget": "hours"}, ValueError, r"budget must be one of units, params, macs, latency, not 'hours'"),
        ({"budget": "macs", "amount": {"0": 0.5}}, ValueError, r"amount by layer needs budget='units', not 'macs'"),
        ({"round_to": 0}, ValueError, r"round_to must be an integer of at least 1, not 0"),
        ({"score": "l1"}, TypeError, r"score must be a criterion such as CKADamage\(\) or L1\(\), not 'l1'"),
        ({"score": P.L1}, TypeError, r"score must be a criterion"),
    ],
)
def test_requests_that_cannot_be_met(options: dict[str, Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        P.plan(chain(10, 10), X, **{"score": P.L1(), **options})


def test_a_model_without_hidden_layers() -> None:
    sentence = "no layer has units that can be removed: the Linear itself: its units are the model's output"
    for amount in (0.5, 0.0):
        with pytest.raises(ValueError, match=f"^{sentence}$"):
            P.plan(nn.Linear(6, 2), X, score=P.L1(), amount=amount)


def test_inputs_that_are_no_tensors_are_named_by_their_type() -> None:
    for inputs, found in ((np.zeros((40, 6)), "ndarray"), ((), "an empty tuple"), ("x", "str")):
        with pytest.raises(TypeError, match=f"^example_inputs must be a tensor or a tuple of tensors, not {found}$"):
            P.plan(chain(10), inputs, score=P.L1())


def test_numpy_scalars_are_numbers() -> None:
    data = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    for plain, scalars in (
        (P.Random(3), P.Random(np.int64(3))),  # type: ignore[arg-type]
        (P.CKADamage(samples=15), P.CKADamage(samples=np.int32(15))),  # type: ignore[arg-type]
    ):
        one = P.plan(chain(9), X, data=data, score=plain, amount=0.5, round_to=2)
        other = P.plan(chain(9), X, data=data, score=scalars, amount=np.float32(0.5), round_to=np.int64(2))  # type: ignore[arg-type]
        assert other.to_json() == one.to_json()
        assert other.explain() == one.explain()


def test_unknown_names_get_near_ones() -> None:
    with pytest.raises(ValueError, match=r"keep names 'haed.0', .*near names are 'head.0'"):
        P.plan(Blocks(), X, score=P.L1(), keep=["haed.0"])


def sigmoid_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5), nn.Sigmoid(), nn.Linear(5, 2)
    )


def sigmoid_plan() -> P.PruningPlan:
    return P.plan(sigmoid_model(), torch.zeros(1, 1, 4, 4), data=torch.randn(30, 1, 4, 4), amount={"0": 0.5, "4": 0.4})


def test_json_round_trip_is_the_same_plan() -> None:
    for plan in (sigmoid_plan(), P.plan(chain(9, 7), X, score=P.Random(2), amount=0.3, scope="global", round_to=2)):
        again = P.PruningPlan.from_json(plan.to_json())
        assert again == plan
        assert again.to_json() == plan.to_json()
        assert again.explain() == plan.explain()


def test_explain_says_what_goes_what_stays_and_what_it_saves() -> None:
    text = sigmoid_plan().explain()
    for part in (
        "CKADamage(reduce='flatten', samples=2000, mode='greedy', estimator='biased', activation='post', ",
        "0: 3 of 6 units removed, scores",
        "6: all 2 units stay: its units are the model's output",
        "parameters 209 -> ",
        "MACs per sample 346 -> ",
        "exact: a masked unit feeds 0 to the layers that read it",
    ):
        assert part in text


def test_a_plan_says_what_it_takes_from_which_tensor() -> None:
    plan = P.plan(sigmoid_model(), torch.zeros(1, 1, 4, 4), score=P.L1(), amount={"0": 0.5})
    reader = next(slot for slot in plan["0"].slots if slot.role == "consumer")
    assert (reader.module, reader.tensor, reader.dim, reader.size) == ("4", "4.weight", 1, 24)
    assert reader.positions == tuple(4 * unit + place for unit in sorted(plan["0"].removed) for place in range(4))
    assert sorted(reader.positions + reader.kept) == list(range(24))
    assert all(start % 4 == stop % 4 == 0 for start, stop in reader.removed)


class Coupled(nn.Module):
    """A residual stream of eight channels, normalised before it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.norm, self.head = (
            nn.Linear(6, 8),
            nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 8)),
            nn.LayerNorm(8),
            nn.Linear(8, 3),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head(self.norm(x + self.block(x)))


def test_coupled_layers_are_named_by_their_first() -> None:
    torch.manual_seed(0)
    model = Coupled()
    assert gone(P.plan(model, X, score=P.L1())) == {"stem": 4, "block.0": 2}
    assert gone(P.plan(model, X, score=P.L1(), keep=["block.2"])) == {"block.0": 2}
    with pytest.raises(ValueError, match=r"amount names 'block\.2', which is coupled with 'stem': name that"):
        P.plan(model, X, score=P.L1(), amount={"block.2": 0.5})


def test_approximate_removal_is_labelled_with_its_reason() -> None:
    torch.manual_seed(0)
    plan = P.plan(Coupled(), X, score=P.L1())
    reason = "the statistics of 'layer_norm' in module 'norm' run over the channels"
    assert (plan.exact, plan.exact_reason) == (False, reason)
    assert {layer.name: layer.approximate for layer in plan.layers} == {"stem": reason, "block.0": None}
    assert plan.explain().endswith(f"approximate: {reason}")
    assert P.plan(Coupled(), X, score=P.L1(), keep=["stem"]).exact


@pytest.fixture(scope="module")
def saved() -> str:
    return sigmoid_plan().to_json()


def edited(change: dict[str, Any] | None = None, layer: dict[str, Any] | None = None, **slot: Any) -> Edit:
    def edit(text: str) -> str:
        data = json.loads(text)
        data["layers"][0]["slots"][0].update(slot)
        data["layers"][0].update(layer or {})
        return json.dumps({**data, **(change or {})})

    return edit


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda text: text[:-1], "must be JSON"),
        (lambda text: "[]", "must be a JSON object with format 'simkit pruning plan 2'"),
        (edited({"format": "other"}), "must be a JSON object with format"),
        (edited({"colour": 1}), "invalid at colour"),
        (edited({"exact": "yes"}), "invalid at exact"),
        (edited({"params_after": 1.5}), "invalid at params_after"),
        (edited({"scope": "world"}), "invalid at scope"),
        (edited({"layers": []}), "must remove at least one unit"),
        (edited(layer={"removed": [1, 1, 2]}), "must remove distinct units below 6"),
        (edited(layer={"removed": [0, 1, 6]}), "must remove distinct units below 6"),
        (edited(layer={"removed": [0, 1, -1]}), "must remove distinct units below 6"),
        (edited(layer={"removed": [], "scores": []}), "must lose some of its 6 units but not all, not 0"),
        (edited(layer={"removed": [0, 1, 2, 3, 4, 5]}), "must lose some of its 6 units but not all, not 6"),
        (edited(layer={"scores": [0.5]}), "has 1 scores for 3 units"),
        (edited(layer={"scores": [0.1, 0.2, float("nan")]}), "invalid at layers.0.scores.2"),
        (edited(layer={"name": "6"}), "layer '6' is decided twice"),
        (edited(layer={"note": ""}), "invalid at layers.0.note"),
        (edited({"exact": False}), "exact=False contradicts what the layers say"),
        (edited(layer={"approximate": "norm"}), "exact=True contradicts what the layers say"),
        (edited(removed=[]), "impossible slot"),
        (edited(removed=[[0, 6]]), "impossible slot"),
        (edited(removed=[[0, 2], [2, 3]]), "impossible slot"),
        (edited(removed=[[3, 5], [0, 1]]), "impossible slot"),
        (edited(removed=[[2, 2]]), "impossible slot"),
        (edited(removed=[[4, 7]]), "impossible slot"),
        (edited(removed=[0, 1]), r"invalid at layers.0.slots.0.removed.0"),
        (edited(dim=-1), "impossible slot"),
        (edited(size=0), "impossible slot"),
        (edited(tensor=""), "impossible slot"),
        (edited(layer={"sizes": [{**SIZE, "attribute": "__class__"}]}), "impossible size attribute"),
        (edited(layer={"sizes": [{**SIZE, "index": -1}]}), "impossible size attribute"),
        (edited(layer={"sizes": [{**SIZE, "removed": [[0, 9]]}]}), "impossible size attribute"),
        (edited(layer={"sizes": [{**SIZE, "size": "8"}]}), "invalid at layers.0.sizes.0.size"),
        (edited(role="friend"), "invalid at layers.0.slots.0.role"),
        (edited(extra=1), "invalid at layers.0.slots.0.extra"),
    ],
)
def test_from_json_checks_everything(edit: Edit, sentence: str, saved: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        P.PruningPlan.from_json(edit(saved))
