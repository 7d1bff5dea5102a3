"""Pruning on networks of random operations: right to 1e-10 or refused with a reason, whatever is combined."""

from __future__ import annotations

import re

import pytest
import torch
from masking_oracle import Removed, masked_run, relative_gap
from plan_view import cuts, stays
from random_networks import random_network
from torch.nn import GroupNorm, Module

from simkit import pruning as P

EXACT = 1e-10  # of the largest output, in float64


def kept_norms(model: Module, removed: list[Removed]) -> list[Removed]:
    owners = [(one, model.get_submodule(one.module)) for one in removed if one.name.endswith("weight")]
    return [one for one, owner in owners if isinstance(owner, GroupNorm) and owner.num_groups == 1]


def check(seed: int, amount: float) -> None:
    model, inputs = random_network(seed)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        plan = P.plan(model, inputs, score=P.Random(seed), amount=amount)
        # What is read without a weight cannot be masked from outside: it stays here, and has tests of its own.
        bare = [layer.name for layer in plan.layers if layer.totals]
        if bare:
            P.apply(model, plan, inputs)
            plan = P.plan(model, inputs, score=P.Random(seed), amount=amount, keep=bare)
    except ValueError as error:
        if not re.match(r"no layer has units that can be removed: .{10,}|amount .* removes nothing", str(error)):
            raise
        return
    small = P.apply(model, plan, inputs)
    found = cuts(plan)
    assert plan.exact == all(cut.exact for cut in found)
    assert all(len(reason) > 10 for reason in stays(plan).values())
    for layer in plan.layers:
        assert len(layer.removed) == int(round(amount * layer.units))  # noqa: RUF046
    consumers = list(dict.fromkeys(cut.removed for cut in found if cut.role == "consumer"))
    norms = [] if plan.exact else kept_norms(model, list(dict.fromkeys(cut.removed for cut in found)))
    torch.manual_seed(seed)
    for x in (inputs, (torch.randn(3, *inputs[0].shape[1:], dtype=torch.float64),)):
        expected = masked_run(model, x, consumers, norms=norms)
        with torch.no_grad():
            assert relative_gap(expected, small(*x)) < EXACT
    assert sum(p.numel() for p in small.parameters()) == plan.params_after < plan.params_before
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("seed", range(12))
def test_random_networks(seed: int) -> None:
    check(seed, amount=0.4)


@pytest.mark.slow
@pytest.mark.parametrize("amount", [0.25, 0.7])
@pytest.mark.parametrize("seed", range(12, 300))
def test_many_random_networks(seed: int, amount: float) -> None:
    check(seed, amount)
