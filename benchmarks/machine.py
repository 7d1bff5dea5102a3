"""What the machine is, how fast it is right now, and how much memory a call took."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

# The name to import, and the name to install.
PACKAGES = {
    "numpy": "numpy",
    "scipy": "scipy",
    "torch": "torch",
    "cka": "pytorch-cka",
    "torch_cka": "torch_cka",
    "ckatorch": "ckatorch",
    "rsatoolbox": "rsatoolbox",
    "numba": "numba",
    "repsim": "repsim",
    "anatome": "anatome",
    "netrep": "netrep",
    "pykeops": "pykeops",
    "cupy": "cupy-cuda13x",
    "networkx": "networkx",
}
COPIED = 64 * 2**20  # bytes of the array whose copy gives the bandwidth
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Rate:
    """Multiply-adds a second of float32 and float64 matrix products, and bytes a second read and written by a copy."""

    float32: float
    float64: float
    copied: float


def threads() -> int:
    """The processors this process may run on: as many threads for every contestant."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def rate_now(side: int, precisions: tuple[str, ...]) -> Rate:
    """The machine's rate at this moment: the better of two products of ``side`` by ``side`` matrices, and a copy."""
    found = {"float32": float("nan"), "float64": float("nan")}
    for precision in precisions:
        a = _square(side, precision)
        found[precision] = side**3 / min(_seconds(partial(np.matmul, a, a)) for _ in range(2))
    source = _square(int((COPIED // 4) ** 0.5), "float32")
    target = np.empty_like(source)
    copied = 2 * source.nbytes / min(_seconds(partial(np.copyto, target, source)) for _ in range(2))
    return Rate(copied=copied, **found)


@cache
def _square(side: int, precision: str) -> npt.NDArray[Any]:
    return np.random.default_rng(0).standard_normal((side, side)).astype(precision)


def _seconds(call: Callable[[], object]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


def cache_bytes() -> int:
    """The size of the largest cache; 64 MB where the system does not say."""
    sizes = [64 * 2**20]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        sizes.append(int(path.read_text().strip().removesuffix("K")) * 1024)
    return max(sizes[1:] or sizes)


def with_peak_memory(call: Callable[[], Any]) -> tuple[Any, int | None]:
    """(what ``call`` returns, the bytes by which the resident memory rose at its peak; None outside Linux)."""
    gc.collect()
    if not STATUS.exists():
        return call(), None
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    before = _resident("VmRSS")
    result = call()
    return result, max(0, _resident("VmHWM") - before)


def _resident(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", STATUS.read_text())
    assert found is not None
    return int(found[1]) * 1024


def describe_machine() -> dict[str, object]:
    """Processor, cores, memory and system: nothing that names the machine or its folders."""
    return {
        "processor": _processor(),
        "cores": threads(),
        "cache_mib": cache_bytes() // 2**20,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    fields = dict(re.findall(r"^([^\t:]+?)\s*:\s*(.*)$", text, flags=re.MULTILINE))
    name = fields.get("model name") or platform.processor() or platform.machine()
    wide = [isa for isa in ("avx512f", "avx2") if isa in fields.get("flags", "").split()][:1]
    family = f"family {fields['cpu family']} model {fields['model']}" if "cpu family" in fields else ""
    return ", ".join(part for part in (name, family, *wide) if part)


def versions() -> dict[str, str]:
    """Versions of Python, simkit, the BLAS behind NumPy, and every rival that is installed."""
    found = {"python": platform.python_version()}
    for name in ("simkit", *PACKAGES.values()):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if "simkit" in sys.modules:
        found["simkit"] = sys.modules["simkit"].__version__
    blas = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
    found["blas of numpy"] = f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip()
    return found


def commit() -> str:
    """The commit that ran, with "-dirty" when tracked files differ from it; "unknown" outside a clone."""
    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return asked.stdout.strip() or "unknown"
