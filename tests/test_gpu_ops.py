"""Every op on a GPU: the same bits twenty times, and one small case of each for a tool that looks for races."""

from __future__ import annotations

import numpy as np
import pytest
from device_cases import CASES, Case
from gpu_arrays import OnGpu
from needed import may

from simkit.arrays import as_matrix
from simkit.backends.cuda_cores import FIRST
from simkit.backends.cuda_device import capability_of

pytestmark = pytest.mark.gpu

REPEATS = 20


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    found = CASES[request.param]
    if found.tensor and capability_of([as_matrix(OnGpu(np.ones((2, 2), dtype=np.float32)))]) < FIRST:
        may("the device has no tensor cores for TF32 and float64")
    return found


def test_the_same_bits_twenty_times(case: Case) -> None:
    run = case.make(OnGpu, "large")
    first = [a.tobytes() for a in run()]
    for _ in range(REPEATS):
        assert [a.tobytes() for a in run()] == first


@pytest.mark.racecheck
def test_a_small_case(case: Case) -> None:
    run = case.make(OnGpu, "small")
    assert [a.tobytes() for a in run()] == [a.tobytes() for a in run()]
