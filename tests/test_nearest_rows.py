"""The op of nearest rows on the host: the reference against loops, NumPy's blocks against the reference."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from nearest_cases import check, hazards, problem_of, residues_of, rows_of

from simkit.backends import cpu_partners, native_cpu, reference
from simkit.backends.nearest import Residues
from simkit.metrics.merging import merging

HAZARDS = {name: (x, k) for name, x, k in hazards()}


def loop(x: Any, k: int, residues: Residues | None, balance: float) -> list[list[int]]:
    """The k nearest of every row among the others, by plain loops and sorting."""
    found = []
    for i in range(len(x)):
        scores, r = {}, {}
        for j in range(len(x)):
            signs = 1.0 if residues is None else residues.sign[i] * residues.sign[j]
            if j == i or (signs <= 0 if residues is not None and residues.same_sign else signs == 0):
                continue
            terms = (
                (0.0,)
                if residues is None
                else (residues.of_row[i], residues.of_partner[j], residues.slope[i] * residues.size[j])
            )
            if np.isfinite(sum(terms)):
                r[j] = signs * abs(sum(terms))
                scores[j] = 1 - x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j])
        low, high = min(r.values(), default=0.0), max(r.values(), default=0.0)
        if residues is not None:
            scores = {j: balance * s + (1 - balance) * (r[j] - low) / ((high - low) or 1.0) for j, s in scores.items()}
        best = sorted(scores, key=lambda j: (scores[j], j))[:k]
        found.append(best + [-1] * (k - len(best)))
    return found


@pytest.mark.parametrize("k", [1, 3, 40])
@pytest.mark.parametrize("same_sign", [None, True, False])
def test_the_reference_is_what_loops_find(k: int, same_sign: bool | None) -> None:
    x = rows_of(25, 7)
    residues = None if same_sign is None else residues_of(25, same_sign=same_sign)
    found = reference.nearest_rows(problem_of(x, residues=residues, balance=0.6), k)
    assert found.row.tolist() == loop(x, k, residues, 0.6)
    assert np.array_equal(np.isnan(found.score), found.row < 0)
    assert not (found.row == np.arange(25)[:, None]).any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_blocks_agree(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, last = rows_of(70, 33).astype(dtype), np.random.default_rng(0).standard_normal(70)
    for entries, k, a, same_sign in itertools.product((1, 700, 2**20), (1, 4, 100), (None, 30), (None, True, False)):
        monkeypatch.setattr(cpu_partners, "_ENTRIES", entries)
        residues = None if same_sign is None else residues_of(70, same_sign=same_sign)
        check(native_cpu.nearest_rows, x, k, a, residues=residues, last=last if k == 4 else None)


@pytest.mark.parametrize("name", HAZARDS)
def test_hazards(name: str) -> None:
    x, k = HAZARDS[name]
    for a in (None, len(x) // 2):
        check(native_cpu.nearest_rows, x, k, a)


def test_equal_scores_go_to_the_lowest_rows() -> None:
    x = np.repeat(rows_of(2, 9), 20, axis=0)
    for find in (reference.nearest_rows, native_cpu.nearest_rows):
        found = find(problem_of(x), 4)
        assert found.row[0].tolist() == [1, 2, 3, 4]
        assert found.row[2].tolist() == [0, 1, 3, 4]
        assert found.row[39].tolist() == [20, 21, 22, 23]


def test_a_bias_is_one_more_weight() -> None:
    w, bias = rows_of(40, 9), np.random.default_rng(0).standard_normal(40)
    kept = np.arange(40) % 3 > 0
    one, two = merging(w, kept, bias=bias), merging(np.concatenate([w, bias[:, None]], axis=1), kept)
    assert one.partner.tolist() == two.partner.tolist()
    np.testing.assert_allclose(one.cosine, two.cosine, rtol=0, atol=1e-14)
    np.testing.assert_allclose(one.scale, two.scale, rtol=1e-14)
    with pytest.raises(ValueError, match=r"^bias holds 1e\+305, too large to square in float64: rescale its units$"):
        merging(w, kept, bias=bias * 0 + 1e305)


@pytest.mark.parametrize("scale", [1.0, 1e-320, 1e300])
def test_norms_of_rows_of_every_size(scale: float) -> None:
    """Subnormal rows beside huge ones, and rows of zeros."""
    from simkit.arrays import as_matrix
    from simkit.metrics.partners import row_norms

    x = np.array([[3.0, 4.0], [3e-160, 4e-160], [0.0, 0.0], [3e-300, 4e-300], [3e-150, 4e-290]]) * scale
    for backend in ("native_cpu", "reference"):
        norms = row_norms(as_matrix(x), np.abs(x).max(), backend=backend)
        np.testing.assert_allclose(norms, np.hypot(x[:, 0], x[:, 1]), rtol=1e-15)


@pytest.mark.parametrize("layout", [np.asarray, np.asfortranarray])
def test_small_rows_alone_are_read_again(layout: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass of the op whatever the rows: zeros, subnormal ones, and some of every scale between."""
    from simkit.arrays import as_matrix
    from simkit.metrics import partners

    x, norms_of, passes = rows_of(11, 300), native_cpu.row_norms, []
    scales = np.array([1e300, 1.0, 0.0, 1e-100, 1e-140, 1e-200, 1e-290, 1e-307, 1e-320, 0.0, 1e150])
    x = layout(x * scales[:, None])
    monkeypatch.setattr(
        native_cpu, "row_norms", lambda *args, **options: passes.append(1) or norms_of(*args, **options)
    )
    monkeypatch.setattr(partners, "_CHUNK", 700)
    for rows in (x, x[1:3]):
        passes.clear()
        found = partners.row_norms(as_matrix(rows), np.abs(rows).max())
        own = np.frexp(np.abs(rows).max(axis=1))[1]
        want = np.ldexp(np.linalg.norm(np.ldexp(rows, -own[:, None]), axis=1), own)
        np.testing.assert_allclose(found, want, rtol=1e-14, atol=0)
        assert len(passes) == 1
