"""What training and evaluating report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


def as_record(entry: Mapping[str, Any]) -> EpochRecord:
    """A record from the plain data that ``dataclasses.asdict`` makes of it."""
    held_out = entry["validation"]
    return EpochRecord(
        epoch=entry["epoch"],
        lr=entry["lr"],
        train=Evaluation(**entry["train"]),
        validation=None if held_out is None else Evaluation(**held_out),
    )


@dataclass(frozen=True)
class Evaluation:
    """Mean loss, share of correct predictions (0 to 1; of all positions where samples have several) and number of
    samples."""

    loss: float
    accuracy: float
    samples: int


@dataclass(frozen=True)
class EpochRecord:
    """One finished epoch, 0 the first; the learning rate is the one of its last step."""

    epoch: int
    lr: float
    train: Evaluation
    validation: Evaluation | None


@dataclass(frozen=True)
class History:
    """All finished epochs, and whether training stopped because validation no longer improved."""

    epochs: tuple[EpochRecord, ...]
    stopped_early: bool

    @property
    def last(self) -> EpochRecord:
        """The last finished epoch; ValueError if there is none."""
        if not self.epochs:
            raise ValueError("training ran for 0 epochs")
        return self.epochs[-1]
