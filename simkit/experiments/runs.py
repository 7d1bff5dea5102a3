"""``simkit train`` and ``simkit prune``: every run of a config; what is done is found, the rest carried out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

from ..errors import first_line
from .arms import arms, retraining
from .config import ExperimentConfig
from .dense_runs import DenseRun, dense_run
from .preflight import check_pruning
from .progress import Progress
from .pruned_run import PrunedRun, pruned_run
from .structured_runs import structured_run
from .threads import torch_threads
from .unstructured_runs import unstructured_run
from .workbench import Workbench, workbench


@dataclass(frozen=True)
class Outcome:
    """The results of all runs of a command, and how many had been done before."""

    results: tuple[dict[str, Any], ...]
    found: int


def train_runs(config: ExperimentConfig) -> Outcome:
    """Train the dense network of every seed.

    Raises:
        ValueError: missing data, an impossible option, a damaged run (the message names it). OSError: files that cannot
            be written. A run that fails keeps none of the others from being carried out.
    """
    total = len(config.run.seeds) * config.train.epochs
    with torch_threads(config.run.threads), Progress(total, " epochs") as progress:
        failed: list[str] = []
        runs = list(_dense(workbench(config, progress), failed))
        return _outcome([run.result for run in runs], sum(run.found for run in runs), failed)


def prune_runs(config: ExperimentConfig) -> Outcome:
    """Prune by every method and every control, with every amount, from every seed's network; train those missing.

    Raises:
        ValueError: as :func:`train_runs`; a config without [prune].
    """
    options = config.prune
    if options is None:
        raise ValueError("the config has no section [prune], which simkit prune needs")
    with torch_threads(config.run.threads), Progress(_epochs(config), " epochs") as progress:
        bench = workbench(config, progress)
        check_pruning(bench, options)
        failed: list[str] = []
        results: list[dict[str, Any]] = []
        found = 0
        for dense in _dense(bench, failed):
            for arm, amount in product(arms(options), options.amounts):
                run = pruned_run(bench, options, arm, amount, dense)
                with _noted(run.directory.name, failed):
                    done = run.directory.result()
                    results.append(_carried_out(run) if done is None else done)
                    found += done is not None
                    run.directory.tidy()
        return _outcome(results, found, failed)


def _dense(bench: Workbench, failed: list[str]) -> Iterator[DenseRun]:
    for seed in bench.config.run.seeds:
        run: DenseRun | None = None
        with _noted(f"dense-s{seed}", failed):
            run = dense_run(bench, seed)
        if run is not None:
            yield run


def _outcome(results: list[dict[str, Any]], found: int, failed: list[str]) -> Outcome:
    """What came out, unless a run failed: ValueError with the reason of each."""
    if failed:
        rest = f" ({len(results)} other runs are done)" if results else ""
        raise ValueError(f"{'; '.join(failed)}{rest}")
    return Outcome(tuple(results), found)


def _carried_out(run: PrunedRun) -> dict[str, Any]:
    run.bench.progress.doing(run.directory.name)
    result = (structured_run if run.options.kind == "structured" else unstructured_run)(run)
    last = result["rounds"][-1]
    run.bench.progress.note(
        f"{run.directory.name}: test accuracy {last['accuracy']:.1%} with "
        f"{last['parameters'] / run.dense.result['parameters']:.1%} of the parameters"
    )
    return result


@contextmanager
def _noted(run: str, failed: list[str]) -> Iterator[None]:
    """What is wrong in a run is kept with its name, and the others go on."""
    try:
        yield
    except (ValueError, NotImplementedError) as error:
        failed.append(f"run {run}: {first_line(error)}")


def _epochs(config: ExperimentConfig) -> int:
    """Of all training, for the progress bar."""
    options = config.prune
    if options is None:
        return 0
    again = 0
    for arm in arms(options):
        training = retraining(config, arm, 0, 1)
        if training is not None:
            again += (training.epochs - training.first_epoch) * options.rounds * len(options.amounts)
    return len(config.run.seeds) * (config.train.epochs + again)
