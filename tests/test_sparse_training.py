"""Rounds around ``simkit.train.fit``: its checkpoints take masks along, and it goes on in the middle of a round."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from torch import nn  # noqa: E402

from simkit import pruning as P  # noqa: E402
from simkit import train as T  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = T.TrainOptions(epochs=3, batch_size=256, lr=0.1, schedule="cosine")


class Fit:
    """Trains on the digits, and is interrupted after an epoch of a stage."""

    def __init__(self, stop: tuple[int, int] | None = None) -> None:
        self.data = T.digits()
        self.stop = stop
        self.epochs: list[tuple[int, int]] = []

    def __call__(self, model: nn.Module, stage: P.Stage) -> dict[str, Any]:
        def progress(record: T.EpochRecord) -> None:
            self.epochs.append((stage.number, record.epoch))
            if self.stop == (stage.number, record.epoch):
                raise KeyboardInterrupt

        options = OPTIONS if stage.first_step is not None else replace(OPTIONS, lr=0.001, schedule="constant")
        history = T.fit(model, self.data.train, options, checkpoint=stage.folder, progress=progress)
        return {"loss": history.last.train.loss, "accuracy": T.evaluate(model, self.data.test).accuracy}


@pytest.mark.parametrize("retrain", [P.FineTune(), P.RewindLR(), P.RewindWeights(4)], ids=repr)
def test_an_interrupted_epoch_is_all_that_is_repeated(retrain: Any, tmp_path: Path) -> None:
    model = T.mlp(64, (32,), seed=0)
    options = {"amount": 0.8, "rounds": 2, "retrain": retrain, "keep": ["fc2"]}
    expected = list(P.rounds(model, train=Fit(), **options))
    for stop in ((0, 1), (2, 0)):
        folder = tmp_path / f"{stop}"
        first, second = Fit(stop), Fit()
        with pytest.raises(KeyboardInterrupt):
            list(P.rounds(model, train=first, checkpoints=folder, **options))
        found = list(P.rounds(model, train=second, checkpoints=folder, **options))
        assert first.epochs + second.epochs == [(stage, epoch) for stage in range(3) for epoch in range(3)]
        for one, other in zip(found, expected, strict=True):
            assert one.result == other.result
            state = other.model.state_dict()
            assert all(torch.equal(value, state[name]) for name, value in one.model.state_dict().items())
    assert expected[-1].kept == 1 - round(0.8 * 2048) / 2048
    assert expected[-1].result["accuracy"] > 0.7
