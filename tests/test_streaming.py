"""StreamingCKA is exact: any split gives the same bits, any order the same digits, whatever the rows are like."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from backend_lists import CHOSEN
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import AWKWARD, ESTIMATORS, ROWS, Estimator, features, rows_of, same_state, split, streamed, truth
from tolerance import assert_close

import simkit as sk
from simkit.streaming import moments
from simkit.streaming.finish import finish


@pytest.mark.parametrize("backend", CHOSEN)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("n", [4, 100, 511, 512, 513, 1024])
def test_the_whole_datas_number(n: int, estimator: Estimator, backend: str | None) -> None:
    layers, others = features(n, [3, 17, 1]), features(n, [9, 2], 1)
    for other in (None, others):
        result = streamed(layers, other, split(n, 0), estimator=estimator, backend=backend).compute()
        assert_close(result.values, truth(layers, other, estimator), "stream", np.float32, n, 17)
        assert result.samples == n
        assert result.rows == tuple(layers)
        assert result.columns == tuple(layers if other is None else other)
        if other is None:
            assert np.array_equal(result.values, result.values.T)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_wide_layers_and_tiles(estimator: Estimator) -> None:
    layers, others = features(600, [257, 40, 300]), features(600, [513], 1)
    for other, threads in itertools.product((None, others), (1, 3)):
        result = streamed(layers, other, [600], estimator=estimator, threads=threads).compute()
        assert_close(result.values, truth(layers, other, estimator), "stream", np.float32, 600, 513)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("n", [500, 1300])
def test_any_split_of_one_order_gives_the_same_bits(n: int, both: bool) -> None:
    layers = features(n, [5, 30])
    others = features(n, [7], 1) if both else None
    splits = [
        [1] * n,
        [7] * (n // 7) + [n % 7],
        [512] * (n // 512) + [n % 512],
        [n],
        [1, n - 1],
        [n - 4, 4],
        split(n, 1),
    ]
    whole = streamed(layers, others)
    for sizes in splits:
        again = streamed(layers, others, [size for size in sizes if size])
        assert np.array_equal(again.compute().values, whole.compute().values)
        assert same_state(again.state_dict(), whole.state_dict())


@settings(deadline=None, derandomize=True, max_examples=25)
@given(sizes=st.lists(st.integers(1, 400), min_size=1, max_size=8), seed=st.integers(0, 9))
def test_any_split_at_all(sizes: list[int], seed: int) -> None:
    n = sum(sizes) + 4
    layers = features(n, [4, 2], seed)
    assert np.array_equal(streamed(layers, None, [*sizes, 4]).compute().values, streamed(layers).compute().values)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_any_order_gives_the_same_digits(estimator: Estimator, offset: float) -> None:
    layers = {name: x + np.float32(offset) for name, x in features(1500, [6, 40]).items()}
    first = streamed(layers, estimator=estimator).compute().values
    by_class = np.argsort(layers["l1"][:, 0], kind="stable")
    for order in (by_class, by_class[::-1], np.random.default_rng(0).permutation(1500)):
        assert np.abs(streamed(rows_of(layers, order), estimator=estimator).compute().values - first).max() <= 1e-9


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("both", [False, True])
def test_threads_change_no_bit(threads: int, both: bool) -> None:
    layers = features(1100, [300, 30])
    others = features(1100, [270], 1) if both else None
    assert same_state(
        streamed(layers, others, threads=1).state_dict(), streamed(layers, others, threads=threads).state_dict()
    )


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_computing_on_the_way_changes_nothing(estimator: Estimator) -> None:
    layers = features(1300, [5, 9])
    watched, plain = (sk.StreamingCKA(estimator=estimator) for _ in range(2))
    for rows in np.array_split(np.arange(1300), 7):
        plain.update(rows_of(layers, rows))
        watched.update(rows_of(layers, rows))
        so_far = watched.compute()
        seen = rows[-1] + 1
        assert so_far.samples == seen
        assert_close(so_far.values, truth(rows_of(layers, slice(seen)), None, estimator), "stream", np.float32, seen, 9)
        watched.state_dict()
    assert same_state(watched.state_dict(), plain.state_dict())


# Shifts, scales and outlying rows.


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", AWKWARD)
@pytest.mark.parametrize("both", [False, True])
def test_awkward_streams(name: str, estimator: Estimator, both: bool) -> None:
    layers = {
        k: AWKWARD[name](np.random.default_rng(1), x.astype(np.float64)) for k, x in features(1100, [8, 20]).items()
    }
    others = {"y": layers["l1"][:, ::2] + layers["l0"][:, :1]} if both else None
    result = streamed(layers, others, split(1100, 2), estimator=estimator).compute()
    assert_close(result.values, truth(layers, others, estimator), "stream", np.float64, 1100, 20)


@pytest.mark.parametrize("times", [1e2, 1e4, 1e9])
@pytest.mark.parametrize("place", ROWS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_rows_that_dwarf_the_others(estimator: Estimator, place: str, times: float) -> None:
    """A few rows kept apart from the sums; more of them than are kept are not outliers any more."""
    layers = {name: x.astype(np.float64) for name, x in features(1100, [8, 20]).items()}
    for k, row in enumerate(ROWS[place]):
        for x in layers.values():
            x[row] *= times * (1 + 0.1 * k)
    others = {"y": layers["l1"][:, :5] + 1}
    for other in (None, others):
        result = streamed(layers, other, split(1100, 2), estimator=estimator).compute()
        assert_close(result.values, truth(layers, other, estimator), "stream", np.float64, 1100, 20)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_rows_that_stand_out_in_one_layer_only(estimator: Estimator) -> None:
    layers = {name: x.astype(np.float64) for name, x in features(1100, [8, 20, 3]).items()}
    layers["l0"][[5, 800]] *= 1e5
    layers["l2"][[6, 900, 1099]] *= 1e7
    others = {"y": layers["l1"] ** 2, "z": layers["l0"][:, 2:] + layers["l2"][:, :1]}
    for other in (None, others):
        stream = streamed(layers, other, split(1100, 3), estimator=estimator)
        assert_close(stream.compute().values, truth(layers, other, estimator), "stream", np.float64, 1100, 20)
        again = sk.StreamingCKA(estimator=estimator)
        again.load_state_dict(stream.state_dict())
        assert np.array_equal(again.compute().values, stream.compute().values)


def test_what_drowns_all_the_same_is_named() -> None:
    """Forty rows of ever larger size: more than are kept apart, and no two alike."""
    layers = {name: x.astype(np.float64) for name, x in features(1100, [400, 20]).items()}
    layers["l0"][:] = np.random.default_rng(0).standard_normal((1100, 400))
    layers["l0"][200:260] = np.eye(60, 400) * np.logspace(2, 12, 60)[:, None]  # orthogonal: their pairs are zero
    result = streamed(layers).compute()
    want = truth(layers, None, "debiased")
    for i, j in itertools.product(range(2), range(2)):
        if np.isnan(result.values[i, j]):
            assert "rounding" in result.degenerate["row", "l0"]
        else:
            assert result.values[i, j] == pytest.approx(want[i, j], abs=1e-6)


def test_rows_apart_do_not_grow_in_number() -> None:
    layers = features(512, [6], dtype=np.float64)
    stream = sk.StreamingCKA()
    for k in range(30):
        layers["l0"][::50] *= 1.5
        stream.update(rows_of(layers, np.random.default_rng(k).permutation(512)))
    assert len(stream.state_dict().get("left.apart.z", [])) <= 16


# What is refused.


def test_options_are_checked_with_their_value() -> None:
    for options, sentence in (
        ({"estimator": "unbiased"}, 'estimator must be "debiased" or "biased", not \'unbiased\''),
        ({"mode": "fast"}, 'mode must be "exact" or "minibatch", not \'fast\''),
        ({"mode": "minibatch", "estimator": "biased"}, 'mode="minibatch" averages the debiased estimator'),
        ({"memory": "lots"}, "memory must be a number of bytes or a text such as \"64 MB\", not 'lots'"),
        ({"threads": 0}, "threads must be a positive integer, not 0"),
        ({"backend": "gpu"}, "backend must be None or one of native_cuda, native_cpu, reference, not 'gpu'"),
    ):
        with pytest.raises(ValueError, match=f"^{sentence}"):
            sk.StreamingCKA(**options)  # type: ignore[arg-type]


def test_nothing_to_compute_yet() -> None:
    stream = sk.StreamingCKA()
    with pytest.raises(ValueError, match=r"^the debiased estimator needs at least 4 samples, not 0$"):
        stream.compute()
    with pytest.raises(ValueError, match="a stream of fewer than 512 rows has no sums yet"):
        finish(moments.empty([3], None), "debiased")


def test_memory_is_a_promise() -> None:
    layers = features(600, [100, 50])
    needed = 8 * (150 * 150 + 512 * 150)
    with pytest.raises(ValueError, match=f"^the exact state takes {needed} bytes, more than memory={needed - 1}$"):
        streamed(layers, memory=needed - 1)
    state = streamed(layers, memory=needed).state_dict()
    assert sum(array.nbytes for array in state.values()) <= needed * 1.05


def test_the_plan_says_what_ran() -> None:
    layers = features(600, [4])
    for backend, name in ((None, "native_cpu"), ("native_cpu", "native_cpu"), ("reference", "reference")):
        result = streamed(layers, backend=backend).compute()
        assert result.backend == name
        assert [step.op for step in result.plan.steps] == ["moments_add", "moments_rows", "largest_entries"]
        assert "float64 moments, one pass" in result.plan.explain()
