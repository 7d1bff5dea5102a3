"""The loop: it learns, it is deterministic, it leaves mode and global random state alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from simkit import train
from simkit.train import TrainOptions
from simkit.train.batches import batches, count

pytestmark = pytest.mark.usefixtures("one_thread")


def problem(n: int = 120) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 6, generator=generator)
    return x, (x[:, 0] * x[:, 1] > 0).long()


def network(seed: int = 0) -> nn.Sequential:
    layers = list(train.mlp(6, (24, 12), 2, seed=seed))
    return nn.Sequential(*layers[:3], nn.BatchNorm1d(24), nn.Dropout(0.2), *layers[3:])


def weights(model: nn.Module) -> Tensor:
    return torch.cat([t.flatten().double() for t in model.state_dict().values()])


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "step"])
def test_it_learns(optimizer: Any, schedule: Any) -> None:
    options = TrainOptions(
        epochs=25, batch_size=16, optimizer=optimizer, lr=0.1 if optimizer == "sgd" else 0.01, schedule=schedule
    )
    model, data = network(), problem()
    before = train.evaluate(model, data)
    history = train.fit(model, data, options)
    assert len(history.epochs) == 25
    assert train.evaluate(model, data).accuracy > max(0.85, before.accuracy)
    assert history.last.train.loss < history.epochs[0].train.loss


def test_the_digits_are_learnt_in_seconds() -> None:
    data = train.digits()
    model = train.small_cnn(data.shape, data.classes)
    history = train.fit(
        model, data.train, TrainOptions(epochs=4, batch_size=64, schedule="cosine"), validation=data.test
    )
    assert history.last.validation is not None
    assert history.last.validation.accuracy > 0.95


def test_one_step_is_torchs_step() -> None:
    model, (x, y) = train.mlp(6, (4,), 2), problem(8)
    other = train.mlp(6, (4,), 2)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.3, momentum=0.9, weight_decay=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        functional.cross_entropy(other(x), y).backward()
        nn.utils.clip_grad_norm_(other.parameters(), 0.1)
        optimizer.step()
    options = TrainOptions(epochs=3, batch_size=8, lr=0.3, weight_decay=0.01, clip_norm=0.1)
    train.fit(model, (x, y), options)
    torch.testing.assert_close(weights(model), weights(other))


def test_the_seed_decides_everything_and_the_global_state_nothing() -> None:
    results = []
    for global_seed, seed in ((1, 0), (2, 0), (1, 9)):
        torch.manual_seed(global_seed)
        model = network()
        history = train.fit(model, problem(), TrainOptions(epochs=3, batch_size=32, seed=seed))
        results.append((weights(model), history))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]
    assert not torch.equal(results[0][0], results[2][0])


def test_a_shuffling_loader_is_deterministic_too() -> None:
    finals = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        model = network()
        train.fit(model, DataLoader(TensorDataset(*problem()), 32, shuffle=True), TrainOptions(epochs=2))
        finals.append(weights(model))
    assert torch.equal(*finals)


@pytest.mark.parametrize("loader", [False, True])
def test_mode_and_random_states_are_put_back(loader: bool) -> None:
    model = network().eval()
    model[1].train()
    data: Any = DataLoader(TensorDataset(*problem()), 32, shuffle=True) if loader else problem()
    modes = [m.training for m in model.modules()]
    states = (random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist())  # noqa: NPY002
    train.fit(model, data, TrainOptions(epochs=2), validation=data)
    before = weights(model)
    train.evaluate(model, data)
    assert torch.equal(weights(model), before)
    assert [m.training for m in model.modules()] == modes
    assert states == (random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist())  # noqa: NPY002


def test_evaluate_counts_every_sample_once() -> None:
    model, (x, y) = network(), problem(103)
    with torch.no_grad():
        outputs = model.eval()(x)
    expected = float(functional.cross_entropy(outputs.double(), y))
    for size in (1, 7, 51, 103, 1000):
        found = train.evaluate(model, (x, y), batch_size=size)
        assert found.loss == pytest.approx(expected, abs=1e-6)
        assert found.accuracy == float((outputs.argmax(1) == y).double().mean())
        assert found.samples == 103
    assert train.evaluate(model, DataLoader(TensorDataset(x, y), 10)).samples == 103


@pytest.mark.parametrize(("n", "size"), [(1, 4), (4, 4), (5, 4), (9, 4), (10, 4), (7, 1), (2, 100)])
def test_batches_hold_every_sample_once_and_none_is_left_alone(n: int, size: int) -> None:
    x = torch.arange(n)
    for generator in (None, torch.Generator().manual_seed(0)):
        parts = list(batches((x, x), size, generator))
        assert sorted(torch.cat([part for part, _ in parts]).tolist()) == list(range(n))
        assert count((x, x), size) == len(parts)
        assert all(torch.equal(a, b) for a, b in parts)
        if size > 1 and n > 1:
            assert min(len(part) for part, _ in parts) > 1
        if size == 1:
            assert len(parts) == n


def test_accuracy_is_of_every_position() -> None:
    """Labels for every position of a sample, as in segmentation: a share of positions, not of samples."""
    x, y = torch.randn(11, 3, 6, generator=torch.Generator().manual_seed(0)), torch.arange(66).reshape(11, 6) % 3
    found = train.evaluate(nn.Identity(), (x, y), batch_size=4)
    assert found.samples == 11
    assert found.accuracy == pytest.approx(float((x.argmax(1) == y).double().mean()))


def test_schedules() -> None:
    cosine = TrainOptions(epochs=4, lr=1.0, schedule="cosine")
    assert [cosine.rate(epoch, 0.0) for epoch in range(4)] == pytest.approx([1.0, 0.853553, 0.5, 0.146447], abs=1e-6)
    assert cosine.rate(3, 1.0) == pytest.approx(0.0, abs=1e-12)
    step = TrainOptions(epochs=6, lr=1.0, schedule="step", step_epochs=2, step_factor=0.5)
    assert [step.rate(epoch, 0.9) for epoch in range(6)] == [1, 1, 0.5, 0.5, 0.25, 0.25]
    assert TrainOptions(lr=0.3).rate(7, 0.5) == 0.3


def test_warm_up_rises_to_the_schedule_and_leaves_it_the_rest() -> None:
    cosine = TrainOptions(epochs=6, lr=1.0, schedule="cosine", warmup_epochs=2)
    found = [cosine.rate(epoch, fraction) for epoch, fraction in ((0, 0.0), (0, 0.5), (1, 0.0), (2, 0.0), (4, 0.0))]
    assert found == pytest.approx([0.0, 0.25, 0.5, 1.0, 0.5])
    assert cosine.rate(5, 1.0) == pytest.approx(0.0, abs=1e-12)
    assert TrainOptions(epochs=4, lr=0.3, warmup_epochs=1).rate(0, 0.5) == pytest.approx(0.15)


def test_a_rewound_schedule_is_the_end_of_the_whole_one() -> None:
    """Weights of epoch 2 of 5, trained from epoch 2 on: the learning rates of the last three epochs."""
    options = {"batch_size": 32, "schedule": "cosine", "lr": 0.1}
    rates = [record.lr for record in train.fit(network(), problem(), TrainOptions(epochs=5, **options)).epochs]
    rewound = train.fit(network(), problem(), TrainOptions(epochs=5, first_epoch=2, **options))
    assert [record.lr for record in rewound.epochs] == rates[2:]
    assert [record.epoch for record in rewound.epochs] == [2, 3, 4]


def test_stopping_is_as_if_interrupted() -> None:
    part, whole = network(), network()
    options = TrainOptions(epochs=3, batch_size=32, schedule="cosine")
    history = train.fit(part, problem(), options, stop_after=2)
    assert train.fit(whole, problem(), options).epochs[:2] == history.epochs
    assert not torch.equal(weights(part), weights(whole))


def test_accumulated_batches_are_one_large_batch() -> None:
    """Without BatchNorm and dropout the mean of equal batches' gradients is that of the large batch."""
    models = [train.mlp(6, (24, 12), 2, seed=3).double() for _ in range(2)]
    x, y = problem(96)
    for model, size, accumulate in zip(models, (32, 8), (1, 4), strict=True):
        train.fit(model, (x.double(), y), TrainOptions(epochs=2, batch_size=size, accumulate=accumulate, clip_norm=0.5))
    torch.testing.assert_close(weights(models[0]), weights(models[1]), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_learns_and_keeps_float32_weights(precision: Any) -> None:
    model = network()
    options = TrainOptions(epochs=6, batch_size=32, lr=0.1, precision=precision, nesterov=True, clip_norm=5.0)
    history = train.fit(model, problem(), options)
    assert history.last.train.loss < 0.9 * history.epochs[0].train.loss
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_early_stopping_counts_epochs_without_a_lower_loss() -> None:
    x, y = problem()
    wrong = (x, 1 - y)  # the better the fit, the worse the validation loss
    history = train.fit(network(), (x, y), TrainOptions(epochs=50, patience=3), validation=wrong)
    losses = [record.validation.loss for record in history.epochs if record.validation]
    assert history.stopped_early
    assert len(losses) < 50
    assert min(losses[-3:]) >= min(losses[:-3])


def test_progress_sees_every_epoch() -> None:
    seen: list[train.EpochRecord] = []
    history = train.fit(network(), problem(), TrainOptions(epochs=3), validation=problem(), progress=seen.append)
    assert tuple(seen) == history.epochs
    assert [record.epoch for record in seen] == [0, 1, 2]


def test_frozen_parameters_stay() -> None:
    model = network()
    model[1].weight.requires_grad_(False)
    before = model[1].weight.clone()
    train.fit(model, problem(), TrainOptions(epochs=1))
    assert torch.equal(model[1].weight, before)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="Sequential has no parameter that requires gradients"):
        train.fit(model, problem())


