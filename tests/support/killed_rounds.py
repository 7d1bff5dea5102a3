"""Rounds of pruning that are killed ten times and go on in the same folder. Run as a script with an empty folder.

Prints "same" when weights, masks and results equal those of a run that nobody killed.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from killed_runs import killed
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from simkit import pruning as P
from simkit.files import is_draft

KILLS = 10
INPUTS = torch.randn(128, 12, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(128) % 4


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(12, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 4))


def train(model: nn.Module, stage: P.Stage) -> dict[str, float]:
    """Adam, dropout and a checkpoint of its own after every few steps."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    order = torch.Generator().manual_seed(stage.number)
    first, loss = 0, torch.zeros(())
    file = None if stage.folder is None else stage.folder / "state.pt"
    if file is not None and file.exists():
        kept = torch.load(file, weights_only=True)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        order.set_state(kept["order"])
        torch.set_rng_state(kept["dropout"])
        first = kept["step"]
    for step in range(first, 60):
        chosen = torch.randint(128, (32,), generator=order)
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(INPUTS[chosen]), LABELS[chosen])
        loss.backward()
        optimizer.step()
        if file is not None and step % 7 == 6:
            state: dict[str, Any] = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            draft = file.with_suffix(".new")
            torch.save({**state, "order": order.get_state(), "dropout": torch.get_rng_state()}, draft)
            draft.replace(file)
    with torch.no_grad():
        return {"loss": float(functional.cross_entropy(model(INPUTS), LABELS))}


def run(folder: Path | None) -> list[P.SparseRound]:
    """Matching tickets by sensitivity, from batches that are shuffled by the global random state."""
    data = DataLoader(TensorDataset(INPUTS, LABELS), batch_size=32, shuffle=True)
    found = P.rounds(
        network(), train=train, score=P.GradientMagnitude(), amount=0.9, rounds=5, retrain=P.RewindWeights(20),
        data=data, checkpoints=folder,
    )  # fmt: skip
    return list(found)


def content(one: P.SparseRound) -> dict[str, Tensor]:
    return {**one.model.state_dict(), **{f"mask of {name}": mask for name, mask in one.masks.items()}}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    expected = run(None)
    started = time.perf_counter()
    run(folder / "timed")
    length = time.perf_counter() - started
    chance = np.random.default_rng(os.getpid())
    early = sum(killed(lambda: run(folder / "killed"), length * chance.uniform(0.02, 0.4)) for _ in range(KILLS))
    assert early >= 2, "hardly a kill came before the end"
    for one, other in zip(run(folder / "killed"), expected, strict=True):
        assert (one.number, one.amount, one.kept, one.result) == (other.number, other.amount, other.kept, other.result)
        first, second = content(one), content(other)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first), one.number
    assert not [path for path in (folder / "killed").iterdir() if is_draft(path)]
    print("same")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
