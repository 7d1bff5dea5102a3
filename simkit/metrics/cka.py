"""Centred kernel alignment and the Hilbert-Schmidt independence criterion.

    HSIC_biased(K, L)   = tr(K H L H) / (n-1)²                                   Gretton et al. 2005, definition 2
    HSIC_debiased(K, L) = [tr(K̃L̃) + 1ᵀK̃1·1ᵀL̃1/((n-1)(n-2)) - 2/(n-2)·1ᵀK̃L̃1] / (n(n-3))   Song et al. 2012, eq. 5
    CKA(K, L)           = HSIC(K, L) / √(HSIC(K, K)·HSIC(L, L))                  Kornblith et al. 2019, eq. 5

K̃ is K with a zero diagonal. Biased CKA lies in [0, 1]; debiased CKA is at most 1, has mean about 0 for independent
representations, and may be negative. Invariant to orthogonal maps, isotropic scaling and translation of the
features. Products are formed in the input's precision on centred features (float64 below 64 samples, for non-linear
kernels, and where float32 would cancel); sums and results are float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..arrays import FloatArray, Matrix, as_matrix, enough_samples, same_samples
from ..backends.base import (
    Block,
    Cores,
    Estimator,
    PairSums,
    Plan,
    Precision,
    Route,
    RouteName,
    Step,
)
from ..backends.bits import BoolArray
from ..backends.choose import check_backend, check_places, choose
from ..backends.mapped import mapped_of
from ..backends.preparing import pass_over, preparing_of
from ..backends.routes import check_threads
from ..errors import TooLittleMemory
from ..kernels import Kernel, Linear, check_kernel
from .measure import Degenerate, Scores
from .prepare import CONSTANT, prepare, preparing_steps

# From self-products of this size on (of z, or of a kernel in the user's units) nothing has underflowed.
TINY = 2.0**-900
ZERO = "zero within rounding"
VANISHED = "its kernel differs so little from one pair of samples to another that its squares vanish in float64"

# A self-product below this share of the sum it was subtracted from has cancelled: the pass is done again, float32
# sample space in float64, feature space (whose sums hold the diagonals too) in sample space. Of a mixed route either.
CANCELLED = {"sample": 0.05, "feature": 1e-3}


def check_estimator(estimator: str, n: int) -> Estimator:
    """Return the estimator's name, or raise ValueError when it is unknown or n is too small for it."""
    if estimator == "debiased":
        enough_samples(n, 4, "the debiased estimator")
        return "debiased"
    if estimator == "biased":
        enough_samples(n, 2, "the biased estimator")
        return "biased"
    raise ValueError(f'estimator must be "debiased" or "biased", not {estimator!r}')


@dataclass(frozen=True)
class CKA:
    """Centred kernel alignment as a measure object: ``CKA(kernel=RBF(0.5), estimator="biased")``."""

    kernel: Kernel = Linear()
    estimator: Estimator = "debiased"

    def __post_init__(self) -> None:
        check_kernel(self.kernel)
        check_estimator(self.estimator, 4)

    def prepare(self, x: Matrix) -> Block:
        """Centre, scale and check one representation."""
        check_estimator(self.estimator, x.n)
        return prepare(x, self.kernel)

    def score(self, x: Block, y: Block) -> float:
        """CKA of two prepared representations."""
        scores = normalised([x], [y], self.estimator, ForcedRoute())
        for (_, name), reason in scores.degenerate.items():
            raise Degenerate(name, reason)
        return float(scores.values[0, 0])

    def pairs(
        self,
        rows: Sequence[Matrix],
        columns: Sequence[Matrix] | None,
        *,
        memory: int | None = None,
        backend: str | None = None,
        threads: int | None = None,
    ) -> Scores:
        """All-pairs scores in one pass of the engine; degenerate layers give NaN and are named."""
        check_estimator(self.estimator, rows[0].n)
        forced = ForcedRoute(memory=memory, backend=backend, threads=threads)
        return normalised_with_gaps(rows, columns, self, forced)


