"""Inner products that are updated give the graphs of the filters and weights that are left."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
import pytest

import simkit as sk
from simkit.metrics.filter_gram import FilterGram

FloatArray = npt.NDArray[np.float64]


def fresh(weight: FloatArray, gram: FilterGram, columns: list[int], **options: object) -> sk.FilterGraph:
    """The same graph built from what is left, by the reference."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sk.DegenerateWarning)
        return sk.filter_graph(weight[gram.filters][:, columns], backend="reference", **options)  # type: ignore[call-overload,no-any-return]


def same(one: sk.FilterGraph, other: sk.FilterGraph) -> bool:
    return (
        np.array_equal(one.bits, other.bits)
        and (one.threshold, one.cosine, one.norm) == (other.threshold, other.cosine, other.norm)
        and (one.components, one.edges, one.labels.tolist()) == (other.components, other.edges, other.labels.tolist())
    )


def families(seed: int) -> FloatArray:
    """Filters of few directions, copies, scaled copies, zeros, and blocks of weights of very different sizes."""
    r = np.random.default_rng(seed)
    w = r.standard_normal((40, 3)) @ r.standard_normal((3, 60)) + 0.5 * r.standard_normal((40, 60))
    w[7], w[8], w[9] = w[3], 2.5 * w[4], 0.0
    w[:, 20:30] *= 1e6
    w[12:20, :20] *= 1e-7
    w[25, 10:] = 0.0
    return w


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"threshold": 1.1},
        {"threshold": 0.0},
        {"threshold": 2.0},
        {"threshold": 0.2, "norm": "cosine"},
        {"norm": "sqrt_fan_in"},
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_equal_to_the_graph_of_what_is_left(seed: int, options: dict[str, object]) -> None:
    weight = families(seed)
    r = np.random.default_rng(seed)
    gram, columns = FilterGram(weight), list(range(60))
    assert same(gram.graph(**options), fresh(weight, gram, columns, **options))  # type: ignore[arg-type]
    while len(columns) > 1 and len(gram.filters) > 1:
        gone = r.choice(columns, size=min(len(columns) - 1, 1 + int(r.integers(5))), replace=False)
        gram.shrink(gone)
        columns = [column for column in columns if column not in gone]
        if r.random() < 0.7:
            gram.remove(int(r.choice(gram.filters)))
        assert gram.fan_in == len(columns)
        assert same(gram.graph(**options), fresh(weight, gram, columns, **options))  # type: ignore[arg-type]


def test_digits_are_not_lost_when_the_large_weights_go() -> None:
    r = np.random.default_rng(3)
    small = r.standard_normal((12, 8))
    weight = np.hstack([small, 1e9 * r.standard_normal((12, 4)), 1e150 * r.standard_normal((12, 2))])
    gram = FilterGram(weight)
    for gone, left in (([12, 13], 12), ([8, 9, 10], 9), ([11], 8)):
        gram.shrink(gone)
        for threshold in np.linspace(0.1, 1.9, 30):
            assert same(
                gram.graph(threshold=threshold),
                fresh(weight, gram, list(range(14))[:left] if left != 9 else [*range(8), 11], threshold=threshold),
            )


def test_weights_go_once_and_bad_changes_are_refused() -> None:
    weight = families(0)
    gram = FilterGram(weight)
    gram.shrink([3, 3, 5])
    gram.shrink([5])
    gram.shrink([])
    assert gram.fan_in == 58
    with pytest.raises(ValueError, match=r"^all 58 weights of the filters would go$"):
        gram.shrink(np.arange(60))
    gram.remove(4)
    for bad in (4, 40, -1):
        with pytest.raises(ValueError, match=rf"^filter {bad} cannot go from the filters \[0, 1, 2, 3, 5"):
            gram.remove(bad)
    last = FilterGram(weight[:1])
    with pytest.raises(ValueError, match=r"^filter 0 cannot go from the filters \[0\]$"):
        last.remove(0)
    weight[2, 7] = np.nan
    with pytest.raises(ValueError, match=r"^weight is not finite at filter 2, entry 7$"):
        FilterGram(weight)
    with pytest.raises(ValueError, match=r"^a distance threshold must not be negative, as -1.0 is$"):
        gram.graph(threshold=-1.0)


def test_the_weight_is_not_touched() -> None:
    weight = families(1)
    before = weight.copy()
    gram = FilterGram(weight)
    gram.shrink([1, 2])
    gram.remove(0)
    gram.graph()
    np.testing.assert_array_equal(weight, before)
