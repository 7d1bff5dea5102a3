"""GPU tests without a GPU: ``PYTHONPATH=tests/support pytest -p rehearsal -m gpu FILES`` runs them on the emulator.

It finds what would fail on a device for reasons of the test. Slow for large sizes; tests that call the driver (streams,
addresses) or a framework's device cannot run. ``SIMKIT_EMULATORS`` names the folder of what is compiled, which is kept.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import emulated_device
import gpu_arrays
import pytest
from cuda_cases import Array, There

from simkit.backends import cuda_device, native_cuda


class OnEmulator(There):
    """In place of ``gpu_arrays.OnGpu``."""

    def __init__(self, values: Array, *, typestr: str | None = None, stream: int | None = None) -> None:
        super().__init__(values, 0, stream)


def pytest_configure() -> None:
    """Before any test is collected."""
    folder = Path(os.environ.get("SIMKIT_EMULATORS") or tempfile.mkdtemp(prefix="simkit-emulators-"))
    libraries = emulated_device.compile_all(folder)
    if not libraries:
        raise pytest.UsageError("there is no C++ compiler")
    module = emulated_device.module(libraries, capability=(8, 0))
    gpu_arrays.OnGpu = OnEmulator  # type: ignore[assignment,misc]
    cuda_device.load = lambda: (module, "")  # type: ignore[assignment]
    cuda_device.device_report = native_cuda.device_report = lambda: (True, ["an emulator"], "")  # type: ignore[assignment]
