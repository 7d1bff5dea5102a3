"""Rounds of pruning and training: what each starts from, what is checked, and that a kill changes no number."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from simkit import pruning as P  # noqa: E402
from simkit.errors import MaskGrowth, NothingPruned, RevivedWeights, StaleOptimizer  # noqa: E402
from simkit.pruning.sparse import SparseRound, Stage  # noqa: E402

pytestmark = pytest.mark.usefixtures("seeded_torch")

INPUTS, LABELS = torch.randn(64, 6, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 3
STEPS = 6


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))


class Training:
    """Trains with momentum and dropout; remembers the stages and the states they began with."""

    def __init__(self, stop: tuple[int, int] | None = None) -> None:
        self.stages: list[Stage] = []
        self.starts: list[dict[str, Tensor]] = []
        self.states: list[dict[str, Tensor]] = []
        self.stop = stop

    def __call__(self, model: nn.Module, stage: Stage) -> dict[str, Any]:
        self.stages.append(stage)
        self.starts.append(plain(model))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
        losses = []
        for step in range(STEPS):
            if self.stop == (stage.number, step):
                raise KeyboardInterrupt
            chosen = torch.randint(64, (16,))
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(INPUTS[chosen]), LABELS[chosen])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if stage.number == 0:
                self.states.append(plain(model))
        return {"losses": losses}


def plain(model: nn.Module) -> dict[str, Tensor]:
    return {n: v.detach().clone() for n, v in model.state_dict().items() if not n.endswith("_mask")}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def masked(state: dict[str, Tensor], masks: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value * masks[name] if name in masks else value for name, value in state.items()}


OPTIONS: dict[str, Any] = {"amount": 0.7, "rounds": 3}


def run(train: Callable[..., Any], **options: Any) -> list[SparseRound]:
    return list(P.rounds(network(), train=train, **{**OPTIONS, **options}))


def test_every_round_has_its_exact_share_and_nests() -> None:
    train = Training()
    found = run(train)
    assert [one.number for one in found] == [1, 2, 3]
    assert [stage.number for stage in train.stages] == [0, 1, 2, 3]
    for one, amount in zip(found, [1 - 0.3 ** (1 / 3), 1 - 0.3 ** (2 / 3), 0.7], strict=True):
        assert one.amount == pytest.approx(amount)
        assert sum(int((~mask).sum()) for mask in one.masks.values()) == round(amount * 72)
        assert one.kept == (72 - round(amount * 72)) / 72
        weights = dict(one.model.named_parameters())
        assert all((weights[name][~mask] == 0).all() for name, mask in one.masks.items())
    for before, after in itertools.pairwise(found):
        assert all(not (after.masks[name] & ~before.masks[name]).any() for name in after.masks)


def test_the_callers_model_and_random_states_are_left_alone() -> None:
    model = network().eval()
    before, state = plain(model), torch.get_rng_state()
    modes: list[bool] = []

    def train(own: nn.Module) -> None:
        modes.append(own.training)
        Training()(own.train(), Stage(1, 0, 0.0, None))

    found = list(P.rounds(model, train=train, **OPTIONS))
    assert torch.equal(torch.get_rng_state(), state)
    assert same(plain(model), before)
    assert modes == [False] * 4
    assert not any(one.model.training for one in found)


def test_a_round_may_be_changed_by_whoever_gets_it() -> None:
    expected = run(Training())
    found = []
    for one in P.rounds(network(), train=Training(), **OPTIONS):
        found.append(plain(one.model))
        with torch.no_grad():
            for parameter in one.model.parameters():
                parameter.zero_()
        for mask in one.masks.values():
            mask.zero_()
    assert all(same(state, plain(one.model)) for state, one in zip(found, expected, strict=True))


@pytest.mark.parametrize("retrain", [P.FineTune(), P.RewindLR()])
def test_fine_tuning_and_rate_rewinding_keep_the_weights(retrain: P.FineTune | P.RewindLR) -> None:
    train = Training()
    found = run(train, retrain=retrain)
    ends = [train.states[-1], *(plain(one.model) for one in found)]
    for start, before, one in zip(train.starts[1:], ends, found, strict=False):
        assert same(start, masked(before, one.masks))
    first = None if isinstance(retrain, P.FineTune) else 0
    assert [stage.first_step for stage in train.stages] == [0, first, first, first]


@pytest.mark.parametrize("step", [0, 1, 4, STEPS])
def test_a_rewind_is_bit_exact(step: int) -> None:
    train = Training()
    found = run(train, retrain=P.RewindWeights(step))
    target = plain(network()) if step == 0 else train.states[step - 1]
    for start, one in zip(train.starts[1:], found, strict=True):
        assert same(start, masked(target, one.masks))  # BatchNorm's statistics too
    assert [stage.first_step for stage in train.stages] == [0, step, step, step]


def test_reinitialised_weights_are_new_every_round_and_by_seed() -> None:
    trains = [Training() for _ in range(3)]
    found = [run(train, retrain=P.Reinit(seed)) for train, seed in zip(trains, [0, 0, 10], strict=True)]
    assert all(same(plain(a.model), plain(b.model)) for a, b in zip(found[0], found[1], strict=True))
    starts = [trains[0].starts[1], trains[0].starts[2], trains[2].starts[1], plain(network())]
    for one, other in itertools.combinations(starts, 2):
        both = (one["0.weight"] != 0) & (other["0.weight"] != 0)
        assert both.any()
        assert not (one["0.weight"] == other["0.weight"])[both].any()
    assert all((start["1.running_mean"] == 0).all() for start in trains[0].starts)


def test_new_weights_may_keep_their_signs() -> None:
    plainly, signed = Training(), Training()
    run(plainly, retrain=P.Reinit(5))
    run(signed, retrain=P.Reinit(5, keep_signs=True))
    first = plain(network())["0.weight"]
    other, found = plainly.starts[1]["0.weight"], signed.starts[1]["0.weight"]
    kept = found != 0
    assert torch.equal(found.sign()[kept], first.sign()[kept])
    assert torch.equal(found.abs()[kept & (other != 0)], other.abs()[kept & (other != 0)])


def test_networks_are_pruned_at_initialisation() -> None:
    train = Training()
    model = network()
    (one,) = P.rounds(
        model, dense=model, train=train, score=P.SynFlow((6,)), amount=0.8, retrain=P.RewindWeights()
    )  # fmt: skip
    assert [(stage.number, stage.first_step) for stage in train.stages] == [(1, 0)]
    expected = P.masks(model, score=P.SynFlow((6,)), amount=0.8)
    assert same(one.masks, expected)
    assert same(train.starts[0], masked(plain(model), expected))


def test_a_dense_model_that_is_given_is_not_trained() -> None:
    first = Training()
    expected = run(first)
    dense = network()
    dense.load_state_dict(first.states[-1])
    again = Training()
    found = run(again, dense=dense)
    assert [stage.number for stage in again.stages] == [1, 2, 3]
    assert all(same(plain(a.model), plain(b.model)) for a, b in zip(found, expected, strict=True))
    with pytest.raises(ValueError, match=r"RewindWeights\(step=2\) needs the first training to be done here"):
        run(again, dense=dense, retrain=P.RewindWeights(2))


@pytest.mark.parametrize("retrain", [P.FineTune(), P.RewindWeights(0), P.RewindWeights(4), P.Reinit()], ids=repr)
@pytest.mark.parametrize("stop", [(0, 0), (0, 3), (0, 5), (1, 2), (2, 0), (3, 5)])
def test_an_interrupted_run_ends_with_the_same_numbers(retrain: Any, stop: tuple[int, int], tmp_path: Path) -> None:
    expected = run(Training(), retrain=retrain)
    with pytest.raises(KeyboardInterrupt):
        run(Training(stop), retrain=retrain, checkpoints=tmp_path)
    torch.manual_seed(99)
    train = Training()
    found = run(train, retrain=retrain, checkpoints=tmp_path)
    assert [stage.number for stage in train.stages] == list(range(stop[0], 4))
    for one, other in zip(found, expected, strict=True):
        assert same(plain(one.model), plain(other.model))
        assert same(one.masks, other.masks)
        assert (one.number, one.amount, one.kept, one.result) == (other.number, other.amount, other.kept, other.result)
    nothing = Training()
    assert all(
        same(plain(a.model), plain(b.model))
        for a, b in zip(run(nothing, retrain=retrain, checkpoints=tmp_path), expected, strict=True)
    )
    assert nothing.stages == []


def test_training_may_keep_its_own_checkpoints(tmp_path: Path) -> None:
    """A round that is interrupted goes on from what training stored, its optimiser's momentum included."""

    class Resuming:
        def __init__(self, stop: tuple[int, int] | None = None) -> None:
            self.stop = stop
            self.done: list[tuple[int, int]] = []

        def __call__(self, model: nn.Module, stage: Stage) -> None:
            optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
            file = None if stage.folder is None else stage.folder / "state.pt"
            first = 0
            if file is not None and file.exists():
                state = torch.load(file, weights_only=True)
                model.load_state_dict(state["model"])
                optimizer.load_state_dict(state["optimizer"])
                first = state["step"]
            for step in range(first, STEPS):
                if self.stop == (stage.number, step):
                    raise KeyboardInterrupt
                optimizer.zero_grad()
                functional.cross_entropy(model(INPUTS), LABELS).backward()
                optimizer.step()
                self.done.append((stage.number, step))
                if file is not None:
                    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
                    torch.save(state, file)

    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    options = {**OPTIONS, "retrain": P.RewindWeights(3)}
    expected = list(P.rounds(model, train=Resuming(), **options))
    for count, stop in enumerate([(0, 2), (0, 5), (2, 4)]):
        folder = tmp_path / str(count)
        with pytest.raises(KeyboardInterrupt):
            list(P.rounds(model, train=Resuming(stop), checkpoints=folder, **options))
        train = Resuming()
        found = list(P.rounds(model, train=train, checkpoints=folder, **options))
        # Before the step to rewind to, training must start again: nobody else counts its steps.
        assert train.done[0] == ((0, 0) if stop == (0, 2) else stop)
        assert all(same(plain(a.model), plain(b.model)) for a, b in zip(found, expected, strict=True))


