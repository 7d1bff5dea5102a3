"""Every op of a device, each in a few cases that together run every program: for repeats, racecheck and the host.

A case takes what puts an array on the device and a size, prepares its inputs once, and gives a function that runs the
op and returns all that it answers, on the host.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import candidate_cases
import numpy as np
import numpy.typing as npt
from filter_sets import filters
from graph_cases import families, squared
from nearest_cases import problem_of, residues_of, rows_of

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends import cuda_routes, cuda_strips, native_cuda
from simkit.backends.base import Block, Cores, RouteName, UnitBlocks
from simkit.backends.bits import on_host
from simkit.backends.cuda_device import place_of
from simkit.backends.cuda_products import DeviceProducts
from simkit.backends.cuda_strips import HostRoute, Strips
from simkit.backends.moment_sums import MomentSums, MomentUnits, SideSums
from simkit.metrics.cka import ForcedRoute, normalised
from simkit.metrics.prepare import prepare, prepare_with_stats

Array = npt.NDArray[Any]
Place = Callable[[Array], Any]
Run = Callable[[], list[Array]]
Size = Literal["small", "large"]
SIZES: dict[Size, tuple[int, int]] = {"small": (70, 40), "large": (1500, 300)}  # samples, features


@dataclass(frozen=True)
class Case:
    """``make(place, size)`` gives the run of ``op``; ``tensor``: on a device of capability 8.0 at least."""

    op: str
    make: Callable[[Place, Size], Run]
    tensor: bool = False


def features(n: int, p: int, seed: int = 0) -> Array:
    """ReLU features that share a few factors, float32; no column is constant."""
    r = np.random.default_rng([seed, n, p])
    x = np.maximum(r.standard_normal((n, 4)) @ r.standard_normal((4, p)) + r.standard_normal((n, p)), -0.25)
    x[0] += 0.01 * np.arange(p) + 0.5
    return x.astype(np.float32)


def arrays_of(found: Any) -> list[Array]:
    """All fields of a result, those on the device brought to the host."""
    if dataclasses.is_dataclass(found) and not isinstance(found, type) and not hasattr(found, "__array__"):
        return [a for field in dataclasses.fields(found) for a in arrays_of(getattr(found, field.name))]
    if isinstance(found, list | tuple):
        return [a for part in found for a in arrays_of(part)]
    return [] if found is None or isinstance(found, str) else [np.asarray(found)]


def block_there(place: Place, x: Array, kernel: Any = None) -> Block:
    """Prepared for products, on the device."""
    return prepare(as_matrix(place(x)), kernel or sk.Linear())


def column_stats(place: Place, size: Size) -> Run:
    x = as_matrix(place(features(*SIZES[size])))
    return lambda: arrays_of(native_cuda.column_stats(x))


def row_norms(place: Place, size: Size) -> Run:
    block = block_there(place, features(*SIZES[size]))
    return lambda: arrays_of(native_cuda.row_norms(block))


def median(n: int) -> Callable[[Place, Size], Run]:
    """Of so many samples, where not of the size's: from 1449 on there are more distances than are collected."""

    def make(place: Place, size: Size) -> Run:
        block = block_there(place, features(max(n, SIZES[size][0]), 5))
        return lambda: arrays_of(native_cuda.distance_median(block))

    return make


