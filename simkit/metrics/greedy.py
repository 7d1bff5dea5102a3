"""Greedy CKA damage: the order in which a layer's units can be removed at the least loss of CKA(original, kept).

HSIC is bilinear in the Gram matrix, so with A_ij = ⟨K_i, K_j⟩ over a layer's units (biased: ‖X_iᵀX_j‖² of centred
columns; debiased: Song's form of the same) every CKA(original, kept) is a ratio of partial sums of A, and the whole
order costs one all-pairs call plus O(u²). Other kernels evaluate every candidate (:mod:`.kernel_damage`). Source of the
procedure: "Representation Aware Pruning with Centered Kernel Alignment" (the loop evaluates u²/2 CKAs); the closed form
is simkit's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, Matrix, as_matrix
from ..backends.base import (
    Block,
    EliminationOrder,
    Estimator,
    Plan,
    Precision,
    SquareMatrix,
    Step,
)
from ..backends.choose import check_backend, choose
from ..backends.preparing import pass_over
from ..backends.routes import check_threads, parse_memory
from ..errors import TooLittleMemory
from ..kernels import Cosine, Kernel, Linear, as_number, check_kernel
from ..streaming.covariance import Covariance
from .cka import ForcedRoute, check_estimator
from .kernel_damage import check_candidates, damage_steps, eliminate, kernel_damage
from .measure import Degenerate
from .prepare import CONSTANT, prepare_with_stats, preparing_steps
from .unit_sums import check_units, sums_of_units, unit_columns

Mode: TypeAlias = Literal["greedy", "oneshot"]
TOGETHER = 2**31  # bytes of the matrices on a device that are searched at once


@dataclass(frozen=True)
class Elimination:
    """The order of removal of a layer's units.

    Attributes:
        order: unit ids ``[removed]``, the first removed first.
        cka: CKA(original, kept) ``[removed]`` after each removal; NaN when nothing is kept.
        smallest_gap: the least difference between the best and the second-best score over the steps: how close the
            order came to being another one (inf for one-shot orders and single units).
        plan: what ran and why.
    """

    order: npt.NDArray[np.int64]
    cka: FloatArray
    smallest_gap: float
    plan: Plan

    @property
    def damage(self) -> FloatArray:
        """1 - cka, ``[removed]``."""
        return 1.0 - self.cka

    @property
    def backend(self) -> str:
        """The backends that ran."""
        return self.plan.backend


def greedy_cka(
    x: object,
    *,
    units: int | npt.ArrayLike | None = None,
    kernel: Kernel = Linear(),
    estimator: Estimator = "biased",
    mode: Mode = "greedy",
    count: int | None = None,
    min_cka: float | None = None,
    exact: bool = False,
    memory: int | float | str | None = None,
    backend: str | None = None,
    threads: int | None = None,
) -> Any:
    """Order a layer's units by the CKA damage of their removal.

    Args:
        x: activations ``[n, p]`` (``[n, ...]`` is flattened), or a mapping of layers, which gives a mapping of results.
        units: None (each column is a unit), the number of equal blocks of neighbouring columns (the channels of a
            flattened ``[n, c, h, w]`` map), or ``[p]`` integer ids of the unit each column belongs to.
        kernel: the closed form holds for the linear kernel. For RBF, Laplacian, polynomial and custom ones every
            candidate is evaluated: O(n²) each, u²/2 of them. The kernel of all units is held, n² / 2 numbers, unless it
            takes more than 1 GiB or than ``memory`` leaves. The bandwidth is that of all units. A CustomKernel is given
            the products and squared distances of the kept units' raw columns.
        estimator: ``"biased"`` (as the source) or ``"debiased"``.
        mode: ``"greedy"`` scores again after every removal; ``"oneshot"`` ranks once by the first scores.
        count: stop after so many removals.
        min_cka: stop before CKA(original, kept) would fall below it.
        exact: float64 products even for float32 activations. Otherwise float32 input is guaranteed to give choices
            within 1e-6 of the best; float64 input always gives the order of the brute force.
        memory: bytes of workspace beyond the features in memory, for one layer at a time, as a number or ``"64 MB"``;
            what is resident of mapped files counts, and what of a layer on the host is copied to a device. Fewer
            candidates are evaluated at once, on fewer threads, and the kernel of all units is formed again where it
            does not fit, to the same bits, as are products of columns; sums of pairs of units may be formed by other
            tiles, which changes their rounding. The plan says what is taken at most. Float copies of integers and
            booleans do not count.
        backend: a backend's name; None lets simkit choose.
        threads: worker threads; None takes the processors of this process.

    Returns:
        :class:`Elimination`: ``order``, ``cka`` after each removal, ``damage``, ``smallest_gap``. Ties (scores within
        1e-12) go to the lowest index.

    Raises:
        ValueError: no layers; wrong units, count or threshold; non-finite or constant activations; too few samples; a
            custom kernel that is not finite, or 1e144 or more in size, for kept units.
        TooLittleMemory: (a ValueError) ``memory`` does not hold the least that a layer needs.
        NotImplementedError: the cosine kernel; a custom kernel by backend="native_cuda".

    Source: the procedure is that of "Representation Aware Pruning with Centered Kernel Alignment"; the closed form is
    simkit's.
    """
    options: dict[str, Any] = {
        "units": units,
        "kernel": kernel,
        "estimator": estimator,
        "count": count,
        "exact": exact,
        "threads": threads,
    }
    if mode not in ("greedy", "oneshot"):
        raise ValueError(f'mode must be "greedy" or "oneshot", not {mode!r}')
    search = _Search(mode, _check_threshold(min_cka), backend, parse_memory(memory))
    if isinstance(x, Mapping):
        if not x:
            raise ValueError("x is empty: give at least one named array")
        prepared = (_prepared(as_matrix(layer, name=str(name)), search, **options) for name, layer in x.items())
        return dict(zip(x, _orders(prepared, search), strict=True))
    return _orders([_prepared(as_matrix(x, name="x"), search, **options)], search)[0]


def greedy_cka_of_covariance(
    covariance: Covariance,
    *,
    units: npt.ArrayLike | None = None,
    mode: Mode = "greedy",
    count: int | None = None,
    min_cka: float | None = None,
    name: str = "x",
) -> Elimination:
    """What :func:`greedy_cka` finds (linear, biased) on the rows that a covariance was collected from.

    Args:
        covariance: of the columns ``[p]``.
        units: None (each column is a unit), or ``[p]`` integer ids of the unit each column belongs to.
        mode: as in :func:`greedy_cka`.
        count: stop after so many removals.
        min_cka: stop before CKA(original, kept) would fall below it.
        name: of the layer, for errors.

    Raises:
        ValueError: fewer than two rows; constant columns; wrong units, count or threshold.
    """
    if covariance.n < 2:
        raise ValueError(f"{name} has {covariance.n} rows: at least 2 are needed")
    ids, columns = unit_columns(units, covariance.p)
    removals = _check_count(count, len(ids))
    rounding = covariance.n * (8 * np.finfo(np.float64).eps * covariance.mean) ** 2
    if not (np.diag(covariance.scatter) > rounding).any():
        raise Degenerate(name, CONSTANT)
    a = covariance.scatter / np.abs(covariance.scatter).max()  # CKA does not depend on the scale
    np.multiply(a, a, out=a)
    if columns is not None:
        member = np.zeros((covariance.p, len(ids)))
        for unit, own in enumerate(columns):
            member[own, unit] = 1.0
        a = member.T @ a @ member
    search = choose("eliminate")
    (found,) = search.function([a], greedy=mode == "greedy", counts=[removals], min_cka=_check_threshold(min_cka))
    plan = Plan((Step("eliminate", search.backend, search.reason, mode),))
    return Elimination(ids[found.order], found.cka, found.smallest_gap, plan)


@dataclass(frozen=True)
class _Search:
    """How orders are searched for, alike for all layers."""

    mode: Mode
    min_cka: float | None
    backend: str | None
    memory: int | None

    @property
    def greedy(self) -> bool:
        return self.mode == "greedy"


@dataclass(frozen=True)
class _Prepared:
    """A layer's units and their all-pairs matrix, what ran for it, and what prepared the layer."""

    ids: npt.NDArray[np.int64]
    a: SquareMatrix
    removals: int
    ran: tuple[Step, ...]
    before: tuple[Step, ...]

    @property
    def device(self) -> int | None:
        return None if isinstance(self.a, np.ndarray) else self.a.device


