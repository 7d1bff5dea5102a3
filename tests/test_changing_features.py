"""Features that somebody writes to while they are read: refused in one sentence where passes find that they differ."""

from __future__ import annotations

import itertools
import re
import signal
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from types import FrameType

import numpy as np
import numpy.typing as npt
import pytest

import simkit as sk
from simkit.arrays import Matrix, as_matrix
from simkit.backends import native_cpu
from simkit.metrics.prepare import prepare

REFUSED = "^the features were changed while they were being read$"


def layer(folder: Path, n: int, p: int, *, mapped: bool) -> tuple[npt.NDArray[np.float32], Matrix]:
    """Features to write to, and a view of the same, in a file or in memory."""
    values = np.random.default_rng(0).standard_normal((n, p), dtype=np.float32)
    if not mapped:
        return values, as_matrix(values)
    np.save(folder / "x.npy", values)
    return np.load(folder / "x.npy", mmap_mode="r+"), as_matrix(np.load(folder / "x.npy", mmap_mode="r"))


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("memory", [None, 400_000])  # keys are counted once and collected, or counted more often
def test_a_median_of_features_that_keep_changing_is_refused(memory: int | None, mapped: bool, tmp_path: Path) -> None:
    written, x = layer(tmp_path, 1600, 128, mapped=mapped)
    assert x.mapped == mapped
    first, done = np.array(written), Event()
    block = replace(prepare(as_matrix(first), sk.Linear()), matrix=x)

    def write() -> None:
        for scale in itertools.cycle((1, 4, 0.5, 2)):
            np.multiply(first, np.float32(scale), out=written)
            if done.is_set():
                return

    writer = Thread(target=write)
    writer.start()

    def refused(threads: int) -> bool:
        try:
            native_cpu.distance_median(block, threads=threads, memory=memory)
        except RuntimeError as error:
            return re.match(REFUSED, str(error)) is not None
        return False

    try:
        for threads in (1, 2):  # a busy machine may let the writer wait
            assert any(refused(threads) for _ in range(20))
    finally:
        done.set()
        writer.join()
    written[:] = first
    want = native_cpu.distance_median(replace(block, matrix=as_matrix(first)))
    assert native_cpu.distance_median(block, threads=2, memory=memory) == want


def test_one_change_between_the_passes_is_refused(tmp_path: Path) -> None:
    """All passes but the first agree."""
    written, x = layer(tmp_path, 4000, 400, mapped=True)
    first, changes = np.array(written), []
    block = prepare(x, sk.Linear())

    def change(*_: int | FrameType | None) -> None:  # runs where a pass looks for signals, every 50 ms
        changes.append(len(changes))
        np.multiply(first, np.float32(0.5), out=written)

    def refused(seconds: float) -> bool:
        written[:] = first
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            native_cpu.distance_median(block, threads=1, memory=400_000)
        except RuntimeError as error:
            return re.match(REFUSED, str(error)) is not None
        return False

    before = signal.signal(signal.SIGALRM, change)
    try:
        # A busy machine may come to it before the first pass, or after the last.
        assert any(refused(seconds) for seconds in np.geomspace(0.01, 1, 12))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert changes
