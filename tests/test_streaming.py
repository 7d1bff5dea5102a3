"""StreamingCKA is exact: any split gives the same bits, any order the same digits; states add, save and resume."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tolerance import assert_close, tolerance

import simkit as sk
from simkit.streaming import moments
from simkit.streaming.finish import finish

Array = npt.NDArray[Any]
Layers = Mapping[str, Array]
Estimator = Literal["debiased", "biased"]

ESTIMATORS: tuple[Estimator, ...] = ("debiased", "biased")
BACKENDS = [None, "reference"]


def features(n: int, widths: Sequence[int], seed: int = 0, dtype: Any = np.float32) -> dict[str, Array]:
    r = np.random.default_rng([seed, n])
    z = r.standard_normal((n, 4))
    return {
        f"l{i}": np.maximum(z @ r.standard_normal((4, p)) + r.standard_normal((n, p)) + i, 0).astype(dtype)
        for i, p in enumerate(widths)
    }


def rows_of(layers: Layers, rows: Any) -> dict[str, Array]:
    return {name: x[rows] for name, x in layers.items()}


def run(
    layers: Layers, others: Layers | None = None, sizes: Sequence[int] | None = None, **options: Any
) -> sk.StreamingCKA:
    n, at = len(next(iter(layers.values()))), 0
    stream = sk.StreamingCKA(**options)
    for size in [n] if sizes is None else sizes:
        rows = slice(at, at + size)
        stream.update(rows_of(layers, rows), None if others is None else rows_of(others, rows))
        at += size
    assert at == n
    return stream


def split(n: int, seed: int) -> list[int]:
    """Batches of 1 to 90 rows."""
    r, sizes = np.random.default_rng(seed), []
    while sum(sizes) < n:
        sizes.append(int(min(r.integers(1, 90), n - sum(sizes))))
    return sizes


def truth(layers: Layers, others: Layers | None, estimator: Estimator) -> Array:
    xs = list(layers.values())
    return oracles.cka_matrix(xs, xs if others is None else list(others.values()), estimator=estimator)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("n", [4, 100, 511, 512, 513, 1024])
def test_the_whole_datas_number(n: int, estimator: Estimator, backend: str | None) -> None:
    layers, others = features(n, [3, 17, 1]), features(n, [9, 2], 1)
    for other in (None, others):
        result = run(layers, other, split(n, 0), estimator=estimator, backend=backend).compute()
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
        result = run(layers, other, [600], estimator=estimator, threads=threads).compute()
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
    whole = run(layers, others)
    for sizes in splits:
        again = run(layers, others, [size for size in sizes if size])
        assert np.array_equal(again.compute().values, whole.compute().values)
        assert _same_state(again.state_dict(), whole.state_dict())


def _same_state(a: Mapping[str, Array], b: Mapping[str, Array]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


@settings(deadline=None, derandomize=True, max_examples=25)
@given(sizes=st.lists(st.integers(1, 400), min_size=1, max_size=8), seed=st.integers(0, 9))
def test_any_split_at_all(sizes: list[int], seed: int) -> None:
    n = sum(sizes) + 4
    layers = features(n, [4, 2], seed)
    assert np.array_equal(run(layers, None, [*sizes, 4]).compute().values, run(layers).compute().values)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_any_order_gives_the_same_digits(estimator: Estimator, offset: float) -> None:
    layers = {name: x + np.float32(offset) for name, x in features(1500, [6, 40]).items()}
    first = run(layers, estimator=estimator).compute().values
    by_class = np.argsort(layers["l1"][:, 0], kind="stable")
    for order in (by_class, by_class[::-1], np.random.default_rng(0).permutation(1500)):
        assert np.abs(run(rows_of(layers, order), estimator=estimator).compute().values - first).max() <= 1e-9


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("both", [False, True])
def test_threads_change_no_bit(threads: int, both: bool) -> None:
    layers = features(1100, [300, 30])
    others = features(1100, [270], 1) if both else None
    assert _same_state(run(layers, others, threads=1).state_dict(), run(layers, others, threads=threads).state_dict())


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
    assert _same_state(watched.state_dict(), plain.state_dict())


# Shifts, scales and outlying rows.

AWKWARD: dict[str, Callable[[np.random.Generator, Array], Array]] = {
    "far from zero": lambda r, x: x + 1e6,
    "tiny": lambda r, x: x * 1e-20,
    "huge": lambda r, x: x * 1e20,
    "a first block of another kind": lambda r, x: np.where(np.arange(len(x))[:, None] < 512, 1e-3 * x + 50, x),
    "a first block that is constant": lambda r, x: np.where(np.arange(len(x))[:, None] < 512, 3.0, x),
    "a first block that is dead but for a row": lambda r, x: np.where(
        (np.arange(len(x))[:, None] < 512) & (np.arange(len(x))[:, None] != 7), 0.0, x
    ),
    "a drift": lambda r, x: x + np.linspace(0, 100, len(x))[:, None],
    "jumps": lambda r, x: x + 1000.0 * (np.arange(len(x)) // 600)[:, None],
    "sparse samples": lambda r, x: x * (r.random((len(x), 1)) < 0.01),
    "heavy-tailed": lambda r, x: r.standard_cauchy(x.shape) + x,
    "rows of many sizes": lambda r, x: x * np.exp(3 * r.standard_normal((len(x), 1))),
}
ROWS = {
    "first": [0],
    "in the tail": [1090],
    "in the second block": [700],
    "four": [3, 600, 601, 1099],
    "forty": list(range(0, 1100, 35)),
}


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", AWKWARD)
@pytest.mark.parametrize("both", [False, True])
def test_awkward_streams(name: str, estimator: Estimator, both: bool) -> None:
    layers = {
        k: AWKWARD[name](np.random.default_rng(1), x.astype(np.float64)) for k, x in features(1100, [8, 20]).items()
    }
    others = {"y": layers["l1"][:, ::2] + layers["l0"][:, :1]} if both else None
    result = run(layers, others, split(1100, 2), estimator=estimator).compute()
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
        result = run(layers, other, split(1100, 2), estimator=estimator).compute()
        assert_close(result.values, truth(layers, other, estimator), "stream", np.float64, 1100, 20)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_rows_that_stand_out_in_one_layer_only(estimator: Estimator) -> None:
    layers = {name: x.astype(np.float64) for name, x in features(1100, [8, 20, 3]).items()}
    layers["l0"][[5, 800]] *= 1e5
    layers["l2"][[6, 900, 1099]] *= 1e7
    others = {"y": layers["l1"] ** 2, "z": layers["l0"][:, 2:] + layers["l2"][:, :1]}
    for other in (None, others):
        stream = run(layers, other, split(1100, 3), estimator=estimator)
        assert_close(stream.compute().values, truth(layers, other, estimator), "stream", np.float64, 1100, 20)
        again = sk.StreamingCKA(estimator=estimator)
        again.load_state_dict(stream.state_dict())
        assert np.array_equal(again.compute().values, stream.compute().values)


def test_what_drowns_all_the_same_is_named() -> None:
    """Forty rows of ever larger size: more than are kept apart, and no two alike."""
    layers = {name: x.astype(np.float64) for name, x in features(1100, [400, 20]).items()}
    layers["l0"][:] = np.random.default_rng(0).standard_normal((1100, 400))
    layers["l0"][200:260] = np.eye(60, 400) * np.logspace(2, 12, 60)[:, None]  # orthogonal: their pairs are zero
    result = run(layers).compute()
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


# States: merge, save, resume.


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
            return run(rows_of(layers, rows), None if others is None else rows_of(others, rows), estimator=estimator)

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
    stream = run(layers)
    before = stream.state_dict()
    stream.merge(sk.StreamingCKA())
    assert _same_state(stream.state_dict(), before)
    fresh = sk.StreamingCKA()
    fresh.merge(stream)
    assert _same_state(fresh.state_dict(), before)
    fresh.update(rows_of(layers, slice(10)))  # the copy does not share memory with what it was copied from
    assert _same_state(stream.state_dict(), before)


def test_merging_leaves_the_other_as_it_is() -> None:
    layers = features(1500, [4, 7])
    for a, b in ((slice(700), slice(700, 1500)), (slice(100), slice(100, 1500)), (slice(1100), slice(1100, 1500))):
        one, two = run(rows_of(layers, a)), run(rows_of(layers, b))
        before = two.state_dict()
        one.merge(two)
        one.update(rows_of(layers, slice(600)))
        assert _same_state(two.state_dict(), before)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_merging_shards_of_other_shift_and_scale(offset: float, dtype: Any) -> None:
    """A shard per class: means and scales far apart, so that the sums must be re-based."""
    layers = features(2000, [5, 12], dtype=np.float64)
    for x in layers.values():
        x[1000:] = 30 * x[1000:] + offset
    layers = {name: x.astype(dtype) for name, x in layers.items()}
    one, two = run(rows_of(layers, slice(1000))), run(rows_of(layers, slice(1000, 2000)))
    back = run(rows_of(layers, slice(1000, 2000)))
    back.merge(run(rows_of(layers, slice(1000))))
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
    assert _same_state(resumed.state_dict(), stream.state_dict())


def test_a_state_is_a_copy() -> None:
    stream = run(features(900, [4]))
    for array in stream.state_dict().values():
        if array.flags.writeable:
            array.fill(0)
    assert np.isfinite(stream.compute().values).all()


def test_reset_forgets_everything() -> None:
    layers = features(900, [4, 7])
    stream = run(layers)
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
    state = run(features(900, [4, 7])).state_dict()
    CORRUPT[fault](state)
    stream = run(features(600, [3]))
    before = stream.state_dict()
    with pytest.raises(ValueError, match=r"^this is not the state of a StreamingCKA: "):
        stream.load_state_dict(state)
    assert _same_state(stream.state_dict(), before)


@pytest.mark.parametrize("mode", ["exact", "minibatch"])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"estimator": ...}, "its meta has no 'estimator'"),
        ({"mode": ..., "exponents": ...}, "its meta has no 'mode' and no 'exponents'"),
        ({"columns": ...}, "its meta has no 'columns'"),
        ({"format": ...}, "its format is None, not 'simkit.StreamingCKA.1'"),
        ({"format": "other"}, "its format is 'other', not 'simkit.StreamingCKA.1'"),
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
        ({"meta": np.frombuffer(b"[1]", np.uint8)}, r"its format is \[1\], not 'simkit.StreamingCKA.1'"),
    ):
        with pytest.raises(ValueError, match=f"^this is not the state of a StreamingCKA: {sentence}$"):
            stream.load_state_dict(bad)  # type: ignore[arg-type]


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


def test_other_layers_than_before_are_refused_and_leave_no_trace() -> None:
    layers = features(700, [4, 7])
    stream = run(layers)
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
    assert _same_state(stream.state_dict(), before)


def test_a_refused_first_batch_leaves_no_trace() -> None:
    stream = sk.StreamingCKA()
    with pytest.raises(ValueError, match="x has 1 non-finite entry"):
        stream.update({"x": np.array([[1.0], [np.nan]])})
    stream.update({"y": np.arange(8.0).reshape(4, 2) ** 2})
    assert stream.compute().rows == ("y",)


def test_streams_that_do_not_belong_together() -> None:
    layers = features(700, [4, 7])
    stream = run(layers)
    with pytest.raises(TypeError, match=r"^merge needs a StreamingCKA, not dict$"):
        stream.merge({})  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"^a stream of \(biased, exact\) does not merge into one of \(debiased, exact\)$"
    ):
        stream.merge(run(layers, estimator="biased"))
    with pytest.raises(
        ValueError, match=r"^the streams hold different layers: l1 \[7\] is missing and nothing is new$"
    ):
        stream.merge(run({"l0": layers["l0"]}))
    with pytest.raises(ValueError, match=r"^the state is of \(biased, exact\), not this stream's options$"):
        stream.load_state_dict(run(layers, estimator="biased").state_dict())


def test_a_stream_merged_into_itself_is_its_samples_twice() -> None:
    layers = features(700, [4, 7])
    stream = run(layers)
    stream.merge(stream)
    twice = {name: np.concatenate([x, x]) for name, x in layers.items()}
    assert stream.samples == 1400
    assert_close(stream.compute().values, truth(twice, None, "debiased"), "stream", np.float32, 1400, 7)


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
        run(layers, memory=needed - 1)
    state = run(layers, memory=needed).state_dict()
    assert sum(array.nbytes for array in state.values()) <= needed * 1.05


def test_the_plan_says_what_ran() -> None:
    layers = features(600, [4])
    for backend, name in ((None, "native_cpu"), ("native_cpu", "native_cpu"), ("reference", "reference")):
        result = run(layers, backend=backend).compute()
        assert result.backend == name
        assert [step.op for step in result.plan.steps] == ["moments_add", "moments_rows", "column_stats"]
        assert "float64 moments, one pass" in result.plan.explain()
