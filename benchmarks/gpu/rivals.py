"""Contestants beside simkit: the library's product modes, packages where they are installed, CuPy where it is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ..protocol import Missing
from ..rivals import package
from .device import Device, array_library
from .products import MODES
from .protocol import Contestant


def in_each_mode(name: str, call: Callable[..., Any], **options: Any) -> list[Contestant]:
    """``call(inputs, precision=...)`` as a contestant for every product mode of the library."""
    return [Contestant(f"{name}, {mode}", partial(call, precision=mode), mode=mode, **options) for mode in MODES]


def from_package(name: str, contestant: Contestant) -> Contestant | Missing:
    """The contestant, or why the package it calls does not run here."""
    found = package(name)
    return Missing(contestant.name, found.reason) if isinstance(found, Missing) else contestant


def by_arrays(device: Device, name: str, call: Callable[..., Any], **options: Any) -> Contestant | Missing:
    """``call(inputs, library=...)`` as CuPy's contestant, or why there is none; in a rehearsal NumPy stands in."""
    library = array_library(device)
    if isinstance(library, Missing):
        return Missing(f"CuPy, {name}", library.reason)
    standing_in = "" if device.real else " (NumPy stands in)"
    return Contestant(f"CuPy{standing_in}, {name}", partial(call, library=library), **options)
