"""Where the features of a run go: into moments, or whole to where the engine takes them. Decided once, after one batch;
they leave memory, or a device, where what is computed at the end finds too little of it.

Every way but minibatches is exact. Features that lie on a device stay there where there is room. Otherwise moments cost
float64 products of every pair of features and memory that does not grow with the samples; the spool costs the bytes of
the features, in memory or on disk, and leaves the engine its choice of route.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ..arrays import Matrix
from ..backends.base import Block
from ..backends.mapped import Mapped
from ..backends.routes import FLOAT64_COST, default_threads, plan_pair_sums
from ..errors import TooLittleMemory
from ..kernels import Linear
from ..metrics.cka import CKA
from ..metrics.measure import Measure, check_memory
from ..streaming.moments import state_bytes

if TYPE_CHECKING:
    from .on_device import OnDevice

Side: TypeAlias = Literal["a", "b"]
Way: TypeAlias = Literal["moments", "minibatch", "device", "spool"]

SHARE_OF_FREE = 4  # the default budget is free memory over this
DISK_COST = 100  # multiply-adds in the time of writing and reading back one byte
IN_MEMORY = 0.4  # share of the budget that spooled features may hold
FOR_ENGINE = 0.9  # share of what is left that the engine may hold; the rest is the interpreter's


def free_memory() -> int:
    """Bytes that can be taken without swapping: the kernel's estimate, within the limit of this control group."""
    found = []
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        if limit != "max":
            found.append(max(int(limit) - int(used), 0))
    except (OSError, KeyError, ValueError):
        pass
    if not found and hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        found.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return max(min(found, default=2**31), 2**26)


@dataclass(frozen=True)
class Shape:
    """What is known after the first batch: widths of the layers, bytes of a sample, samples if the data tells."""

    left: tuple[int, ...]
    right: tuple[int, ...] | None
    sample_bytes: int
    rows: int | None  # samples, times positions where every position is one

    @property
    def bytes(self) -> int | None:
        """Bytes of all features."""
        return None if self.rows is None else self.rows * self.sample_bytes


@dataclass(frozen=True)
class Decision:
    """How the features of a run are kept, and why."""

    way: Way
    memory: int
    ram: int
    reason: str


def linear_cka(measure: Measure) -> bool:
    """Whether moments hold all that the measure needs."""
    return isinstance(measure, CKA) and isinstance(measure.kernel, Linear)


def decide(shape: Shape, measure: Measure, *, memory: int | None, mode: str, there: OnDevice | None = None) -> Decision:
    """Pick the way by counted multiply-adds and bytes; ``memory=None`` is a quarter of what is free.

    Features that lie on a device, ``there``, stay where they take no more than their share of it, and of ``memory``.
    Measures that prepare every layer may then take all that is free for it: they have no smaller way to run.
    """
    free = free_memory()
    budget = free // SHARE_OF_FREE if memory is None else memory
    ram = int(budget * IN_MEMORY)
    told = f"memory={mib(budget)}" + (" (a quarter of what is free)" if memory is None else "")
    if mode == "minibatch":
        return Decision("minibatch", budget, ram, 'mode="minibatch": an estimate from batches, nothing is kept')
    if (
        there is not None
        and shape.bytes is not None
        and shape.bytes <= min(there.room, there.room if memory is None else ram)
    ):
        reason = f"features stay on cuda:{there.ordinal}: {mib(shape.bytes)}, and {mib(there.free)} are free there"
        return Decision("device", budget, ram, reason + ("" if memory is None else f"; {told}"))
    total = "an unknown number of" if shape.rows is None else f"{shape.rows}"
    if not linear_cka(measure):
        prepares = memory is None and not isinstance(measure, CKA)
        reason = f"features spooled: {measure!r} needs all {total} rows; {told}"
        return Decision("spool", free if prepares else budget, ram, reason)
    state = state_bytes(shape.left, shape.right)
    if shape.rows is None or shape.bytes is None:
        if state <= budget // 4:
            return Decision("moments", budget, ram, f"moments: {total} rows, their state is {mib(state)}; {told}")
        return Decision("spool", budget, ram, f"features spooled: {total} rows, moments take {mib(state)}; {told}")
    if shape.bytes <= ram:
        return Decision("spool", budget, ram, f"features spooled: {mib(shape.bytes)} have room in memory; {told}")
    feature, sample = _costs(shape)
    engine = min(sample, feature * FLOAT64_COST) + DISK_COST * shape.bytes
    costs = f"{feature * FLOAT64_COST:.3g} against {engine:.3g} multiply-adds for spooling {mib(shape.bytes)}"
    if state > budget // 2:
        return Decision("spool", budget, ram, f"features spooled: moments take {mib(state)}; {told}")
    if feature * FLOAT64_COST <= engine:
        return Decision("moments", budget, ram, f"moments: {costs}, their state is {mib(state)}; {told}")
    return Decision("spool", budget, ram, f"features spooled: moments cost {costs}; {told}")