@dataclass(frozen=True)
class ForcedRoute:
    """What the caller insists on; None leaves it to the planner."""

    backend: str | None = None
    threads: int | None = None
    memory: int | None = None
    route: RouteName | None = None
    products: Precision | None = None
    tile: int | None = None
    cores: Cores | None = None


def cka(
    x: object,
    y: object,
    *,
    kernel: Kernel = Linear(),
    estimator: Estimator = "debiased",
    backend: str | None = None,
    threads: int | None = None,
) -> float:
    """Centred kernel alignment of ``x [n, p]`` and ``y [n, q]``: 1 for equal up to rotation and scale.

    Range [0, 1] for the biased estimator; at most 1 and possibly negative for the debiased one (the default, because
    the biased one calls independent wide features alike). Rounding may add some 1e-9 where products are of float32.

    Args:
        x: an array of NumPy, PyTorch, CuPy, JAX, or what NumPy reads; trailing dimensions are flattened.
        y: another one, of the same samples.
        kernel: of two samples: ``Linear()``, ``RBF()``, ``Laplacian()``, ``Polynomial()``, ``Cosine()``,
            ``CustomKernel(f)``.
        estimator: ``"debiased"`` or ``"biased"``.
        backend: None takes the fastest that is there; ``"native_cpu"``, ``"native_cuda"`` or ``"reference"`` insists.
        threads: of the processor, at most; None takes those that the process may use.

    Raises:
        ValueError: different n; n < 4 (debiased) or n < 2 (biased); NaN or infinite entries; a representation whose
            features are constant, or whose kernel is within rounding; a custom kernel that is not finite.
        TypeError: input that is not numeric.
        NotImplementedError: the named backend cannot run here.

    Source: Kornblith et al. 2019, eq. 5; Song et al. 2012, eq. 5. Golden value: module ``tests/test_golden.py``.
    """
    a, b = (
        prepare(matrix, kernel, backend=backend, threads=threads)
        for matrix in _admit(x, y, kernel, estimator, backend, threads)
    )
    scores = normalised([a], [b], estimator, ForcedRoute(backend=backend, threads=threads))
    for (_, name), reason in scores.degenerate.items():
        raise Degenerate(name, reason)
    return float(scores.values[0, 0])


def hsic(
    x: object,
    y: object,
    *,
    kernel: Kernel = Linear(),
    estimator: Estimator = "debiased",
    backend: str | None = None,
    threads: int | None = None,
) -> float:
    """Hilbert-Schmidt independence criterion of ``x [n, p]`` and ``y [n, q]``.

    Range: at least 0 for the biased estimator; any real number for the debiased one. Units: those of the kernel of x
    times those of y. A constant representation is independent of everything: exactly 0. Arguments are those of
    :func:`cka`.

    Raises:
        ValueError: as :func:`cka`, but for constant features: of a kernel whose values rounding alone tells apart,
            nothing else would be returned. OverflowError: the value exceeds float64.

    Source: Gretton et al. 2005; Song et al. 2012, eq. 5.
    """
    matrices = _admit(x, y, kernel, estimator, backend, threads)
    blocks, constant = [], False
    for matrix in matrices:
        try:
            blocks.append(prepare(matrix, kernel, backend=backend, threads=threads))
        except Degenerate as error:
            if error.reason != CONSTANT:
                raise
            constant = True
    if constant:
        return 0.0
    a, b = blocks
    sums, _ = sums_of([a], [b], estimator, ForcedRoute(backend=backend, threads=threads))
    for block, own, raw in ((a, sums.self_rows, sums.raw_rows), (b, sums.self_columns, sums.raw_columns)):
        # Squares that vanish tell nothing, and the product with another kernel need not vanish with them.
        if (_zero(own, raw, a.n) & (raw > TINY)).any():
            raise Degenerate(block.matrix.name, f"its {estimator} HSIC with itself is {ZERO}")
    pairs = (a.n - 1) ** 2 if estimator == "biased" else a.n * (a.n - 3)
    try:
        return math.ldexp(float(sums.table[0, 0]) / pairs, a.gram_exponent + b.gram_exponent)
    except OverflowError:
        raise OverflowError("hsic is larger than float64 can hold: rescale the features") from None


