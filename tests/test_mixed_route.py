"""What a mixed route would save, counted: the claim in the docstring of the planner."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
import pytest

from simkit.arrays import as_matrix
from simkit.backends.base import Block, RouteName
from simkit.backends.routes import FLOAT64_COST, plan_pair_sums
from simkit.kernels import Linear

SAMPLES = (256, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)


def costs(n: int, widths: Sequence[int], weight: float) -> tuple[float, float, float]:
    """Multiply-adds of sample space, feature space and the best mixed split; ``weight``: of one in feature space."""
    ordered = np.sort(np.array(widths, dtype=float))
    q = np.cumsum(ordered)[:-1]  # the narrow ones' columns, for every split
    wide, m = ordered.sum() - q, len(widths) - 1 - np.arange(len(q))
    mixed = weight * n * (q * q / 2 + q * wide) + n * n * (wide / 2 + m * m / 4)
    total = ordered.sum()
    return n * n * (total / 2 + len(widths) ** 2 / 4), weight * n * total**2 / 2, float(mixed.min())


def saved(n: int, widths: Sequence[int], weight: float) -> float:
    sample, feature, mixed = costs(n, widths, weight)
    return min(sample, feature) / mixed


def most_saved(widths: Sequence[int]) -> float:
    return max(saved(n, widths, weight) for n in SAMPLES for weight in (1.0, FLOAT64_COST))


@pytest.mark.parametrize(("n", "widths"), [(300, (5, 7, 400, 20)), (1000, (3,) * 30), (90, (500, 2))])
def test_both_routes_count_as_the_planner_does(n: int, widths: Sequence[int]) -> None:
    blocks = [Block(as_matrix(np.zeros((n, p))), Linear(), np.zeros(p), 0) for p in widths]
    names: tuple[RouteName, ...] = ("sample", "feature")
    for name, counted in zip(names, costs(n, widths, 1.0), strict=False):
        assert plan_pair_sums(blocks, None, route=name).multiply_adds == pytest.approx(counted, rel=1e-3)


def shapes() -> Iterator[tuple[int, int, list[int]]]:
    """(narrow layers, their width, widths of all) beside wide ones of a quarter to sixteen times 2000 columns."""
    for k, p, m, w in product(
        (1, 4, 16, 64, 256, 1024), (1, 8, 16, 64, 256), (1, 4, 16, 64), (500, 1000, 2000, 32_000)
    ):
        if w > 2 * p:
            yield k, p, [p] * k + [w] * m


def test_few_narrow_layers_gain_little() -> None:
    gains = [(k / p, most_saved(widths)) for k, p, widths in shapes()]
    assert max(gain for ratio, gain in gains if ratio <= 2) < 1.03
    assert max(gain for ratio, gain in gains if ratio <= 8) < 1.22


@pytest.mark.parametrize(
    "widths",
    [
        [16384] * 7 + [8192] * 6 + [4096] * 6 + [10],  # ResNet-20, flattened
        [16] * 7 + [32] * 6 + [64] * 6 + [10],  # its means
        [802816] * 4 + [401408] * 4 + [200704] * 12 + [100352] * 11 + [50176] * 12 + [25088] * 6 + [1000],  # ResNet-50
        [64] * 7 + [256] * 4 + [128] * 8 + [512] * 10 + [1024] * 6 + [2048] * 3 + [1000],
        [64] * 144 + [768] * 12,  # BERT: heads and layers
        [64] * 384 + [1024] * 24,
        ([4096] * 4 + [2048] * 4 + [1024] * 4 + [512] * 5 + [10]) * 2,
    ],
)
def test_common_networks_gain_less_than_a_tenth(widths: list[int]) -> None:
    assert most_saved(widths) < 1.1


def test_very_many_narrow_layers_would_gain() -> None:
    assert saved(100_000, [64] * 1200 + [6400] * 48, 1.0) == pytest.approx(1.46, abs=0.01)
    assert saved(5000, [1] * 512 + [4096] * 4, FLOAT64_COST) == pytest.approx(4.93, abs=0.01)
