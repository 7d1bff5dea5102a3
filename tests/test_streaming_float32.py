"""Float32 products: within 1e-6 of the number of the whole data or refused, with the same bits for any split."""

from __future__ import annotations

import itertools
import json
import pickle
import re
from typing import Any

import numpy as np
import oracles
import pytest
from backend_lists import CHOSEN
from fast_streams import fast, scores
from streams import (
    AWKWARD,
    ESTIMATORS,
    ROWS,
    Array,
    Estimator,
    features,
    rows_of,
    same_state,
    split,
    streamed,
    truth,
)
from tolerance import assert_close

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends.choose import Choice
from simkit.backends.moment_sums import NARROW
from simkit.streaming.units import first_side


@pytest.mark.parametrize("backend", CHOSEN)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("n", [100, 511, 512, 513, 1023, 1024, 1600])
def test_the_whole_datas_number(n: int, estimator: Estimator, backend: str | None) -> None:
    layers, others = features(n, [30, 17, 100, 2]), features(n, [64, 300], 1)
    for other in (None, others):
        result = streamed(layers, other, split(n, 0), estimator=estimator, backend=backend, **fast).compute()
        assert_close(result.values, truth(layers, other, estimator), "fast stream", np.float32, n, 17)
        assert result.samples == n
        if other is None:
            assert np.array_equal(result.values, result.values.T)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("n", [500, 1700])
