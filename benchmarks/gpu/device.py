"""Where the GPU benchmarks run: a CUDA device, or the host in its place for a rehearsal of the same code."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..protocol import Missing
from ..rivals import package

FLUSHED = 2**28  # bytes at least: several times the second-level cache of any device so far


@dataclass(frozen=True)
class Timed:
    """One call: its answer, seconds between two events on the device's stream, and seconds until the host has it."""

    answer: Any
    events: float
    wall: float


@dataclass(frozen=True)
class Library:
    """CuPy, or NumPy in its place, and what makes its array of a tensor without a copy."""

    module: ModuleType
    array: Callable[[Any], Any]
    half_gram: Callable[[Any], Any]  # z -> one triangle of z zᵀ, zeros for the other

    def to_host(self, x: Any) -> npt.NDArray[Any]:
        """A copy on the host."""
        return np.asarray(x.get() if hasattr(x, "get") else x)


class Cuda:
    """The current CUDA device."""

    real = True
    where = "cuda"

    def __init__(self) -> None:
        self._about = torch.cuda.get_device_properties(torch.cuda.current_device())
        size = max(FLUSHED, 4 * int(getattr(self._about, "L2_cache_size", 0)))
        self._scratch = torch.empty(size, dtype=torch.uint8, device=self.where)
        self._round = 0

    def timed(self, call: Callable[[], Any]) -> Timed:
        """Run ``call`` on an idle device, and wait for all that it started."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        before = perf_counter()
        start.record()
        answer = call()
        end.record()
        torch.cuda.synchronize()
        wall = perf_counter() - before
        return Timed(answer, start.elapsed_time(end) / 1e3, wall)

    def flush(self) -> None:
        """Write more than the second-level cache holds."""
        self._round += 1
        self._scratch.fill_(self._round % 251)

    def forget(self) -> None:
        """Give memory that torch and CuPy keep for later back to the device."""
        torch.cuda.empty_cache()
        if "cupy" in sys.modules:
            sys.modules["cupy"].get_default_memory_pool().free_all_blocks()

    def clock_mhz(self) -> float | None:
        """The highest clock of the multiprocessors; None where the tool does not say."""
        try:
            return float(said_by_tool("clocks.max.sm").split()[0])
        except (IndexError, ValueError):
            return None

    def exponentials(self) -> float | None:
        """Powers of two a second, counted: sixteen a clock and multiprocessor at the highest clock."""
        clock = self.clock_mhz()
        return None if clock is None else 16e6 * clock * self._about.multi_processor_count

    def describe(self) -> dict[str, object]:
        """Name, capability, memory, clock and driver."""
        about = self._about
        return {
            "name": about.name,
            "capability": f"{about.major}.{about.minor}",
            "multiprocessors": about.multi_processor_count,
            "memory_gib": round(about.total_memory / 2**30, 1),
            "l2_mib": round(getattr(about, "L2_cache_size", 0) / 2**20, 1),
            "driver": driver_version(),
            "clock_mhz": self.clock_mhz(),
            "cuda": torch.version.cuda,
        }


class Rehearsal:
    """The host: torch on the processor, a wall clock for events, NumPy for CuPy. Its times are no measurement."""

    real = False
    where = "cpu"

    def __init__(self) -> None:
        self._scratch = torch.empty(2**16, dtype=torch.uint8)

    def timed(self, call: Callable[[], Any]) -> Timed:
        """Run ``call``."""
        before = perf_counter()
        answer = call()
        wall = perf_counter() - before
        return Timed(answer, wall, wall)

    def flush(self) -> None:
        """Write a little."""
        self._scratch.fill_(1)

    def forget(self) -> None:
        """The host keeps nothing."""

    def exponentials(self) -> float | None:
        """Not counted."""

    def describe(self) -> dict[str, object]:
        """That there is no device."""
        return {"name": "none: rehearsed on the host", "driver": "none", "cuda": "none"}


Device = Cuda | Rehearsal


def said_by_tool(what: str) -> str:
    """What the driver's tool answers of the first device; empty where it is not there, or does not know."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    asked = [tool, f"--query-gpu={what}", "--format=csv,noheader"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False)
    return found.stdout.splitlines()[0].strip() if found.returncode == 0 and found.stdout.strip() else ""


def driver_version() -> str:
    """The driver's version as its tool or the kernel says it; "unknown" where neither does."""
    if said := said_by_tool("driver_version"):
        return said
    stated = Path("/proc/driver/nvidia/version")
    words = stated.read_text().split() if stated.exists() else []
    return next((word for word in words if word[:1].isdigit() and "." in word), "unknown")


def array_library(device: Device) -> Library | Missing:
    """CuPy on a device, NumPy in a rehearsal, or why there is none."""
    if not device.real:
        return Library(np, lambda tensor: tensor.numpy(), lambda z: np.tril(z @ z.T))
    cupy = package("cupy")
    if isinstance(cupy, Missing):
        return cupy
    from cupy.cublas import syrk

    return Library(cupy, cupy.from_dlpack, lambda z: syrk("N", z))