def check_engine(
    left: Sequence[Matrix],
    right: Sequence[Matrix] | None,
    rows: int,
    measure: Measure,
    memory: int,
    *,
    features: int = 0,
) -> bool:
    """Plan what follows for ``rows`` samples now, so that too little memory is said before the models have run.

    Whether there is room beside so many bytes of ``features`` in memory; 0: they go to disk. On the host, where
    features of a device come where it has no room: nothing is lost then.

    Raises:
        TooLittleMemory: the smallest workspace is larger than ``memory`` leaves, with all features on disk.
    """
    if features:
        try:
            _check(left, right, rows, measure, memory - features, mapped=False)
        except TooLittleMemory:
            pass
        else:
            return True
    _check(left, right, rows, measure, memory, mapped=True)
    return False


def _check(
    left: Sequence[Matrix],
    right: Sequence[Matrix] | None,
    rows: int,
    measure: Measure,
    memory: int,
    *,
    mapped: bool,
) -> None:
    widest = max(layer.p * layer.itemsize for layer in (*left, *(right or ())))
    files = Mapped(((widest, rows * widest),)) if mapped else None
    engine = int(memory * FOR_ENGINE)

    def grown(layers: Sequence[Matrix]) -> list[Matrix]:
        return [Matrix(x.name, np.broadcast_to(_zeros(x), (rows, x.p)), x.dtype, x.origin) for x in layers]

    if not isinstance(measure, CKA):
        pages = 0 if files is None else files.passing(0)
        check_memory(measure, grown((*left, *(right or ()))), engine, pages=pages)
        return
    kernel = measure.kernel

    def blocks(layers: Sequence[Matrix]) -> list[Block]:
        return [Block(layer, kernel, np.empty(0), 0) for layer in grown(layers)]

    columns = None if right is None else blocks(right)
    plan_pair_sums(blocks(left), columns, memory=engine, threads=default_threads(), mapped=files)


def on_disk(decision: Decision) -> Decision:
    """The same way, without features in the host's memory: the engine needs it."""
    reason = decision.reason
    if decision.way == "spool":
        reason += "; on disk all the same: the engine needs the memory"
    return replace(decision, ram=0, reason=reason)


def in_full(error: TooLittleMemory, decision: Decision, asked: str) -> TooLittleMemory:
    """The engine's error about its share of the memory as one about all of it: what was asked for, what is needed."""
    needed = math.ceil(error.needed / FOR_ENGINE) + 1  # one byte for what rounding takes
    return TooLittleMemory(asked or f"{decision.memory} bytes (of what is free)", error.work, needed)


def _zeros(like: Matrix) -> npt.NDArray[Any]:
    """A row ``[1, p]`` of zeros in the type of a layer, which says all that a plan asks for; the layer is not read."""
    return np.zeros((1, like.p), dtype="uint16" if like.dtype == "bfloat16" else like.dtype)


def _costs(shape: Shape) -> tuple[float, float]:
    """Multiply-adds of the feature-space and the sample-space route."""
    rows = shape.rows or 0
    p, m = sum(shape.left), len(shape.left)
    if shape.right is None:
        return rows * p * p / 2, rows**2 * (p / 2 + m * m / 4)
    q, k = sum(shape.right), len(shape.right)
    own = sum(width * width for width in (*shape.left, *shape.right)) / 2
    return rows * (p * q + own), rows**2 * ((p + q) / 2 + m * k / 2)


def mib(count: int) -> str:
    """A number of bytes in words."""
    return f"{count / 2**20:.4g} MiB"
