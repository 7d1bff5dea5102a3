"""All of the module ``_cuda`` without a device: what each of the emulators offers, in one."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import emulated_candidates
import emulated_graphs
import emulated_greedy
import emulated_moments
import emulated_partners
import emulated_strips
from emulated_cuda import compile_programs

LIBRARIES = ("", "strips_", "greedy_", "graphs_", "candidates_", "moments_", "partners_")


def compile_all(folder: Path) -> list[Any]:
    """The emulated programs, compiled once in ``folder``; empty where there is no compiler."""
    found = [compile_programs(folder, f"cuda_{name}programs") for name in LIBRARIES]
    return found if all(found) else []


def module(libraries: list[Any], order: int = 0, capability: tuple[int, int] = (7, 5)) -> Any:
    """As ``_cuda``, of the libraries of :func:`compile_all`."""
    whole, strips, greedy, graphs, candidates, moments, partners = libraries
    found = emulated_greedy.module(whole, greedy, order, capability)
    for other in (
        emulated_strips.module(whole, emulated_strips.Emulated(strips, order), capability),
        emulated_graphs.module(graphs, order),
        emulated_candidates.module(whole, candidates, order),
        emulated_moments.module_with_moments(whole, moments, order, capability),
        emulated_partners.module(whole, partners, order),
    ):
        for name, value in vars(other).items():
            if not hasattr(found, name) or name in ("Array", "memory_info"):
                setattr(found, name, value)
    found.Array = emulated_strips.StripArray
    return found


def forget_programs(libraries: Iterable[Any]) -> None:
    """From here on :func:`programs_run` counts."""
    for library in libraries:
        library.forget_programs()


def programs_run(libraries: Iterable[Any]) -> set[str]:
    """The names of all programs that ran since they were forgotten, or the libraries were loaded."""
    names = set()
    for library in libraries:
        library.programs_run.restype = ctypes.c_char_p
        for mangled in library.programs_run().decode().split():
            length, rest = re.fullmatch(r"N6simkit4cuda(\d+)(.*)", mangled).groups()  # type: ignore[union-attr]
            names.add(rest[: int(length)])
    return names