def test_checkpoints_of_other_options_are_refused(tmp_path: Path) -> None:
    run(Training(), checkpoints=tmp_path)
    for options, text in (
        ({"score": P.Random(1)}, r"were made with score='Magnitude\(\)', not 'Random\(seed=1\)'"),
        ({"rounds": 2}, "were made with amounts="),
        ({"retrain": P.RewindLR()}, "were made with retrain="),
        ({"seed": 5}, "were made with seed=0, not 5"),
        ({"keep": ["4"]}, "were made with parameters="),
    ):
        with pytest.raises(ValueError, match=text):
            run(Training(), checkpoints=tmp_path, **options)
    other = network()
    with torch.no_grad():
        other[0].weight[0, 0] += 1
    with pytest.raises(ValueError, match="were made with model="):
        list(P.rounds(other, train=Training(), checkpoints=tmp_path, **OPTIONS))


def test_damaged_checkpoints_are_one_sentence(tmp_path: Path) -> None:
    run(Training(), checkpoints=tmp_path)
    file = tmp_path / "round-002.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"round-002\.safetensors' is damaged"):
        run(Training(), checkpoints=tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match=r"round-002\.safetensors' is gone"):
        run(Training(), checkpoints=tmp_path)
    (tmp_path / "rounds.json").write_text("{")
    with pytest.raises(ValueError, match=r"rounds\.json' is not JSON"):
        run(Training(), checkpoints=tmp_path)
    (tmp_path / "rounds.json").write_text(json.dumps({"format": "else"}))
    with pytest.raises(ValueError, match="holds no rounds of format 'simkit rounds 2'"):
        run(Training(), checkpoints=tmp_path)


