"""Structured pruning on every architecture of the zoo, judged by an oracle that knows nothing of the code that cuts."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from masking_oracle import Removed, masked_run, relative_gap, tensors
from plan_view import Cut, cuts, groups, reasons_for, stays
from torch import Tensor, nn
from watch import Watch, sized, ties
from zoo import ZOO, build, cast, fresh
from zoo_units import MUST, SILENT, STAY

from simkit import pruning as P

PLAN = importlib.import_module("simkit.pruning.plan")  # the package gives this name to the function
EXACT = 1e-10  # of the largest value of an output, in float64


@dataclass(frozen=True)
class Case:
    """What is asked for; ``exact`` leaves out the groups that are labelled approximate.

    ``bare``: from a graph that is traced once for each architecture, and cut without the check of ``apply``.
    """

    name: str
    score: str = "L1"
    amount: float = 0.3
    scope: str = "layer"
    round_to: int = 1
    exact: bool = False
    bare: bool = False

    def __str__(self) -> str:
        exact = "-exact" if self.exact else ""
        return f"{self.name}-{self.score}-{self.amount}-{self.scope}-{self.round_to}{exact}"


@dataclass(frozen=True)
class Pruned:
    """What came of it: a reason, or a plan and the cut model."""

    inputs: tuple[Any, ...]
    graph: Any
    refusal: str
    plan: Any
    small: nn.Module | None
    changed: list[str]


pytestmark = pytest.mark.usefixtures("one_thread")


@functools.lru_cache(maxsize=4)
def traced(name: str) -> Any:
    return P.trace(*build(name))


@functools.lru_cache(maxsize=256)
def pruned(case: Case) -> Pruned:
    """Trace, plan and cut; what is refused is kept as its sentence."""
    model, inputs = build(case.name)
    watch = Watch(model)
    graph, plan, small, refusal = None, None, None, ""
    try:
        graph = traced(case.name) if case.bare else P.trace(model, inputs)
        with mock.patch.object(PLAN, "trace", return_value=graph) if case.bare else contextlib.nullcontext():
            plan = make_plan(case, model, inputs, graph)
        small = P.apply(model, plan, inputs, verify=not case.bare)
    except NotImplementedError as error:
        refusal = str(error)
    except ValueError as error:
        if not re.match(r"no layer has units that can be removed|amount .* removes nothing", str(error)):
            raise
        refusal = str(error)
    return Pruned(inputs, graph, refusal, plan, small, watch.changes())


def make_plan(case: Case, model: nn.Module, inputs: tuple[Any, ...], graph: Any) -> Any:
    score = {"L1": P.L1(), "Random": P.Random(seed=5)}[case.score]
    keep = [group.name for group in groups(graph) if case.exact and group.approximate is not None]
    options: dict[str, Any] = {"scope": case.scope, "round_to": case.round_to, "keep": keep}
    return P.plan(model, inputs, score=score, amount=case.amount, **options)


def removal(case: Case, units: int) -> int:
    """int(round(amount * n)) units, fewer where a multiple of round_to is to be left."""
    left = units - int(round(case.amount * units))  # noqa: RUF046
    return units - min(math.ceil(left / case.round_to) * case.round_to, units)


def cut_or_skip(case: Case) -> tuple[Pruned, nn.Module]:
    result = pruned(case)
    if result.small is None:
        assert not MUST[case.name], result.refusal
        pytest.skip(f"refused: {result.refusal[:120]}")
    return result, result.small


def marked(cases: list[Case]) -> list[Any]:
    """Cases as parameters; those of models that take a second, and have smaller relatives here, are slow."""
    return [pytest.param(case, id=str(case), marks=[pytest.mark.slow] if case.name in HEAVY else []) for case in cases]


HEAVY = {
    "inception",
    "mobilenet_v3",
    "resnet18",
    "resnet20_projected",
    "resnet56_padded",
    "resnet56_projected",
    "resnet_bottleneck",
    "transformer_decoder",
    "transformer_encoder_post_norm",
    "vgg16_bn",
    "vit_native",
}
FAST = marked([Case(name) for name in ZOO])
BOTH = marked([Case(name, exact=exact) for name in ZOO for exact in (False, True)])
SWEEP = [
    Case(name, score, amount, scope, round_to, exact, bare=True)
    for name in ZOO
    for score, amount, scope, round_to in [
        *[(s, a, w, 1) for s in ("L1", "Random") for a in (0.3, 0.6) for w in ("layer", "global")],
        ("L1", 0.6, "layer", 2),
        ("Random", 0.5, "global", 3),
    ]
    for exact in (False, True)
]


def has_approximate(case: Case) -> bool:
    graph = pruned(replace(case, exact=False)).graph
    return any(group.approximate is not None and group.frozen is None for group in groups(graph))


def consumed(found: tuple[Cut, ...]) -> list[Removed]:
    return list(dict.fromkeys(cut.removed for cut in found if cut.role == "consumer"))


def silenced(name: str, found: tuple[Cut, ...]) -> list[Removed]:
    gone = {(cut.removed.name, cut.removed.dim): cut.removed.positions for cut in found}
    rows = [(silent, gone.get((silent.tensor, 0), ())) for silent in SILENT.get(name, ())]
    return [Removed(silent.module, silent.dim, positions) for silent, positions in rows if positions]


def normed(model: nn.Module, found: tuple[Cut, ...]) -> list[Removed]:
    """Scales of the norms whose statistics run over channels of which some go."""

    def mixes(removed: Removed) -> bool:
        norm = model.get_submodule(removed.module)
        one = isinstance(norm, nn.GroupNorm) and norm.num_groups == 1
        return removed.name.endswith("weight") and (one or isinstance(norm, nn.LayerNorm | nn.RMSNorm))

    return list(dict.fromkeys(cut.removed for cut in found if mixes(cut.removed)))


def check_outputs(case: Case) -> None:
    """The cut model puts out what the masked one does, on the example's inputs and on others.

    Exact plans are held to the oracle itself, approximate ones to the oracle with norms over the kept channels.
    """
    skip_twins(case)
    result, small = cut_or_skip(case)
    model, _ = build(case.name)
    found = cuts(result.plan)
    assert result.plan.exact == all(cut.exact for cut in found)
    assert result.plan.exact or not case.exact
    norms = [] if result.plan.exact else normed(model, found)
    small = copy.deepcopy(small).eval()
    for inputs in (result.inputs, fresh(result.inputs, 3, seed=4)):
        expected = masked_run(model, inputs, consumed(found), silenced=silenced(case.name, found), norms=norms)
        with torch.no_grad():
            assert relative_gap(expected, small(*inputs)) < EXACT
            assert relative_gap(expected, model(*inputs)) > 1e-6, "what was removed made no difference"


def skip_twins(case: Case) -> None:
    if case.exact and not has_approximate(case):
        pytest.skip("no group is approximate: the same as without")


def check_counts(case: Case) -> None:
    """Every unfrozen group loses as many units as asked for, tensors shrink to match, and the plan says so."""
    result, small = cut_or_skip(case)
    plan = result.plan
    gone = {layer.name: len(layer.removed) for layer in plan.layers}
    units = {group.name: group.units for group in groups(result.graph)}
    assert {*gone, *stays(plan)} == set(units)
    assert not set(gone) & {group.name for group in groups(result.graph) if group.frozen is not None}
    assert all(len(set(layer.removed)) == len(layer.removed) for layer in plan.layers)
    for name, count in gone.items():
        assert case.scope == "global" or count == removal(case, units[name])
        assert count < units[name]
        assert (units[name] - count) % case.round_to == 0
    # What was open and yet stays whole, stays whole because the count asks for it.
    whole = [name for name, reason in stays(plan).items() if reason == "amount leaves it whole"]
    assert case.scope == "global" or not any(removal(case, units[name]) for name in whole)
    if case.scope == "global" and case.round_to == 1:
        total = sum(units[name] for name in (*gone, *whole))
        assert sum(gone.values()) == int(round(case.amount * total))  # noqa: RUF046
    before, after = sized(build(case.name)[0]), sized(small)
    shapes = {name: list(value.shape) for name, value in before.items()}
    for removed in dict.fromkeys(cut.removed for cut in cuts(plan)):
        shapes[removed.name][removed.dim] -= len(removed.positions)
    assert shapes == {name: list(value.shape) for name, value in after.items()}
    assert plan.params_before == sum(p.numel() for p in build(case.name)[0].parameters())
    assert plan.params_after == sum(p.numel() for p in small.parameters()) < plan.params_before
    assert 0 < plan.macs_after <= plan.macs_before


def test_every_architecture_has_its_demands() -> None:
    assert set(MUST) == set(ZOO)
    assert set(STAY) | set(SILENT) <= set(ZOO)
    for name, rows in MUST.items():
        shapes = {tensor: value.shape for tensor, value in sized(build(name)[0]).items()}
        for row in rows:
            assert row.units * row.width <= shapes[row.tensor][row.dim], (name, row)
        for stay in STAY.get(name, ()):
            assert stay.tensor in shapes


@pytest.mark.parametrize("case", BOTH)
def test_cut_equals_masked(case: Case) -> None:
    check_outputs(case)


@pytest.mark.parametrize("case", FAST)
def test_the_masked_model_is_the_oracles(case: Case) -> None:
    """P.masked silences the same channels, at full size; norms over the channels still see them, as the oracle's do."""
    result, _ = cut_or_skip(case)
    model, inputs = build(case.name)
    if not result.plan.exact and ties(model):
        pytest.skip("columns of a tied output layer are an embedding's too, and a norm sees that")
    found = cuts(result.plan)
    if silenced(case.name, found):
        with pytest.raises(NotImplementedError, match="which has no weight that could be zero"):
            P.masked(model, result.plan)
        return
    expected = masked_run(model, inputs, consumed(found))
    silent = P.masked(model, result.plan)
    assert {n: t.shape for n, t in sized(silent).items()} == {n: t.shape for n, t in sized(model).items()}
    with torch.no_grad():
        assert relative_gap(expected, silent.eval()(*inputs)) < EXACT


