"""What float32 products do to scores: measured by float64 sums of the same products, and refused above 1e-6."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fast_streams import REFUSED, answer, fast, right_or_refused
from streams import (
    ESTIMATORS,
    Array,
    Layers,
    features,
    streamed,
    truth,
)
from tolerance import assert_close

from simkit.streaming.finish import finish

KINDS: dict[str, Callable[[np.random.Generator, Array], Array]] = {
    "ReLU": lambda r, x: np.maximum(x, 0),
    "ReLU + 1000": lambda r, x: np.maximum(x, 0) + 1000,
    "two deviations from zero": lambda r, x: x + 2,
    "two values": lambda r, x: np.where(x > 0, r.standard_normal(x.shape[1]), r.standard_normal(x.shape[1])),
    "zero or one value": lambda r, x: np.where(x > 0.5, r.random(x.shape[1]) + 0.1, 0.0),
    "multiples of a step": lambda r, x: np.round(x * 8) * 0.0371,
    "half precision": lambda r, x: x.astype(np.float16),
    "heavy-tailed": lambda r, x: x + r.standard_cauchy(x.shape),
    "one large feature": lambda r, x: x * np.where(np.arange(x.shape[1]) == 0, 1e3, 1),
    "one row in twenty × 50": lambda r, x: x * np.where(r.random((len(x), 1)) < 0.05, 50, 1),
    "the same rows again": lambda r, x: np.maximum(x, 0)[np.arange(len(x)) % 512],
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_the_estimate_is_above_the_error(kind: str, dtype: Any) -> None:
    for seed, (n, p, q) in enumerate([(1536, 13, 20), (1300, 1, 40), (1024, 16, 16), (3000, 64, 2), (2100, 100, 256)]):
        r = np.random.default_rng([seed, len(kind)])
        z = r.standard_normal((n, 3))
        layers = {
            name: KINDS[kind](r, z @ r.standard_normal((3, width)) + 0.3 * r.standard_normal((n, width))).astype(dtype)
            for name, width in (("x", p), ("y", q))
        }
        for estimator in ESTIMATORS:
            exact, quick = (streamed(layers, estimator=estimator, products=k) for k in ("float64", "float32"))
            assert quick._exact is not None
            sums, rounding = finish(quick._exact, estimator)
            assert rounding is not None
            size = np.sqrt(np.outer(sums.self_rows, sums.self_columns))
            error = np.abs(sums.table / size - exact.compute().values)
            assert (error <= np.maximum(rounding.of_scores(sums), 1e-12)).all(), (seed, estimator)


# Of few values every product is rounded the same way, block after block: what a few float64 sums see.

WIDTHS = [13, 64, 256, pytest.param(2000, marks=pytest.mark.slow)]
STEPS = {
    "a fifth and a seventh": (0.2, 1 / 7),
    "0.3 and a third": (0.3, 1 / 3),
    "squares lose nothing": (0.8578377962112427, 0.6093875169754028),  # products of the two do
}


def common_factor(n: int, p: int, seed: int = 0) -> tuple[np.random.Generator, Layers]:
    """Features that are alike, as of positive weights."""
    r = np.random.default_rng([seed, n, p])
    z = r.standard_normal((n, 1))
    return r, {name: z + 0.5 * r.standard_normal((n, p)) for name in "xy"}


@pytest.mark.parametrize("p", WIDTHS)
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("n", [1536, 4096])
def test_one_step_of_each_layer(n: int, steps: str, p: int) -> None:
    _, layers = common_factor(n, p)
    both = [((x > 0.14) * step).astype(np.float32) for x, step in zip(layers.values(), STEPS[steps], strict=True)]
    right_or_refused({"x": both[0], "y": both[1]})
    right_or_refused({"x": both[0]}, {"y": both[1]})


@pytest.mark.parametrize("p", WIDTHS)
def test_zeros_that_are_rarer_after_the_first_block(p: int) -> None:
    n = 4096
    _, layers = common_factor(n, p)
    threshold = np.where(np.arange(n) < 512, 0.14, -1.5)[:, None]
    steps = {"x": 0.3, "y": 0.7}
    right_or_refused({name: ((x > threshold) * steps[name]).astype(np.float32) for name, x in layers.items()})


@pytest.mark.parametrize("p", [64, 128])
@pytest.mark.parametrize("levels", [3, 4, 8])
def test_quantised_relus_of_halves(levels: int, p: int) -> None:
    for seed in range(4):
        r, layers = common_factor(2048, p, seed)
        coded = {k: np.clip(np.round(np.maximum(x + 0.5, 0) * levels / 4), 0, levels - 1) for k, x in layers.items()}
        right_or_refused({k: (x * (r.random() + 0.05)).astype(np.float16) for k, x in coded.items()})


@pytest.mark.parametrize("p", WIDTHS)
@pytest.mark.parametrize("n", [1536, 4096])
def test_ordinary_features_are_answered(n: int, p: int) -> None:
    r, layers = common_factor(n, p)
    mixed = {name: layers["x"] @ r.standard_normal((p, p)) / np.sqrt(p) + layers[name] for name in "xy"}
    for dtype in (np.float16, np.float32, np.float64):
        for made in (layers, mixed):
            for kind in (lambda x: x, lambda x: np.maximum(x, 0)):
                batch = {name: kind(x).astype(dtype) for name, x in made.items()}
                assert right_or_refused(batch)
    noise = {name: r.standard_normal((n, p)).astype(np.float32) for name in "xy"}
    assert right_or_refused(noise) or p > 1000


@pytest.mark.parametrize("far", [30.0, 1000.0, 1e5])
def test_a_stream_whose_shift_is_bad_meets_a_good_one(far: float) -> None:
    """Moving the sums makes them smaller, but not what they are off by."""
    for values in (lambda x: x, lambda x: (x > 0.14) * 0.2):
        r, bad = common_factor(4096, 13)
        for x in bad.values():
            x[:512] += far * (r.random((512, 13)) < 0.53)
        _, good = common_factor(2000, 13, 1)
        streams = []
        for products in ("float64", "float32"):
            total = streamed({k: values(x) for k, x in good.items()}, products=products)
            batch = {k: np.concatenate([x[:512], values(x[512:])]) for k, x in bad.items()}
            total.merge(streamed(batch, products=products))
            streams.append(total)
        found = answer(streams[1])
        assert found is None or np.abs(found - streams[0].compute().values).max() <= 1e-6


def test_what_is_refused_names_the_layers() -> None:
    _, made = common_factor(2100, 40)
    layers = {"l0": made["x"][:, :20], "l1": (made["x"] > 0.14) * 0.2, "l2": (made["y"] > 0.14) / 7}
    stream = streamed(layers, **fast)
    with pytest.raises(ValueError, match=REFUSED) as caught:
        stream.compute()
    assert "l1 and l2" in str(caught.value)
    exact = streamed(layers).compute().values
    assert_close(exact, truth(layers, None, "debiased"), "stream", np.float32, 2100, 40)


def test_one_pair_of_features_may_decide() -> None:
    layers = features(2100, [20, 40])
    layers["l1"][:, 0] = layers["l0"][:, 0]
    for x in layers.values():
        x[:, 0] *= 1e3
    assert right_or_refused(layers)
