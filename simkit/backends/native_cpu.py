"""The C++ engine behind the op table: each function hands plain views to ``_core`` and wraps what comes back."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, Matrix
from ..kernels import CustomKernel, Kernel
from . import bits as packed
from . import cpu_partners
from .base import (
    OPS,
    Adjacency,
    Block,
    CandidateProblem,
    CandidateSums,
    ColumnStats,
    CoverSearch,
    EliminationOrder,
    Estimator,
    Input,
    Levels,
    PairSums,
    Route,
    SquareMatrix,
    UnitFeatures,
    kernel_options,
)
from .damage_room import ProductsRoom
from .mapped import mapped_team
from .mixed import mixed_sums
from .moment_sums import MomentRows, MomentSums, MomentUnits, SideSums
from .nearest import NearestProblem, NearestRows
from .preparing import stats_team
from .routes import ROOM
from .unit_features import host_features

NAME = "native_cpu"
MOST = 2**62  # bytes that are asked for
WITH_NUMPY = ("gather_columns", "unit_features", "nearest_rows")  # what needs no compiled module


@cache
def _load() -> tuple[ModuleType | None, str]:
    try:
        from . import _core
    except ImportError as error:
        tree = Path(__file__).parents[2]
        built = importlib.util.find_spec(f"{__package__}._core")
        if built is None and (tree / "csrc").is_dir():  # found first, because Python was started in it
            return None, f"{tree} is simkit's source, not what pip installs: start Python in another folder"
        return None, f"the compiled module does not import ({error}); install simkit with pip"
    return _core, ""


def _core() -> Any:
    return _load()[0]


def missing() -> str:
    """Why there is no compiled module; empty where there is one."""
    return _load()[1]


def unsupported_reasons(op: str, inputs: Sequence[Input] = (), kernel: Kernel | None = None) -> list[str]:
    """Why ``op``, on ``inputs`` with ``kernel``, cannot run here; empty when it can."""
    if op not in OPS:
        return [f"there is no native {op}"]
    core, why = _load()
    return [why] if core is None and op not in WITH_NUMPY else []


def _bound(block: Block) -> Any:
    return _core().Block(
        x=block.matrix.values,
        dtype=block.matrix.dtype,
        mapped=block.matrix.mapped,
        shift=np.ascontiguousarray(block.shift, dtype=np.float64),
        row_scale=block.row_scale,
        scale=math.ldexp(1.0, -block.exponent),
        length=block.length,
        function=block.kernel.address if isinstance(block.kernel, CustomKernel) else 0,
        owner=block.kernel,
        **kernel_options(block.kernel),
    )


def column_stats(
    matrix: Matrix, *, row_scale: FloatArray | None = None, threads: int = 1, memory: int | None = None
) -> ColumnStats:
    """See :func:`simkit.backends.reference.column_stats`; ``memory`` bounds the sums of columns, which every
    worker has, and the pages of a mapped file, as far as one thread can."""
    team = stats_team(matrix, threads, memory)
    mean, squares, max_abs, max_dev, nonfinite, row, column = _core().column_stats(
        x=matrix.values, dtype=matrix.dtype, mapped=matrix.mapped, row_scale=row_scale, threads=team
    )
    return ColumnStats(mean, squares, max_abs, max_dev, nonfinite, (row, column) if nonfinite else None)


def row_norms(block: Block, *, threads: int = 1, memory: int | None = None) -> FloatArray:
    """See :func:`simkit.backends.reference.row_norms`; ``memory`` bounds the pages of a mapped file."""
    norms: FloatArray = _core().row_norms(_bound(block), mapped_team(block.matrix, threads, memory))
    return norms


def distance_median(block: Block, *, threads: int = 1, memory: int | None = None) -> float:
    """See :func:`simkit.backends.reference.distance_median`; ``memory`` bounds what the passes take, as far as one
    thread can do with it, and asks for more of them where it is little."""
    return float(_core().distance_median(_bound(block), threads, ROOM if memory is None else min(memory, MOST)))


def pair_sums(
    rows: Sequence[Block], columns: Sequence[Block] | None, *, estimator: Estimator, route: Route
) -> PairSums:
    """See :func:`simkit.backends.reference.pair_sums`; ``route`` says how the sums are formed."""
    split = route.split
    if split is None:
        values, own, raw = _pair_sums(rows, columns, estimator, route)
    else:
        feature = partial(_pair_sums, estimator=estimator, route=split.feature, apart=split.wide)
        sample = partial(_pair_sums, estimator=estimator, route=split.sample)
        others = None if columns is None else list(columns)
        values, own, raw = mixed_sums(split.wide, list(rows), others, feature, sample)
    left = len(rows)
    if columns is None:
        return PairSums(values, own, own, raw, raw)
    return PairSums(values, own[:left], own[left:], raw[:left], raw[left:])


def _pair_sums(
    rows: Sequence[Block],
    columns: Sequence[Block] | None,
    estimator: Estimator,
    route: Route,
    apart: Sequence[bool] = (),
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Sums of all pairs, of each layer with itself, and what these were subtracted from; of two ``apart`` zero."""
    values, own, raw, bad = _core().pair_sums(
        rows=[_bound(block) for block in rows],
        columns=[_bound(block) for block in columns or ()],
        debiased=estimator == "debiased",
        sample_space=route.name == "sample",
        double_products=route.products == "float64",
        tile=route.tile,
        threads=route.threads,
        shared=route.shared,
        apart=list(apart),
    )
    if bad is not None:
        number, *pair = bad
        block = [*rows, *(columns or ())][number]
        raise block.kernel.out_of_range(block.matrix.name, *pair)
    return values, own, raw