def pairs(
    route: RouteName | None, kernel: Any = None, cores: Cores = "plain", double: bool = False, dtype: str = "float32"
) -> Callable[[Place, Size], Run]:
    """Layers of one model with each other, and with those of another."""

    def make(place: Place, size: Size) -> Run:
        n, p = SIZES[size]
        blocks = [block_there(place, features(n, width).astype(dtype), kernel) for width in (p, 3, p // 2)]
        forced = ForcedRoute(route=route, products="float64" if double else None, cores=cores)

        def run() -> list[Array]:
            square = normalised(blocks, None, "debiased", forced)
            across = normalised(blocks[:1], blocks[1:], "biased", forced)
            return [square.values, across.values]

        return run

    return make


def median_in_strips(_place: Place, size: Size) -> Run:
    """Of a matrix on the host, in the smallest strips; of more distances than are collected at once."""
    block = prepare(as_matrix(features(max(1500, SIZES[size][0]), 5)), sk.Linear(), backend="native_cpu")
    device, smallest = place_of([block]), Strips(threads=2)
    return lambda: [np.asarray(cuda_strips.distance_median(block, device, smallest))]


def in_strips(route: RouteName, kernel: Any = None) -> Callable[[Place, Size], Run]:
    """The same of arrays on the host, in the smallest strips."""

    def make(_place: Place, size: Size) -> Run:
        n, p = SIZES[size]
        n, widths = (20 * n, (5, 3)) if route == "feature" else (2 * n, (p, 3))
        of = kernel or sk.Linear()
        blocks = [prepare(as_matrix(features(n, width)), of, backend="native_cpu") for width in widths]
        planned = cuda_routes.plan_pair_sums(blocks, None, route=route)
        strips = HostRoute(**vars(planned), workspace=0, strips=Strips(resident=0, passing=0, bytes=0, threads=2))
        return lambda: arrays_of(native_cuda.pair_sums(blocks, None, estimator="debiased", route=strips))

    return make


def columns_in_strips(_place: Place, size: Size) -> Run:
    n, p = SIZES[size]
    x = as_matrix(features(20 * n, p))
    return lambda: arrays_of(native_cuda.column_stats(x, threads=2, memory=300_000))


def column_products(exact: bool, cores: Cores = "plain") -> Callable[[Place, Size], Run]:
    def make(place: Place, size: Size) -> Run:
        block, stats = prepare_with_stats(as_matrix(place(features(*SIZES[size]))), sk.Linear())

        def run() -> list[Array]:
            found = native_cuda.column_products(block, stats, exact=exact, squared=True, cores=cores)
            return [np.asarray(found), np.asarray(found.sum())]

        return run

    return make


def products_in_strips(_place: Place, size: Size) -> Run:
    """Of a matrix on the host, in the smallest strips."""
    n, p = SIZES[size]
    block, stats = prepare_with_stats(as_matrix(features(5 * n, p)), sk.Linear(), backend="native_cpu")
    room = DeviceProducts(2, 0, strips=Strips(threads=2))

    def run() -> list[Array]:
        found = [native_cuda.column_products(block, stats, exact=exact, room=room) for exact in (True, False)]
        return [np.asarray(products) for products in found]

    return run


def gather_columns(place: Place, size: Size) -> Run:
    """What is gathered stays on the device: its statistics come to the host."""
    n, p = SIZES[size]
    x = as_matrix(place(features(n, p)))
    columns = np.random.default_rng(0).permutation(p)
    return lambda: arrays_of(native_cuda.column_stats(native_cuda.gather_columns(x, columns)))


def unit_sums(route: RouteName, cores: Cores = "plain") -> Callable[[Place, Size], Run]:
    """Units of several columns, as channels of convolutions are."""

    def make(place: Place, size: Size) -> Run:
        n, p = SIZES[size]
        units = UnitBlocks(block_there(place, features(n, p)), np.arange(0, p + 1, p // 20))
        planned = native_cuda.plan_pair_sums(units, None, route=route, cores=cores)

        def run() -> list[Array]:
            both = [native_cuda.pair_sums(units, None, estimator=of, route=planned) for of in ("debiased", "biased")]
            return [a for found in both for a in arrays_of(found)]

        return run

    return make


def eliminate(_place: Place, size: Size) -> Run:
    """Two layers side by side; the smaller one is through before half of the other's units are gone."""
    n, p = SIZES[size]
    grams = [g.T @ g for g in (features(n, p).astype(np.float64), features(n, 9).astype(np.float64))]
    return lambda: arrays_of(native_cuda.eliminate([g * g for g in grams]))


def unit_features(place: Place, size: Size) -> Run:
    """Formed on the device, where they stay: a kernel's sums over them come to the host."""
    n, p = SIZES[size]
    block, wanted = block_there(place, features(n, p), sk.RBF()), np.arange(0, p, 2)

    def run() -> list[Array]:
        found = native_cuda.unit_features(block, wanted, double=False)
        offsets = np.arange(len(wanted) + 1)
        problem = candidate_cases.CandidateProblem(found.z, offsets, sk.RBF(), np.nan, "biased", np.zeros(n))
        return [found.sum_sq_dev, *arrays_of(native_cuda.candidate_sums(problem, offsets[:-1], np.array([0, 5, -1])))]

    return run


def candidates(kernel: Any, packed: bool) -> Callable[[Place, Size], Run]:
    """With L held on the device, and formed as it is needed."""

    def make(_place: Place, size: Size) -> Run:
        n, p = SIZES[size]
        problem = candidate_cases.problem_of(candidate_cases.features(p // 4, n).astype(np.float32), kernel)
        there = candidate_cases.on_device(problem)
        if packed:
            there = dataclasses.replace(there, packed=native_cuda.pack_centred(there, room=2**30))
        kept = np.arange(p // 4)
        return lambda: arrays_of(
            native_cuda.candidate_sums(
                there, kept, np.append(kept[::-1], -1), levels=candidate_cases.about(problem, 0.3)
            )
        )

    return make


def adjacency(dtype: str) -> Callable[[Place, Size], Run]:
    """Some filters are zero, and pairs lie at thresholds."""

    def make(place: Place, size: Size) -> Run:
        n, p = SIZES[size]
        w = filters(n, p).astype(dtype)
        w[3] = w[n - 1] = 0
        w[4] = 2 * w[1]
        matrix, limits = as_matrix(place(w)), squared([1e-9, 0.4, 1.2, 1.4, 2.0])

        def run() -> list[Array]:
            found = native_cuda.adjacency(matrix, limits)
            return [on_host(found.bits), np.array([found.finite, found.nearest, found.farthest]), found.zeros]

        return run

    return make


def components(_place: Place, size: Size) -> Run:
    graphs = families(SIZES[size][0] if size == "small" else 500)
    return lambda: arrays_of(native_cuda.components(graphs))


def cover(_place: Place, size: Size) -> Run:
    graphs = families(SIZES[size][0] if size == "small" else 500)
    return lambda: arrays_of(native_cuda.cover(graphs))


def largest_entries(place: Place, size: Size) -> Run:
    x = as_matrix(place(features(*SIZES[size])))
    return lambda: arrays_of(native_cuda.largest_entries([x, x]))


def empty_side(widths: tuple[int, ...], alone: bool) -> SideSums:
    p, count = sum(widths), len(widths)
    grams = () if alone else tuple(np.zeros((w, w)) for w in widths)
    zeros = (np.zeros(size) for size in (p, p, count, count))
    return SideSums(tuple(np.cumsum([0, *widths]).tolist()), np.full(p, 0.5), np.full(p, 0.25), *zeros, grams)


def moments(alone: bool, added: bool, cores: Cores = "plain") -> Callable[[Place, Size], Run]:
    """The rows of a block of a stream of one or two sides; ``added``: to the sums."""

    def make(place: Place, size: Size) -> Run:
        n, p = SIZES[size]
        sides = [(p, 3, p // 2)] if alone else [(p, 3), (7, p // 2)]
        layers = [[as_matrix(place(features(min(n, 512), w, k))) for k, w in enumerate(of)] for of in sides]

        def run() -> list[Array]:
            empty = [empty_side(of, alone) for of in sides]
            units = [
                MomentUnits(x, s, np.empty((min(n, 512), s.offsets[-1]))) for x, s in zip(layers, empty, strict=True)
            ]
            rows = native_cuda.moments_rows(units)
            if not added:
                return arrays_of(rows)
            columns, counts = [side.offsets[-1] for side in empty], [len(side.spans) for side in empty]
            sums = MomentSums(
                empty[0],
                None if alone else empty[1],
                np.zeros((columns[0], columns[-1])),
                np.zeros((counts[0], counts[-1])),
                np.zeros((counts[0], columns[-1])),
                np.zeros((0, 0)) if alone else np.zeros((counts[1], columns[0])),
            )
            native_cuda.moments_add(sums, rows[0], None if alone else rows[1], cores=cores)
            return arrays_of(sums)

        return run

    return make


def nearest(ties: bool) -> Callable[[Place, Size], Run]:
    """With residues; or with more near ties than a list holds, so that rows are compared with all others."""

    def make(place: Place, size: Size) -> Run:
        n, p = SIZES[size]
        if ties:
            x = np.repeat(rows_of(3, 20), 150, axis=0) * (1 + 1e-9 * rows_of(450, 20))
            problem = problem_of(x.astype(np.float32), place=place)
        else:
            problem = problem_of(rows_of(n, p).astype(np.float32), residues=residues_of(n, same_sign=True), place=place)
        return lambda: arrays_of(native_cuda.nearest_rows(problem, 3))

    return make


CASES: dict[str, Case] = {
    "columns": Case("column_stats", column_stats),
    "columns, in strips": Case("column_stats", columns_in_strips),
    "norms of rows": Case("row_norms", row_norms),
    "median": Case("distance_median", median(0)),
    "median of many": Case("distance_median", median(1500)),
    "median in strips": Case("distance_median", median_in_strips),
    "pairs in sample space": Case("pair_sums", pairs("sample")),
    "pairs in sample space, float64": Case("pair_sums", pairs("sample", double=True)),
    "pairs in sample space, tensor cores": Case("pair_sums", pairs("sample", cores="tensor"), tensor=True),
    "pairs in sample space, float64, tensor cores": Case(
        "pair_sums", pairs("sample", cores="tensor", double=True), tensor=True
    ),
    "pairs in sample space, float16 as it is": Case(
        "pair_sums", pairs("sample", cores="half", dtype="float16"), tensor=True
    ),
    "pairs in feature space": Case("pair_sums", pairs("feature")),
    "pairs in feature space, tensor cores": Case("pair_sums", pairs("feature", cores="tensor"), tensor=True),
    "pairs in both spaces": Case("pair_sums", pairs("mixed")),
    "pairs of RBF kernels": Case("pair_sums", pairs(None, sk.RBF())),
    "pairs of Laplacian kernels": Case("pair_sums", pairs(None, sk.Laplacian())),
    "pairs of polynomial kernels": Case("pair_sums", pairs(None, sk.Polynomial())),
    "pairs of cosines": Case("pair_sums", pairs("sample", sk.Cosine())),
    "pairs in strips, sample space": Case("pair_sums", in_strips("sample")),
    "pairs in strips, RBF kernels": Case("pair_sums", in_strips("sample", sk.RBF())),
    "pairs in strips, feature space": Case("pair_sums", in_strips("feature")),
    "units in sample space": Case("pair_sums", unit_sums("sample")),
    "units in feature space": Case("pair_sums", unit_sums("feature")),
    "units in sample space, tensor cores": Case("pair_sums", unit_sums("sample", "tensor"), tensor=True),
    "products of columns": Case("column_products", column_products(False)),
    "products of columns, float64": Case("column_products", column_products(True)),
    "products of columns, tensor cores": Case("column_products", column_products(False, "tensor"), tensor=True),
    "products of columns, float64, tensor cores": Case("column_products", column_products(True, "tensor"), tensor=True),
    "products of columns, in strips": Case("column_products", products_in_strips),
    "columns gathered": Case("gather_columns", gather_columns),
    "elimination": Case("eliminate", eliminate),
    "features of units": Case("unit_features", unit_features),
    "candidates, RBF": Case("candidate_sums", candidates(sk.RBF(), packed=False)),
    "candidates, Laplacian": Case("candidate_sums", candidates(sk.Laplacian(), packed=False)),
    "candidates, polynomial": Case("candidate_sums", candidates(sk.Polynomial(), packed=False)),
    "candidates of a search": Case("pack_centred", candidates(sk.RBF(), packed=True)),
    "graphs": Case("adjacency", adjacency("float32")),
    "graphs, float64": Case("adjacency", adjacency("float64")),
    "components": Case("components", components),
    "covers": Case("cover", cover),
    "largest entries": Case("largest_entries", largest_entries),
    "rows of a stream": Case("moments_rows", moments(alone=False, added=False)),
    "sums of a stream": Case("moments_add", moments(alone=True, added=True)),
    "sums of a stream of two sides": Case("moments_add", moments(alone=False, added=True)),
    "sums of a stream, tensor cores": Case(
        "moments_add", moments(alone=False, added=True, cores="tensor"), tensor=True
    ),
    "nearest rows": Case("nearest_rows", nearest(ties=False)),
    "nearest rows, ties": Case("nearest_rows", nearest(ties=True)),
}