def _orders(layers: Iterable[_Prepared | Elimination], search: _Search) -> list[Elimination]:
    """The orders of layers: those whose matrices lie on one device are searched together, others each by itself.

    A matrix on the host, or within ``memory``, which is that of one layer, is let go before the next one is prepared.
    """
    found: list[Elimination] = []
    waiting: list[_Prepared] = []
    for layer in layers:
        if waiting and not (isinstance(layer, _Prepared) and _together([*waiting, layer], search)):
            found += _eliminated(waiting, search)
            waiting = []
        if isinstance(layer, Elimination):
            found.append(layer)
        elif layer.device is None or search.memory is not None:
            found += _eliminated([layer], search)
        else:
            waiting.append(layer)
        del layer  # what the loop's name holds would outlast the preparation of the next one
    return [*found, *_eliminated(waiting, search)] if waiting else found


def _together(layers: Sequence[_Prepared], search: _Search) -> bool:
    devices = {layer.device for layer in layers}
    return len(devices) == 1 and None not in devices and sum(layer.a.nbytes for layer in layers) <= TOGETHER


def _eliminated(layers: Sequence[_Prepared], search: _Search) -> list[Elimination]:
    """The orders of layers whose matrices lie in one place."""
    held = [layer.a for layer in layers if not isinstance(layer.a, np.ndarray)]
    chosen = choose("eliminate", backend=search.backend, inputs=held)
    found: list[EliminationOrder] = chosen.function(
        [layer.a for layer in layers],
        greedy=search.greedy,
        counts=[layer.removals for layer in layers],
        min_cka=search.min_cka,
    )

    def step(note: str) -> Step:
        return Step("eliminate", chosen.backend, "; ".join(filter(None, (chosen.reason, note))), search.mode)

    return [
        Elimination(layer.ids[of.order], of.cka, of.smallest_gap, Plan((*layer.ran, step(of.note), *layer.before)))
        for layer, of in zip(layers, found, strict=True)
    ]