def test_results_must_be_json_where_they_are_kept(tmp_path: Path) -> None:
    for result in (object(), {1, 2}):
        with pytest.raises(TypeError, match="with checkpoints=, train must return JSON data, not"):
            list(P.rounds(network(), train=lambda model, r=result: r, checkpoints=tmp_path, **OPTIONS))


def test_what_is_trained_outlives_a_result_that_cannot_be_kept(tmp_path: Path) -> None:
    whole = run(Training())
    calls = []

    def train(model: nn.Module, stage: Stage) -> object:
        calls.append(stage.number)
        return [Training()(model, stage), object()]

    for number in range(4):
        with pytest.raises(TypeError, match="what it has trained is kept, and the next run goes on from there, with"):
            list(P.rounds(network(), train=train, checkpoints=tmp_path, **OPTIONS))
        assert calls == list(range(number + 1))
    resumed = run(Training(), checkpoints=tmp_path)
    assert [one.result for one in resumed] == [None] * 3
    for one, other in zip(resumed, whole, strict=True):
        assert all(
            torch.equal(a, b) for a, b in zip(plain(one.model).values(), plain(other.model).values(), strict=True)
        )


def test_an_optimizer_from_an_earlier_round_is_stale() -> None:
    kept: list[torch.optim.Optimizer] = []

    def train(model: nn.Module) -> None:
        fresh = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        if kept:
            fresh.load_state_dict(kept[0].state_dict())
        kept.append(fresh)
        model(INPUTS).sum().backward()
        fresh.step()

    with pytest.raises(StaleOptimizer, match="SGD begins a round with the state of earlier steps for 6 parameters"):
        run(train)


