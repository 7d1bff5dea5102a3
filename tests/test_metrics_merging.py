"""Neuron merging: partners against double loops, exactness on duplicates, invariances, ties and degenerate units."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simkit.backends import cpu_partners
from simkit.metrics.merging import BatchNorm, Merging, merging


def layer(units: int, fan_in: int, seed: int = 0, dtype: type = np.float64) -> tuple[np.ndarray, np.ndarray]:
    """Weights of which some are near scaled copies of others, and a mask that keeps about half."""
    r = np.random.default_rng(seed)
    w = r.standard_normal((units, fan_in))
    copies = units // 3
    if copies:
        w[-copies:] = w[:copies] * r.uniform(0.2, 3.0, (copies, 1)) + 0.2 * r.standard_normal((copies, fan_in))
    return w.astype(dtype), r.random(units) < 0.5


def norm_of(units: int, seed: int = 0, *, signed: bool = False) -> BatchNorm:
    r = np.random.default_rng(seed)
    gamma = r.uniform(0.3, 2.0, units) * (np.sign(r.standard_normal(units)) if signed else 1.0)
    return BatchNorm(gamma, r.standard_normal(units), r.standard_normal(units), r.uniform(0.1, 2.0, units), eps=1e-3)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def loop_exact(w: np.ndarray, kept: np.ndarray, bn: BatchNorm | None, balance: float) -> list[tuple[Any, ...]]:
    """(partner, S, B, cosine, score) of each pruned unit from the formulas of the module's text."""
    found = []
    for n in np.flatnonzero(~kept):
        rows = []
        for m in np.flatnonzero(kept):
            s = np.linalg.norm(w[n]) / np.linalg.norm(w[m])
            scale, residue = s, 0.0
            if bn is not None:
                g, b, mu = (np.asarray(v) for v in (bn.gamma, bn.beta, bn.mean))
                sigma = np.sqrt(np.asarray(bn.var) + bn.eps)
                scale = s * (g[n] / g[m]) * (sigma[m] / sigma[n])
                residue = (g[n] / sigma[n]) * (s * (mu[m] - sigma[m] * b[m] / g[m]) - mu[n]) + b[n]
            if scale > 0:
                rows.append((m, scale, residue, cosine(w[n], w[m])))
        found.append(best_row(rows, balance if bn is not None else 1.0))
    return found


def best_row(rows: list[tuple[Any, ...]], balance: float) -> tuple[Any, ...]:
    if not rows:
        return (-1, 0.0, 0.0, np.nan, np.nan)
    r = np.array([abs(row[2]) / row[1] for row in rows])
    r = (r - r.min()) / (np.ptp(r) or 1.0)
    scores = np.array([balance * (1 - row[3]) for row in rows]) + (1 - balance) * r
    return (*rows[int(scores.argmin())], scores.min())


def loop_reference(w: np.ndarray, kept: np.ndarray, bn: BatchNorm, balance: float) -> list[tuple[Any, ...]]:
    """As the published code: index 1 is the pruned unit, 2 the kept one; the variance stands for sigma."""
    found = []
    g, b, mu, sigma = (np.asarray(v) for v in (bn.gamma, bn.beta, bn.mean, bn.var))
    for n in np.flatnonzero(~kept):
        cos, scale, bias = [], [], []
        for m in np.flatnonzero(kept):
            s = np.linalg.norm(w[n]) / np.linalg.norm(w[m])
            cos.append(1 - cosine(w[n], w[m]))
            scale.append(s * (g[m] / g[n]) * (sigma[n] / sigma[m]))
            term = abs((g[m] / sigma[m]) * (s * (-(sigma[n] * b[n] / g[n]) + mu[n]) - mu[m]) + b[m])
            bias.append(term / scale[-1])
        rescaled = (np.array(bias) - np.min(bias)) / (np.max(bias) - np.min(bias))
        score = balance * np.array(cos) + (1 - balance) * rescaled
        k = int(np.argmin(score))
        found.append((np.flatnonzero(kept)[k], scale[k], abs(bias[k] * scale[k]), 1 - cos[k], score[k]))
    return found