def column_products(
    block: Block, stats: ColumnStats, *, exact: bool = True, squared: bool = False, room: ProductsRoom | None = None
) -> FloatArray:
    """See :func:`simkit.backends.reference.column_products`; float32 products unless ``exact``."""
    threads = 1 if room is None else room.threads
    products: FloatArray = _core().column_products(_bound(block), stats.sum_sq_dev, exact=exact, threads=threads)
    return np.multiply(products, products, out=products) if squared else products


def gather_columns(matrix: Matrix, columns: npt.NDArray[np.int64]) -> Matrix:
    """See :func:`simkit.backends.reference.gather_columns`: NumPy's indexing, which nothing here would beat."""
    return Matrix(matrix.name, matrix.values[:, columns], matrix.dtype, matrix.origin)


def unit_features(block: Block, columns: npt.NDArray[np.int64], *, double: bool, threads: int = 1) -> UnitFeatures:
    """See :func:`simkit.backends.reference.unit_features`."""
    return host_features(block, columns, double=double)


def candidate_sums(
    problem: CandidateProblem,
    kept: npt.NDArray[np.int64],
    candidates: npt.NDArray[np.int64],
    *,
    levels: Levels | None = None,
    rows: bool = True,
    threads: int = 1,
) -> CandidateSums:
    """See :func:`simkit.backends.reference.candidate_sums`."""
    levels = levels or Levels(np.zeros(problem.z.shape[1]))
    sums, bad = _core().candidate_sums(
        **_candidate_options(problem),
        kept=np.ascontiguousarray(kept, dtype=np.int64),
        candidates=np.ascontiguousarray(candidates, dtype=np.int64),
        debiased=problem.estimator == "debiased",
        levels=np.ascontiguousarray(levels.values),
        small=levels.small,
        packed=problem.packed,
        threads=threads,
    )
    if bad is not None:
        raise _out_of_range(problem, bad)
    return CandidateSums.with_rows(*sums, keep=rows)


def pack_centred(problem: CandidateProblem, *, room: int, threads: int = 1) -> npt.NDArray[Any] | None:
    """L of :func:`simkit.backends.reference.pack_centred` below the diagonal, tile by tile, in the type of z."""
    if problem.half_bytes > room:
        return None
    centred, bad = _core().pack_centred(**_candidate_options(problem), threads=threads)
    if bad is not None:
        raise _out_of_range(problem, bad)
    packed: npt.NDArray[Any] = centred
    return packed


def _candidate_options(problem: CandidateProblem) -> dict[str, Any]:
    return {
        "z": problem.z,
        "offsets": np.ascontiguousarray(problem.offsets, dtype=np.int64),
        "length": problem.length,
        "centre": problem.centre,
        "small_centre": problem.small_centre,
        "function": problem.kernel.address if isinstance(problem.kernel, CustomKernel) else 0,
        **kernel_options(problem.kernel),
    }


def _out_of_range(problem: CandidateProblem, pair: tuple[float, float, float]) -> ValueError:
    assert isinstance(problem.kernel, CustomKernel)
    return problem.kernel.out_of_range(problem.name, *pair)


