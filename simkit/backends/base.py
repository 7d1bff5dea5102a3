"""The op table: what every backend offers, as plain functions over plain data.

An op is a function of the same name in every backend module. Arrays that cross this line are checked already.

=====================  ================================================================================
op                     result
=====================  ================================================================================
column_stats           :class:`ColumnStats` of a matrix ``[n, p]``, one pass, float64
row_norms              squared norms ``[n]`` of the rows of a matrix, float64
distance_median        median of the full n × n matrix of squared distances of a block, float64
pair_sums              :class:`PairSums`: centred inner products of all pairs of Gram matrices
column_products        centred cross-products ``[p, p]`` of the columns of one matrix, or their squares, float64
gather_columns         a matrix of columns of another, in any order
eliminate              :class:`EliminationOrder` of each of several layers from the all-pairs matrix ``[u, u]`` of units
unit_features          :class:`UnitFeatures`: a layer's features by rows, in the units of its kernel
candidate_sums         :class:`CandidateSums`: a kernel's sums over pairs of samples, for each unit left out
pack_centred           what the backend holds for ``candidate_sums``: the centred kernel of all units
adjacency              :class:`Adjacency`: graphs of the rows of a matrix at several thresholds, packed, one pass
components             labels ``[graphs, n]`` and numbers of edges ``[graphs]`` of packed graphs
cover                  :class:`CoverSearch` of each packed graph: greedy cover, packing, dual bound
largest_entries        the largest magnitude of each matrix, infinite where one is not finite
moments_rows           :class:`~.moment_sums.MomentRows` of a block of a stream: shifted, scaled, squared norms, float64
moments_add            adds a block of rows to the float64 moments of a stream
nearest_rows           :class:`~.nearest.NearestRows`: the k rows nearest to each of some, by direction and residue
=====================  ================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, Protocol, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, Matrix
from ..kernels import RBF, Cosine, CustomKernel, Kernel, Laplacian, Linear, Polynomial
from .bits import BoolArray, DeviceBits, GraphBits

OPS = (
    "column_stats",
    "row_norms",
    "distance_median",
    "pair_sums",
    "column_products",
    "gather_columns",
    "eliminate",
    "unit_features",
    "candidate_sums",
    "pack_centred",
    "adjacency",
    "components",
    "cover",
    "largest_entries",
    "moments_rows",
    "moments_add",
    "nearest_rows",
)

Estimator: TypeAlias = Literal["debiased", "biased"]
RouteName: TypeAlias = Literal["sample", "feature", "mixed"]
Precision: TypeAlias = Literal["float32", "float64"]
Cores: TypeAlias = Literal["plain", "tensor", "half"]  # half: tensor cores, 16-bit features as they are


@dataclass(frozen=True)
class ColumnStats:
    """One pass over ``x [n, p]``: column means, squared deviations, size of the deviations, non-finite entries."""

    mean: FloatArray  # [p]
    sum_sq_dev: FloatArray  # [p]  Σ (x - mean)²
    max_abs: float  # max |x|
    max_dev: float  # one to four times max |x - mean|; exactly 0 when every column is constant
    nonfinite: int
    first_nonfinite: tuple[int, int] | None


@dataclass(frozen=True)
class Block:
    """A representation made ready for products: z = (x · row_scale - shift) · 2^-exponent, then the kernel on z.

    The power of two keeps squares from overflowing or vanishing, exactly. ``length`` is the kernel's scale in
    the units of z: 2 t² m for RBF, t √m for Laplacian, γ in z's units for Polynomial. CustomKernel sees raw rows: its
    exponent is 0, and its shift serves the distances alone.
    """

    matrix: Matrix
    kernel: Kernel
    shift: FloatArray  # [p]
    exponent: int
    row_scale: FloatArray | None = None  # [n]
    length: float = math.nan
    spread: float = math.nan  # mean |x - shift|² of the samples, where it is known

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.matrix.n

    @property
    def p(self) -> int:
        """Number of features."""
        return self.matrix.p

    @property
    def gram_exponent(self) -> int:
        """k(x, x') = 2^gram_exponent · k(z, z'): only linear kernels scale with their features."""
        return 2 * self.exponent if self.linear else 0

    @property
    def linear(self) -> bool:
        """Whether the kernel is a product of (scaled) rows."""
        return isinstance(self.kernel, Linear | Cosine)

    def with_length(self, length: float) -> Block:
        """The same block with its kernel's scale known."""
        return replace(self, length=length)

    def columns(self, start: int, stop: int) -> Block:
        """Columns ``start:stop`` as a block that shares shift, scale and memory."""
        matrix, shift = self.matrix.column_slice(start, stop), self.shift[start:stop]
        return replace(self, matrix=matrix, shift=shift, spread=math.nan)