def _prepared(
    x: Matrix,
    search: _Search,
    *,
    units: int | npt.ArrayLike | None,
    kernel: Kernel,
    estimator: Estimator,
    count: int | None,
    exact: bool,
    threads: int | None,
) -> _Prepared | Elimination:
    """A layer's all-pairs matrix; for a kernel that has none, its order."""
    if isinstance(check_kernel(kernel), Cosine):
        raise NotImplementedError(
            f"greedy_cka does not take {kernel!r}: a sample whose kept units are all zero has no direction"
        )
    backend = search.backend
    check_backend(backend)
    check_estimator(estimator, x.n)
    team = check_threads(threads)
    ids, columns = unit_columns(units, x.p)
    removals = _check_count(count, len(ids))
    summed = estimator == "debiased" or columns is not None or len(ids) < x.p
    precision: Precision | None = "float64" if exact or estimator == "debiased" else None
    forced = ForcedRoute(backend=backend, threads=threads, memory=search.memory, products=precision)
    _check_room(Block(x, kernel, np.empty(0), 0), columns, len(ids), forced, exact=exact, summed=summed)
    block, stats = prepare_with_stats(x, kernel, backend=backend, threads=threads, memory=search.memory)
    before = preparing_steps(kernel, backend=backend, inputs=[x])
    if not isinstance(kernel, Linear):
        found, candidates = _by_candidates(block, columns, len(ids), estimator, exact, search, removals, team)
        return Elimination(ids[found.order], found.cka, found.smallest_gap, Plan((*candidates, *before)))
    a: SquareMatrix
    ran: tuple[Step, ...]
    if not summed:
        products = choose("column_products", backend=backend, inputs=[block])
        double = exact or x.precision == "float64"
        room = products.plan_products(block, double=double, threads=team, memory=search.memory)
        a = products.function(block, stats, exact=double, squared=True, room=room)
        words = products.words_of_columns("float64" if double else "float32", [block])
        reason = "; ".join(filter(None, (products.reason, words, room.note)))
        ran = (Step("column_products", products.backend, reason, "", x.n * x.p * (x.p + 1) // 2, room.bytes),)
    else:
        sums, ran = sums_of_units(block, columns, len(ids), estimator, forced)
        a = sums.values
    if not a.sum() > 0.0:
        raise Degenerate(x.name, f"its {estimator} HSIC with itself is zero within rounding")
    return _Prepared(ids, a, removals, ran, before)


def _check_room(
    block: Block,
    columns: list[npt.NDArray[np.int64]] | None,
    units: int,
    forced: ForcedRoute,
    *,
    exact: bool,
    summed: bool,
) -> None:
    """Plan what follows from widths alone, so that too little memory is said before a pass has taken any of it."""
    if forced.memory is None:
        return
    backend, memory, team = forced.backend, forced.memory, check_threads(forced.threads)
    try:
        if not isinstance(block.kernel, Linear):
            widths = [block.p // units] * units if columns is None else [len(own) for own in columns]
            check_candidates(block, widths, exact=exact, backend=backend, threads=team, memory=memory)
        elif summed:
            check_units(block, columns, units, forced)
        else:
            products = choose("column_products", backend=backend, inputs=[block])
            double = exact or block.matrix.precision == "float64"
            products.plan_products(block, double=double, threads=team, memory=memory)
    except TooLittleMemory as error:
        needed = max(error.needed, pass_over(block.matrix, block.kernel).total(1))
        raise TooLittleMemory(error.memory, error.work, needed) from None


def _by_candidates(
    block: Block,
    columns: list[npt.NDArray[np.int64]] | None,
    units: int,
    estimator: Estimator,
    exact: bool,
    search: _Search,
    removals: int,
    threads: int,
) -> tuple[EliminationOrder, tuple[Step, ...]]:
    """The order under a non-linear kernel, from the kernel of every candidate."""
    if columns is None:
        columns = np.split(np.arange(block.p), units)
    damage, levels = kernel_damage(
        block, columns, estimator, exact=exact, backend=search.backend, threads=threads, memory=search.memory
    )
    found = eliminate(damage, levels, greedy=search.greedy, count=removals, min_cka=search.min_cka)
    steps = len(found.order)
    candidates = steps * units - steps * (steps - 1) // 2 if search.greedy else units + steps
    return found, damage_steps(damage, candidates)


def _check_count(count: int | None, units: int) -> int:
    if count is None:
        return units
    if not isinstance(count, int | np.integer) or isinstance(count, bool) or not 1 <= count <= units:
        raise ValueError(f"count must be an integer from 1 to {units}, not {count!r}")
    return int(count)


def _check_threshold(min_cka: float | None) -> float | None:
    if min_cka is None:
        return None
    number = as_number(min_cka)
    if not (math.isfinite(number) and number <= 1):
        raise ValueError(f"min_cka must be a number of at most 1, not {min_cka!r}")
    return number