def eliminate(
    matrices: Sequence[SquareMatrix],
    *,
    greedy: bool = True,
    counts: Sequence[int] | None = None,
    min_cka: float | None = None,
) -> list[EliminationOrder]:
    """See :func:`simkit.backends.reference.eliminate`."""
    wanted = [len(a) for a in matrices] if counts is None else counts
    least = math.nan if min_cka is None else min_cka
    return [
        EliminationOrder(*_core().eliminate(np.ascontiguousarray(a), greedy=greedy, count=count, min_cka=least))
        for a, count in zip(matrices, wanted, strict=True)
    ]


def adjacency(matrix: Matrix, squared: FloatArray, *, threads: int = 1, tile: int | None = None) -> Adjacency:
    """See :func:`simkit.backends.reference.adjacency`; ``tile`` rows at a time."""
    # Zeros from the system are touched only where there are edges.
    bits = np.zeros((len(squared), matrix.n, packed.words_of(matrix.n)), dtype=np.uint64)
    finite, nearest, farthest, zeros = _core().adjacency(
        x=matrix.values,
        dtype=matrix.dtype,
        mapped=matrix.mapped,
        squared=[float(limit) for limit in squared],
        bits=bits,
        tile=tile or _graph_tile(matrix.n, threads),
        threads=threads,
    )
    route = f"{matrix.precision} products, near a threshold float64 differences"
    return Adjacency(bits, finite, nearest, farthest, zeros, route)


def _graph_tile(n: int, threads: int) -> int:
    """The largest tile that leaves every thread four pieces of work."""
    for tile in (512, 256, 128):
        strips = -(-n // tile)
        if threads == 1 or strips * (strips + 1) // 2 >= 4 * threads:
            return tile
    return 64


def components(bits: packed.GraphBits, *, threads: int = 1) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """See :func:`simkit.backends.reference.components`."""
    labels, edges = _core().components(packed.on_host(bits), threads=threads)
    return labels, edges


def cover(bits: packed.GraphBits, *, threads: int = 1) -> list[CoverSearch]:
    """See :func:`simkit.backends.reference.cover`."""
    return [CoverSearch(*found) for found in _core().cover(packed.on_host(bits), threads=threads)]


def largest_entries(matrices: Sequence[Matrix], *, threads: int = 1) -> list[float]:
    """See :func:`simkit.backends.reference.largest_entries`."""
    found: list[float] = _core().largest_entries([(m.values, m.dtype) for m in matrices], threads=threads)
    return found


def moments_rows(units: Sequence[MomentUnits], *, threads: int = 1) -> list[MomentRows]:
    """See :func:`simkit.backends.reference.moments_rows`."""
    sides = [
        {
            "layers": [(layer.values, layer.dtype) for layer in each.layers],
            "shift": each.side.shift,
            "scale": each.side.scale,
            "z": each.z,
        }
        for each in units
    ]
    norms = _core().moments_rows(sides, threads=threads)
    return [MomentRows(each.z, a) for each, a in zip(units, norms, strict=True)]


def moments_add(sums: MomentSums, left: MomentRows, right: MomentRows | None, *, threads: int = 1) -> bool:
    """See :func:`simkit.backends.reference.moments_add`."""

    def side(rows: MomentRows, of: SideSums) -> dict[str, Any]:
        return {
            "z": rows.z,
            "a": rows.a,
            "offsets": list(of.offsets),
            "sum_z": of.sum_z,
            "sum_az": of.sum_az,
            "sum_a": of.sum_a,
            "sum_aa": of.sum_aa,
            "gram": list(of.gram),
            "rounded": of.rounded,
            "signs": of.signs,
            "probes": of.probes,
        }

    both = None if sums.right is None or right is None else side(right, sums.right)
    cross = {"cross": sums.cross, "sum_ab": sums.sum_ab, "sum_ay": sums.sum_ay, "probes": sums.probes}
    if both is not None:
        cross["sum_bx"] = sums.sum_bx
    _core().moments_add(len(left.z), left=side(left, sums.left), right=both, sums=cross, threads=threads)
    return left.z.dtype == np.float32


def nearest_rows(problem: NearestProblem, k: int = 1, *, threads: int = 1) -> NearestRows:
    """See :func:`simkit.backends.reference.nearest_rows`; NumPy's products, on as many threads as those take."""
    return cpu_partners.nearest_rows(problem, k)
