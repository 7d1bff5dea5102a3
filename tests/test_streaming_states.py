"""States of StreamingCKA: they add, are saved and resumed, and are refused whole when damaged or of another stream."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from streams import ESTIMATORS, Array, Estimator, features, rows_of, same_state, streamed, truth
from tolerance import assert_close, tolerance

import simkit as sk


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("both", [False, True])
def test_merging_shards_is_seeing_all(estimator: Estimator, both: bool) -> None:
    layers = features(1800, [6, 20])
    others = features(1800, [9], 1) if both else None
    layers["l0"][17] *= 1e3
    layers["l1"][1500] *= 1e4
    want = truth(layers, others, estimator)
    for cuts in ([600, 1200], [30, 1790], [512, 1024], [100, 300]):
        shards = [slice(a, b) for a, b in itertools.pairwise([0, *cuts, 1800])]

        def shard(k: int, shards: list[slice] = shards) -> sk.StreamingCKA:
            rows = shards[k]
            return streamed(
                rows_of(layers, rows), None if others is None else rows_of(others, rows), estimator=estimator
            )

        seen = []
        for order in itertools.permutations(range(3)):
            total = shard(order[0])
            total.merge(shard(order[1]))
            total.merge(shard(order[2]))
            seen.append(total.compute().values)
            assert total.samples == 1800
            assert_close(seen[-1], want, "stream", np.float32, 1800, 20)
        right = shard(1)
        right.merge(shard(2))
        left = shard(0)
        left.merge(right)
        seen.append(left.compute().values)
        assert max(np.abs(a - seen[0]).max() for a in seen) <= 1e-12


def test_an_empty_stream_is_neutral() -> None:
    layers = features(900, [4, 7])
    stream = streamed(layers)
    before = stream.state_dict()
    stream.merge(sk.StreamingCKA())
    assert same_state(stream.state_dict(), before)
    fresh = sk.StreamingCKA()
    fresh.merge(stream)
    assert same_state(fresh.state_dict(), before)
    fresh.update(rows_of(layers, slice(10)))  # the copy does not share memory with what it was copied from
    assert same_state(stream.state_dict(), before)


def test_merging_leaves_the_other_as_it_is() -> None:
    layers = features(1500, [4, 7])
    for a, b in ((slice(700), slice(700, 1500)), (slice(100), slice(100, 1500)), (slice(1100), slice(1100, 1500))):
        one, two = streamed(rows_of(layers, a)), streamed(rows_of(layers, b))
        before = two.state_dict()
        one.merge(two)
        one.update(rows_of(layers, slice(600)))
        assert same_state(two.state_dict(), before)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_merging_shards_of_other_shift_and_scale(offset: float, dtype: Any) -> None:
    """A shard per class: means and scales far apart, so that the sums must be re-based."""
    layers = features(2000, [5, 12], dtype=np.float64)
    for x in layers.values():
        x[1000:] = 30 * x[1000:] + offset
    layers = {name: x.astype(dtype) for name, x in layers.items()}
    one, two = streamed(rows_of(layers, slice(1000))), streamed(rows_of(layers, slice(1000, 2000)))
    back = streamed(rows_of(layers, slice(1000, 2000)))
    back.merge(streamed(rows_of(layers, slice(1000))))
    one.merge(two)
    want = truth(layers, None, "debiased")
    assert_close(one.compute().values, want, "stream", dtype, 2000, 12)
    assert_close(back.compute().values, want, "stream", dtype, 2000, 12)
    assert np.abs(one.compute().values - back.compute().values).max() <= tolerance("merge", dtype, 2000, 12)


@pytest.mark.parametrize("n", [0, 100, 512, 1100])
@pytest.mark.parametrize("both", [False, True])
def test_a_state_goes_through_safetensors(n: int, both: bool, tmp_path: Path) -> None:
    layers = features(1700, [6, 20])
    layers["l1"][50] *= 1e5  # a row apart
    others = features(1700, [9], 1) if both else None
    stream = sk.StreamingCKA()
    if n:
        stream.update(rows_of(layers, slice(n)), None if others is None else rows_of(others, slice(n)))
    save_file(stream.state_dict(), tmp_path / "state.safetensors")
    resumed = sk.StreamingCKA()
    resumed.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert resumed.samples == stream.samples == n
    for s in (stream, resumed):
        s.update(rows_of(layers, slice(n, 1700)), None if others is None else rows_of(others, slice(n, 1700)))
    assert np.array_equal(resumed.compute().values, stream.compute().values)
    assert same_state(resumed.state_dict(), stream.state_dict())


def test_a_state_is_a_copy() -> None:
    stream = streamed(features(900, [4]))
    for array in stream.state_dict().values():
        if array.flags.writeable:
            array.fill(0)
    assert np.isfinite(stream.compute().values).all()


def test_reset_forgets_everything() -> None:
    layers = features(900, [4, 7])
    stream = streamed(layers)
    stream.reset()
    assert stream.samples == 0
    stream.update({"other": layers["l0"]})
    assert stream.compute().rows == ("other",)


CORRUPT: dict[str, Callable[[dict[str, Array]], None]] = {
    "meta is missing": lambda s: s.pop("meta"),  # type: ignore[arg-type, return-value]
    "meta is not JSON": lambda s: s.update(meta=np.arange(5, dtype=np.uint8)),
    "an array is missing": lambda s: s.pop("cross"),  # type: ignore[arg-type, return-value]
    "an array has another shape": lambda s: s.update(cross=s["cross"][:, :3]),
    "a number is not finite": lambda s: s["left.sum_z"].__setitem__(0, np.nan),
    "rows that cannot be": lambda s: s["n"].__setitem__(0, 500),
    "more staged rows than a block": lambda s: s["n"].__setitem__(1, 600),
    "negative rows": lambda s: s["n"].__setitem__(0, -512),
}


@pytest.mark.parametrize("fault", CORRUPT)
def test_a_damaged_state_is_refused_whole(fault: str) -> None:
    state = streamed(features(900, [4, 7])).state_dict()
    CORRUPT[fault](state)
    stream = streamed(features(600, [3]))
    before = stream.state_dict()
    with pytest.raises(ValueError, match=r"^this is not the state of a StreamingCKA: "):
        stream.load_state_dict(state)
    assert same_state(stream.state_dict(), before)


@pytest.mark.parametrize("mode", ["exact", "minibatch"])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"estimator": ...}, "its meta has no 'estimator'"),
        ({"mode": ..., "exponents": ...}, "its meta has no 'mode' and no 'exponents'"),
        ({"columns": ...}, "its meta has no 'columns'"),
        ({"format": ...}, "its format is None, not 'simkit.StreamingCKA.1' or 'simkit.StreamingCKA.2'"),
        ({"format": "other"}, "its format is 'other', not 'simkit.StreamingCKA.1' or 'simkit.StreamingCKA.2'"),
        ({"rows": 3}, "its rows are 3, not names with widths"),
        ({"rows": [["l0", -4]]}, r"its rows are \[\['l0', -4\]\], not names with widths"),
        ({"columns": [["l0"]]}, r"its columns are \[\['l0'\]\], not names with widths"),
    ],
)
def test_a_state_whose_meta_lacks_something_says_what(change: dict[str, Any], sentence: str, mode: Any) -> None:
    stream = sk.StreamingCKA(mode=mode)
    stream.update(features(40, [4, 7]))
    state = stream.state_dict()
    meta = {**json.loads(bytes(state["meta"])), **change}
    state["meta"] = np.frombuffer(json.dumps({k: v for k, v in meta.items() if v is not ...}).encode(), np.uint8)
    with pytest.raises(ValueError, match=f"^this is not the state of a StreamingCKA: {sentence}$"):
        stream.load_state_dict(state)


def test_what_is_no_state_at_all() -> None:
    stream = sk.StreamingCKA()
    for bad, sentence in (
        ([1], "a state is a mapping of names to arrays, not list"),
        ({}, "it has no array 'meta'"),
        ({"meta": np.array([255, 254], dtype=np.uint8)}, "its array 'meta' does not hold JSON"),
        ({"meta": "text"}, "its array 'meta' does not hold JSON"),
        (
            {"meta": np.frombuffer(b"[1]", np.uint8)},
            r"its format is \[1\], not 'simkit.StreamingCKA.1' or 'simkit.StreamingCKA.2'",
        ),
    ):
        with pytest.raises(ValueError, match=f"^this is not the state of a StreamingCKA: {sentence}$"):
            stream.load_state_dict(bad)  # type: ignore[arg-type]


def test_other_layers_than_before_are_refused_and_leave_no_trace() -> None:
    layers = features(700, [4, 7])
    stream = streamed(layers)
    before = stream.state_dict()
    bad: list[tuple[Any, str]] = [
        (({"l0": layers["l0"]},), r"l1 \[7\] is missing and nothing is new"),
        (({"l0": layers["l0"], "fc": layers["l1"]},), r"l1 \[7\] is missing and fc \[7\] is new"),
        (({"l0": layers["l0"], "l1": layers["l1"][:, :5]},), r"l1 \[7\] is missing and l1 \[5\] is new"),
        (({"l1": layers["l1"], "l0": layers["l0"]},), "the same layers in another order or on other sides"),
        ((layers, {"y": layers["l0"]}), r"nothing is missing and y \[4\] is new"),
        ((layers, {"l0": layers["l0"]}), "the same layers in another order or on other sides"),
    ]
    for batch, sentence in bad:
        with pytest.raises(ValueError, match=f"^the batch holds other layers than the first: {sentence}$"):
            stream.update(*batch)
    with pytest.raises(ValueError, match=r"^l0 has 5 samples and l1 has 6: similarity needs the same samples"):
        stream.update({"l0": layers["l0"][:5], "l1": layers["l1"][:6]})
    assert same_state(stream.state_dict(), before)


def test_a_refused_first_batch_leaves_no_trace() -> None:
    stream = sk.StreamingCKA()
    with pytest.raises(ValueError, match="x has 1 non-finite entry"):
        stream.update({"x": np.array([[1.0], [np.nan]])})
    stream.update({"y": np.arange(8.0).reshape(4, 2) ** 2})
    assert stream.compute().rows == ("y",)


def test_streams_that_do_not_belong_together() -> None:
    layers = features(700, [4, 7])
    stream = streamed(layers)
    with pytest.raises(TypeError, match=r"^merge needs a StreamingCKA, not dict$"):
        stream.merge({})  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"^a stream of \(biased, exact\) does not merge into one of \(debiased, exact\)$"
    ):
        stream.merge(streamed(layers, estimator="biased"))
    with pytest.raises(
        ValueError, match=r"^the streams hold different layers: l1 \[7\] is missing and nothing is new$"
    ):
        stream.merge(streamed({"l0": layers["l0"]}))
    with pytest.raises(
        ValueError, match=r"^the state is of \(biased, exact\), not this stream's options \(debiased, exact\)$"
    ):
        stream.load_state_dict(streamed(layers, estimator="biased").state_dict())


def test_a_stream_merged_into_itself_is_its_samples_twice() -> None:
    layers = features(700, [4, 7])
    stream = streamed(layers)
    stream.merge(stream)
    twice = {name: np.concatenate([x, x]) for name, x in layers.items()}
    assert stream.samples == 1400
    assert_close(stream.compute().values, truth(twice, None, "debiased"), "stream", np.float32, 1400, 7)