def test_any_split_of_one_order_gives_the_same_bits(n: int, both: bool) -> None:
    layers = features(n, [5, 30])
    others = features(n, [7, 20], 1) if both else None
    whole = streamed(layers, others, **fast)
    for sizes in ([1] * n, [7] * (n // 7) + [n % 7], [512] * (n // 512) + [n % 512], [n - 4, 4], split(n, 1)):
        again = streamed(layers, others, [size for size in sizes if size], **fast)
        assert np.array_equal(again.compute().values, whole.compute().values)
        assert same_state(again.state_dict(), whole.state_dict())


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("both", [False, True])
def test_threads_change_no_bit(threads: int, both: bool) -> None:
    layers = features(1100, [300, 30, 12])
    others = features(1100, [270], 1) if both else None
    states = [streamed(layers, others, threads=team, **fast).state_dict() for team in (1, threads)]
    assert same_state(*states)


@pytest.mark.parametrize("offset", [0.0, 100.0, 1e3])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_any_order_and_any_offset(estimator: Estimator, offset: float) -> None:
    layers = {name: x + np.float32(offset) for name, x in features(2500, [16, 40]).items()}
    want = truth(layers, None, estimator)
    by_class = np.argsort(layers["l1"][:, 0], kind="stable")
    for order in (by_class, by_class[::-1], np.random.default_rng(0).permutation(2500)):
        found = streamed(rows_of(layers, order), estimator=estimator, **fast).compute().values
        assert_close(found, want, "fast stream", np.float32, 2500, 40)


# Right or refused, never wrong.


# The shift of the first block is none of the rows that follow: float32 products are far larger than what they leave.
MAY_REFUSE = ("a first block of another kind", "a drift", "jumps")


@pytest.mark.parametrize("name", AWKWARD)
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_awkward_streams(name: str, estimator: Estimator, both: bool) -> None:
    r = np.random.default_rng(1)
    layers = {k: AWKWARD[name](r, x.astype(np.float64)) for k, x in features(1700, [8, 20, 64]).items()}
    others = {"y": layers["l2"][:, ::2] + layers["l0"][:, :1]} if both else None
    found = scores(layers, others, estimator=estimator)
    if found is not None:
        assert_close(found, truth(layers, others, estimator), "fast stream", np.float64, 1100, 20)
    else:
        assert name in MAY_REFUSE


@pytest.mark.parametrize("times", [1e2, 1e4, 1e9])
@pytest.mark.parametrize("place", ROWS)
def test_rows_that_dwarf_the_others(place: str, times: float) -> None:
    layers = {name: x.astype(np.float64) for name, x in features(1100, [8, 20]).items()}
    for k, row in enumerate(ROWS[place]):
        for x in layers.values():
            x[row] *= times * (1 + 0.1 * k)
    found = scores(layers, None)
    if found is not None:
        assert_close(found, truth(layers, None, "debiased"), "fast stream", np.float64, 1100, 20)
    if times > 1e2 and len(ROWS[place]) < 16:  # kept apart
        assert found is not None


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("times", [1e28, 1e40, 1e78, 1e100, 1e130, 1e160, 1e200, 1e290])
@pytest.mark.parametrize("large", [2, 16, 17])
def test_the_units_hold_the_first_blocks_largest_rows(large: int, times: float, estimator: Estimator) -> None:
    """However small all others are: fourth powers of the rows kept apart stay in range."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1100, 14))
    y = x @ rng.standard_normal((14, 13)) + 5 * rng.standard_normal((1100, 13))
    x[large:] /= times
    want = sk.cka(x, y, estimator=estimator)
    for columns in (None, {"y": y}):
        layers = {"x": x} if columns else {"x": x, "y": y}
        stream = streamed(layers, columns, [700, 400], estimator=estimator, **fast)
        assert stream.compute()["x", "y"] == pytest.approx(want, abs=1e-9)
        again = sk.StreamingCKA(estimator=estimator, **fast)
        again.load_state_dict(stream.state_dict())
        assert again.compute()["x", "y"] == stream.compute()["x", "y"]


@pytest.mark.parametrize("row", [0, 700, 1090])
def test_a_row_that_float32_does_not_hold(row: int) -> None:
    layers = {name: x.astype(np.float64) for name, x in features(1100, [8, 20]).items()}
    for x in layers.values():
        x[row] *= 1e42
    exact, quick = (streamed(layers, None, split(1100, 2), products=k).compute().values for k in ("float64", "float32"))
    assert np.abs(exact - quick).max() <= 1e-6


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("case", oracles.hazard_battery(), ids=lambda case: case.name)
def test_the_hazard_battery(case: oracles.Hazard, estimator: Estimator) -> None:
    """Its rows again and again, in other orders: float32 blocks behind the first, and rows that wait."""
    r = np.random.default_rng(0)
    orders = [r.permutation(len(case.x)) for _ in range(4 if len(case.x) >= 512 else 32)]
    rows = np.concatenate([np.arange(len(case.x)), *orders])[:-12]
    layers = {"x": case.x[rows, :200], "y": case.y[rows, :200]}
    found = scores(layers, None, estimator=estimator)
    if found is not None:
        want = truth(layers, None, estimator)
        assert_close(found, want, "fast stream", case.x.dtype, *layers["x"].shape)
    assert found is not None or "feature" in case.name


def test_layers_of_few_features_are_multiplied_in_float64() -> None:
    """Rows of a ReLU less zero are what they were, so that products in float64 give the other mode's number."""
    layers = {name: np.where(x > 1, x, 0) for name, x in features(1100, [1, 5, NARROW], dtype=np.float16).items()}
    for others in (None, layers):
        exact, quick = (streamed(layers, others, products=k).compute().values for k in ("float64", "float32"))
        assert np.abs(exact - quick).max() <= 1e-12


# The shift: a value that a column often has stays an exact zero.


def test_shifts() -> None:
    r = np.random.default_rng(0)
    n = 512
    z = r.standard_normal(n)
    columns = {
        "ReLU": (np.maximum(z, 0), 0.0),
        "ReLU + 1000": (np.float32(1000) + np.maximum(z, 0), 1000.0),
        "two values": (np.where(z > 0.3, 0.3, -0.7), -0.7),
        "one value": (np.full(n, 0.1), 0.1),
        "rarely": (np.where(np.arange(n) < 20, 5.0, z), None),
        "one in sixteen": (np.where(np.arange(n) < 32, 0.5, z), 0.5),
        "far from the mean": (np.where(np.arange(n) < 40, 100.0, z), None),
        "continuous": (z + 2, None),
        "tiny": (1e-300 * np.maximum(z, 0), 0.0),
    }
    x = np.stack([values for values, _ in columns.values()], axis=1)
    for alone in (True, False):
        side = first_side([as_matrix(x, name="x")], alone, "float32")
        assert side.signs is not None
        for shift, (name, (values, want)) in zip(side.shift, columns.items(), strict=True):
            assert shift == (np.median(values) if want is None else want), name
    assert first_side([as_matrix(x, name="x")], True).signs is None


# States.


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("both", [False, True])
def test_merging_shards_is_seeing_all(estimator: Estimator, both: bool) -> None:
    layers = features(1800, [16, 40])
    others = features(1800, [20], 1) if both else None
    layers["l1"][1500] *= 1e4
    want = truth(layers, others, estimator)
    for cuts in ([600, 1200], [30, 1790], [512, 1024]):
        shards = [slice(a, b) for a, b in itertools.pairwise([0, *cuts, 1800])]
        total = sk.StreamingCKA(estimator=estimator, **fast)
        for rows in shards:
            other = None if others is None else rows_of(others, rows)
            total.merge(streamed(rows_of(layers, rows), other, estimator=estimator, **fast))
        assert total.samples == 1800
        assert_close(total.compute().values, want, "fast stream", np.float32, 1800, 20)


@pytest.mark.parametrize("n", [0, 100, 512, 1100])
def test_saved_and_resumed_is_the_same_to_the_bit(n: int) -> None:
    layers = features(1700, [6, 20])
    layers["l1"][50] *= 1e5  # a row apart
    stream, resumed = sk.StreamingCKA(**fast), sk.StreamingCKA(**fast)
    if n:
        stream.update(rows_of(layers, slice(n)))
    resumed.load_state_dict(stream.state_dict())
    for one in (stream, resumed):
        one.update(rows_of(layers, slice(n, 1700)))
    assert np.array_equal(resumed.compute().values, stream.compute().values)
    assert same_state(resumed.state_dict(), stream.state_dict())


def changed(state: dict[str, Array], **change: Any) -> dict[str, Array]:
    meta = {**json.loads(bytes(state["meta"])), **change}
    text = json.dumps({key: value for key, value in meta.items() if value is not ...})
    return {**state, "meta": np.frombuffer(text.encode(), np.uint8)}


def test_states_of_other_products_do_not_meet() -> None:
    layers = features(700, [4, 7])
    exact, quick = streamed(layers), streamed(layers, **fast)
    with pytest.raises(
        ValueError,
        match=r"^a stream of \(debiased, exact, float32 products\) does not merge into one of \(debiased, exact\)$",
    ):
        exact.merge(quick)
    with pytest.raises(ValueError, match=r"^the state is of \(debiased, exact, float32 products\), not this stream's"):
        exact.load_state_dict(quick.state_dict())
    with pytest.raises(
        ValueError,
        match=r"^the state is of \(debiased, exact\), not this stream's options \(debiased, exact, float32 products\)$",
    ):
        quick.load_state_dict(exact.state_dict())
    old = changed(exact.state_dict(), products=...)  # as saved before there was a choice
    exact.reset()
    exact.load_state_dict(old)
    assert np.array_equal(exact.compute().values, streamed(layers).compute().values)
    with pytest.raises(
        ValueError, match=r"^this is not the state of a StreamingCKA: its products are 'half', not float"
    ):
        exact.load_state_dict(changed(exact.state_dict(), products="half"))
    for key in ("probes", "left.rounded", "multiplied"):
        state = quick.state_dict()
        del state[key]
        with pytest.raises(ValueError, match=rf"^this is not the state of a StreamingCKA: {key} is missing$"):
            quick.load_state_dict(state)


def test_states_of_float32_products_have_their_own_format() -> None:
    """Versions that know no float32 products must not read them as exact."""
    layers = features(700, [4, 7])
    exact, quick = streamed(layers).state_dict(), streamed(layers, **fast).state_dict()
    for state, products, version, other in ((exact, "float64", "1", "2"), (quick, "float32", "2", "1")):
        assert json.loads(bytes(state["meta"]))["format"] == f"simkit.StreamingCKA.{version}"
        sentence = f"its format is 'simkit.StreamingCKA.{other}', and its products are {products}$"
        with pytest.raises(ValueError, match=sentence):
            sk.StreamingCKA(products=products).load_state_dict(changed(state, format=f"simkit.StreamingCKA.{other}"))


# Options, the plan, memory.


def test_options_are_checked_with_their_value() -> None:
    for options, sentence in (
        ({"products": "half"}, 'products must be "float64" or "float32", not \'half\''),
        ({"mode": "minibatch", **fast}, 'products="float32" needs mode="exact", not mode=\'minibatch\''),
    ):
        with pytest.raises(ValueError, match=f"^{sentence}$"):
            sk.StreamingCKA(**options)


def test_a_device_that_is_named_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Choice, "hold_moments", lambda *_: None)  # as a device's backend has it
    sentence = r"""^products="float32" adds rows on the host, not on backend='native_cpu'$"""
    with pytest.raises(NotImplementedError, match=sentence):
        sk.StreamingCKA(**fast).update(features(20, [4]))


def test_the_plan_says_what_ran() -> None:
    layers = features(1700, [40, 30])
    result = streamed(layers, **fast).compute()
    assert result.backend == "native_cpu"
    assert [step.op for step in result.plan.steps] == ["moments_add", "moments_rows", "largest_entries"]
    text = result.plan.explain()
    assert "float32 products, one pass" in text
    assert "float32 products: 2 of 3 blocks of 512 rows; scores are off by" in text
    assert re.search(r" by \d\.\de-\d\d at most, as a few float64 sums of the same products show", text)
    for n, backend in ((1700, "reference"), (1000, None)):
        rows = rows_of(layers, slice(n))
        text = streamed(rows, backend=backend, **fast).compute().plan.explain()
        assert "float64 moments, one pass" in text
        assert f"float32 products: 0 of {n // 512} blocks of 512 rows; all were multiplied in float64" in text


def test_the_reference_does_not_refuse_what_it_multiplies_in_float64() -> None:
    layers = {name: np.where(x > 0.14, 0.2, 0.0) for name, x in features(1700, [64, 64]).items()}
    assert scores(layers, None) is None
    found = scores(layers, None, backend="reference")
    assert found is not None
    assert_close(found, truth(layers, None, "debiased"), "fast stream", np.float64, 1700, 64)


def test_merged_and_saved_streams_count_their_blocks() -> None:
    layers = features(2100, [40, 30])
    total = streamed(rows_of(layers, slice(1100)), **fast)
    total.merge(streamed(rows_of(layers, slice(1100, 2100)), **fast))
    again = pickle.loads(pickle.dumps(total))
    saved = sk.StreamingCKA(**fast)
    saved.load_state_dict(total.state_dict())
    for stream in (total, again, saved):
        assert "float32 products: 2 of 4 blocks" in stream.compute().plan.explain()
        assert same_state(stream.state_dict(), total.state_dict())


def test_pickles_hold_no_memory_that_holds_nothing() -> None:
    layers = features(1030, [200, 300])
    for options in ({}, fast):
        stream = streamed(layers, **options)
        copied = pickle.loads(pickle.dumps(stream))
        assert len(pickle.dumps(stream)) < 8 * 500 * 500 + 200_000
        for one in (stream, copied):
            one.update(layers)
        assert same_state(copied.state_dict(), stream.state_dict())


def test_memory_counts_the_rounded_rows() -> None:
    layers = features(600, [100, 50])
    needed = 8 * 150 * 150 + 12 * 512 * 150 + 8 * 4 * (150 + 2 * 150)
    with pytest.raises(ValueError, match=f"^the exact state takes {needed} bytes, more than memory={needed - 1}$"):
        streamed(layers, memory=needed - 1, **fast)
    streamed(layers, memory=needed, **fast)


@pytest.mark.parametrize("backend", CHOSEN)
@pytest.mark.parametrize("n", [100, 512, 1100])
def test_constant_layers_are_named(n: int, backend: str | None) -> None:
    layers = features(n, [20, 3])
    layers["dead"], layers["flat"] = np.zeros((n, 30), np.float32), np.full((n, 30), np.float32(1e5 + 0.1))
    result = streamed(layers, None, split(n, 0), backend=backend, **fast).compute()
    assert {name for _, name in result.degenerate} == {"dead", "flat"}
    assert np.isnan(result.values[2:]).all()
    assert not np.isnan(result.values[:2, :2]).any()


@pytest.mark.parametrize("both", [False, True])
def test_a_dead_layer_does_not_switch_the_mode_off(both: bool) -> None:
    layers = features(1700, [20, 40])
    layers["dead"] = np.full((1700, 30), 3.0)
    stream = streamed(layers, layers if both else None, **fast)
    assert "float32 products: 2 of 3 blocks" in stream.compute().plan.explain()


def test_a_layer_that_wakes_up_after_the_first_block() -> None:
    for size in (1e-60, 1e-30, 1.0, 1e30):
        layers = {name: x.astype(np.float64) for name, x in features(2100, [20, 40]).items()}
        layers["l1"][:700] = 0.0 if size < 1 else 3.0
        layers["l1"][700:] = 3.0 + size * layers["l1"][700:] if size >= 1 else layers["l1"][700:] * size
        found = scores(layers, None)
        assert found is not None
        assert_close(found, truth(layers, None, "debiased"), "fast stream", np.float64, 1600, 40)
