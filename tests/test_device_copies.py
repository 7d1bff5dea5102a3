"""Copies of host arrays on a device, which threads share and which go with their matrix."""

from __future__ import annotations

import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from simkit.arrays import as_matrix
from simkit.backends import cuda_device

Array = npt.NDArray[Any]


@pytest.fixture
def x() -> Array:
    return np.random.default_rng(0).standard_normal((70, 6)).astype(np.float32)


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The devices that arrays were copied to, slowly."""
    made: list[int] = []

    def copied(*, x: Array, dtype: str, device: int) -> object:
        time.sleep(0.01)
        made.append(device)
        return object()

    module = SimpleNamespace(Array=SimpleNamespace(copied=copied))
    monkeypatch.setattr(cuda_device, "load", lambda: (module, ""))
    return made


def test_threads_that_ask_at_once_share_a_copy(x: Array, copies: list[int]) -> None:
    matrices = [as_matrix(x), as_matrix(x)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda k: cuda_device.array_on(matrices[k % 2], 0), range(8)))
    assert found == found[:2] * 4
    assert len(copies) == 2
    assert cuda_device.held_bytes(0, matrices) == 2 * cuda_device.bytes_of(matrices[0])


@pytest.mark.usefixtures("copies")
def test_a_copy_that_one_thread_gives_up_is_the_others_until_they_are_done(
    x: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Released again and again, while others ask for it and count what is there."""
    matrix, size, done = as_matrix(x), cuda_device.bytes_of(as_matrix(x)), threading.Event()
    monkeypatch.setattr("time.sleep", lambda seconds: None)

    def give_up() -> None:
        while not done.is_set():
            cuda_device.release([matrix], 0)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(3) as pool:
            other = pool.submit(give_up)
            askers = [pool.submit(lambda: [cuda_device.array_on(matrix, 0) for _ in range(2000)]) for _ in range(2)]
            counts = {cuda_device.held_bytes(0, [matrix]) for _ in range(200)}
            found = [asker.exception() for asker in askers]
            done.set()
            assert other.exception() is None
    finally:
        sys.setswitchinterval(before)
    assert found == [None, None]
    assert counts <= {0, size}


def test_a_matrix_is_watched_once_and_takes_its_copies_with_it(x: Array, copies: list[int]) -> None:
    matrix = as_matrix(x)
    for device in (0, 1, 0):
        cuda_device.array_on(matrix, device)
        cuda_device.release([matrix], 0)
    assert copies == [0, 1, 0]
    assert weakref.getweakrefcount(matrix) == 1
    assert [cuda_device.held_bytes(device, [matrix]) for device in (0, 1)] == [0, cuda_device.bytes_of(matrix)]
    there = id(matrix)
    del matrix
    assert there not in cuda_device._held
