"""What all runs of one experiment share: its config, its data, and how a network of a seed is made and trained."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import first_line
from ..train import LOADERS, Dataset, History, TrainOptions, finished_epochs, fit, held_out, make_network
from ..train.dataset import Pair
from .config import ExperimentConfig
from .progress import Progress
from .run_directory import Metrics

EXAMPLES = 2  # samples that a model is traced and checked on


@dataclass(frozen=True, eq=False)
class Workbench:
    """One experiment's config and data, ready to be worked on."""

    config: ExperimentConfig
    data: Dataset
    train: Pair
    validation: Pair | None
    progress: Progress

    @property
    def device(self) -> torch.device:
        """Where networks are trained and run."""
        return torch.device(self.config.run.device or "cpu")

    @property
    def example(self) -> Tensor:
        """A few inputs on the device."""
        return self.data.train_x[:EXAMPLES].to(self.device)

    def network(self, seed: int) -> nn.Module:
        """The network before training, on the device."""
        model = self.config.model
        made = make_network(model.name, self.data.shape, self.data.classes, seed=seed, options=model.options)
        return made.to(self.device)

    def drawn(self, count: int) -> Pair:
        """So many training samples on the device, or all: always the same ones, drawn as the data may be sorted."""
        inputs, labels = self.train
        chosen = fixed_sample(len(inputs), count)
        return inputs[chosen].to(self.device), labels[chosen].to(self.device)

    def fit(
        self,
        model: nn.Module,
        options: TrainOptions,
        folder: Path,
        metrics: Metrics,
        stage: str,
        *,
        stop_after: int | None = None,
    ) -> History:
        """Train in place, going on from what the folder holds; every finished epoch is in the metrics once.

        Raises:
            ValueError: as :func:`simkit.train.fit`; whatever a network of the user's raises while it is trained.
        """
        for record in finished_epochs(folder):  # of one, the process may have been killed before it was noted
            metrics.add(stage, record)
            self.progress.step()

        def note(record: Any) -> None:
            metrics.add(stage, record)
            self.progress.step()

        try:
            return fit(
                model,
                self.train,
                options,
                validation=self.validation,
                checkpoint=folder,
                progress=note,
                stop_after=stop_after,
            )
        except (ValueError, OSError):
            raise
        except Exception as error:
            raise ValueError(f"training fails: {type(error).__name__}: {first_line(error)}") from error


def workbench(config: ExperimentConfig, progress: Progress) -> Workbench:
    """Load the data, and make the first network once, so that what is wrong with them is said before anything runs.

    Raises:
        ValueError: missing or damaged data, an impossible network. ImportError: a library that the data needs.
    """
    if config.run.device is not None:
        _check_device(config.run.device)
    try:
        data = LOADERS[config.data.name](**config.data.options)
    except ModuleNotFoundError as error:
        if error.name == "sklearn":
            raise ImportError("[data] the digits ship with scikit-learn: pip install scikit-learn") from None
        raise
    train, validation = held_out(data, config.data.validation)
    bench = Workbench(config, data, train, validation, progress)
    try:
        model = bench.network(config.run.seeds[0]).eval()
        with torch.no_grad():
            outputs = model(bench.example)
    except (Exception, SystemExit) as error:  # a user's network may raise anything
        known = isinstance(error, ValueError | TypeError | RuntimeError)
        said = first_line(error) if known else f"{type(error).__name__}: {first_line(error)}"
        raise ValueError(f"[model] {config.model.name} on {data.name}: {said}") from error
    if not isinstance(outputs, Tensor) or outputs.shape != (EXAMPLES, data.classes):
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(
            f"[model] {config.model.name} gives {shape} for {EXAMPLES} samples, not scores of {data.classes} classes"
        )
    return bench


def fixed_sample(n: int, count: int) -> Tensor:
    """Indices ``[min(count, n)]`` of n samples: the first of a permutation that depends on n only."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))[:count]


def derived_seed(seed: int, *parts: object) -> int:
    """A seed for one part of a run, 0 to 2^31 - 1, that is unlike those of all other parts and runs."""
    digest = hashlib.sha256("/".join(map(str, (seed, *parts))).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _check_device(device: str) -> None:
    try:
        torch.ones(1, device=device).cpu()  # there and back: "meta" takes tensors, and never returns one
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"[run] device={device!r} cannot be used: {first_line(error)}") from None