def test_adagrad_makes_its_state_before_it_steps() -> None:
    def train(model: nn.Module) -> None:
        optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)
        model(INPUTS).sum().backward()
        optimizer.step()

    assert len(run(train)) == 3


def test_weights_that_training_revives_are_an_error() -> None:
    def train(model: nn.Module) -> None:
        with torch.no_grad():
            model[0].weight[0].add_(0.01)

    with pytest.raises(RevivedWeights, match=r"masked weights of '0\.weight' are not 0"):
        run(train)


def test_rounds_that_prune_nothing_are_an_error() -> None:
    with pytest.raises(NothingPruned, match="would prune nothing"):
        run(Training(), amount=0.01, rounds=3)


def test_masks_that_grow_are_an_error() -> None:
    class Moving:
        def weights(self, network: Any) -> dict[str, Tensor]:
            return {name: weight.detach().abs() for name, weight in network.weights.items()}

        def revise(self, masks: dict[str, Tensor], previous: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: mask.roll(1, 0) for name, mask in masks.items()}

    with pytest.raises(MaskGrowth, match="weights that were gone before"):
        run(Training(), score=Moving())


def test_tied_weights_are_one() -> None:
    model = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5), nn.Linear(5, 3))
    model[2].weight = model[0].weight
    for retrain in (P.FineTune(), P.RewindWeights(0)):
        for one in P.rounds(model, train=lambda own: None, retrain=retrain, **OPTIONS):
            assert one.model[2].weight is one.model[0].weight
            assert (one.model[2].weight[~one.masks["0.weight"]] == 0).all()


def test_a_second_argument_gets_the_stage_if_it_asks_for_it() -> None:
    seen: list[object] = []

    def named(model: nn.Module, stage: Stage | None = None) -> None:
        seen.append(stage)

    def other(model: nn.Module, epochs: int = 3) -> None:
        seen.append(epochs)

    for train, kind in ((named, Stage), (other, int), (lambda *both: seen.append(both[1]), Stage)):
        seen.clear()
        run(train)
        assert len(seen) == 4
        assert all(isinstance(one, kind) for one in seen)


def test_mistakes_get_one_sentence() -> None:
    with pytest.raises(ValueError, match="scope must be 'global' or 'layer', not 'all'"):
        P.rounds(network(), train=Training(), scope="all", **OPTIONS)
    with pytest.raises(ValueError, match="dense must be the trained model itself, not a Linear of other shapes"):
        run(Training(), dense=nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"retrain must be FineTune\(\), .* not 'finetune'"):
        run(Training(), retrain="finetune")
    with pytest.raises(TypeError, match=r"train must be a function of \(model, stage\), not 3"):
        run(3)
    with pytest.raises(TypeError, match="score must be a criterion for weights"):
        run(Training(), score="magnitude")
    with pytest.raises(
        ValueError, match=r"RewindWeights\(step=7\) goes back to a step that training did not reach in 6"
    ):
        run(Training(), retrain=P.RewindWeights(7))
    with pytest.raises(ValueError, match="step must be an integer of at least 0, not -1"):
        P.RewindWeights(-1)
    with pytest.raises(ValueError, match=r"step must be an integer of at least 0, not 0\.5"):
        P.RewindLR(0.5)
    with pytest.raises(ValueError, match="seed must be an integer of at least 0, not 'x'"):
        run(Training(), seed="x")
    own = nn.Linear(3, 3)
    own.reset_parameters = None
    found = P.rounds(nn.Sequential(own), train=lambda model: None, retrain=P.Reinit(), **OPTIONS)
    with pytest.raises(NotImplementedError, match="module '0' of type Linear has parameters but no reset_parameters"):
        next(found)