def check(found: Merging, expected: list[tuple[Any, ...]], threshold: float, *, tolerance: float = 1e-12) -> None:
    assert len(found.pruned) == len(expected)
    for i, (partner, scale, residue, cos, score) in enumerate(expected):
        absorbed = partner >= 0 and cos >= threshold
        assert found.partner[i] == (partner if absorbed else -1)
        assert found.scale[i] == pytest.approx(scale if absorbed else 0.0, rel=tolerance * 10)
        assert abs(found.residue[i]) == pytest.approx(abs(residue) if absorbed else 0.0, rel=1e-9, abs=tolerance)
        np.testing.assert_allclose([found.cosine[i], found.score[i]], [cos, score], rtol=0, atol=tolerance)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(units=st.integers(2, 30), fan_in=st.integers(2, 12), seed=st.integers(0, 10**6), balance=st.floats(0, 1))
def test_against_a_double_loop(units: int, fan_in: int, seed: int, balance: float) -> None:
    w, kept = layer(units, fan_in, seed)
    check(merging(w, kept, threshold=0.3), loop_exact(w, kept, None, 1.0), 0.3)
    bn = norm_of(units, seed, signed=True)
    found = merging(w, kept, batch_norm=bn, threshold=0.2, balance=balance)
    check(found, loop_exact(w, kept, bn, balance), 0.2, tolerance=1e-11)
    assert (found.scale >= 0).all()


def test_one_weight_a_unit_ties_every_unit_of_its_sign() -> None:
    w = np.array([[0.3], [-0.7], [0.2], [5.0], [-0.1]])
    found = merging(w, np.array([True, True, True, False, False]))
    assert found.partner.tolist() == [0, 1]
    np.testing.assert_allclose(found.scale, [5.0 / 0.3, 0.1 / 0.7], rtol=1e-14)