@dataclass(frozen=True, eq=False)
class UnitBlocks(Sequence[Block]):
    """Units of a layer as blocks of neighbouring columns: unit k is columns ``offsets[k]:offsets[k + 1]`` of ``whole``.

    They share one scale, so that their products add.
    """

    whole: Block
    offsets: npt.NDArray[np.int64]  # [u + 1]

    @cached_property
    def _blocks(self) -> list[Block]:
        return [self.whole.columns(int(start), int(stop)) for start, stop in pairwise(self.offsets)]

    @overload
    def __getitem__(self, k: int) -> Block: ...

    @overload
    def __getitem__(self, k: slice) -> list[Block]: ...

    def __getitem__(self, k: int | slice) -> Block | list[Block]:
        """One of the units, or some of them."""
        return self._blocks[k]

    def __len__(self) -> int:
        """The number u of units."""
        return len(self.offsets) - 1


_NAMES: dict[type, str] = {RBF: "rbf", Laplacian: "laplacian", Polynomial: "polynomial", CustomKernel: "custom"}


def less_one(kernel: Kernel) -> bool:
    """Whether the Gram matrix of ``kernel`` is formed less 1, which no centred sum sees.

    From a bandwidth of 1 on half of all values are above 1/3; of a wide kernel, whose values are all near 1, it is what
    is left of them that counts, to its last digit.
    """
    return isinstance(kernel, RBF | Laplacian) and kernel.bandwidth >= 1.0


def kernel_options(kernel: Kernel) -> dict[str, Any]:
    """A kernel as the compiled modules take it; the length stands in :class:`Block`."""
    return {
        "kernel": _NAMES.get(type(kernel), "linear"),
        "coef0": kernel.coef0 if isinstance(kernel, Polynomial) else -float(less_one(kernel)),
        "degree": kernel.degree if isinstance(kernel, Polynomial) else 1,
    }


class HeldMatrix(Protocol):
    """A matrix ``[u, u]`` float64 that stays on a device from one op to the next; NumPy copies it to the host."""

    @property
    def name(self) -> str:
        """Of the layer, for errors."""

    @property
    def device(self) -> int | None:
        """The ordinal of the device."""

    @property
    def nbytes(self) -> int:
        """Its size."""

    def __len__(self) -> int:
        """The number u of its rows."""

    def sum(self) -> Any:
        """The sum of its entries, float64."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> FloatArray:
        """Its entries on the host."""


SquareMatrix: TypeAlias = FloatArray | HeldMatrix
Input: TypeAlias = Matrix | Block | HeldMatrix | DeviceBits


def matrices_of(inputs: Sequence[Input]) -> list[Matrix | HeldMatrix | DeviceBits]:
    """What lies somewhere behind an op's inputs: each has a name and a device."""
    return [x.matrix if isinstance(x, Block) else x for x in inputs]


@dataclass(frozen=True)
class Route:
    """How the all-pairs sums are formed: decided once, as data, by :mod:`simkit.backends.routes`."""

    name: RouteName
    products: Precision
    tile: int
    threads: int
    multiply_adds: int
    bytes: int
    reason: str
    shared: bool = False  # sample space: all workers on one tile, which may be larger, instead of one tile each
    cores: Cores = "plain"  # the units of a device that form the products
    split: Split | None = None  # of a mixed route, whose tile and threads are those of its sample space

    @property
    def words(self) -> str:
        """The route's name, for a plan."""
        if self.split is None:
            return f"{self.name} space"
        wide = self.split.wide
        return f"mixed: sample space among the {sum(wide)} widest of {len(wide)} layers, feature space for the others"

    def in_sample_space(self, layers: int, *, columns: bool = False) -> BoolArray:
        """Which of so many rows, or columns, have their own sums from sample space."""
        if self.split is None:
            return np.full(layers, self.name == "sample")
        wide = np.array(self.split.wide)
        return wide[-layers:] if columns else wide[:layers]


@dataclass(frozen=True)
class Split:
    """The halves of a mixed route: sample space for pairs of two wide layers, feature space for all others."""

    wide: tuple[bool, ...]  # rows, then columns
    feature: Route
    sample: Route


@dataclass(frozen=True)
class PairSums:
    """All-pairs centred inner products S_ab of Gram matrices, in the units of the blocks' z.

    Biased: S_ab = ⟨H K_a H, H K_b H⟩. Debiased: n(n-3) times the estimator of Song et al. 2012, eq. 5.
    ``raw`` is the size of the sums that S_aa was subtracted from: ``self / raw`` says how much cancelled.
    """

    values: FloatArray | HeldMatrix  # [L, M]; of UnitBlocks on a device [u, u] there
    self_rows: FloatArray  # [L]
    self_columns: FloatArray  # [M]
    raw_rows: FloatArray  # [L]
    raw_columns: FloatArray  # [M]

    @property
    def table(self) -> FloatArray:
        """The values on the host."""
        return np.asarray(self.values)


@dataclass(frozen=True)
class EliminationOrder:
    """Units in the order of their removal, and CKA(all, kept) after each removal (NaN for the empty set)."""

    order: np.ndarray[tuple[int], np.dtype[np.int64]]  # [removed]
    cka: FloatArray  # [removed]
    smallest_gap: float
    note: str = ""  # what else ran, and why