@pytest.mark.parametrize("case", FAST)
def test_counts_are_exact(case: Case) -> None:
    check_counts(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", SWEEP, ids=str)
def test_every_option(case: Case) -> None:
    skip_twins(case)
    check_counts(case)
    check_outputs(case)
    assert not pruned(case).changed


@pytest.mark.parametrize("case", FAST)
def test_what_must_be_prunable_is(case: Case) -> None:
    result, small = cut_or_skip(case)
    before, after, found = sized(build(case.name)[0]), sized(small), cuts(result.plan)
    wrong = []
    for row in MUST[case.name]:
        lost = before[row.tensor].shape[row.dim] - after[row.tensor].shape[row.dim]
        ways = {(row.units, row.width), (row.width, row.units) if row.grouped else (row.units, row.width)}
        there = [cut for cut in found if (cut.removed.name, cut.removed.dim) == (row.tensor, row.dim)]
        if lost not in {removal(case, units) * width for units, width in ways}:
            why = reasons_for(result.plan, row.tensor)
            wrong.append(f"{row.tensor} loses {lost} of {row.units} x {row.width}: {why}")
        elif any(cut.exact != row.exact for cut in there):
            wrong.append(f"{row.tensor} is {'approximate' if row.exact else 'exact'}")
    assert not wrong


@pytest.mark.parametrize("case", FAST)
def test_what_stays_has_a_reason(case: Case) -> None:
    result, name = pruned(case), case.name
    if result.plan is None:
        assert re.search(r"[:,] .{10,}", result.refusal), result.refusal
        return
    for layer in result.plan.frozen:
        assert len(layer.reason) > 10, layer
    explained = result.plan.explain()
    assert all(layer.name in explained for layer in (*result.plan.layers, *result.plan.frozen))
    shapes = sized(result.small) if result.small is not None else {}
    for stay in STAY.get(name, ()):
        assert shapes[stay.tensor].shape[0] == sized(build(name)[0])[stay.tensor].shape[0]
        reasons = reasons_for(result.plan, stay.tensor)
        assert any(re.search(stay.because, reason) for reason in reasons), (stay, reasons)


@pytest.mark.parametrize("case", FAST)
def test_the_model_is_untouched(case: Case) -> None:
    assert pruned(case).changed == []


@pytest.mark.parametrize("case", FAST)
def test_the_cut_model_is_a_model_like_the_first(case: Case) -> None:
    """Same class, modes, requires_grad, dtypes and ties; no hooks of its own, nothing shared with the first."""
    _, small = cut_or_skip(case)
    model, _ = build(case.name)
    Watch(model)
    assert type(small) is type(model)
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]
    one, other = sized(model), sized(small)
    assert {n: (t.dtype, t.requires_grad) for n, t in one.items()} == {
        n: (t.dtype, t.requires_grad) for n, t in other.items()
    }
    assert ties(model) == ties(small)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in small.named_parameters()]


