"""What the engine takes beyond the features stays within what its route says, whatever the kernel: measured."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from resident import AS_ASKED, COUNTED, RESIDENT

pytestmark = pytest.mark.process
SLACK = 300_000  # stacks of threads, and small blocks that the allocator keeps

SCRIPT = """
import json, sys
import numpy as np
import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends import native_cpu
from simkit.backends.routes import plan_pair_sums
from simkit.metrics.prepare import prepare

name, m, n, p, dtype, memory, outlier = json.loads(sys.argv[1])
kernels = {"linear": sk.Linear, "feature": sk.Linear, "mixed": sk.Linear, "rbf": sk.RBF, "polynomial": sk.Polynomial,
           "custom": lambda: sk.CustomKernel(lambda product, d: 1 / (1 + d))}
kernel = kernels[name]()
mixed = name == "mixed"

def blocks(m, n, p):
    r = np.random.default_rng(0)
    x = [r.standard_normal((n, width)).astype(dtype) for width in ([1] * (m - 2) + [p] * 2 if mixed else [p] * m)]
    for layer in x:
        layer[0] *= outlier
    return [prepare(as_matrix(layer), kernel, threads=1) for layer in x]

def sums(blocks, memory):
    route = name if name in ("feature", "mixed") else "sample"
    plan = plan_pair_sums(blocks, None, memory=memory, threads=2, route=route)
    native_cpu.pair_sums(blocks, None, estimator="debiased", route=plan)
    return plan

sums(blocks(3, 700, p), None)  # brings in what the first call brings in: code, arenas of the allocator
given = blocks(m, n, p)
before = now()
plan = sums(given, memory)
print(json.dumps([plan.bytes, peak() - before]))
"""


@COUNTED
@pytest.mark.parametrize(
    ("kernel", "layers", "n", "p", "dtype", "memory", "outlier"),
    [
        ("linear", 64, 1000, 64, "float32", 20_000_000, 1),
        ("linear", 8, 2000, 512, "float64", 2_000_000, 1),
        ("linear", 100, 1500, 2, "float64", 8_000_000, 1e9),  # the pass is done again
        ("feature", 3, 2000, 1024, "float32", 5_000_000, 1),
        ("feature", 60, 1000, 7, "float64", 1_000_000, 1),
        ("mixed", 150, 1000, 1500, "float32", 9_000_000, 1),  # its feature space is the larger half
        ("mixed", 12, 1000, 1500, "float64", 5_000_000, 1),
        pytest.param("rbf", 100, 3000, 8, "float64", 16_000_000, 1, marks=pytest.mark.slow),
        ("rbf", 8, 2000, 512, "float64", 3_000_000, 1),
        ("polynomial", 30, 2000, 20, "float64", 5_000_000, 1),
        ("custom", 8, 2000, 512, "float64", 4_000_000, 1),
    ],
)
def test_what_is_taken_is_what_was_said(
    kernel: str, layers: int, n: int, p: int, dtype: str, memory: int, outlier: float
) -> None:
    if kernel == "custom" and not importlib.util.find_spec("numba"):
        pytest.skip("numba is not installed")
    case = json.dumps([kernel, layers, n, p, dtype, memory, outlier])
    environment = {**os.environ, **AS_ASKED}
    script = [sys.executable, "-c", RESIDENT + SCRIPT, case]
    done = subprocess.run(script, capture_output=True, text=True, check=True, env=environment)
    said, taken = json.loads(done.stdout)
    assert said <= memory
    assert taken <= said + SLACK


MEDIAN = """
import json, sys
import numpy as np
import simkit as sk
from simkit.arrays import as_matrix
from simkit.metrics.prepare import prepare

n, p, memory = map(int, sys.argv[1:])
x = as_matrix(np.random.default_rng(0).standard_normal((n, p)).astype(np.float32))
prepare(as_matrix(x.values[:300]), sk.RBF(), threads=2)
before = now()
block = prepare(x, sk.RBF(), threads=2, memory=memory)
taken = peak() - before
print(json.dumps([taken, block.length == prepare(x, sk.RBF(), threads=3).length]))
"""


@COUNTED
@pytest.mark.parametrize(("n", "p", "memory"), [(1400, 300, 4_000_000), (3000, 40, 3_000_000), (1400, 300, 30_000_000)])
def test_medians_of_distances_keep_to_the_memory(n: int, p: int, memory: int) -> None:
    """More passes where there is little room, and the same bits."""
    environment = {**os.environ, **AS_ASKED}
    script = [sys.executable, "-c", RESIDENT + MEDIAN, *map(str, (n, p, memory))]
    done = subprocess.run(script, capture_output=True, text=True, check=True, env=environment)
    taken, same = json.loads(done.stdout)
    assert same
    assert taken <= memory + SLACK
