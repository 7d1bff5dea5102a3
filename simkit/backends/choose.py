"""The only place that chooses a backend.

``backend=None`` takes the first backend of :data:`PREFERENCE` that supports the op on its inputs; a device is used only
for what lies on it already. A backend named by the user never falls back: what it cannot do is an error that lists the
reasons.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

from ..arrays import COPIED, Matrix
from ..errors import SlowBackendWarning
from ..kernels import Kernel
from . import damage_room, routes
from .base import OPS, Input, Precision, Route, matrices_of
from .moment_sums import HeldMoments

PREFERENCE = ("native_cuda", "native_cpu", "reference")
ON_HOST = PREFERENCE[1:]


@dataclass(frozen=True)
class Choice:
    """A backend's function for one op, and why it was taken."""

    backend: str
    module: ModuleType
    function: Callable[..., Any]
    reason: str

    @property
    def plan_pair_sums(self) -> Callable[..., Route]:
        """The backend's planner of all-pairs sums."""
        planner: Callable[..., Route] = getattr(self.module, "plan_pair_sums", routes.plan_pair_sums)
        return planner

    @property
    def plan_candidates(self) -> Callable[..., damage_room.CandidateRoom]:
        """The backend's planner of what candidates take."""
        planner: Callable[..., damage_room.CandidateRoom] = getattr(
            self.module, "plan_candidates", damage_room.plan_candidates
        )
        return planner

    @property
    def plan_products(self) -> Callable[..., damage_room.ProductsRoom]:
        """The backend's planner of what products of columns take."""
        planner: Callable[..., damage_room.ProductsRoom] = getattr(
            self.module, "plan_products", damage_room.plan_products
        )
        return planner

    @property
    def on_host(self) -> bool:
        """Whether it computes where the host's memory is."""
        return self.backend in ON_HOST

    @property
    def free_memory(self) -> Callable[[int], int] | None:
        """The free bytes of a device that is given; None where the backend computes on the host."""
        return getattr(self.module, "free_memory", None)

    @property
    def hold_moments(self) -> Callable[..., HeldMoments] | None:
        """What begins moments in the backend's own memory; None where that is the host's."""
        return getattr(self.module, "hold_moments", None)

    def words_of_columns(self, products: Precision, inputs: Sequence[Input]) -> str:
        """What the backend's products of columns of ``inputs`` are, for a plan."""
        words: Callable[..., str] | None = getattr(self.module, "words_of_columns", None)
        return words(products, inputs) if words else f"{products} products of columns"


def check_backend(backend: str | None) -> None:
    """Raise ValueError for a name that is no backend."""
    if backend is not None and backend not in PREFERENCE:
        raise ValueError(f"backend must be None or one of {', '.join(PREFERENCE)}, not {backend!r}")


def choose(
    op: str,
    *,
    backend: str | None = None,
    inputs: Sequence[Input] = (),
    kernel: Kernel | None = None,
) -> Choice:
    """The function that runs ``op`` on ``inputs`` (those of its arguments that may lie on a device) with ``kernel``.

    Raises:
        ValueError: no such backend; inputs on different devices, or on one and the host. NotImplementedError: the named
            backend cannot run the op, with its reasons.
    """
    if op not in OPS:
        raise ValueError(f"{op!r} is not an op; ops are {', '.join(OPS)}")
    check_backend(backend)
    places = check_places(inputs, backend)
    refusals: list[str] = []
    wanted = ON_HOST if places == {None} else PREFERENCE
    for name in wanted if backend is None else (backend,):
        module = importlib.import_module(f"simkit.backends.{name}")
        reasons = module.unsupported_reasons(op, inputs, kernel)
        if not reasons:
            why = "asked for" if backend else ("; ".join(refusals) or "first choice")
            if name in ON_HOST and places != {None}:
                why += "; copied from the device to the host"
            if backend is None and name == PREFERENCE[-1]:
                _warn_where_slow()
            return Choice(name, module, getattr(module, op), "; ".join([why, *_copied(inputs)]))
        refusals.append(f"{name}: {', '.join(reasons)}")
    if backend is not None:
        raise NotImplementedError(f"backend {backend!r} cannot run {op}: {refusals[0].removeprefix(f'{backend}: ')}")
    raise NotImplementedError(f"no backend runs {op}: {'; '.join(refusals)}")


def _warn_where_slow() -> None:
    """NumPy stands in for a compiled module that is not there."""
    gone = importlib.import_module("simkit.backends.native_cpu").missing()
    if gone:
        _warn_slow(gone)


@cache
def _warn_slow(gone: str) -> None:
    """Once a process, at the line that called simkit."""
    level, frame = 2, inspect.currentframe()
    while frame := frame and frame.f_back:
        if not frame.f_globals.get("__name__", "").startswith("simkit."):
            break
        level += 1
    warnings.warn(f"NumPy computes this, many times slower: {gone}", SlowBackendWarning, stacklevel=level)


def check_places(inputs: Sequence[Input], backend: str | None) -> set[int | None]:
    """The devices that the inputs lie on; None: the host. A backend that is named takes them from both.

    Raises:
        ValueError: inputs on different devices, or on one and the host.
    """
    first: dict[int | None, str] = {}
    for matrix in matrices_of(inputs):
        first.setdefault(matrix.device, matrix.name)
    devices = [device for device in first if device is not None]
    if len(devices) > 1 and backend not in ON_HOST:
        a, b = devices[:2]
        raise ValueError(f"{first[a]} lies on cuda:{a} and {first[b]} on cuda:{b}: move them to one device")
    if devices and None in first and backend is None:
        of = "".join(f" ({copied})" for copied in _copied(inputs))
        raise ValueError(
            f"{first[devices[0]]} lies on cuda:{devices[0]} and {first[None]} on the host{of}: "
            "move one of them, or name a backend, which takes both"
        )
    return set(first) or {None}


def _copied(inputs: Sequence[Input]) -> list[str]:
    """Which input came to the host from a device, and from where: the first of them."""
    found = (matrix for matrix in matrices_of(inputs) if isinstance(matrix, Matrix) and matrix.origin.endswith(COPIED))
    return [f"{matrix.name} is {matrix.origin}" for matrix in found][:1]