def _admit(
    x: object, y: object, kernel: Kernel, estimator: str, backend: str | None, threads: int | None
) -> tuple[Matrix, Matrix]:
    """Check everything about the arguments but the entries of the arrays."""
    check_kernel(kernel)
    check_backend(backend)
    check_threads(threads)
    a, b = as_matrix(x, name="x"), as_matrix(y, name="y")
    check_estimator(estimator, same_samples((a, b)))
    check_places((a, b), backend)
    return a, b


def sums_of(
    rows: Sequence[Block], columns: Sequence[Block] | None, estimator: Estimator, forced: ForcedRoute
) -> tuple[PairSums, Plan]:
    """The engine call: plan a route, run it, and run it again in float64 where float32 products cancelled."""
    chosen = choose("pair_sums", backend=forced.backend, inputs=[*rows, *(columns or ())])
    threads = check_threads(forced.threads)
    mapped = mapped_of(block.matrix for block in [*rows, *(columns or ())])

    def run(name: RouteName | None, products: Precision | None, cores: Cores | None) -> tuple[PairSums, Route, Step]:
        route = chosen.plan_pair_sums(
            rows,
            columns,
            memory=forced.memory,
            threads=threads,
            route=name,
            products=products,
            tile=forced.tile,
            mapped=mapped,
            cores=cores,
        )
        sums: PairSums = chosen.function(rows, columns, estimator=estimator, route=route)
        reason = f"{chosen.reason}; {route.reason}"
        return sums, route, Step("pair_sums", chosen.backend, reason, route.words, route.multiply_adds, route.bytes)

    sums, route, step = run(forced.route, forced.products, forced.cores)
    steps = [step]
    while (again := _again(sums, route, forced)) is not None:  # once, but for a mixed route that cancels both ways
        which = "first" if len(steps) == 1 else "second"
        try:
            sums, route, step = run(*again, "tensor" if forced.cores == "half" else forced.cores)
        except TooLittleMemory as error:
            work = f"{error.work}, again because the {which} pass cancelled,"
            raise TooLittleMemory(error.memory, work, error.needed) from None
        steps.append(replace(step, reason=f"{step.reason}; done again because the {which} pass cancelled"))
    return sums, Plan(tuple(steps))


def _again(sums: PairSums, route: Route, forced: ForcedRoute) -> tuple[RouteName, Precision] | None:
    """The route and the products that a pass must be done with again; None where nothing cancelled that may be."""
    own = np.concatenate([sums.self_rows, sums.self_columns])
    raw = np.concatenate([sums.raw_rows, sums.raw_columns])
    left, right = len(sums.self_rows), len(sums.self_columns)
    sample = np.concatenate([route.in_sample_space(left), route.in_sample_space(right, columns=True)])
    if not forced.route and (own < CANCELLED["feature"] * raw)[~sample].any():
        return "sample", "float64"
    exact = forced.products or route.products == "float64"
    if not exact and (own < CANCELLED["sample"] * raw)[sample].any():
        return route.name, "float64"
    return None


def normalised(
    rows: Sequence[Block], columns: Sequence[Block] | None, estimator: Estimator, forced: ForcedRoute
) -> Scores:
    """CKA of all pairs of prepared, non-constant blocks."""
    sums, plan = sums_of(rows, columns, estimator, forced)
    names = [block.matrix.name for block in rows]
    others = names if columns is None else [block.matrix.name for block in columns]
    scores = scores_from_sums(sums, names, others, rows[0].n, estimator, tiny=TINY, constant=VANISHED)
    return replace(scores, plan=plan)


def _zero(own: FloatArray, raw: FloatArray, n: int) -> BoolArray:
    """Whether self-products are zero within the rounding of n float64 sums."""
    return np.asarray(~(own > 8 * n * np.finfo(np.float64).eps * raw))


