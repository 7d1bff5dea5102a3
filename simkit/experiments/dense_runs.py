"""Training the complete networks, one run per seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from .. import pruning as P
from ..errors import first_line
from .config import ExperimentConfig
from .measured import performance
from .run_directory import REMEDY, RunDirectory, identity
from .tensor_files import read_tensors, write_tensors
from .workbench import Workbench

MODEL = "dense.safetensors"
STAGE = "dense"


@dataclass(frozen=True, eq=False)
class DenseRun:
    """A trained network, and what was measured of it."""

    seed: int
    directory: RunDirectory
    result: dict[str, Any]
    model: nn.Module
    found: bool


def dense_content(config: ExperimentConfig, seed: int) -> dict[str, Any]:
    """All that decides a dense network: where its data lie does not, unless the place is the data."""
    data = config.data.model_dump(include={"name", "validation", *config.data.options})
    if config.data.name != "folder":
        data.pop("path", None)
    return {"kind": "dense", "model": config.model.model_dump(), "data": data, "train": config.train.model_dump(),
            "seed": seed}  # fmt: skip


def dense_run(bench: Workbench, seed: int) -> DenseRun:
    """The trained network of a seed: found where it is done, trained (from where it was left) where it is not."""
    directory = RunDirectory(bench.config.run.out, f"dense-s{seed}", dense_content(bench.config, seed))
    done = directory.result()
    result = _train(bench, seed, directory) if done is None else done
    directory.tidy(STAGE)  # not what weights_at has begun
    try:
        model = P.load(directory.checkpoints / MODEL, lambda: bench.network(seed))
    except (ValueError, OSError) as error:
        raise ValueError(f"{first_line(error)}; {REMEDY}") from error
    return DenseRun(seed, directory, result, model, done is not None)


def weights_at(bench: Workbench, dense: DenseRun, epoch: int) -> nn.Module:
    """The network of the run as it was after ``epoch`` epochs; those between the first and last are trained again."""
    model = bench.network(dense.seed)
    if epoch == 0:
        return model
    file = dense.directory.checkpoints / f"epoch-{epoch:05d}.safetensors"
    if file.is_file():
        try:
            model.load_state_dict(read_tensors(file))
        except RuntimeError as error:
            raise ValueError(f"{str(file)!r} does not fit: {first_line(error)}; {REMEDY}") from error
        except ValueError as error:
            raise ValueError(f"{first_line(error)}; {REMEDY}") from error
        return model
    options = bench.config.train.training(dense.seed, bench.config.run.device)
    with dense.directory.open() as metrics:
        folder = dense.directory.training / file.stem
        bench.fit(model, options, folder, metrics, "training", stop_after=epoch)
        write_tensors(file, model.state_dict())
        dense.directory.tidy(file.stem)
    return model


def _train(bench: Workbench, seed: int, directory: RunDirectory) -> dict[str, Any]:
    bench.progress.doing(directory.name)
    model = bench.network(seed)
    options = bench.config.train.training(seed, bench.config.run.device)
    with directory.open() as metrics:
        history = bench.fit(model, options, directory.training / STAGE, metrics, "training")
        P.save(model, directory.checkpoints / MODEL)
        found = performance(model, bench)
        epochs = {"epochs": len(history.epochs), "stopped_early": history.stopped_early}
        known = {
            "kind": "dense",
            "experiment": identity(dense_content(bench.config, 0)),
            "title": f"{bench.config.model.name} on {bench.config.data.name}",
            "seed": seed,
        }
        result = directory.finish({**known, **found, **epochs})
    bench.progress.note(f"{directory.name}: trained, test accuracy {found['accuracy']:.1%}")
    return result
