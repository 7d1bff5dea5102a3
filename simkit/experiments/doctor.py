"""What was built, what is seen, and whether it computes the right number."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import platform
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .. import __version__
from ..backends.base import OPS, Estimator
from ..backends.choose import ON_HOST, PREFERENCE
from ..backends.cuda_device import device_report
from ..backends.native_cpu import unsupported_reasons
from ..backends.routes import default_threads
from ..compare.collect import free_memory
from ..metrics.cka import cka

# (distribution, module, extra that installs it; "" for what simkit cannot do without)
LIBRARIES = (
    ("numpy", "numpy", ""),
    ("scipy", "scipy", ""),
    ("pydantic", "pydantic", ""),
    ("safetensors", "safetensors", ""),
    ("tqdm", "tqdm", ""),
    ("torch", "torch", "torch"),
    ("matplotlib", "matplotlib", "plot"),
    ("scikit-learn", "sklearn", "demo"),
    ("numba", "numba", "numba"),
    ("cupy", "cupy", "cuda"),
)
_LEVELS: tuple[tuple[str, set[str]], ...] = (
    ("AVX2 (x86-64-v3)", {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}),
    ("AVX-512 (x86-64-v4)", {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
)
GOLDEN: tuple[tuple[Estimator, float], ...] = (("debiased", 0.51346), ("biased", 0.55761))
"""Linear CKA of X = randn(100, 10) and Y = randn(100, 10) + X after seeding NumPy with 1337, to five decimals."""
DIGITS = 5e-6
AGREEMENT = 1e-12  # between the backends


@dataclass(frozen=True)
class Library:
    """One library: its version, or why it is not there."""

    name: str
    state: Literal["ok", "missing", "broken"]
    required: bool
    version: str
    remark: str


@dataclass(frozen=True)
class Check:
    """One number computed here, against the published digits and the float64 reference."""

    name: str
    backend: str
    value: float | None
    expected: float
    state: Literal["ok", "broken"]
    remark: str


@dataclass(frozen=True)
class Diagnosis:
    """The whole report; ``problems`` is empty where nothing is broken."""

    version: str
    location: str
    python: str
    platform: str
    native: str
    instructions: str
    blas: str
    cuda_compiled: bool
    devices: tuple[str, ...]
    cuda_remark: str
    threads: int
    processors: int
    memory_free: int
    memory_total: int
    libraries: tuple[Library, ...]
    checks: tuple[Check, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        """One sentence for everything that is broken."""
        found = [] if self.native == "ok" else [f"the native engine is missing: {self.native}"]
        for library in self.libraries:
            if library.state == "broken" or (library.required and library.state == "missing"):
                found.append(f"{library.name}: {library.remark}")
        found += [f"{check.name} by {check.backend}: {check.remark}" for check in self.checks if check.state != "ok"]
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, for JSON."""
        return {**asdict(self), "problems": list(self.problems), "ok": not self.problems}


def diagnose() -> Diagnosis:
    """Look at this installation and let every backend compute numbers that are known; changes nothing."""
    reasons = unsupported_reasons(OPS[0])
    compiled, devices, why = device_report()
    return Diagnosis(
        version=__version__,
        location=str(Path(__file__).parents[1]),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        platform=platform.platform(),
        native="; ".join(reasons) or "ok",
        instructions="nothing is compiled here" if reasons else _instructions(),
        blas=_blas(),
        cuda_compiled=compiled,
        devices=tuple(devices),
        cuda_remark=why,
        threads=default_threads(),
        processors=os.cpu_count() or 1,
        memory_free=free_memory(),
        memory_total=_memory_total(),
        libraries=tuple(_library(*entry) for entry in LIBRARIES),
        checks=_checks(PREFERENCE if devices else ON_HOST),
    )