@pytest.mark.parametrize("case", FAST)
def test_plans_and_models_survive_storage(case: Case, tmp_path: Path) -> None:
    result, small = cut_or_skip(case)
    assert P.PruningPlan.from_json(result.plan.to_json()) == result.plan
    P.save(small, tmp_path / "small.safetensors")
    again = P.load(tmp_path / "small.safetensors", lambda: build(case.name)[0])
    one, other = small.state_dict(), again.state_dict()
    assert list(one) == list(other)
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert ties(small) == ties(again)
    small, again = copy.deepcopy(small).eval(), again.eval()
    with torch.no_grad():
        assert relative_gap(small(*result.inputs), again(*result.inputs)) < 1e-14


@pytest.mark.parametrize("case", FAST)
def test_the_cut_model_trains_a_step(case: Case) -> None:
    result, small = cut_or_skip(case)
    small = copy.deepcopy(small).train().requires_grad_(True)
    before = {name: parameter.detach().clone() for name, parameter in small.named_parameters()}
    with torch.random.fork_rng(devices=[]):
        outputs = [t for t in flat(small(*cast(result.inputs, torch.float64))) if t.is_floating_point()]
    sum((t**2).mean() for t in outputs).backward()  # type: ignore[union-attr]
    torch.optim.SGD(small.parameters(), lr=1e-3).step()
    moved = [name for name, parameter in small.named_parameters() if not torch.equal(parameter, before[name])]
    assert len(moved) > len(before) // 2
    assert all(parameter.isfinite().all() for parameter in small.parameters())


def flat(result: Any) -> list[Tensor]:
    leaves: list[Any] = torch.utils._pytree.tree_leaves(result)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def test_a_wrong_plan_is_found_out() -> None:
    """The oracle is asked for the neighbours of the units that went: the cut model is not that."""
    case = Case("resnet20_padded", exact=False)
    result, small = cut_or_skip(case)
    model, inputs = build(case.name)
    found = cuts(result.plan)
    for wrong in consumed(found):
        size = sized(model)[wrong.name].shape[wrong.dim]
        shifted = Removed(wrong.name, wrong.dim, tuple((p + 1) % size for p in wrong.positions))
        others = [removed for removed in consumed(found) if removed != wrong]
        with torch.no_grad():
            expected = masked_run(model, inputs, [*others, shifted])
            assert relative_gap(expected, copy.deepcopy(small).eval()(*inputs)) > 1e-6, wrong
    assert len(tensors(small(*inputs))) == 1
