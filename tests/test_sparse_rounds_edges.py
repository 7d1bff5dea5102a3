"""Rounds where they have been wrong: what makes a run the same, what is refused before training, odd results."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from simkit import pruning as P  # noqa: E402
from simkit.errors import NothingPruned  # noqa: E402
from simkit.pruning.sparse import SparseRound, Stage  # noqa: E402
from simkit.pruning.sparse.checkpoints import described  # noqa: E402
from simkit.pruning.sparse.watch import StepWatch, seeded  # noqa: E402

pytestmark = pytest.mark.usefixtures("seeded_torch")

INPUTS, LABELS = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def never(model: nn.Module) -> None:
    raise AssertionError("training began")


def three_steps(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        functional.cross_entropy(model(INPUTS), LABELS).backward()
        optimizer.step()


def run(train: Callable[..., Any] = three_steps, **options: Any) -> list[SparseRound]:
    return list(P.rounds(network(), train=train, **{"amount": 0.5, **options}))


def other_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, label_smoothing=0.1)


def test_another_loss_or_other_data_is_another_run(tmp_path: Path) -> None:
    options: dict[str, Any] = {"score": P.SNIP(), "data": (INPUTS, LABELS), "checkpoints": tmp_path}
    run(**options)
    run(never, **options)
    with pytest.raises(ValueError, match=r"made with score='SNIP\(loss=torch.*cross_entropy, .* not .*other_loss"):
        run(**{**options, "score": P.SNIP(other_loss)})
    with pytest.raises(ValueError, match="were made with data="):
        run(**{**options, "data": (INPUTS + 1, LABELS)})
    with pytest.raises(ValueError, match="were made with data="):
        run(**{**options, "data": [(INPUTS, LABELS)]})


class Custom:
    """A criterion whose repr holds its address."""

    def __init__(self, power: float = 1.0) -> None:
        self.power = power
        self.loss = functools.partial(functional.cross_entropy, label_smoothing=0.1)
        self.own = self

    def weights(self, network: Any) -> dict[str, Tensor]:
        return {name: weight.detach().abs() ** self.power for name, weight in network.weights.items()}


def test_a_criterion_of_ones_own_resumes(tmp_path: Path) -> None:
    run(score=Custom(), checkpoints=tmp_path)
    run(never, score=Custom(), checkpoints=tmp_path)
    with pytest.raises(ValueError, match=r"Custom\(power=1\.0, .* not .*Custom\(power=2\.0, "):
        run(score=Custom(2.0), checkpoints=tmp_path)


def test_options_in_words_are_short_and_tell_contents_apart() -> None:
    batches = [(INPUTS + number, LABELS) for number in range(9)]
    assert described(batches) == described([(a.clone(), b.clone()) for a, b in batches])
    assert described(batches) != described(batches[::-1])
    assert len(described(batches)) < 100
    assert described(nn.CrossEntropyLoss(label_smoothing=0.1)) != described(nn.CrossEntropyLoss())
    assert described({"a": (1, None)}) == "{'a': [1, None]}"


def test_impossible_runs_are_refused_before_training() -> None:
    with pytest.raises(ValueError, match=r"SNIP\(iterations=1\) needs data="):
        P.rounds(network(), train=never, score=P.SNIP(), amount=0.5)
    with pytest.raises(ValueError, match=r"needs data="):
        P.rounds(network(), train=never, score=P.Shuffled(P.OBD()), amount=0.5)
    with pytest.raises(ValueError, match=r"needs data="):
        P.rounds(network(), train=never, score=P.SynFlow(), amount=0.5)
    with pytest.raises(NothingPruned, match=r"amount=0\.51 would prune nothing: all 21 weights that are left stay"):
        P.rounds(network(), train=never, amount=0.51, rounds=2, schedule=[0.5, 0.51])
    with pytest.raises(NothingPruned, match=r"amount=0\.5 would prune nothing: all 5 weights"):
        P.rounds(network(), train=never, score=P.UnitMagnitude(), amount=0.5, rounds=2, schedule=[0.45, 0.5])
    with pytest.raises(ValueError, match="removes nothing in round 4 of 5"):
        P.rounds(network(), train=never, amount=0.4, rounds=5, schedule="iterative")


def test_a_stage_may_be_asked_for_by_name_alone() -> None:
    seen: list[int] = []

    def train(model: nn.Module, *, stage: Stage) -> None:
        seen.append(stage.number)

    run(train)
    assert seen == [0, 1]


def test_draws_are_not_shared_between_seeds() -> None:
    def start_of(seed: int, number: int) -> Tensor:
        starts: list[Tensor] = []
        run(lambda model: starts.append(model[0].weight.detach().clone()), retrain=P.Reinit(seed), rounds=2)
        return starts[number]

    first, second = start_of(0, 2), start_of(1, 1)
    both = (first != 0) & (second != 0)
    assert both.any()
    assert (first != second)[both].all()


def test_new_weights_take_buffers_back_to_the_start() -> None:
    starts: list[float] = []

    def train(model: nn.Module) -> None:
        starts.append(float(model.count))
        model.count += 1

    model = network()
    model.register_buffer("count", torch.tensor(5.0))
    list(P.rounds(model, train=train, retrain=P.Reinit(), amount=0.5, rounds=2))
    assert starts == [5.0, 5.0, 5.0]


def test_what_another_run_left_is_not_taken_over(tmp_path: Path) -> None:
    left = tmp_path / "dense-train"
    left.mkdir()
    (left / "state.pt").write_text("of another run")
    found: list[list[Path]] = []

    def train(model: nn.Module, stage: Stage) -> None:
        assert stage.folder is not None
        found.append(list(stage.folder.iterdir()))

    run(train, checkpoints=tmp_path)
    assert found == [[], []]


def test_results_may_hold_nan(tmp_path: Path) -> None:
    def train(model: nn.Module) -> dict[str, float]:
        return {"loss": math.nan, "bound": math.inf}

    for again in (train, never):
        (one,) = run(again, checkpoints=tmp_path)
        assert math.isnan(one.result["loss"])
        assert one.result["bound"] == math.inf


def test_a_rate_cannot_go_back_to_a_step_that_was_not_reached() -> None:
    assert len(run(retrain=P.RewindLR(3))) == 1
    with pytest.raises(ValueError, match=r"RewindLR\(step=4\) goes back to a step that training did not reach in 3"):
        run(retrain=P.RewindLR(4))


def test_steps_that_a_scaler_skips_inside_the_optimiser_do_not_count() -> None:
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    watch = StepWatch(model, step=None, reached=lambda: None, resumed=False)
    with watch.active():
        for factor in (1.0, math.inf, 1.0):
            optimizer.zero_grad()
            scaler.scale(model(INPUTS).sum() * factor).backward()
            scaler.step(optimizer)
            scaler.update()
    assert watch.steps == 2


def test_an_optimiser_that_evaluates_several_times_takes_one_step() -> None:
    model = network()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(INPUTS), LABELS)
        loss.backward()
        return loss

    watch = StepWatch(model, step=None, reached=lambda: None, resumed=False)
    with watch.active(), P.Sparsifier(model, P.masks(model, amount=0.5)) as sparsifier:
        for _ in range(2):
            optimizer.step(closure)
        sparsifier.check()
    assert watch.steps == 2


def test_only_the_first_optimisers_steps_count() -> None:
    model = network()
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in (model[0], model[2])]
    watch = StepWatch(model, step=None, reached=lambda: None, resumed=False)
    with watch.active():
        for _ in range(2):
            functional.cross_entropy(model(INPUTS), LABELS).backward()
            for one in optimizers:
                one.step()
    assert watch.steps == 2


def test_accelerators_are_seeded_before_they_are_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "init", lambda: seen.append("init"))
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seen.append)
    with seeded(0, 1):
        pass
    assert len(seen) == 2
    assert seen[0] == "init"
    assert isinstance(seen[1], int)


def test_criteria_that_look_back_see_the_start_and_their_own_random_state() -> None:
    drawn: list[tuple[float, bool]] = []
    model = network()

    class Looking:
        def weights(self, network: Any) -> dict[str, Tensor]:
            same = torch.equal(network.initial["0.weight"], model[0].weight)
            drawn.append((float(torch.rand(())), same))
            return {name: weight.detach().abs() for name, weight in network.weights.items()}

    for seed in (0, 0, 1):
        list(P.rounds(model, train=three_steps, score=Looking(), amount=0.5, rounds=2, seed=seed))
    values = [value for value, _ in drawn]
    assert all(same for _, same in drawn)
    assert values[:2] == values[2:4]
    assert len(set(values)) == 4
    assert len(list(P.rounds(model, train=three_steps, score=P.Zhou(), amount=0.5))) == 1


def test_a_rewound_rate_keeps_the_weights_that_obs_moves() -> None:
    starts: list[dict[str, Tensor]] = []
    data = (INPUTS, LABELS)

    def train(model: nn.Module) -> None:
        starts.append({name: value.detach().clone() for name, value in model.named_parameters()})

    model = network()
    (one,) = P.rounds(model, train=train, score=P.OBS(), data=data, amount=0.5, retrain=P.RewindLR())
    expected = P.updated(model, one.masks, score=P.OBS(), data=data)
    assert all(torch.equal(starts[1][name], value) for name, value in expected.named_parameters())
    assert not torch.equal(starts[1]["0.weight"], model[0].weight * one.masks["0.weight"])