def report(diagnosis: Diagnosis) -> str:
    """The diagnosis in words, for people."""
    d = diagnosis
    devices = ", ".join(d.devices) or f"none: {d.cuda_remark}"
    lines = [
        f"simkit {d.version}  {d.location}",
        f"  Python        {d.python}, {d.platform}",
        f"  native engine {d.native}",
        f"  instructions  {d.instructions}",
        f"  BLAS          {d.blas}",
        f"  CUDA          {'compiled' if d.cuda_compiled else 'not compiled'}; devices: {devices}",
        f"  threads       {d.threads} (of {d.processors} processors)",
        f"  memory        {_gib(d.memory_free)} free of {_gib(d.memory_total)}",
        "libraries",
        *(f"  {library.name:<13} {_library_line(library)}" for library in d.libraries),
        "self-check",
        *(f"  {check.name}, {check.backend}: {check.value} {check.state}" for check in d.checks),
        *(f"BROKEN: {problem}" for problem in d.problems),
    ]
    return "\n".join(lines if d.problems else [*lines, "everything that is installed works"])


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _library_line(library: Library) -> str:
    return (
        f"{library.version} ({library.remark})"
        if library.version and library.remark
        else (library.version or library.remark)
    )


def _instructions() -> str:
    """Levels the elementwise loops are compiled for (csrc/core/clones.hpp), and the one that runs here."""
    machine = platform.machine()
    if machine != "x86_64" or platform.libc_ver()[0] != "glibc":
        return f"{machine}, one level"
    flags = _processor_flags()
    level = "x86-64 baseline"
    for name, needed in _LEVELS:
        if not needed <= flags:
            break
        level = name
    return f"x86-64 baseline, AVX2 and AVX-512 are built in; {level} runs here"


def _processor_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    return {flag for line in lines if line.startswith("flags") for flag in line.partition(":")[2].split()}


def _blas() -> str:
    """What the private copy of OpenBLAS says of itself."""
    try:
        core = importlib.import_module("simkit.backends._core").__file__
        library = ctypes.CDLL(str(Path(core or "").parent / ".libs" / "libsimkit_openblas.so"))
        texts = []
        for name in ("config", "corename"):
            call = getattr(library, f"scipy_openblas_get_{name}")
            call.restype = ctypes.c_char_p
            texts.append(call().decode())
    except (ImportError, OSError, AttributeError) as error:
        return f"unknown ({error})"
    version = " ".join(texts[0].split()[:2])
    return f"{version}, a private copy with the kernels for {texts[1]}"


def _memory_total() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _library(name: str, module: str, extra: str) -> Library:
    required = not extra
    if importlib.util.find_spec(module) is None:
        remedy = f"pip install 'simkit[{extra}]'" if extra else "pip install simkit"
        return Library(name, "missing", required, "", f"not installed: {remedy}")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            loaded = importlib.import_module(module)
            version = str(getattr(loaded, "__version__", "of an unknown version"))
            remark = _DEVICES[name](loaded) if name in _DEVICES else ""
        except Exception as error:  # whatever a damaged installation raises
            first = (str(error).strip().splitlines() or [""])[0]
            return Library(name, "broken", required, "", f"is installed but fails: {type(error).__name__}: {first}")
    said = [str(warning.message).strip().splitlines()[0] for warning in heard if module in _DEVICES]
    return Library(name, "ok", required, version, "; ".join(filter(None, [remark, *said])))


def _torch_devices(torch: Any) -> str:
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        return f"CUDA {torch.version.cuda}: " + ", ".join(torch.cuda.get_device_name(i) for i in range(count))
    return "CPU only" if torch.version.cuda is None else f"CUDA {torch.version.cuda}, no device is seen"


def _cupy_devices(cupy: Any) -> str:
    try:
        return f"{cupy.cuda.runtime.getDeviceCount()} devices"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"no device is seen: {error}"


_DEVICES = {"torch": _torch_devices, "cupy": _cupy_devices}


def _checks(backends: Sequence[str]) -> tuple[Check, ...]:
    draw = np.random.RandomState(1337)  # the golden values were made by the legacy generator
    x = draw.randn(100, 10)
    y = draw.randn(100, 10) + x
    return tuple(_check(x, y, estimator, digits, backend) for estimator, digits in GOLDEN for backend in backends)


def _check(x: Any, y: Any, estimator: Estimator, expected: float, backend: str) -> Check:
    name = f"{estimator} linear CKA"
    try:
        value = cka(x, y, estimator=estimator, backend=backend)
        truth = cka(x, y, estimator=estimator, backend=ON_HOST[-1])
    except Exception as error:  # the report says what fails, whatever it is
        return Check(name, backend, None, expected, "broken", f"{type(error).__name__}: {error}")
    if abs(value - expected) > DIGITS or abs(value - truth) > AGREEMENT:
        return Check(name, backend, value, expected, "broken", f"{value} is not {expected}, or not the reference's")
    return Check(name, backend, value, expected, "ok", "")
