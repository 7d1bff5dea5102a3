"""Products, norms and factors by BLAS: any layout, any size, vectors longer than one call takes."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from simkit.arrays import FloatArray
from simkit.metrics import blas

SHAPES = [(1, 1), (1, 7), (7, 1), (31, 5), (5, 31)]


def layouts(a: FloatArray) -> list[FloatArray]:
    """``a`` by rows, by columns, and as parts of larger arrays of either kind."""
    n, p = a.shape
    wide, tall = np.zeros((n, p + 3)), np.zeros((n + 2, p), order="F")
    wide[:, 3:], tall[2:] = a, a
    return [a, np.asfortranarray(a), wide[:, 3:], tall[2:], np.repeat(a, 2, axis=0)[::2]]


@pytest.mark.parametrize(("n", "p"), SHAPES)
def test_products_and_norms_of_any_layout(n: int, p: int) -> None:
    rng = np.random.default_rng(n + p)
    a, b, c = rng.standard_normal((n, p)), rng.standard_normal((p, 4)), rng.standard_normal((n, 4))
    for left in layouts(a):
        for right in layouts(b):
            found = blas.product(left, right)
            assert np.allclose(found, a @ b, rtol=1e-13, atol=1e-13)
            assert found.flags.c_contiguous
        for right in layouts(c):
            assert np.allclose(blas.cross(left, right), a.T @ c, rtol=1e-13, atol=1e-13)
        assert np.allclose(blas.gram_of(left), np.triu(a.T @ a), rtol=1e-13, atol=1e-13)
        assert blas.frobenius(left) == pytest.approx(np.linalg.norm(a), rel=1e-14)
    for left in layouts(a)[:2]:
        assert np.allclose(blas.times_vector(left, b[:, 0]), a @ b[:, 0], rtol=1e-13, atol=1e-13)


def test_long_vectors_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """BLAS counts entries in 32 bits, and said 0 of more; here a call takes seven."""
    monkeypatch.setattr(blas, "LONGEST", 7)
    for size in (1, 6, 7, 8, 50):
        a = np.arange(1.0, size + 1)
        assert blas.frobenius(a) == pytest.approx(np.sqrt(np.square(a).sum()), rel=1e-15)
    assert blas.frobenius(np.zeros((0, 3))) == 0.0


def test_what_is_contiguous_is_not_copied() -> None:
    x = np.zeros((20_000, 16), order="F")
    y = np.zeros((20_000, 16))
    calls = (
        lambda: blas.cross(x[:, 3:], x[:, 5:]), lambda: blas.cross(y, y), lambda: blas.cross(x, y),
        lambda: blas.gram_of(x), lambda: blas.gram_of(y), lambda: blas.frobenius(x), lambda: blas.frobenius(y),
        lambda: blas.times_vector(x, x[0]), lambda: blas.times_vector(y, y[0]),
    )  # fmt: skip
    for call in calls:
        call()
        tracemalloc.start()
        call()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < x.nbytes / 10
