"""greedy_cka is the brute force: the same order and CKA, for columns and blocks, both estimators, both modes."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
from backend_lists import NAMED

import simkit as sk


def activations(n, p, seed, dtype=np.float64):
    r = np.random.default_rng(seed)
    x = np.maximum(r.standard_normal((n, 4)) @ r.standard_normal((4, p)) + r.standard_normal((n, p)), 0)
    return (x * r.uniform(0.1, 3, p)).astype(dtype)


@pytest.mark.parametrize("backend", NAMED)
@pytest.mark.parametrize("mode", ["greedy", "oneshot"])
@pytest.mark.parametrize("estimator", ["biased", "debiased"])
@pytest.mark.parametrize(
    ("p", "units"), [(1, None), (2, None), (14, None), (24, 8), (24, 3), (9, [5, 5, 1, 9, 1, 1, 9, 5, 2])]
)
def test_equals_brute_force(p, units, estimator, mode, backend):
    x = activations(70, p, p)
    if p == 14:
        x[:, 3], x[:, 9] = 0, x[:, 2]  # a dead unit, and two that are one
    ids = (
        np.arange(p) if units is None else np.repeat(np.arange(units), p // units) if isinstance(units, int) else units
    )
    names = np.unique(ids)
    columns = [np.flatnonzero(np.asarray(ids) == k) for k in names]
    truth = oracles.greedy_by_evaluation(x, columns, estimator=estimator, mode=mode)
    found = sk.greedy_cka(x, units=units, estimator=estimator, mode=mode, backend=backend)
    assert found.order.tolist() == names[truth.order].tolist()
    assert np.allclose(found.cka, truth.cka, rtol=0, atol=1e-9, equal_nan=True)
    assert np.isnan(found.cka[-1])
    assert np.array_equal(found.damage, 1 - found.cka, equal_nan=True)


def test_stops_by_count_and_threshold():
    x = activations(100, 20, 1)
    whole = sk.greedy_cka(x)
    few = sk.greedy_cka(x, count=5)
    assert few.order.tolist() == whole.order[:5].tolist()
    limit = float(whole.cka[8])
    assert sk.greedy_cka(x, min_cka=limit).order.tolist() == whole.order[:9].tolist()
    assert (np.diff(whole.cka[:-1]) < 0.05).all()


@pytest.mark.parametrize("units", [None, 16])
@pytest.mark.parametrize("seed", range(4))
def test_float32_choices_are_within_a_millionth_of_the_best(seed, units):
    x = activations(150, 32, seed, np.float32) + np.float32(50 if seed == 3 else 0)
    columns = np.split(np.arange(32), units or 32)
    found = sk.greedy_cka(x, units=units)
    truth = oracles.greedy_by_evaluation(
        x.astype(np.float64), columns, estimator="biased", choices=[int(k) for k in found.order]
    )
    for pick, scores in zip(found.order[:-1], truth.scores[:-1], strict=True):
        assert scores[int(pick)] >= max(scores.values()) - 1e-6
    assert np.allclose(found.cka[:-1], truth.cka[:-1], rtol=0, atol=1e-6)
    exact = sk.greedy_cka(x, units=units, exact=True)
    assert exact.order.tolist() == sk.greedy_cka(x.astype(np.float64), units=units).order.tolist()


def test_last_units_keep_their_digits():
    x = activations(60, 12, 2)
    x[:, :6] *= 1e-5  # what is left at the end is a ten-billionth of the whole... of squares of squares
    truth = oracles.greedy_by_evaluation(x, [np.array([k]) for k in range(12)], estimator="biased")
    found = sk.greedy_cka(x)
    assert found.order.tolist() == truth.order
    assert np.allclose(found.cka[:-1], truth.cka[:-1], rtol=0, atol=1e-9)


def test_scale_offset_and_threads_change_nothing():
    x = activations(300, 40, 3)
    order = sk.greedy_cka(x).order.tolist()
    for changed in (x * 1e-20, x * 1e6, x + 1e4, np.asfortranarray(x)):
        assert sk.greedy_cka(changed).order.tolist() == order
    assert np.array_equal(sk.greedy_cka(x, threads=1).cka, sk.greedy_cka(x, threads=3).cka, equal_nan=True)


def test_a_mapping_gives_a_mapping_and_nothing_is_written():
    x = activations(50, 8, 4)
    before = x.copy()
    found = sk.greedy_cka({"fc1": x, "fc2": x[:, :3]})
    assert list(found) == ["fc1", "fc2"]
    assert found["fc1"].order.tolist() == sk.greedy_cka(x).order.tolist()
    assert np.array_equal(x, before)


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"units": 5}, ValueError, "units=5 must divide the 8 columns"),
        ({"units": [0, 1]}, ValueError, r"units must be \[8\] integer ids"),
        ({"count": 0}, ValueError, "count must be an integer from 1 to 8, not 0"),
        ({"count": 9}, ValueError, "not 9"),
        ({"min_cka": 2}, ValueError, "at most 1, not 2"),
        ({"mode": "random"}, ValueError, "not 'random'"),
        ({"kernel": sk.Cosine()}, NotImplementedError, "does not take Cosine"),
    ],
)
def test_bad_options_have_one_sentence(options, error, sentence):
    with pytest.raises(error, match=sentence):
        sk.greedy_cka(activations(30, 8, 5), **options)
