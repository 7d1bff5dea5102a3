"""A benchmark of meaning: which measure finds the same layer again in a network trained from another seed?

After Kornblith et al. 2019, section 6.1: for each layer of network A the most similar layer of network B; accuracy is
the share of layers whose best match is the same layer. Eight convolutions on digits, two ways to make features:

* ``flattened``: every position of every channel is a feature, over the test images. Layers have more features than
  samples; mean CCA of such layers is 1 whatever they hold, which is no match, and simkit's warning says so.
* ``channel means``: few features, all images, so every measure is well defined: CCA's best case.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import simkit as sk

from .truth import Array, Floats, centred, cka

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
threadpoolctl = pytest.importorskip("threadpoolctl")  # scikit-learn brings it

LAYERS = 8


@dataclass(frozen=True)
class Setting:
    """How many networks, how wide, how long trained on how many images (of either split, at most)."""

    seeds: int
    width: int
    epochs: int
    images: int


FULL = Setting(seeds=5, width=64, epochs=3, images=1797)
TINY = Setting(seeds=2, width=2, epochs=1, images=150)


def measures() -> dict[str, Any]:
    """Measure objects by the names of the table."""
    return {
        "linear CKA, debiased": sk.CKA(),
        "linear CKA, biased": sk.CKA(estimator="biased"),
        "RBF CKA, debiased": sk.CKA(kernel=sk.RBF(0.5)),
        "NBS": sk.NBS(),
        "mean CCA": sk.MeanCCA(),
        "R² CCA": sk.R2CCA(),
        "SVCCA": sk.SVCCA(),
        "PWCCA": sk.PWCCA(),
    }


def test_layer_correspondence(benchmark: Any, full: bool, keep: Callable[[dict[str, Any]], None]) -> None:
    """At full size linear CKA finds most layers again, and far more than CCA and SVCCA do."""
    setting = FULL if full else TINY
    networks, accuracy, data = _trained(setting)
    test = data.test_x[: setting.images]
    images = {"flattened": test, "channel means": torch.cat([data.train_x[: setting.images], test])}
    found: dict[str, dict[str, Any]] = {name: {} for name in measures()}
    sizes = {}
    for features, inputs in images.items():
        layers = _layers(networks, inputs, features)
        sizes[features] = {"n": len(inputs), "p": [x.shape[1] for x in list(layers.values())[:LAYERS]]}
        first, *_, last = layers.values()
        for name, measure in measures().items():
            table = _table(layers, measure)
            if table is None:
                found[name][features] = None
                continue
            scores = _shares(table, setting.seeds)
            found[name][features] = {
                "mean": statistics.mean(scores),
                "interval": _interval(scores),
                "pairs": len(scores),
            }
            _check(name, table[0, -1], first, last)
    benchmark.pedantic(_table, args=(layers, sk.CKA()))
    keep(
        {
            "kind": "correspondence",
            "key": "correspondence",
            "full": full,
            "title": "layer correspondence on digits",
            "setting": {"network": "conv8", **vars(setting)},
            "test_accuracy": accuracy,
            "features": sizes,
            "measures": found,
        }
    )
    if full:
        for features in images:
            best = found["linear CKA, debiased"][features]["mean"]
            rest = [found[name][features] for name in ("mean CCA", "SVCCA")]
            assert best > 0.8
            assert all(other is None or other["mean"] < best / 2 for other in rest)


def _trained(setting: Setting) -> tuple[list[Any], list[float], Any]:
    from simkit import train

    data = train.digits(test_fraction=1 / 3)
    shifted = _shifted(data.train_x[: setting.images], data.train_y[: setting.images])
    networks, accuracy = [], []
    for seed in range(setting.seeds):
        model = train.conv8(data.shape, data.classes, width=setting.width, seed=seed)
        options = train.TrainOptions(
            epochs=setting.epochs, batch_size=128, lr=0.1, weight_decay=1e-3, schedule="cosine", seed=seed
        )
        train.fit(model, shifted, options)
        accuracy.append(train.evaluate(model, data.test).accuracy)
        networks.append(model.eval())
    return networks, accuracy, data


def _shifted(images: Any, labels: Any) -> tuple[Any, Any]:
    """Nine copies of the images, moved by up to one pixel each way: few digits, and wide networks."""
    rows, columns = images.shape[2:]
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), value=float(images.min()))
    moved = [padded[:, :, i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
    return torch.cat(moved), labels.repeat(9)


def _layers(networks: Sequence[Any], inputs: Any, features: str) -> dict[str, Array]:
    """The ReLU outputs of every network, ``{"seed/relu": [n, p]}``."""
    layers = {}
    for seed, network in enumerate(networks):
        x = inputs
        with torch.inference_mode():
            for name, module in network.named_children():
                x = module(x)
                if name.startswith("relu"):
                    held = x.flatten(1) if features == "flattened" else x.mean(dim=(2, 3))
                    layers[f"{seed}/{name}"] = held.numpy().copy()
    return layers


def _table(layers: dict[str, Array], measure: Any) -> Floats | None:
    """Scores of all layers of all networks; None where a layer spans all samples, so that its scores say nothing."""
    # Small decompositions: two BLAS threads gain nothing, and on a busy machine they cost a factor of thirty.
    with warnings.catch_warnings(), threadpoolctl.threadpool_limits(1, user_api="blas"):
        warnings.simplefilter("error", sk.DegenerateWarning)
        try:
            return sk.similarity_matrix(layers, measure=measure).values
        except sk.DegenerateWarning:
            return None


def _shares(table: Floats, seeds: int) -> list[float]:
    """For every ordered pair of different networks the share of layers whose best match is the same layer."""
    blocks = table.reshape(seeds, LAYERS, seeds, LAYERS)
    same = np.arange(LAYERS)
    return [
        float((blocks[a, :, b].argmax(axis=1) == same).mean()) for a in range(seeds) for b in range(seeds) if a != b
    ]


def _interval(scores: Sequence[float]) -> float:
    """Half the width of the 95% confidence interval of the mean over pairs (Student's t)."""
    from scipy.stats import t

    if len(scores) < 2:
        return math.nan
    return float(t.ppf(0.975, len(scores) - 1) * statistics.stdev(scores) / math.sqrt(len(scores)))


def _check(name: str, value: float, x: Array, y: Array) -> None:
    """The score of one pair against a plain float64 computation, where there is a short one."""
    if name.startswith("linear CKA"):
        assert math.isclose(value, cka(x, y, debiased="debiased" in name), abs_tol=1e-6)
    if name == "NBS":
        a, b = centred(x), centred(y)
        nuclear = np.linalg.svd(a.T @ b, compute_uv=False).sum()
        assert math.isclose(value, nuclear / (np.linalg.norm(a) * np.linalg.norm(b)), abs_tol=1e-6)
