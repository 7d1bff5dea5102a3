"""Greedy CKA damage where sums cancel: units, rows, offsets and bandwidths that leave little of what is summed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from backend_lists import NAMED

import simkit as sk
from simkit.kernels import Kernel

Array = npt.NDArray[Any]
Estimator = Literal["debiased", "biased"]
Mode = Literal["greedy", "oneshot"]
ESTIMATORS: tuple[Estimator, ...] = ("biased", "debiased")
MODES: tuple[Mode, ...] = ("greedy", "oneshot")


def gram(x: Array, kept: Sequence[int], kernel: Kernel) -> Array:
    """The kernel of some columns in long doubles, its length that of all."""
    wide = x.astype(np.longdouble)
    z = wide[:, list(kept)]
    if isinstance(kernel, sk.Linear):
        z = z - z.mean(axis=0)
        return z @ z.T
    if isinstance(kernel, sk.Polynomial):
        return np.asarray((z @ z.T / x.shape[1] + kernel.coef0) ** kernel.degree)
    distances, of_all = (((each[:, None] - each) ** 2).sum(axis=-1) for each in (z, wide))
    assert isinstance(kernel, sk.RBF | sk.Laplacian)
    length = kernel.bandwidth**2 * np.median(of_all.astype(np.float64))
    return np.asarray(
        np.exp(-np.sqrt(distances / length) if isinstance(kernel, sk.Laplacian) else -distances / length / 2)
    )


def centred(k: Array, estimator: Estimator) -> Array:
    n = len(k)
    each, both = (n, n * n) if estimator == "biased" else (n - 2, (n - 1) * (n - 2))
    if estimator == "debiased":
        k = k * (1 - np.eye(n))
    rows = k.sum(axis=0)
    k = k - rows[:, None] / each - rows / each + rows.sum() / both
    return k if estimator == "biased" else k * (1 - np.eye(n))


def off(x: Array, kernel: Kernel, estimator: Estimator, found: sk.Elimination) -> tuple[float, float]:
    """The largest error of a reported CKA, and by how much a choice was worse than the best one."""
    whole = centred(gram(x, range(x.shape[1]), kernel), estimator)
    own = (whole * whole).sum()
    kept, error, lost = list(range(x.shape[1])), 0.0, 0.0
    for unit, cka in zip(found.order.tolist(), found.cka.tolist(), strict=True):
        scores = []
        for left_out in kept if len(kept) > 1 else ():
            k = centred(gram(x, [c for c in kept if c != left_out], kernel), estimator)
            scores.append(float((k * whole).sum() / np.sqrt((k * k).sum() * own)))
        if scores:
            right = scores[kept.index(unit)]
            error, lost = max(error, abs(cka - right)), max(lost, max(scores) - right)
        kept.remove(unit)
    return error, lost


@pytest.mark.parametrize("backend", NAMED)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("scale", [3e3, 1.2e4, 1.7e4, 1e5, 1e9])
def test_a_unit_that_makes_up_nearly_all(scale: float, estimator: Estimator, mode: Mode, backend: str) -> None:
    """What it leaves of the sum over pairs of units is below the rounding of that sum."""
    for seed in range(8):
        r = np.random.default_rng(seed)
        x = r.standard_normal((64, 1)) + 0.3 * r.standard_normal((64, 8))
        x[:, seed] *= scale
        found = sk.greedy_cka(x, estimator=estimator, mode=mode, backend=backend)
        error, lost = off(x, sk.Linear(), estimator, found)
        assert error < 1e-11
        assert mode == "oneshot" or lost < 2e-12


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_units_that_dwarf_one_another(estimator: Estimator) -> None:
    """Each makes up nearly all of what is left once the larger ones are gone; then the others are far from it."""
    r = np.random.default_rng(3)
    x = (r.standard_normal((50, 3)) @ r.standard_normal((3, 40)) + 0.2 * r.standard_normal((50, 40))) * np.repeat(
        10.0 ** np.arange(0, 20, 2), 4
    )
    found = sk.greedy_cka(x[:, r.permutation(40)], estimator=estimator, count=20)
    again = sk.greedy_cka(x, estimator=estimator)
    again_reference = sk.greedy_cka(x, estimator=estimator, backend="reference")
    assert again.order.tolist() == again_reference.order.tolist()
    assert np.allclose(again.cka[:-1], again_reference.cka[:-1], rtol=0, atol=1e-11)
    assert np.allclose(found.cka, again.cka[:20], rtol=0, atol=1e-11)


def test_dead_units_left_alone_have_no_cka() -> None:
    """Columns that are multiples of one, and zeros: what rounding leaves of their sum is no answer."""
    for seed in range(30):
        r = np.random.default_rng(seed)
        n, live, dead = int(r.integers(5, 30)), int(r.integers(1, 4)), int(r.integers(1, 4))
        x = np.hstack([r.standard_normal((n, 1)) * r.standard_normal(live), np.zeros((n, dead))])
        found = sk.greedy_cka(x[:, ::-1] if seed % 2 else x, mode="oneshot")
        dead_units = set(range(dead)) if seed % 2 else set(range(live, live + dead))
        for step in range(live + dead):
            left = set(range(live + dead)) - set(found.order[: step + 1].tolist())
            assert np.isnan(found.cka[step]) == (left <= dead_units)


@pytest.mark.parametrize("backend", NAMED)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "kernel",
    [
        *(sk.RBF(width) for width in (0.045, 0.08, 0.15, 0.3, 1.0, 20.0, 1e4)),
        *(sk.Laplacian(width) for width in (0.03, 0.05, 0.2, 1.0, 1e3)),
    ],
    ids=repr,
)
def test_narrow_and_wide_kernels(kernel: Kernel, dtype: Any, estimator: Estimator, backend: str) -> None:
    """Kernels of 1e-30, whose distance to 1 says nothing, and kernels of 1 - 1e-9, which say nothing themselves."""
    x = np.random.default_rng(0).standard_normal((24, 20)).astype(dtype)
    found = sk.greedy_cka(x, kernel=kernel, estimator=estimator, backend=backend, count=4)
    error, lost = off(x, kernel, estimator, found)
    assert error < (2e-7 if dtype == np.float32 else 1e-11)
    assert lost < (2e-7 if dtype == np.float32 else 2e-12)


@pytest.mark.parametrize("backend", NAMED)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kernel", [sk.Polynomial(1), sk.Polynomial(2), sk.Polynomial(3)], ids=repr)
@pytest.mark.parametrize(("offset", "within"), [(10, 1e-13), (1e3, 1e-9), (1e4, 1e-7), (1e5, 1e-5)])
def test_polynomials_far_from_zero(
    offset: float, within: float, kernel: Kernel, estimator: Estimator, backend: str
) -> None:
    """All but a share of 1 / offset² of the kernel belongs to rows: no more digits are lost than it says."""
    for one in (False, True):
        x = np.random.default_rng(1).standard_normal((30, 6))
        x[:, : 1 if one else 6] += offset
        error, lost = off(x, kernel, estimator, sk.greedy_cka(x, kernel=kernel, estimator=estimator, backend=backend))
        assert error < within
        assert lost < within


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("width", [1.0, 5.0, 20.0])
@pytest.mark.parametrize(("n", "p", "size"), [(6, 30, 1e3), (30, 24, 30), (40, 20, 10)])
def test_a_row_unlike_the_others(n: int, p: int, size: float, width: float, estimator: Estimator) -> None:
    """It makes up most of the kernel's variation, which centring takes off."""
    x = np.random.default_rng([n, p]).standard_normal((n, p)).astype(np.float32)
    x[0] *= size
    for kernel in (sk.RBF(width), sk.Laplacian(width)):
        error, lost = off(x, kernel, estimator, sk.greedy_cka(x, kernel=kernel, estimator=estimator, count=3))
        assert error < 4e-6
        assert lost < 1e-6


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(("size", "width"), [(30, 5.0), (100, 20.0), (300, 100.0)])
def test_a_row_unlike_the_others_in_one_unit(size: float, width: float, estimator: Estimator) -> None:
    """Without the unit the row is like the others, so that levels of all kept units are far from that kernel's."""
    x = np.random.default_rng(3).standard_normal((30, 6)).astype(np.float32)
    x[0, 2] *= size
    for kernel in (sk.RBF(width), sk.Laplacian(width)):
        error, lost = off(x, kernel, estimator, sk.greedy_cka(x, kernel=kernel, estimator=estimator))
        assert error < 1e-6
        assert lost < 1e-7


