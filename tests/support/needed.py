"""What a test needs beyond simkit and a device: torch that sees the device, CuPy, certain hardware.

Without it a test is skipped. Where a device is required (``SIMKIT_REQUIRE_GPU=1``) a missing torch is a failure: the
boundary and all of bfloat16 would go untested. CuPy, and hardware that the machine may lack, leave a skip that the end
of the run tells of (``conftest.py``). Tests of simkit alone bring their arrays by ``gpu_arrays``, and need neither.
"""

from __future__ import annotations

import importlib
import os
from typing import Any, NoReturn

import pytest

REQUIRE_GPU = "SIMKIT_REQUIRE_GPU"
NOT_TESTED = "not tested though a GPU is required"


def gpu_required() -> bool:
    """Whether a GPU test that cannot run is a failure."""
    return os.environ.get(REQUIRE_GPU) == "1"


def must(reason: str) -> NoReturn:
    """Skip for ``reason``, or fail where a GPU is required."""
    if gpu_required():
        pytest.fail(f"{REQUIRE_GPU}=1, but {reason}")
    pytest.skip(reason)


def may(reason: str) -> NoReturn:
    """Skip for ``reason``, which the run's end repeats where a GPU is required."""
    pytest.skip(f"{NOT_TESTED}: {reason}" if gpu_required() else reason)


def torch_here() -> Any:
    """Torch, of any build: of bfloat16 there is no other maker."""
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        return must(f"torch is not installed: {error}")


def torch_on_gpu() -> Any:
    """Torch that sees a device."""
    torch = torch_here()
    if not torch.cuda.is_available():
        must(f"torch {torch.__version__} sees no CUDA device")
    return torch


def cupy_on_gpu() -> Any:
    """CuPy that sees a device."""
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        return may(f"CuPy is not installed: {error}")
    try:
        cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        may(f"CuPy sees no CUDA device: {error}")
    return cupy
