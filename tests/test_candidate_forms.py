"""Passes of the native candidates: every form that leaves one feature out, in tiles on and below the diagonal."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from candidate_cases import Array, about, agrees, features, level_of, problem_of

import simkit as sk
from simkit.backends import native_cpu
from simkit.backends.base import Levels

TILE = 256  # samples; as in csrc/cpu/candidate_pass.hpp
# How far apart a unit's own values lie: 2^(d²) by four terms, five and six, then fused with the rest, and formed again.
REACHES = (0.4, 0.65, 0.9, 1.5, 4.0)


def of_all_reaches(n: int, dtype: type) -> Array:
    """z ``[p, n]`` with one unit of each reach after twelve others."""
    z = features(12 + len(REACHES), n)
    for unit, reach in enumerate(REACHES, start=12):
        z[unit] = np.random.default_rng(unit).uniform(0, reach, n)
    return z.astype(dtype)


def with_nothing_uncounted(packed: Array, n: int) -> Array:
    """L, packed, with NaN in what no pair of samples counts: on and above the diagonal of the tiles that lie on it."""
    filled = packed.copy()
    for row, i0 in enumerate(range(0, n, TILE)):
        height = min(TILE, n - i0)
        at = row * (row + 1) // 2 * TILE**2 + height * i0
        tile = filled[at : at + height**2].reshape(height, height)
        tile[np.triu_indices(height)] = np.nan
    return filled


@pytest.mark.parametrize("estimator", ["debiased", "biased"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [5, 40, 255, 256, 257, 263, 513])
def test_every_form_agrees_with_the_reference(n: int, dtype: type, estimator: str) -> None:
    problem = problem_of(of_all_reaches(n, dtype), sk.RBF(), estimator)  # type: ignore[arg-type]
    kept = np.delete(np.arange(12 + len(REACHES)), [2, 7])
    candidates = np.array([12, 13, 14, 15, 16, 0, 11, -1])
    level = level_of(problem, kept)
    r = np.random.default_rng(n)
    each = Levels(level / 2 + r.normal(0, 0.01, (len(candidates), n)))
    near_one = Levels(each.values - 0.5, small=False)
    packed = native_cpu.pack_centred(problem, room=2**30)
    assert packed is not None
    counted = dataclasses.replace(problem, packed=with_nothing_uncounted(packed, n))
    for given in (problem, counted):
        for levels in (about(problem, level), each, near_one, Levels(near_one.values[0], small=False)):
            got = native_cpu.candidate_sums(given, kept, candidates, levels=levels, threads=2)
            agrees(got, problem, kept, candidates, levels)


def test_the_reaches_choose_different_forms() -> None:
    """Of most strips of eight rows, so that the test above runs each of them."""
    z = of_all_reaches(513, np.float64)[12:]
    away = np.array(
        [
            [max(u[i : i + 8].max() - u[:TILE].min(), u[:TILE].max() - u[i : i + 8].min()) for i in range(TILE, 512, 8)]
            for u in z
        ]
    )
    bounds = np.array([0.0, 0.5, 0.5**0.5, 1.0, np.inf])
    found = [np.bincount(np.searchsorted(bounds, row) - 1, minlength=4).argmax() for row in away]
    assert found == [0, 1, 2, 3, 3]