def test_zero_epochs_change_nothing() -> None:
    model = network()
    before = weights(model)
    history = train.fit(model, problem(), TrainOptions(epochs=0))
    assert torch.equal(weights(model), before)
    with pytest.raises(ValueError, match="training ran for 0 epochs"):
        _ = history.last


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: train.fit(network(), problem(), TrainOptions(patience=2)), ValueError, "patience=2 needs validation"),
        (lambda: train.fit(network(), (torch.zeros(3, 6), torch.zeros(2))), ValueError, "3 inputs and 2 labels"),
        (lambda: train.fit(network(), []), ValueError, "there are no samples to train on"),
        (lambda: train.evaluate(network(), problem(0)), ValueError, "there are no samples to evaluate"),
        (lambda: train.fit(network(), [torch.zeros(2, 6)]), TypeError, r"must yield \(inputs, labels\).* not Tensor"),
        (
            lambda: train.evaluate(network(), problem(), batch_size=0),
            ValueError,
            "batch_size must be at least 1, not 0",
        ),
        (
            lambda: train.evaluate(network(), (torch.zeros(2, 6), torch.eye(2))),
            ValueError,
            r"labels \(2, 2\) are no class numbers for outputs \(2, 2\)",
        ),
        (
            lambda: train.evaluate(nn.Flatten(0), (torch.ones(3, 1), torch.ones(3)), loss=functional.mse_loss),
            ValueError,
            r"labels \(3,\) are no class numbers for outputs \(3,\)",
        ),
        (
            lambda: train.fit(network(), (problem()[0] * torch.inf, problem()[1])),
            ValueError,
            "the loss became nan after 0 samples; a lower learning rate may help",
        ),
    ],
)
def test_bad_data(call: Callable[[], object], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        call()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"epochs": -1}, "epochs must be an integer of at least 0, not -1"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, not 0"),
        ({"batch_size": 2.0}, "batch_size must be an integer of at least 1, not 2.0"),
        ({"optimizer": "lion"}, "optimizer must be one of sgd, adam, adamw, not 'lion'"),
        ({"schedule": "linear"}, "schedule must be one of constant, cosine, step, not 'linear'"),
        ({"lr": 0.0}, "lr must be a positive number, not 0.0"),
        ({"lr": float("nan")}, "lr must be a positive number, not nan"),
        ({"lr": "fast"}, "lr must be a positive number, not 'fast'"),
        ({"momentum": -0.1}, "momentum must be a non-negative number, not -0.1"),
        ({"momentum": 1.0}, "momentum must be below 1, not 1.0"),
        ({"clip_norm": 0}, "clip_norm must be a positive number, not 0"),
        ({"patience": 0}, "patience must be an integer of at least 1, not 0"),
        ({"seed": True}, "seed must be an integer of at least 0, not True"),
        ({"precision": "float8"}, "precision must be one of float32, bfloat16, float16, not 'float8'"),
        ({"accumulate": 0}, "accumulate must be an integer of at least 1, not 0"),
        ({"nesterov": 1}, "nesterov must be true or false, not 1"),
        ({"nesterov": True, "optimizer": "adam"}, "nesterov needs sgd with momentum, not adam with momentum=0.9"),
        ({"warmup_epochs": 11}, "warmup_epochs must be at most epochs=10, not 11"),
        ({"first_epoch": 11}, "first_epoch must be at most epochs=10, not 11"),
        ({"lr": 10**400}, r"lr must be below 1e\+30, not 10{400}"),
        ({"lr": float("inf")}, "lr must be a positive number, not inf"),
        ({"lr": 1e308}, r"lr must be below 1e\+30, not 1e\+308"),
        ({"weight_decay": 1e39}, r"weight_decay must be below 1e\+30, not 1e\+39"),
        (
            {"schedule": "step", "step_epochs": 1, "step_factor": 1e9},
            r"step_factor=1000000000.0 raises lr=0.05 to 1e\+30 and more",
        ),
        ({"accumulate": 2**31}, "accumulate must be at most 2147483647, not 2147483648"),
    ],
)
def test_bad_options(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TrainOptions(**options)