@pytest.mark.parametrize("backend", NAMED)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kernel", [sk.RBF(), sk.RBF(30.0), sk.Laplacian(), sk.Polynomial()], ids=repr)
def test_what_is_constant_without_a_unit_has_no_cka(
    kernel: Kernel, dtype: Any, estimator: Estimator, backend: str
) -> None:
    """Whatever the levels leave of such a kernel is rounding."""
    for seed, mode in ((0, "greedy"), (1, "oneshot")):
        r = np.random.default_rng(seed)
        x = np.hstack([r.standard_normal((9, 1)) * 10.0 ** r.uniform(-3, 3), np.tile(r.standard_normal(3), (9, 1))])
        found = sk.greedy_cka(
            x.astype(dtype),
            kernel=kernel,
            estimator=estimator,
            mode=mode,  # type: ignore[arg-type]
            backend=backend,
        )
        assert mode == "oneshot" or found.order[-1] == 0
        for step, cka in enumerate(found.cka):
            assert np.isnan(cka) == (0 in found.order[: step + 1])


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_memory_changes_no_bit_where_sums_are_formed_again(estimator: Estimator) -> None:
    """For one candidate at a time or for all."""
    x = np.random.default_rng(5).standard_normal((300, 12)) + np.linspace(0, 3e3, 12)
    kernel = sk.Polynomial(2)
    want = sk.greedy_cka(x, kernel=kernel, estimator=estimator)
    for memory in ("1.2 MB", "1.5 MB", "3 MB"):
        found = sk.greedy_cka(x, kernel=kernel, estimator=estimator, memory=memory)
        assert found.order.tolist() == want.order.tolist()
        assert found.cka.tobytes() == want.cka.tobytes()


def test_a_custom_kernel_far_from_zero() -> None:
    pytest.importorskip("numba")
    x = np.random.default_rng(2).standard_normal((40, 6)) + 1e4
    kernel = sk.CustomKernel(lambda product, distance: (product / 6 + 1) ** 2)
    for estimator in ESTIMATORS:
        own = sk.greedy_cka(x, kernel=kernel, estimator=estimator)
        error, lost = off(x, sk.Polynomial(2), estimator, own)
        assert error < 1e-7
        assert lost < 1e-7
