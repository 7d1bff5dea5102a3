"""The answer does not depend on the path: threads, tiles, routes, layouts, types, order of samples and of layers.

Threads never change a bit. What changes the order of additions (tile, route, order of samples) changes the last digits
of float64 sums, and float32 products within the table.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import tolerance

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends.base import Estimator, Precision
from simkit.backends.choose import choose
from simkit.backends.damage_room import ProductsRoom
from simkit.kernels import Kernel
from simkit.metrics.cka import ForcedRoute, normalised
from simkit.metrics.prepare import prepare

Array = npt.NDArray[Any]

KERNELS: list[Kernel] = [sk.Linear(), sk.Cosine(), sk.RBF(), sk.Laplacian(), sk.Polynomial()]
if importlib.util.find_spec("numba"):

    def custom(product: float, squared_distance: float) -> float:
        return 1 / (1 + squared_distance / 100) + product / 1000

    KERNELS.append(sk.CustomKernel(custom))
ESTIMATORS: tuple[Estimator, ...] = ("debiased", "biased")


@pytest.fixture(scope="module")
def layers() -> dict[str, Array]:
    r = np.random.default_rng(0)
    z = r.standard_normal((333, 5))
    return {
        f"l{p}": np.maximum(z @ r.standard_normal((5, p)) + r.standard_normal((333, p)), -0.5 if p == 1 else 0).astype(
            np.float32
        )
        for p in (1, 40, 130, 700)
    }


def scores(layers: Mapping[str, Array], estimator: Estimator, kernel: Kernel, forced: ForcedRoute) -> Array:
    blocks = [prepare(as_matrix(x, name=name), kernel, threads=forced.threads) for name, x in layers.items()]
    return normalised(blocks, None, estimator, forced).values


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_threads_change_no_bit(layers: dict[str, Array], kernel: Kernel, estimator: Estimator) -> None:
    routes: list[Literal["sample", "feature"]] = (
        ["sample", "feature"] if isinstance(kernel, sk.Linear | sk.Cosine) else ["sample"]
    )
    for route in routes:
        for tile in (24, 64):
            one = scores(layers, estimator, kernel, ForcedRoute(route=route, tile=tile, threads=1))
            for threads in (2, 3, 7):
                more = scores(layers, estimator, kernel, ForcedRoute(route=route, tile=tile, threads=threads))
                assert np.array_equal(one, more)


def test_threads_change_no_bit_of_the_public_functions(layers: dict[str, Array]) -> None:
    x, y = layers["l130"], layers["l40"]
    calls: list[Callable[[int], Any]] = [
        lambda t: [sk.cka(x, y, kernel=kernel, threads=t) for kernel in KERNELS],
        lambda t: [sk.hsic(x, y, kernel=kernel, threads=t) for kernel in KERNELS],
        lambda t: sk.similarity_matrix(layers, threads=t).values.tolist(),
        lambda t: [found.tolist() for found in _greedy(y, t)],
        lambda t: _stream(x, y, t, "float64").values.tolist(),
        lambda t: _stream(x, y, t, "float32").values.tolist(),
    ]
    for call in calls:
        one = call(1)
        assert call(2) == one
        assert call(3) == one


def _greedy(x: Array, threads: int) -> list[Array]:
    columns, blocks = (
        sk.greedy_cka(x, threads=threads),
        sk.greedy_cka(x, units=10, estimator="debiased", threads=threads),
    )
    return [columns.order, columns.cka[:-1], blocks.order, blocks.cka[:-1]]


def _stream(x: Array, y: Array, threads: int, products: Precision) -> sk.SimilarityMatrix:
    stream = sk.StreamingCKA(threads=threads, products=products)
    for _ in range(4):
        stream.update({"x": x}, {"y": y})
    return stream.compute()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_tiles_and_routes_change_the_last_digits_only(layers: dict[str, Array], estimator: Estimator) -> None:
    wide = {name: x.astype(np.float64) for name, x in layers.items()}
    for given_layers, dtype in ((wide, np.float64), (layers, np.float32)):
        allowed = 2 * tolerance("cka", dtype, 333, 700)
        first = scores(given_layers, estimator, sk.Linear(), ForcedRoute())
        for route in ("sample", "feature"):
            for tile in (1, 17, 32, 333, 500):
                if tile == 1 and route == "feature":
                    continue  # a million tiles
                again = scores(given_layers, estimator, sk.Linear(), ForcedRoute(route=route, tile=tile))
                assert np.abs(again - first).max() <= allowed


@pytest.mark.parametrize("kernel", KERNELS[2:])
def test_tiles_of_kernels(layers: dict[str, Array], kernel: Kernel) -> None:
    first = scores(layers, "debiased", kernel, ForcedRoute())
    for tile in (5, 32, 333):
        again = scores(layers, "debiased", kernel, ForcedRoute(tile=tile))
        assert np.abs(again - first).max() <= 1e-12


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_backends_agree(layers: dict[str, Array], kernel: Kernel, estimator: Estimator) -> None:
    wide = {name: x.astype(np.float64) for name, x in layers.items()}
    measure = sk.CKA(kernel, estimator)
    native = sk.similarity_matrix(wide, measure=measure, backend="native_cpu").values
    reference = sk.similarity_matrix(wide, measure=measure, backend="reference").values
    assert np.abs(native - reference).max() <= tolerance("cka", np.float64, 333, 700)


def layouts(x: Array, folder: Path) -> dict[str, Array]:
    """The same values in every layout NumPy has."""
    n, p = x.shape
    padded = np.full((2 * n, 3 * p), 7, dtype=x.dtype)
    padded[::2, ::3] = x
    frozen = x.copy()
    frozen.setflags(write=False)
    np.save(folder / "x.npy", x)
    record = np.zeros(n, dtype=np.dtype([("tag", "i1"), ("x", x.dtype, (p,))]))
    record["x"] = x
    return {
        "C": np.ascontiguousarray(x),
        "Fortran": np.asfortranarray(x),
        "strided": padded[::2, ::3],
        "negative rows": np.ascontiguousarray(x[::-1])[::-1],
        "negative columns": np.ascontiguousarray(x[:, ::-1])[:, ::-1],
        "both, of a Fortran array": np.asfortranarray(x[::-1, ::-1])[::-1, ::-1],
        "read-only": frozen,
        "memory-mapped": np.load(folder / "x.npy", mmap_mode="r"),
        "private map": np.load(folder / "x.npy", mmap_mode="c"),
        "unaligned": record["x"],
        "big-endian": x.astype(x.dtype.newbyteorder(">")),
        "three dimensions": x.reshape(n, p // 2, 2),
    }


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.int32, np.uint64, bool])
def test_layouts_change_no_bit(dtype: type[np.generic], tmp_path: Path) -> None:
    r = np.random.default_rng(1)
    x = (4 * np.maximum(r.standard_normal((130, 26)), 0)).astype(dtype)
    y = r.standard_normal((130, 70)).astype(np.float32)
    seen: dict[str, list[Any]] = {}
    for name, view in layouts(x, tmp_path).items():
        assert np.array_equal(view.reshape(x.shape), x), name
        streams = sk.StreamingCKA(), sk.StreamingCKA(products="float32")
        for stream in streams:
            for rows in np.array_split(np.arange(130 * 9) % 130, 9):
                stream.update({"x": view[rows]}, {"y": y[rows]})
        seen[name] = [
            sk.cka(view, y),
            sk.cka(y, view, estimator="biased"),
            sk.cka(view, y, kernel=sk.RBF()),
            sk.cka(view, view, kernel=sk.Polynomial()),
            sk.hsic(view, y),
            sk.similarity_matrix({"x": view, "y": y}).values.tolist(),
            sk.greedy_cka(view).order.tolist(),
            sk.greedy_cka(view, units=13).cka[:-1].tolist(),
            sk.cka(view, y, backend="reference"),
            [stream.compute().values.tolist() for stream in streams],
            normalised(
                [prepare(as_matrix(view, name="x"), sk.Linear())],
                None,
                "debiased",
                ForcedRoute(route="sample", tile=48),
            ).values.tolist(),
        ]
    for name, values in seen.items():
        assert values == seen["C"], name


@pytest.mark.parametrize("narrow", [np.float16, np.int8, np.uint16, bool])
def test_types_hold_the_same_numbers(narrow: type[np.generic]) -> None:
    """Widening is exact, so a narrow type gives the bits of its values in float32."""
    r = np.random.default_rng(2)
    x = np.maximum(3 * r.standard_normal((150, 20)), 0).astype(narrow)
    y = r.standard_normal((150, 90)).astype(np.float32)
    assert sk.cka(x, y) == sk.cka(x.astype(np.float32), y)
    assert sk.cka(x, y, kernel=sk.RBF()) == sk.cka(x.astype(np.float32), y, kernel=sk.RBF())
    assert sk.cka(x, y) == pytest.approx(sk.cka(x.astype(np.float64), y.astype(np.float64)), abs=1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_order_of_samples(layers: dict[str, Array], kernel: Kernel, estimator: Estimator) -> None:
    wide = {name: x.astype(np.float64) for name, x in layers.items()}
    measure = sk.CKA(kernel, estimator)
    first = sk.similarity_matrix(wide, measure=measure).values
    by_class = np.argsort(wide["l40"][:, 3], kind="stable")
    for order in (by_class, by_class[::-1], np.random.default_rng(3).permutation(333)):
        again = sk.similarity_matrix({name: x[order] for name, x in wide.items()}, measure=measure).values
        assert np.abs(again - first).max() <= 1e-9
    if isinstance(kernel, sk.Linear):  # float32 input, where feature space is the plan
        x, y = layers["l40"], layers["l1"]
        assert sk.cka(x, y, estimator=estimator) == pytest.approx(
            sk.cka(x[by_class], y[by_class], estimator=estimator), abs=1e-9
        )


def test_the_order_of_layers_and_the_company_they_keep(layers: dict[str, Array]) -> None:
    whole = sk.similarity_matrix(layers)
    turned = sk.similarity_matrix(dict(reversed(list(layers.items()))))
    assert np.abs(turned.values - whole.values[::-1, ::-1]).max() <= 1e-6
    across = sk.similarity_matrix(layers, dict(reversed(list(layers.items()))))
    assert np.abs(across.values - whole.values[:, ::-1]).max() <= 1e-6
    for a, x in layers.items():
        for b, y in layers.items():
            assert whole[a, b] == pytest.approx(sk.cka(x, y), abs=1e-6)
    assert np.array_equal(whole.values, whole.values.T)
    assert whole.values.diagonal().tolist() == pytest.approx([1.0] * 4, abs=1e-12)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_pair_has_no_sides(layers: dict[str, Array], estimator: Estimator) -> None:
    for kernel in KERNELS:
        x, y = layers["l130"].astype(np.float64), layers["l40"].astype(np.float64)
        forth, back = (sk.cka(*ab, kernel=kernel, estimator=estimator) for ab in ((x, y), (y, x)))
        assert forth == pytest.approx(back, abs=1e-14)
        assert sk.cka(x, x, kernel=kernel, estimator=estimator) == pytest.approx(1.0, abs=1e-14)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_invariances_of_the_measure(layers: dict[str, Array], estimator: Estimator) -> None:
    """Rotation, isotropic scale, shift, zero and constant columns, duplicated or split feature sets."""
    x, y = layers["l40"].astype(np.float64), layers["l130"].astype(np.float64)
    q = np.linalg.qr(np.random.default_rng(4).standard_normal((40, 40)))[0]
    for kernel in (sk.Linear(), sk.RBF(), sk.Laplacian()):
        first = sk.cka(x, y, kernel=kernel, estimator=estimator)
        constant = np.column_stack([x, np.full(333, 0.1), np.zeros(333)])
        for same in (x @ q, -3.5 * x, x + np.linspace(-50, 50, 40), x[:, ::-1], np.hstack([x, x]), constant):
            assert sk.cka(same, y, kernel=kernel, estimator=estimator) == pytest.approx(first, abs=1e-12)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    n=st.integers(4, 90),
    p=st.integers(1, 70),
    q=st.integers(1, 70),
    tile=st.integers(1, 100),
    threads=st.integers(1, 4),
    route=st.sampled_from(["sample", "feature"]),
    estimator=st.sampled_from(ESTIMATORS),
    seed=st.integers(0, 99),
)
def test_any_plan_gives_the_reference(
    n: int,
    p: int,
    q: int,
    tile: int,
    threads: int,
    route: Literal["sample", "feature"],
    estimator: Estimator,
    seed: int,
) -> None:
    r = np.random.default_rng(seed)
    x, y = r.standard_normal((n, p)), r.standard_normal((n, q))
    blocks = [prepare(as_matrix(a, name="a"), sk.Linear()) for a in (x, y)]
    plan = ForcedRoute(route=route, tile=tile, threads=threads)
    native = normalised(blocks[:1], blocks[1:], estimator, plan).values
    reference = normalised(blocks[:1], blocks[1:], estimator, ForcedRoute(backend="reference")).values
    assert np.abs(native - reference).max() <= tolerance("cka", np.float64, n, max(p, q))


def test_column_stats_and_products_change_no_bit_with_threads() -> None:
    x = np.maximum(np.random.default_rng(5).standard_normal((5000, 600)), 0).astype(np.float32)
    matrix = as_matrix(x)
    stats_of = choose("column_stats", backend="native_cpu").function
    one = stats_of(matrix, threads=1)
    products = choose("column_products", backend="native_cpu").function
    block = prepare(matrix, sk.Linear())
    for threads in (2, 3):
        more = stats_of(matrix, threads=threads)
        assert np.array_equal(more.mean, one.mean)
        assert np.array_equal(more.sum_sq_dev, one.sum_sq_dev)
        for exact in (False, True):
            a, b = (products(block, one, exact=exact, room=ProductsRoom(t, 0)) for t in (1, threads))
            assert np.array_equal(a, b)
