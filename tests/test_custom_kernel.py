"""A user's kernel inside the tiles and in the reference: what it is given and what it gives, on every path."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import oracles
import pytest
from tolerance import assert_close

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends import native_cpu
from simkit.backends.base import Estimator
from simkit.backends.routes import plan_pair_sums
from simkit.compare.collect import Shape, decide
from simkit.kernels import Kernel
from simkit.metrics.cka import ForcedRoute
from simkit.metrics.prepare import prepare

numba = pytest.importorskip("numba")

from custom_kernels import BACKENDS, DISTANCE, ESTIMATORS, MIXED, PRODUCT, engine, jitted, pair, product_alone, tiled  # noqa: E402

Array = npt.NDArray[Any]
CASES = {case.name: case for case in oracles.hazard_battery()}
TALL = sk.CustomKernel(lambda product, d: 1 / (1 + d / 8) + product / 1e4)


def gram_of(f: Callable[[Array, Array], Array]) -> oracles.GramOf:
    """K of a NumPy function of products and squared distances."""

    def gram(x: Array) -> Array:
        wide = np.asarray(x).reshape(len(x), -1).astype(np.longdouble)
        return np.asarray(f(wide @ wide.T, oracles.squared_distances(x)), dtype=np.float64)

    return gram


MIXED_GRAM = gram_of(lambda p, d: 1 / (1 + d / 8) + np.tanh(p / 4))


# What it gives.


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(("n", "p", "q"), [(4, 3, 2), (63, 17, 1), (150, 5, 300), (300, 40, 7)])
def test_against_the_definition(n: int, p: int, q: int, dtype: Any, estimator: Estimator, backend: str) -> None:
    x, y = pair(n, p, q, dtype)
    table = oracles.hsic_matrix([x, y], estimator=estimator, gram=MIXED_GRAM)
    scale = math.sqrt(table[0, 0] * table[1, 1])
    got = sk.cka(x, y, kernel=MIXED, estimator=estimator, backend=backend)
    assert_close(got, table[0, 1] / scale, "cka", np.float64, n, max(p, q))
    got = sk.hsic(x, y, kernel=MIXED, estimator=estimator, backend=backend)
    assert_close(got, table[0, 1], "hsic", np.float64, n, max(p, q), scale=scale)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("n", [31, 32, 33, 98, 257, 300])
@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_ragged_tiles(n: int, estimator: Estimator, offset: float) -> None:
    """Around tiles of 32, and more samples than the 256 that estimate the row means; with and without a shift."""
    x, y = pair(n, 9, 21)
    x, y = x + offset, y + offset
    kernel = TALL
    gram = gram_of(lambda p, d: 1 / (1 + d / 8) + p / 1e4)
    want = oracles.cka_matrix([x, y], [x, y], estimator=estimator, gram=gram)
    for forced in (
        ForcedRoute(tile=32, threads=2),
        ForcedRoute(tile=1) if n < 100 else ForcedRoute(tile=48),
        ForcedRoute(),
        ForcedRoute(backend="reference"),
    ):
        assert_close(engine([x, y], kernel, estimator, forced), want, "cka", np.float64, n, 21)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("offset", [0.0, 3.0, 1000.0])
def test_the_kernels_of_simkit_as_custom_ones(offset: float, backend: str) -> None:
    x, _ = pair(170, 6, 1)
    _, y = pair(170, 1, 30)
    x, y = x + offset, y + offset
    for z in (x, y):
        median, p = float(np.median(oracles.squared_distances(z))), z.shape[1]
        twins: list[tuple[Kernel, Callable[[float, float], float], float]] = [
            (sk.RBF(0.5), lambda product, d, m=median: math.exp(-d / (0.5 * m)), 1e-12),  # type: ignore[misc]
            (sk.Laplacian(0.7), lambda product, d, m=median: math.exp(-math.sqrt(d / m) / 0.7), 1e-12),  # type: ignore[misc]
        ]
        if not offset:
            twins += [
                (sk.Linear(), product_alone, 1e-12),
                (sk.Polynomial(3), lambda product, d, q=p: (product / q + 1) ** 3, 1e-12),  # type: ignore[misc]
            ]
        for kernel, f, allowed in twins:
            own = sk.CustomKernel(f)
            for estimator in ESTIMATORS:
                want = sk.hsic(z, z, kernel=kernel, estimator=estimator, backend=backend)
                got = sk.hsic(z, z, kernel=own, estimator=estimator, backend=backend)
                assert got == pytest.approx(want, rel=allowed)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", CASES)
def test_distances_on_the_hazard_battery(name: str, estimator: Estimator, backend: str) -> None:
    """-d²/2 is the linear kernel but for terms of one sample alone, which both estimators are blind to."""
    x, y = CASES[name].x, CASES[name].y
    want = oracles.cka(x, y, estimator=estimator)
    got = sk.cka(x, y, kernel=DISTANCE, estimator=estimator, backend=backend)
    assert_close(got, want, "cka", np.float64, *x.shape)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", [name for name in CASES if "+1000" not in name and "1e5" not in name])
def test_products_on_the_hazard_battery(name: str, estimator: Estimator, backend: str) -> None:
    """Raw products keep fewer digits of the centred ones the farther the features are from zero."""
    x, y = CASES[name].x, CASES[name].y
    want = oracles.cka(x, y, estimator=estimator)
    got = sk.cka(x, y, kernel=PRODUCT, estimator=estimator, backend=backend)
    assert_close(got, want, "cka", np.float32, *x.shape)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1e-100, 1e-6, 1.0, 1e9, 1e70])
def test_the_units_are_those_of_the_rows(scale: float, backend: str) -> None:
    x, y = pair(80, 5, 12)
    for kernel, gram in ((PRODUCT, gram_of(lambda p, d: p)), (DISTANCE, gram_of(lambda p, d: -d / 2))):
        want = oracles.hsic(x, y, estimator="debiased", gram=gram)
        got = sk.hsic(scale * x, y, kernel=kernel, backend=backend)
        assert got == pytest.approx(scale**2 * want, rel=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_equal_rows_are_at_distance_zero_and_dead_rows_have_product_zero(offset: float, backend: str) -> None:
    """Exactly, also where the offset of the others makes distances be formed of centred rows."""
    r = np.random.default_rng(1)
    x = r.standard_normal((40, 7)) + offset
    x = np.concatenate([x, x[:25], np.zeros((2, 7))])[r.permutation(67)]
    same = sk.CustomKernel(lambda product, d: 1.0 if d == 0 else 0.0)
    dead = sk.CustomKernel(lambda product, d: 1.0 if product == 0 else 0.0)
    equal = np.all(x[:, None] == x[None], axis=-1).astype(float)
    zero = (~x.any(axis=1)[:, None] | ~x.any(axis=1)[None]).astype(float)
    for estimator in ESTIMATORS:
        for kernel, k in ((same, equal), (dead, zero)):
            want = oracles.hsic(x, x, estimator=estimator, gram=lambda _, k=k: k)  # type: ignore[misc]
            got = sk.hsic(x, x, kernel=kernel, estimator=estimator, backend=backend)
            assert got == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_near_duplicates_far_from_zero(backend: str) -> None:
    r = np.random.default_rng(2)
    base = 1e6 * r.standard_normal((40, 3))
    x = np.concatenate([base, base, base + 1e-3 * r.standard_normal((40, 3))]) + 1e8
    narrow = sk.CustomKernel(lambda product, d: math.exp(-d * 1e6))
    want = oracles.hsic(x, x, estimator="debiased", gram=gram_of(lambda p, d: np.exp(-d * 1e6)))
    assert sk.hsic(x, x, kernel=narrow, backend=backend) == pytest.approx(want, rel=1e-9)


# Paths and forms.


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_three_forms_give_the_same_bits(estimator: Estimator, backend: str) -> None:
    x, y = pair(333, 20, 50, np.float32)
    kernels = [MIXED, sk.CustomKernel(jitted), sk.CustomKernel(tiled)]
    first, *others = [
        [call(x, y, kernel=kernel, estimator=estimator, backend=backend) for call in (sk.cka, sk.hsic)]
        for kernel in kernels
    ]
    assert others == [first, first]


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_threads_and_layouts_change_no_bit(offset: float) -> None:
    x, y = pair(333, 20, 50, np.float32)
    x, y = x + np.float32(offset), y + np.float32(offset)
    padded = np.zeros((666, 60), dtype=np.float32)
    padded[::2, ::3] = x
    want = sk.hsic(x, y, kernel=MIXED, threads=1)
    for view in (x, np.asfortranarray(x), padded[::2, ::3], x[::-1][::-1], x.reshape(333, 4, 5)):
        assert {sk.hsic(view, y, kernel=MIXED, threads=threads) for threads in (1, 2, 3, 7)} == {want}
    assert sk.hsic(x, x.astype(np.float64), kernel=MIXED) == sk.hsic(x, x, kernel=MIXED)
    tiles = [engine([x, y], MIXED, "debiased", ForcedRoute(tile=24, threads=t)) for t in (1, 3)]
    assert np.array_equal(*tiles)


def test_a_matrix_of_layers(tmp_path: Path) -> None:
    layers = {f"l{p}": pair(200, p, 1)[0] for p in (1, 8, 90)} | {
        "flat": np.ones((200, 3)),
        "far": pair(200, 4, 1)[0] + 99,
    }
    measure = sk.CKA(MIXED)
    matrix = sk.similarity_matrix(layers, measure=measure)
    assert matrix.backend == "native_cpu"
    assert matrix.measure == "CKA(kernel=CustomKernel(mixed), estimator='debiased')"
    assert set(matrix.degenerate) == {("row", "flat"), ("column", "flat")}
    for a, x in layers.items():
        for b, y in layers.items():
            if "flat" in (a, b):
                assert math.isnan(matrix[a, b])
            else:
                assert matrix[a, b] == pytest.approx(sk.cka(x, y, kernel=MIXED), abs=1e-12)
    across = sk.similarity_matrix({"l8": layers["l8"]}, layers, measure=measure, backend="reference")
    assert np.allclose(across.values[0], matrix.values[1], rtol=0, atol=1e-11, equal_nan=True)
    assert measure.score(measure.prepare(as_matrix(layers["l8"])), measure.prepare(as_matrix(layers["far"]))) == (
        pytest.approx(matrix["l8", "far"], abs=1e-12)
    )
    matrix.save(tmp_path / "m.safetensors")
    assert sk.SimilarityMatrix.load(tmp_path / "m.safetensors").measure == matrix.measure


def test_the_workspace_holds_the_arguments() -> None:
    x, _ = pair(500, 6, 1)
    blocks = {kernel: [prepare(as_matrix(x), kernel)] for kernel in (MIXED, sk.RBF())}
    custom, rbf = (plan_pair_sums(of, None, tile=400) for of in blocks.values())
    assert custom.bytes > rbf.bytes + 2 * 8 * 256 * 400  # tests/test_workspace.py measures it
    assert (custom.name, custom.products) == ("sample", "float64")
    small = plan_pair_sums(blocks[MIXED], None, memory=100_000)
    assert small.bytes <= 100_000
    with pytest.raises(ValueError, match="feature-space route needs a linear kernel"):
        plan_pair_sums(blocks[MIXED], None, route="feature")


def test_comparisons_of_models_spool_their_features() -> None:
    decision = decide(Shape((8,), (8,), 64, 1000), sk.CKA(MIXED), memory=10**8, mode="exact")
    assert decision.way == "spool"
    assert "CKA(kernel=CustomKernel(mixed), estimator='debiased') needs all 1000 rows" in decision.reason


def test_the_function_stays_while_the_kernel_is_in_use() -> None:
    x, y = pair(120, 5, 6)

    def made(c: float) -> sk.CustomKernel:
        function = numba.njit(lambda product, d: 1 / (1 + c * d))
        return sk.CustomKernel(lambda product, d: function(product, d))

    want = [sk.cka(x, y, kernel=made(c)) for c in (0.1, 0.2)]
    kernels = [made(c) for c in (0.1, 0.2)]
    blocks = [[prepare(as_matrix(z), kernel) for z in (x, y)] for kernel in kernels]
    bound = [[native_cpu._bound(block) for block in of] for of in blocks]
    del kernels, blocks
    gc.collect()
    for given, score in zip(bound, want, strict=True):
        values, own, _, bad = native_cpu._core().pair_sums(
            rows=given[:1],
            columns=given[1:],
            debiased=True,
            sample_space=True,
            double_products=True,
            tile=48,
            threads=2,
            shared=False,
        )
        assert bad is None
        assert values[0, 0] / math.sqrt(own[0] * own[1]) == pytest.approx(score, abs=1e-12)


# Greedy orders.


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_greedy_orders(estimator: Estimator, backend: str | None) -> None:
    x, _ = pair(60, 8, 1)
    kernel = sk.CustomKernel(lambda product, d: (product / 8 + 1) ** 3)
    for units in (None, 4):
        found = sk.greedy_cka(x, kernel=kernel, units=units, estimator=estimator, backend=backend)
        want = sk.greedy_cka(x, kernel=sk.Polynomial(3), units=units, estimator=estimator)
        assert found.order.tolist() == want.order.tolist()
        assert found.cka[:-1] == pytest.approx(want.cka[:-1], abs=1e-9)
    ran = {step.op: step for step in found.plan.steps}
    for op in ("unit_features", "candidate_sums", "pack_centred"):
        assert ran[op].backend == (backend or "native_cpu")
    assert ran["column_stats"].backend == (backend or "native_cpu")


def test_greedy_orders_at_an_offset_see_raw_rows() -> None:
    x, _ = pair(60, 5, 1)
    d = sk.greedy_cka(x + 1e4, kernel=DISTANCE)
    linear = sk.greedy_cka(x + 1e4)
    assert d.order.tolist() == linear.order.tolist()
    assert d.cka[:-1] == pytest.approx(linear.cka[:-1], abs=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_constant_kernel_has_no_greedy_order(backend: str) -> None:
    with pytest.raises(ValueError, match=r"^x is degenerate: "):
        sk.greedy_cka(pair(30, 4, 1)[0], kernel=sk.CustomKernel(lambda product, d: 1.0), backend=backend)
