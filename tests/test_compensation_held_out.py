"""The error of least squares on samples that it was not fitted to."""

from __future__ import annotations

import warnings

import pytest
import torch
from merging_networks import MAP, flattened, plain_conv
from torch import Tensor, nn

import simkit as sk
from simkit import pruning as P
from simkit.pruning.decisions import PruningPlan


def wide(units: int) -> nn.Module:
    return nn.Sequential(nn.Linear(30, units), nn.Tanh(), nn.Linear(units, 4)).double()


def error_at_the_consumer(model: nn.Module, small: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((small(x) - model(x)).square().sum(1).mean())


@pytest.mark.parametrize("bias", [True, False])
def test_the_held_out_error_is_that_of_a_fit_to_the_other_samples(bias: bool) -> None:
    torch.manual_seed(10)
    model = nn.Sequential(nn.Linear(6, 12), nn.Sigmoid(), nn.Linear(12, 4, bias=bias)).double()
    x = torch.randn(203, 6, dtype=torch.float64)
    bare = P.plan(model, x[:4], score=P.L1(), amount=0.5)
    for every in (2, 5, 7):
        apart = torch.arange(len(x)) % every == every - 1
        plan = P.compensated(model, bare, x[:4], P.LeastSquares(hold_out=every), data=x)
        other = P.compensated(model, bare, x[:4], P.LeastSquares(hold_out=None), data=x[~apart])
        expected = error_at_the_consumer(model, P.apply(model, other, x[:4]), x[apart])
        (one,), (without,) = plan["0"].repairs, other["0"].repairs
        assert one.held_out == pytest.approx(expected, rel=1e-7)
        assert without.held_out is None
        said = f"({one.held_out:.4g} on one sample in {every}, fitted to the others)"
        assert said in plan.explain()
        assert PruningPlan.from_json(plan.to_json()) == plan
        # The repair itself is fitted to all samples.
        whole = P.compensated(model, bare, x[:4], P.LeastSquares(hold_out=None), data=x)
        torch.testing.assert_close(P.apply(model, plan, x[:4])(x), P.apply(model, whole, x[:4])(x))


def test_the_held_out_error_does_not_depend_on_batches() -> None:
    torch.manual_seed(11)
    model, x = flattened().double().eval(), torch.randn(301, *MAP, dtype=torch.float64)
    bare = P.plan(model, x[:2], score=P.L1(), amount=0.5)
    first, second = (
        P.compensated(model, bare, x[:2], P.LeastSquares(), data=data)
        for data in (x, [(part, 0) for part in x.split(13)])
    )
    assert first == second


def test_over_fitting_shows_and_is_warned_of() -> None:
    torch.manual_seed(12)
    model, x = wide(80), torch.randn(2000, 30, dtype=torch.float64)
    bare = P.plan(model, x[:4], score=P.L1(), amount=0.5)
    errors = []
    for count in (60, 2000):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            plan = P.compensated(model, bare, x[:4], P.LeastSquares(samples=count), data=x)
        (one,) = plan["0"].repairs
        assert one.after is not None
        assert one.held_out is not None
        errors.append(one.held_out / one.after)
        told = [str(warning.message) for warning in caught if issubclass(warning.category, sk.OverfitWarning)]
        assert len(told) == (1 if count < 400 else 0)
        assert f"{count / 40:.3g} rows per unit" in plan.explain()
    assert errors[0] > 5.0
    assert errors[1] < 1.3
    assert told == []
    with pytest.warns(sk.OverfitWarning, match=r"^layer '0': least squares fits 40 unknowns to 60 rows, fewer than 10"):
        P.compensated(model, bare, x[:4], P.LeastSquares(samples=60), data=x)


def test_too_few_samples_to_hold_any_out() -> None:
    torch.manual_seed(13)
    model, x = plain_conv().double(), torch.randn(4, 3, 16, 16, dtype=torch.float64)
    plan = P.plan(model, x, score=P.L1(), amount=0.5, data=x, compensate=P.LeastSquares())
    assert [one.held_out for one in plan["0"].repairs] == [None]
    assert "one sample in" not in plan.explain()
