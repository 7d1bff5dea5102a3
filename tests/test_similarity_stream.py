"""StreamingCKA is the number of the whole data: any split to the bit, any order to 1e-9, merged, saved, resumed."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
from resident import COUNTED, RESIDENT
from safetensors.numpy import load_file, save_file

import simkit as sk

WIDTHS = {"a": 30, "b": 1, "c": 65}
OTHERS = {"d": 17, "e": 40}


def layers(n, widths, seed, dtype=np.float64):
    r = np.random.default_rng(seed)
    z = np.random.default_rng(99).standard_normal((n, 6))
    return {
        k: np.maximum(z @ r.standard_normal((6, p)) + r.standard_normal((n, p)), 0).astype(dtype)
        for k, p in widths.items()
    }


def rows(data, start, stop):
    return None if data is None else {k: v[start:stop] for k, v in data.items()}


def streamed(x, y, sizes, **options):
    stream = sk.StreamingCKA(**options)
    n = len(next(iter(x.values())))
    for start, stop in itertools.pairwise([0, *itertools.accumulate(sizes)]):
        stream.update(rows(x, start, min(stop, n)), rows(y, start, min(stop, n)))
    return stream


def splits(n):
    r = np.random.default_rng(0)
    random = np.diff(np.sort(np.concatenate([[0, n], r.choice(np.arange(1, n), 9, replace=False)])))
    return [[n], [512] * (n // 512) + [n % 512], [7] * (n // 7) + [n % 7], [1] * n, random.tolist()]


@pytest.mark.parametrize("estimator", ["debiased", "biased"])
@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_any_split_is_the_whole(dtype, pair, estimator):
    n = 1300
    x, y = layers(n, WIDTHS, 1, dtype), layers(n, OTHERS, 2, dtype) if pair else None
    whole = sk.similarity_matrix(x, y, measure=sk.CKA(estimator=estimator), backend="reference")
    found = [streamed(x, y, [size for size in sizes if size], estimator=estimator).compute() for sizes in splits(n)]
    for m in found:
        assert np.array_equal(m.values, found[0].values)
        assert np.abs(m.values - whole.values).max() <= 1e-9
        assert (m.rows, m.columns, m.samples) == (whole.rows, whole.columns, n)


def test_any_order_is_the_whole():
    n = 2000
    x, y = layers(n, WIDTHS, 1), layers(n, OTHERS, 2)
    x["a"][1700] *= 1e4
    y["d"] += 1e5
    whole = sk.similarity_matrix(x, y, backend="reference").values
    by_class = np.argsort(x["c"][:, 0])
    for order in (np.random.default_rng(1).permutation(n), by_class, np.arange(n)[::-1]):
        moved = [{k: v[order] for k, v in side.items()} for side in (x, y)]
        assert np.abs(streamed(*moved, [n]).compute().values - whole).max() <= 1e-9


@pytest.mark.parametrize("pair", [False, True])
def test_merge_is_a_monoid(pair):
    n = 2100
    x, y = layers(n, WIDTHS, 3), layers(n, OTHERS, 4) if pair else None
    whole = sk.similarity_matrix(x, y, backend="reference").values
    cuts = [(0, 700), (700, 1400), (1400, n)]

    def part(cut):
        return streamed(rows(x, *cut), rows(y, *cut), [cut[1] - cut[0]])

    def joined(order):
        out = sk.StreamingCKA()
        for i in order:
            out.merge(part(cuts[i]))
        return out.compute().values

    right = part(cuts[1])
    right.merge(part(cuts[2]))
    left = part(cuts[0])
    left.merge(right)
    for values in (joined([0, 1, 2]), joined([2, 0, 1]), left.compute().values):
        assert np.abs(values - whole).max() <= 1e-10
    alone = part(cuts[0])
    before = alone.compute().values
    alone.merge(sk.StreamingCKA())
    assert np.array_equal(alone.compute().values, before)


@pytest.mark.parametrize("mode", ["exact", "minibatch"])
@pytest.mark.parametrize("seen", [3, 100, 700])
def test_saved_and_resumed_is_the_same_to_the_bit(tmp_path, mode, seen):
    x, y = layers(1100, WIDTHS, 5, np.float32), layers(1100, OTHERS, 6, np.float32)
    first = streamed(rows(x, 0, seen), rows(y, 0, seen), [seen], mode=mode)
    save_file(first.state_dict(), tmp_path / "state")
    resumed = sk.StreamingCKA(mode=mode)
    resumed.load_state_dict(load_file(tmp_path / "state"))
    for stream in (first, resumed):
        stream.update(rows(x, seen, 1100), rows(y, seen, 1100))
    assert np.array_equal(first.compute().values, resumed.compute().values)
    broken = {k: v for k, v in first.state_dict().items() if k not in ("cross", "values")}
    with pytest.raises(ValueError, match="this is not the state of a StreamingCKA"):
        resumed.load_state_dict(broken)
    with pytest.raises(ValueError, match="not this stream's options"):
        sk.StreamingCKA(mode="minibatch" if mode == "exact" else "exact").load_state_dict(first.state_dict())


def test_compute_disturbs_nothing_and_reset_forgets():
    x = layers(1200, WIDTHS, 7)
    stream, quiet = sk.StreamingCKA(), sk.StreamingCKA()
    for start in range(0, 1200, 100):
        for s in (stream, quiet):
            s.update(rows(x, start, start + 100))
        stream.compute()
    assert np.array_equal(stream.compute().values, quiet.compute().values)
    stream.reset()
    assert stream.samples == 0
    with pytest.raises(ValueError, match="at least 4 samples, not 0"):
        stream.compute()


def test_degenerate_layers_are_named():
    x = layers(600, WIDTHS, 8)
    x["dead"] = np.zeros((600, 3))
    x["flat"] = np.full((600, 2), 1e5 + 0.1)
    for stop in (100, 600):
        m = streamed(rows(x, 0, stop), None, [stop]).compute()
        assert {name for _, name in m.degenerate} == {"dead", "flat"}
        assert np.isnan(m.values[3:]).all()
        assert np.isnan(m.values[:, 3:]).all()
        assert not np.isnan(m.values[:3, :3]).any()


def test_bad_batches_are_refused_and_not_counted():
    stream = sk.StreamingCKA()
    stream.update(layers(30, WIDTHS, 9))
    bad = layers(5, WIDTHS, 10)
    bad["c"][2, 4] = np.nan
    with pytest.raises(ValueError, match="c has 1 non-finite entry, the first at row 32, column 4"):
        stream.update(bad)
    with pytest.raises(ValueError, match=r"c \[65\] is missing and new \[2\] is new"):
        stream.update({"a": np.ones((5, 30)), "b": np.ones((5, 1)), "new": np.ones((5, 2))})
    with pytest.raises(ValueError, match="a has 5 samples and b has 6"):
        stream.update({"a": np.ones((5, 30)), "b": np.ones((6, 1)), "c": np.ones((5, 65))})
    assert stream.samples == 30
    with pytest.raises(ValueError, match="more than memory=1000"):
        sk.StreamingCKA(memory=1000).update(layers(5, WIDTHS, 9))
    with pytest.raises(ValueError, match="not 'fast'"):
        sk.StreamingCKA(mode="fast")
    with pytest.raises(TypeError, match="merge needs a StreamingCKA"):
        stream.merge("x")


def test_minibatch_is_the_weighted_mean_of_batches():
    x, y = layers(100, WIDTHS, 11), layers(100, OTHERS, 12)
    sizes = [40, 3, 37, 20]  # the batch of three joins the next
    m = streamed(x, y, sizes, mode="minibatch").compute()
    spans = [(0, 40), (40, 80), (80, 100)]

    def mean(u, v):
        weights = [(b - a) * (b - a - 1) / 2 for a, b in spans]
        return np.average([sk.hsic(u[a:b], v[a:b], backend="reference") for a, b in spans], weights=weights)

    expected = mean(x["a"], y["d"]) / np.sqrt(mean(x["a"], x["a"]) * mean(y["d"], y["d"]))
    assert m["a", "d"] == pytest.approx(expected, abs=1e-12)
    assert m.samples == 100
    assert any("estimate" in note for note in m.plan.notes)


@COUNTED
@pytest.mark.slow
@pytest.mark.process
def test_resident_memory_is_flat():
    script = """
import json, sys, numpy as np, simkit as sk
r = np.random.default_rng(0)
x = {str(i): np.maximum(r.standard_normal((512, 64)), 0) for i in range(4)}
stream, peaks = sk.StreamingCKA(), []
for n in (10**4, 10**5, 10**6):
    while stream.samples < n:
        stream.update(x)
    stream.compute()
    peaks.append(peak())
json.dump(peaks, sys.stdout)
"""
    peaks = json.loads(
        subprocess.run([sys.executable, "-c", RESIDENT + script], check=True, capture_output=True).stdout
    )
    assert peaks[2] - peaks[0] < 4 * 2**20