@dataclass(frozen=True)
class Adjacency:
    """Graphs of the rows of ``x [n, p]``, one for each squared distance.

    Unit rows u_i, u_j (i ≠ j) are adjacent iff |u_i - u_j|² ≤ squared[t]; zero rows are adjacent to one another only.
    ``nearest`` and ``farthest`` are the extreme squared distances, to about 1e-5, NaN where no row has a partner.
    """

    bits: GraphBits  # [thresholds, n, words], on the device that formed them
    finite: bool  # False: some entry is not, and nothing was formed
    nearest: float
    farthest: float
    zeros: np.ndarray[tuple[int], np.dtype[np.int64]]  # the zero rows
    route: str  # what pairs were decided by


@dataclass(frozen=True)
class CoverSearch:
    """Bounds of a graph's covering number: packing ≤ covering ≤ centres, and dual ≤ covering but for rounding."""

    centres: np.ndarray[tuple[int], np.dtype[np.int64]]  # greedy by residual degree, in the order of choice
    packing: np.ndarray[tuple[int], np.dtype[np.int64]]  # vertices pairwise more than two hops apart
    dual: float


@dataclass(frozen=True)
class UnitFeatures:
    """A layer's features by rows, in the units of :class:`CandidateProblem`, where the backend keeps them."""

    z: Any  # [p, n] float32 or float64: an array, or what has its shape and dtype
    sum_sq_dev: FloatArray  # [p] of every row from its mean


@dataclass(frozen=True)
class CandidateProblem:
    """Units of a layer under a non-linear kernel, with the length that all of them give it.

    z is in units that make the kernel 2^-‖·‖² (RBF) or 2^-‖·‖ (Laplacian), raw for a custom one; ``length`` is the
    polynomial's, as in Block.

    L, to which every kept set is compared, is the kernel f of all units less centre_i + centre_j: f itself where it is
    polynomial, custom or small, far from 1; f - 1 else.
    """

    z: Any  # [p, n] float32 or float64: by rows, by the same backend's ``unit_features`` (one for all on the host)
    offsets: npt.NDArray[np.int64]  # [u + 1]: unit u is rows offsets[u]:offsets[u + 1]
    kernel: Kernel
    length: float
    estimator: Estimator
    centre: FloatArray | None = None  # [n]; None: there is no L, and sums with it mean nothing
    small_centre: bool = True
    packed: Any = None  # by the same backend's ``pack_centred``; None: L is formed when needed
    workspace: int | None = None  # bytes that a device has in flight; None: as it likes
    name: str = "x"

    @property
    def half_bytes(self) -> int:
        """What L takes below its diagonal, in the type of z."""
        n = int(self.z.shape[1])
        return n * n // 2 * int(self.z.dtype.itemsize)


@dataclass(frozen=True)
class Levels:
    """Numbers a with a_i + a_j near f_ij or f_ij - 1, where f is a kernel.

    What they are changes no centred sum, but keeps such sums from cancelling. The digits of what a kernel of distances
    lacks of 1 are kept, or, where it is small, far from 1, all of its own.
    """

    values: FloatArray  # [n], or [candidates, n]
    small: bool = True  # they are those of f, as always where it is polynomial or custom; else of f - 1


@dataclass(frozen=True)
class CandidateSums:
    """For each candidate, with K the kernel f or f - 1 without it, less its levels: ΣKL, ΣK² and row sums of K.

    Over i ≠ j, and over i = j too for the biased estimator.
    """

    cross: FloatArray  # [candidates]
    squares: FloatArray  # [candidates]
    totals: FloatArray  # [candidates] the sum of the row sums
    row_squares: FloatArray  # [candidates] the sum of their squares
    rows: FloatArray | None  # [candidates, n]; None where they were not asked for

    @classmethod
    def with_rows(cls, cross: FloatArray, squares: FloatArray, rows: FloatArray, *, keep: bool = True) -> CandidateSums:
        """From the row sums ``[candidates, n]``, which are let go unless they are to be kept."""
        row_squares = np.asarray(np.einsum("ki,ki->k", rows, rows))
        return cls(cross, squares, rows.sum(axis=1), row_squares, rows if keep else None)


@dataclass(frozen=True)
class Step:
    """One op that ran: which backend, by which route, and why."""

    op: str
    backend: str
    reason: str
    route: str = ""
    multiply_adds: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Plan:
    """What ran and why, op by op."""

    steps: tuple[Step, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def backend(self) -> str:
        """The backends that ran, in order, without repeats."""
        return ", ".join(dict.fromkeys(step.backend for step in self.steps)) or "numpy"

    def explain(self) -> str:
        """The plan in words and numbers, one line per step."""
        lines = [
            f"{step.op}: {step.backend}"
            + (f", {step.route}" if step.route else "")
            + (f", {step.multiply_adds:.3g} multiply-adds" if step.multiply_adds else "")
            + (f", {step.bytes / 2**20:.1f} MiB of workspace" if step.bytes else "")
            + f" ({step.reason})"
            for step in self.steps
        ]
        return "\n".join([*lines, *self.notes])