def scores_from_sums(
    sums: PairSums,
    rows: Sequence[str],
    columns: Sequence[str],
    n: int,
    estimator: Estimator,
    *,
    drowned: float = 0.0,
    tiny: float = 0.0,
    constant: str = CONSTANT,
) -> Scores:
    """S_ab / √(S_aa S_bb); NaN, and named, where a self-product is zero within the rounding of n float64 sums.

    The same below the share ``drowned`` of the sums it was subtracted from, where these cannot be formed again; and for
    the reason ``constant`` where those sums are at most ``tiny``.
    """
    degenerate: dict[tuple[str, str], str] = {}

    def norms(side: str, names: Sequence[str], own: FloatArray, raw: FloatArray) -> FloatArray:
        zero = _zero(own, raw, n) | (raw <= tiny)
        lost = zero | (own < drowned * raw)
        for i in np.flatnonzero(lost).tolist():
            what = ZERO if zero[i] else "drowned in rounding by a few rows that dwarf the others"
            degenerate[side, names[i]] = f"its {estimator} HSIC with itself is {what}" if raw[i] > tiny else constant
        return np.sqrt(np.where(lost, np.nan, own))

    left = norms("row", rows, sums.self_rows, sums.raw_rows)
    right = norms("column", columns, sums.self_columns, sums.raw_columns)
    return Scores(sums.table / (left[:, None] * right[None, :]), degenerate)


def normalised_with_gaps(
    rows: Sequence[Matrix], columns: Sequence[Matrix] | None, measure: CKA, forced: ForcedRoute
) -> Scores:
    """All-pairs CKA where constant layers leave NaN rows and columns that are named."""
    check_places([*rows, *(columns or ())], forced.backend)
    degenerate: dict[tuple[str, str], str] = {}
    left_over = _room_beside(rows, columns, measure.kernel, forced)

    def ready(side: str, layers: Sequence[Matrix]) -> tuple[list[int], list[Block]]:
        places, blocks = [], []
        for i, layer in enumerate(layers):
            try:
                memory = left_over(layer)
                block = prepare(layer, measure.kernel, backend=forced.backend, threads=forced.threads, memory=memory)
                blocks.append(block)
                places.append(i)
            except Degenerate as error:
                degenerate[side, layer.name] = error.reason
        return places, blocks

    left, row_blocks = ready("row", rows)
    right, column_blocks = (left, None) if columns is None else ready("column", columns)
    values = np.full((len(rows), len(rows if columns is None else columns)), math.nan)
    steps = preparing_steps(measure.kernel, backend=forced.backend, inputs=[*rows, *(columns or ())])
    if left and right:
        scores = normalised(row_blocks, column_blocks, measure.estimator, forced)
        values[np.ix_(left, right)] = scores.values
        degenerate.update(scores.degenerate)
        steps = (*scores.plan.steps, *steps)
    if columns is None:
        degenerate.update({("column", name): reason for (_, name), reason in list(degenerate.items())})
    return Scores(values, degenerate, Plan(steps))


def _room_beside(
    rows: Sequence[Matrix], columns: Sequence[Matrix] | None, kernel: Kernel, forced: ForcedRoute
) -> Callable[[Matrix], int | None]:
    """What ``memory`` leaves to preparing a layer beside what the others hold once they are prepared.

    The route is planned here first, from widths alone: too little memory is said before any of it is taken.
    """
    if forced.memory is None:
        return lambda _: None
    layers = [*rows, *(columns or ())]
    chosen = choose("pair_sums", backend=forced.backend, inputs=layers)
    if not chosen.on_host:
        return lambda _: forced.memory

    def unread(side: Sequence[Matrix]) -> list[Block]:
        return [Block(x, kernel, np.empty(0), 0) for x in side]

    chosen.plan_pair_sums(
        unread(rows),
        None if columns is None else unread(columns),
        memory=forced.memory,
        threads=check_threads(forced.threads),
        route=forced.route,
        products=forced.products,
        tile=forced.tile,
        mapped=mapped_of(layers),
        cores=forced.cores,
    )
    left = forced.memory - preparing_of((x, kernel) for x in layers).held
    return lambda x: left + pass_over(x, kernel).held