@pytest.mark.parametrize("seed", range(5))
def test_reference_algebra_against_the_published_loop(seed: int) -> None:
    w, kept = layer(24, 9, seed)
    for signed in (False, True):
        bn = norm_of(24, seed, signed=signed)
        found = merging(w, kept, batch_norm=bn, bn_scale="reference")
        check(found, loop_reference(w, kept, bn, 0.85), 0.1, tolerance=1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_narrow_types_choose_as_their_float64_values(dtype: type) -> None:
    w, kept = layer(200, 300, 3, dtype)
    bn = norm_of(200)
    for options in ({}, {"batch_norm": bn}):
        narrow, wide = merging(w, kept, **options), merging(w.astype(np.float64), kept, **options)
        for name in ("partner", "scale", "residue", "cosine", "score"):
            np.testing.assert_allclose(getattr(narrow, name), getattr(wide, name), rtol=1e-12, atol=1e-12)


def test_duplicates_merge_exactly() -> None:
    """Linear + ReLU + linear: pruned copies of kept units, scaled, are absorbed without a change of the output."""
    r = np.random.default_rng(0)
    w, bias = r.standard_normal((6, 9)), r.standard_normal(6)
    scales = np.array([1.0, 2.0, 0.3, 7.0])
    w = np.concatenate([w, w[[4, 0, 0, 2]] * scales[:, None]])
    bias = np.concatenate([bias, bias[[4, 0, 0, 2]] * scales])
    kept = np.arange(10) < 6
    found = merging(w, kept, bias=bias, threshold=1 - 1e-12)
    assert found.partner.tolist() == [4, 0, 0, 2]
    np.testing.assert_allclose(found.scale, scales, rtol=1e-14)
    x, following = r.standard_normal((50, 9)), r.standard_normal((5, 10))
    hidden = np.maximum(x @ w.T + bias, 0)
    merged = following @ found.matrix(kept).T
    np.testing.assert_allclose(hidden[:, kept] @ merged.T, hidden @ following.T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("conv_bias", [False, True])
def test_scaled_duplicates_through_batch_norm_merge_exactly(conv_bias: bool) -> None:
    """conv + BN + ReLU + conv in NumPy. β_n is set so that B = 0; the reference's algebra is off by far."""
    r = np.random.default_rng(1)
    units, fan_in = 8, 3 * 3 * 3
    w, bias = r.standard_normal((units, 3, 3, 3)), r.standard_normal(units) * conv_bias
    w[5:] = w[[1, 3, 1]] * np.array([0.5, 2.0, 3.0])[:, None, None, None]
    bn = norm_of(units)
    gamma, mean, var = (np.asarray(v) for v in (bn.gamma, bn.mean, bn.var))
    beta = np.array(bn.beta)
    sigma = np.sqrt(var + bn.eps)
    for n, m in zip((5, 6, 7), (1, 3, 1), strict=True):
        s = np.linalg.norm(w[n]) / np.linalg.norm(w[m])
        scale = s * gamma[n] / gamma[m] * sigma[m] / sigma[n]
        beta[n] = scale * (beta[m] - gamma[m] / sigma[m] * (mean[m] - bias[m])) + gamma[n] / sigma[n] * (
            mean[n] - bias[n]
        )
    bn = BatchNorm(gamma, beta, mean, var, bn.eps)
    kept = np.arange(units) < 5
    found = merging(w, kept, bias=bias if conv_bias else None, batch_norm=bn)
    assert found.partner.tolist() == [1, 3, 1]
    np.testing.assert_allclose(found.residue, 0.0, atol=1e-12)
    patches = r.standard_normal((200, fan_in))  # a convolution is a product with patches
    y = np.maximum(gamma * (patches @ w.reshape(units, -1).T + bias - mean) / sigma + beta, 0)
    following = r.standard_normal((4, units))
    merged = following @ found.matrix(kept).T
    np.testing.assert_allclose(y[:, kept] @ merged.T, y @ following.T, rtol=0, atol=1e-12)
    published = merging(w, kept, bias=bias if conv_bias else None, batch_norm=bn, bn_scale="reference")
    assert np.abs(published.scale / found.scale - 1).max() > 0.1


def test_residue_is_what_is_left_of_the_outputs() -> None:
    r = np.random.default_rng(2)
    w = r.standard_normal((3, 10))
    w[2] = 1.7 * w[0]
    bn = norm_of(3)
    kept = np.array([True, True, False])
    found = merging(w, kept, batch_norm=bn, balance=1.0)
    u = r.standard_normal((40, 10)) @ w.T
    y = np.asarray(bn.gamma) * (u - np.asarray(bn.mean)) / np.sqrt(np.asarray(bn.var) + bn.eps) + np.asarray(bn.beta)
    np.testing.assert_allclose(y[:, 2] - found.scale[0] * y[:, 0], found.residue[0], rtol=0, atol=1e-13)


def test_invariances() -> None:
    w, kept = layer(40, 15)
    found = merging(w, kept)
    scaled = merging(w * np.random.default_rng(1).uniform(0.1, 9, (40, 1)), kept)
    assert scaled.partner.tolist() == found.partner.tolist(), "positive scales of units change no cosine"
    turned = merging(w @ np.linalg.qr(np.random.default_rng(2).standard_normal((15, 15)))[0], kept)
    assert turned.partner.tolist() == found.partner.tolist()
    np.testing.assert_allclose(turned.cosine, found.cosine, atol=1e-14)
    order = np.random.default_rng(3).permutation(40)
    moved = merging(w[order], kept[order])
    back = {int(order[n]): int(order[m]) if m >= 0 else -1 for n, m in zip(moved.pruned, moved.partner, strict=True)}
    assert back == dict(zip(found.pruned.tolist(), found.partner.tolist(), strict=True))
    np.testing.assert_array_equal(merging(w.reshape(40, 5, 3, 1), kept).cosine, found.cosine)
    for scale in (1e-200, 1e200, 5e-324 / 1e-16):
        assert merging(w * scale, kept).partner.tolist() == found.partner.tolist()


def test_batch_norm_with_equal_residues_is_decided_by_the_cosine() -> None:
    w, kept = layer(20, 8)
    same = BatchNorm(np.ones(20), np.zeros(20), np.zeros(20), np.ones(20))
    plain = merging(w, kept, threshold=0.1)
    found = merging(w, kept, batch_norm=same)
    assert found.partner.tolist() == plain.partner.tolist()
    np.testing.assert_allclose(found.score, 0.85 * plain.score, atol=1e-15)


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("bn_scale", ["exact", "reference"])
@pytest.mark.parametrize("fan_in", [2, 9, 576, 4608])
def test_residues_that_are_equal_but_for_rounding_are_decided_by_the_cosine(
    fan_in: int, bn_scale: Any, backend: str | None
) -> None:
    """Rows of one length that share one BatchNorm: their norms differ in the last bits, and so do the residues."""
    for seed in range(10):
        r = np.random.default_rng(seed)
        w = r.standard_normal((24, fan_in))
        w[12:15] = w[3]  # ties go to the lowest unit
        w /= np.linalg.norm(w, axis=1, keepdims=True)
        kept = np.arange(24) % 4 > 0
        size = 10.0 ** r.integers(-6, 7, size=2)
        gamma, beta, mean, var = r.uniform(0.3, 2), size[0] * r.standard_normal(), size[1], r.uniform(0.1, 2)
        same = BatchNorm(*(np.full(24, value) for value in (gamma, beta, mean, var)))
        plain = merging(w, kept, threshold=-1.0, backend=backend)
        found = merging(w, kept, batch_norm=same, threshold=-1.0, bn_scale=bn_scale, backend=backend)
        assert found.partner.tolist() == plain.partner.tolist()
        np.testing.assert_allclose(found.score, 0.85 * plain.score, atol=1e-15)
        assert found.partner[list(found.pruned).index(12)] == 3


def test_small_differences_of_residues_still_count() -> None:
    """A millionth of a millionth of the terms, of which rounding is a thousandth: the nearer residue wins."""
    w = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    beta = np.array([1.0 + 1e-12, 1.0, 1.0])
    same = BatchNorm(np.ones(3), beta, np.zeros(3), np.ones(3))
    for backend in (None, "reference"):
        found = merging(w, np.array([True, True, False]), batch_norm=same, backend=backend)
        assert found.partner.tolist() == [1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("entries", [1, 64, 2**20])
def test_ties_go_to_the_lowest_unit_in_any_block(monkeypatch: pytest.MonkeyPatch, dtype: type, entries: int) -> None:
    monkeypatch.setattr(cpu_partners, "_ENTRIES", entries)
    monkeypatch.setattr(cpu_partners, "_CHUNK", entries)
    r = np.random.default_rng(0)
    base = r.standard_normal((1, 37))
    w = np.concatenate([r.standard_normal((4, 37)), np.repeat(base, 9, axis=0) * r.uniform(0.5, 2, (9, 1))])
    w = np.concatenate([w, 3 * base, base]).astype(dtype)
    kept = np.arange(15) < 13
    if dtype is np.float32:  # rounding makes scaled copies differ: equal rows tie
        w[4:13] = w[4]
    assert merging(w, kept).partner.tolist() == [4, 4]


def test_results_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    w, kept = layer(70, 33, 5, np.float32)
    bn = norm_of(70)
    whole = merging(w, kept, batch_norm=bn)
    for entries in (1, 100, 3000):
        monkeypatch.setattr(cpu_partners, "_ENTRIES", entries)
        parts = merging(w, kept, batch_norm=bn)
        assert parts.partner.tolist() == whole.partner.tolist()
        np.testing.assert_array_equal(parts.cosine, whole.cosine)
        np.testing.assert_allclose(parts.score, whole.score, atol=1e-13)


def test_degenerate_units() -> None:
    w, _ = layer(8, 6)
    w[1] = 0  # kept, without a direction
    w[5] = 0  # pruned, without a direction
    w[7] = w[2]
    kept = np.arange(8) < 4
    found = merging(w, kept, threshold=-1.0)
    assert found.partner[1] == -1
    assert np.isnan(found.cosine[1])
    assert 1 not in found.partner
    gamma = np.ones(8)
    gamma[6], gamma[2] = 0.0, -1.0
    bn = BatchNorm(gamma, np.zeros(8), np.zeros(8), np.ones(8))
    found = merging(w, kept, batch_norm=bn, threshold=-1.0)
    assert found.partner[2] == -1, "a unit that is constant has no partner"
    assert 2 not in found.partner, "its twin has the other sign: S would be negative"
    stuck = BatchNorm(np.ones(8), np.zeros(8), np.zeros(8), np.zeros(8), eps=0.0)
    assert (merging(w, kept, batch_norm=stuck).partner == -1).all()


def test_all_pruned_and_none_pruned() -> None:
    w, _ = layer(7, 5)
    found = merging(w, np.zeros(7, dtype=bool))
    assert (found.partner == -1).all()
    assert np.isnan(found.score).all()
    assert found.matrix(np.zeros(7, dtype=bool)).shape == (0, 7)
    none = merging(w, np.ones(7, dtype=bool))
    assert none.partner.shape == (0,)
    np.testing.assert_array_equal(none.matrix(np.ones(7, dtype=bool)), np.eye(7))
    assert none.backend == "native_cpu"
    assert "0 of 0 pruned units" in none.plan.explain()


def test_the_plan_says_whose_products_they_are() -> None:
    w, kept = layer(7, 5)
    assert "nearest_rows: native_cpu, blocks of NumPy's products in float64," in merging(w, kept).plan.explain()


def test_threshold_is_kept_to() -> None:
    w = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, -1.0]])
    kept = np.array([True, False, False])
    assert merging(w, kept, threshold=0.6 - 1e-12).partner.tolist() == [0, -1]
    assert merging(w, kept, threshold=0.6 + 1e-12).partner.tolist() == [-1, -1]
    assert merging(w, kept, threshold=0.7).cosine.tolist() == pytest.approx([0.6, 0.0])
    assert merging(w, kept).partner.tolist() == [0, -1]


