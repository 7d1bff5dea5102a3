"""The demo's networks: train, compare their layers, prune by three criteria, fine-tune.

Small CNNs learn scikit-learn's digits from several seeds. Layers of the first two are compared by exact debiased linear
CKA. From every network half of the channels of every hidden layer goes, by CKA damage, L1 norm or at random, and what
is left is fine-tuned. The criteria see the training images only; accuracies are those of the test images.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from .. import pruning as P
from ..compare.matrix import SimilarityMatrix
from ..compare.models import compare
from ..pruning.scores import Score
from ..train import Dataset, EpochRecord, TrainOptions, digits, evaluate, fit, small_cnn
from .progress import Progress
from .statistics import Interval, mean_interval
from .threads import torch_threads

AMOUNT = 0.5
WIDTHS = (32, 64, 64)  # channels of the convolutions: room enough to lose half
MEMORY = "256 MB"  # more than it takes; named, so that the way does not depend on what is free
LAYERS = {"conv1": "relu1", "conv2": "relu2", "conv3": "relu3", "fc1": "relu4", "fc2": "fc2"}
"""What the heatmap calls a layer -> the module whose output it is: hidden layers after their activation."""
METHODS: dict[str, tuple[str, Callable[[int], Score]]] = {
    "cka": ("CKA damage", lambda seed: P.CKADamage()),
    "l1": ("L1", lambda seed: P.L1()),
    "random": ("random", lambda seed: P.Random(seed=seed)),
}
"""Name in files -> (name in print, the criterion for one seed)."""


def network(*, seed: int = 0) -> nn.Sequential:
    """The demo's network before training; ``P.load(file, network)`` reads any of the saved ones."""
    return small_cnn(widths=WIDTHS, seed=seed)


def model_name(seed: int, method: str) -> str:
    """The file of one network; ``method`` is ``"dense"`` or one of :data:`METHODS`."""
    return f"seed{seed}-{method}.safetensors"


@dataclass(frozen=True)
class DemoOptions:
    """Where the results go, how many seeds (at least 2), a shorter training for tests, torch's threads.

    Networks this small train fastest on one thread.
    """

    out: str = "simkit-demo"
    seeds: int = 3
    quick: bool = False
    threads: int = 1

    def __post_init__(self) -> None:
        for name, least in (("seeds", 2), ("threads", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, not {value!r}")
        if not self.out:
            raise ValueError("out must name a folder, not ''")

    def dense_training(self, seed: int) -> TrainOptions:
        """How a network learns."""
        return _schedule(2 if self.quick else 10, 0.05, seed)

    def fine_tuning(self, seed: int) -> TrainOptions:
        """How a cut network learns again."""
        return _schedule(1 if self.quick else 2, 0.01, seed)

    @property
    def epochs(self) -> int:
        """Epochs of all trainings together."""
        return self.seeds * (self.dense_training(0).epochs + len(METHODS) * self.fine_tuning(0).epochs)


@dataclass(frozen=True)
class Run:
    """One network pruned by one method. Accuracies are shares of the test images, 0 to 1; MACs are for one image."""

    seed: int
    method: str
    accuracy_dense: float
    accuracy_cut: float
    accuracy_finetuned: float
    params_before: int
    params_after: int
    macs_before: int
    macs_after: int
    model: str


@dataclass(frozen=True)
class DemoResult:
    """What the demo found: every run, and the similarity of the layers of the first two networks."""

    options: DemoOptions
    data: Dataset
    runs: tuple[Run, ...]
    heatmap: SimilarityMatrix
    seconds: float

    def values(self, method: str, field: str) -> list[float]:
        """One number of every seed, for one method."""
        return [getattr(run, field) for run in self.runs if run.method == method]

    def dense(self) -> list[float]:
        """The accuracy of every dense network."""
        return self.values(next(iter(METHODS)), "accuracy_dense")

    def difference(self, other: str, field: str) -> Interval:
        """CKA damage minus ``other``, paired by seed: both were cut from the same network."""
        pairs = zip(self.values("cka", field), self.values(other, field), strict=True)
        return mean_interval([ours - theirs for ours, theirs in pairs])


def run(options: DemoOptions, models: Path) -> DemoResult:
    """Train, compare and prune; every network is saved in the folder ``models``. Progress goes to stderr."""
    started = time.perf_counter()
    data = digits()
    with torch_threads(options.threads), Progress(options.epochs, " epochs") as progress:
        dense = [_train(data, options, seed, models, progress) for seed in range(options.seeds)]
        heatmap = _compare(dense[0], dense[1], data)
        progress.note("compared the layers of seeds 0 and 1")
        runs = [
            _prune(model, method, seed, data, options, models, progress)
            for seed, model in enumerate(dense)
            for method in METHODS
        ]
    return DemoResult(options, data, tuple(runs), heatmap, time.perf_counter() - started)


def _schedule(epochs: int, lr: float, seed: int) -> TrainOptions:
    return TrainOptions(epochs=epochs, batch_size=64, lr=lr, schedule="cosine", weight_decay=5e-4, seed=seed)


def _train(data: Dataset, options: DemoOptions, seed: int, models: Path, progress: Progress) -> nn.Module:
    dense = network(seed=seed)
    progress.doing(f"seed {seed}: training")
    fit(dense, data.train, options.dense_training(seed), progress=_counting(progress))
    P.save(dense, models / model_name(seed, "dense"))
    progress.note(f"seed {seed}: trained, test accuracy {evaluate(dense, data.test).accuracy:.1%}")
    return dense


def _counting(progress: Progress) -> Callable[[EpochRecord], None]:
    return lambda record: progress.step()


def _compare(first: nn.Module, second: nn.Module, data: Dataset) -> SimilarityMatrix:
    """Exact debiased linear CKA over the test images; rows are layers of seed 0, columns of seed 1."""
    names = tuple({f"{layer}, seed {seed}": module for layer, module in LAYERS.items()} for seed in (0, 1))
    return compare(first, second, data=data.test_x, layers=names, memory=MEMORY, progress=False)


def _prune(
    dense: nn.Module, method: str, seed: int, data: Dataset, options: DemoOptions, models: Path, progress: Progress
) -> Run:
    title, criterion = METHODS[method]
    progress.doing(f"seed {seed}: {title}")
    example = data.train_x[:2]
    plan = P.plan(dense, example, data=data.train_x, score=criterion(seed), amount=AMOUNT)
    small = P.apply(dense, plan, example)
    before = evaluate(small, data.test).accuracy
    fit(small, data.train, options.fine_tuning(seed), progress=_counting(progress))
    after = evaluate(small, data.test).accuracy
    file = model_name(seed, method)
    P.save(small, models / file)
    progress.note(
        f"seed {seed}, {title}: test accuracy {before:.1%} right after the cut, {after:.1%} after fine-tuning"
    )
    return Run(
        seed=seed,
        method=method,
        accuracy_dense=evaluate(dense, data.test).accuracy,
        accuracy_cut=before,
        accuracy_finetuned=after,
        params_before=plan.params_before,
        params_after=plan.params_after,
        macs_before=plan.macs_before,
        macs_after=plan.macs_after,
        model=f"models/{file}",
    )
