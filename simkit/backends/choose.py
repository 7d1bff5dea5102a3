"""The only place that chooses a backend.

``backend=None`` takes the first backend of :data:`PREFERENCE` that supports the op. A backend named by the user
never falls back: what it cannot do is an error that lists the reasons.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..kernels import Kernel
from .base import OPS

PREFERENCE = ("native_cpu", "reference")


@dataclass(frozen=True)
class Choice:
    """A backend's function for one op, and why it was taken."""

    backend: str
    function: Callable[..., Any]
    reason: str


def check_backend(backend: str | None) -> None:
    """Raise ValueError for a name that is no backend."""
    if backend is not None and backend not in PREFERENCE:
        raise ValueError(f"backend must be None or one of {', '.join(PREFERENCE)}, not {backend!r}")


def choose(op: str, *, backend: str | None = None, kernel: Kernel | None = None) -> Choice:
    """The function that runs ``op``, with ``kernel`` where that matters.

    Raises:
        ValueError: no such backend. NotImplementedError: the named backend cannot run the op, with its reasons.
    """
    if op not in OPS:
        raise ValueError(f"{op!r} is not an op; ops are {', '.join(OPS)}")
    check_backend(backend)
    refusals: list[str] = []
    for name in PREFERENCE if backend is None else (backend,):
        module = importlib.import_module(f"simkit.backends.{name}")
        reasons = module.unsupported_reasons(op, kernel)
        if not reasons:
            why = "asked for" if backend else ("; ".join(refusals) or "first choice")
            return Choice(name, getattr(module, op), why)
        refusals.append(f"{name}: {', '.join(reasons)}")
    raise NotImplementedError(f"no backend runs {op}: {'; '.join(refusals)}")
