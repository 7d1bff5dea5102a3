"""What criteria for weights refuse, each in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from scored_networks import batch, mlp  # noqa: E402
from torch.nn import functional  # noqa: E402

from simkit import pruning as P  # noqa: E402

pytestmark = pytest.mark.usefixtures("seeded_torch")


@pytest.mark.parametrize("score", [P.SNIP(), P.GraSP(), P.Taylor(), P.Fisher(), P.OBD(), P.OBS(), P.Oracle()], ids=repr)
def test_missing_and_odd_data_get_one_sentence(score: Any) -> None:
    model = mlp()
    name = type(score).__name__
    inputs, labels = batch(model)
    with pytest.raises(ValueError, match=rf"{name}\(\) needs data=: \(inputs, targets\) tensors, or batches of them"):
        P.masks(model, score=score)
    with pytest.raises(TypeError, match=rf"{name}\(\) needs data= of \(inputs, targets\), not Tensor"):
        P.masks(model, score=score, data=inputs)
    with pytest.raises(ValueError, match=rf"{name}\(\) needs samples, but data= has none"):
        P.masks(model, score=score, data=[])
    with pytest.raises(ValueError, match="data has 10 inputs and 9 targets"):
        P.masks(model, score=score, data=(inputs, labels[:9]))
    with pytest.raises(TypeError, match=r"data must yield \(inputs, targets\) tensors, not Tensor"):
        P.masks(model, score=score, data=[inputs])


@pytest.mark.parametrize("score", [P.SNIP(), P.GraSP(), P.Taylor(), P.Fisher(), P.OBD(), P.Oracle()], ids=repr)
def test_a_loss_that_is_no_finite_mean_gets_one_sentence(score: Any) -> None:
    model = mlp()
    inputs, labels = batch(model)
    kind = type(score)
    with pytest.raises(ValueError, match=r"loss must be a mean over the samples, not of shape \(\d+,\)"):
        P.masks(
            model, score=kind(loss=lambda o, t: functional.cross_entropy(o, t, reduction="none")), data=(inputs, labels)
        )
    with pytest.raises(ValueError, match="the loss is nan"):
        P.masks(model, score=kind(loss=lambda o, t: o.mean() * float("nan")), data=(inputs, labels))


def test_options_get_one_sentence() -> None:
    bad: list[tuple[Callable[[], object], str]] = [
        (lambda: P.SNIP(iterations=0), "iterations must be an integer of at least 1, not 0"),
        (lambda: P.SynFlow(iterations=1.5), r"iterations must be an integer of at least 1, not 1\.5"),
        (lambda: P.GraSP(temperature=0), "temperature must be a positive number, not 0"),
        (lambda: P.Taylor(cost=-1), "cost must be a number of at least 0, not -1"),
        (lambda: P.Fisher(cost=float("nan")), "cost must be a number of at least 0, not nan"),
        (lambda: P.OBD(diagonal="full"), "diagonal must be one of gauss-newton, exact, hutchinson, not 'full'"),
        (lambda: P.OBD(samples=0), "samples must be an integer of at least 1, not 0"),
        (lambda: P.OBS(form="block"), "form must be one of layer, full, exact, not 'block'"),
        (lambda: P.OBS(damping=0), "damping must be a positive number, not 0"),
        (lambda: P.Zhou("big"), "criterion must be one of large_final, .*, not 'big'"),
        (lambda: P.Zhou(scale=-1), "scale must be a positive number, not -1"),
        (lambda: P.masks(mlp(), score=P.Zhou()), "the other value of '0.weight' is needed"),
        (lambda: P.masks(mlp(), score=P.SynFlow()), "SynFlow needs shape=, the shape of one input, or data="),
        (
            lambda: P.masks(mlp(), score=P.SynFlow(), data=torch.ones(2, 4).long()),
            "SynFlow needs inputs of real numbers",
        ),
        (lambda: P.Shuffled(seed=-1), "seed must be an integer of at least 0, not -1"),
        (lambda: P.supermask(mlp(), {}, kept="x"), "kept must be one of init, constant, not 'x'"),
        (lambda: P.supermask(mlp(), {}, pruned="x"), "pruned must be one of zero, init, toward-zero, not 'x'"),
    ]
    for call, text in bad:
        with pytest.raises(ValueError, match=text):
            call()
    with pytest.raises(NotImplementedError, match=r"UnitMagnitude\(\) scores units; Shuffled exchanges single weights"):
        P.Shuffled(P.UnitMagnitude())