def test_nothing_is_written_to() -> None:
    w, kept = layer(12, 5)
    before = w.copy(), kept.copy()
    merging(w, kept, batch_norm=norm_of(12))
    np.testing.assert_array_equal(w, before[0])
    np.testing.assert_array_equal(kept, before[1])


def test_bad_input() -> None:
    w, kept = layer(6, 4)
    broken = w.copy()
    broken[2, 3] = np.nan
    with pytest.raises(ValueError, match="weight has 1 non-finite entry, the first at row 2, column 3"):
        merging(broken, kept)
    with pytest.raises(TypeError, match="kept must be a boolean mask of the units, not an array of int64"):
        merging(w, np.array([0, 2]))
    found = merging(w, kept)
    masked = np.ma.MaskedArray(kept, mask=~kept)
    for attempt in (lambda: merging(w, masked), lambda: found.matrix(masked)):
        with pytest.raises(TypeError, match=r"^kept is a masked array: fill or drop its masked entries first$"):
            attempt()
    with pytest.raises(TypeError, match="bias is a masked array"):
        merging(w, kept, bias=np.ma.zeros(6))
    with pytest.raises(TypeError, match="kept must be a boolean mask of the units, not an array of int64"):
        found.matrix(np.flatnonzero(kept))
    with pytest.raises(
        ValueError, match=rf"^kept \(6,\) is not the mask of which these {(~kept).sum()} units were pruned$"
    ):
        found.matrix(~kept)
    with pytest.raises(ValueError, match=r"kept has shape \(5,\) and weight has 6 units"):
        merging(w, kept[:5])
    with pytest.raises(ValueError, match=r"threshold must lie in \[-1, 1\], not 2"):
        merging(w, kept, threshold=2)
    with pytest.raises(ValueError, match=r"balance must lie in \[0, 1\], not nan"):
        merging(w, kept, balance=float("nan"))
    with pytest.raises(ValueError, match='bn_scale must be "exact" or "reference", not \'both\''):
        merging(w, kept, bn_scale="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"bias has shape \(5,\): it must be \[6\]"):
        merging(w, kept, bias=np.zeros(5))
    with pytest.raises(ValueError, match="batch_norm has 5 units and weight has 6"):
        merging(w, kept, batch_norm=norm_of(5))
    with pytest.raises(ValueError, match="var has the negative entry -1"):
        BatchNorm([1.0], [0.0], [0.0], [-1.0])
    with pytest.raises(ValueError, match="mean has a non-finite entry, the first at 1"):
        BatchNorm([1.0, 1.0], [0.0, 0.0], [0.0, np.inf], [1.0, 1.0])
    with pytest.raises(ValueError, match="eps must be at least 0 and finite, not -1"):
        BatchNorm([1.0], [0.0], [0.0], [1.0], eps=-1)
