"""What needs a process of its own: forks, Ctrl-C, and how much memory is resident at most."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from resident import COUNTED, RESIDENT

pytestmark = pytest.mark.process
MIB = 2**20
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="forks are Linux's")

# Overlapping windows on one vector: any number of rows and columns in the memory of one row and one column.
PRELUDE = f"""{RESIDENT}
import sys
import numpy as np
import simkit as sk
from simkit.metrics.cka import ForcedRoute, normalised
from simkit.metrics.prepare import prepare
from simkit.arrays import as_matrix

def windows(n, p, seed=0):
    base = np.random.default_rng(seed).standard_normal(n + p - 1).astype(np.float32)
    return np.lib.stride_tricks.sliding_window_view(base, p)
"""


def python(code: str, *arguments: object, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _stops(script: str, work: str, cwd: Path) -> None:
    """Ctrl-C ends the work that a script begins when it is ready, within five seconds."""
    with subprocess.Popen(
        [sys.executable, "-c", PRELUDE + script, work],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        time.sleep(0.7)
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        assert process.stdout.readline() == "stopped\n", process.stderr.read()
        waited = time.monotonic() - start
        assert process.stdout.readline() == "fit\n", process.stderr.read()
    assert process.returncode == 0
    assert waited < 5


FORK = """
import multiprocessing

x, y = windows(700, 80), windows(700, 300, 1)
def everything(_):
    stream = sk.StreamingCKA(threads=3)
    stream.update({"x": x}, {"y": y})
    return (sk.cka(x, y, threads=3), sk.cka(x, y, kernel=sk.RBF(), threads=3),
            sk.greedy_cka(x, threads=3).order.tolist(), stream.compute().values.tolist())
before = everything(0)
with multiprocessing.get_context("fork").Pool(3) as pool:
    assert pool.map(everything, range(6)) == [before] * 6
assert everything(0) == before
print("the same")
"""


@linux_only
def test_a_fork_after_use_works(tmp_path: Path) -> None:
    assert python(FORK, cwd=tmp_path) == "the same\n"


LONG = """
import time
from simkit.backends.base import Block
from simkit.metrics.cka import sums_of

def plain(n, p, count):  # blocks as they are: a tile of theirs takes seconds
    return [Block(as_matrix(windows(n, p, k), name=str(k)), sk.Linear(), np.zeros(p), 3) for k in range(count)]

work = {
    "sample space": lambda: sk.similarity_matrix({str(i): windows(14_000, 4000, i) for i in range(8)}),
    "feature space": lambda: sk.cka(windows(4_000_000, 400), windows(4_000_000, 300, 1)),
    "kernels": lambda: sk.cka(windows(14_000, 3000), windows(14_000, 3000, 1), kernel=sk.RBF()),
    "columns": lambda: sk.greedy_cka(windows(3_000_000, 700)),
    "wide layers": lambda: sums_of(plain(3000, 300_000, 8), None, "debiased", ForcedRoute(route="sample")),
    "long columns": lambda: sums_of(plain(5_000_000, 256, 8), None, "debiased", ForcedRoute(route="feature")),
}[sys.argv[1]]
small = sk.cka(windows(50, 3), windows(50, 4, 1))
print("ready", flush=True)
try:
    work()
except KeyboardInterrupt:
    print("stopped", flush=True)
else:
    print("ran to its end", flush=True)
assert sk.cka(windows(50, 3), windows(50, 4, 1)) == small
print("fit", flush=True)
"""


@pytest.mark.parametrize("work", ["sample space", "feature space", "kernels", "columns", "wide layers", "long columns"])
def test_ctrl_c_stops_a_long_call(work: str, tmp_path: Path) -> None:
    _stops(LONG, work, tmp_path)


SLOW = """
import math
from simkit.backends import native_cpu
from simkit.backends.base import CandidateProblem

n, units, diagonal = 512, 64, sys.argv[1] == "diagonal"
busy = 200_000 if diagonal else 1000  # sines of a value: a minute of them in one call

def slow(product, d):
    if (d == 0) == diagonal:
        for _ in range(busy):
            product = math.sin(product)
    return product

z = np.random.default_rng(0).standard_normal((units, n))
kernel = sk.CustomKernel(slow)
problem = CandidateProblem(z, np.arange(units + 1), kernel, math.nan, "biased", np.zeros(n))
kernel.address  # compiles it
print("ready", flush=True)
try:
    native_cpu.candidate_sums(problem, np.arange(units), np.arange(units), threads=2)
except KeyboardInterrupt:
    print("stopped", flush=True)
else:
    print("ran to its end", flush=True)
print("fit", flush=True)
"""


@pytest.mark.parametrize("part", ["tiles", "diagonal"])
def test_ctrl_c_stops_candidates_under_a_slow_kernel(part: str, tmp_path: Path) -> None:
    pytest.importorskip("numba")
    _stops(SLOW, part, tmp_path)


PEAK = """
n, p, kind = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
x, y = windows(n, p), windows(n, p // 2, 1)
def run(x, y):
    if kind == "feature":
        blocks = [prepare(as_matrix(a, name="a"), sk.Linear()) for a in (x, y)]
        normalised(blocks[:1], blocks[1:], "debiased", ForcedRoute(route="feature"))
    else:
        sk.cka(x, y, kernel={"linear": sk.Linear(), "rbf": sk.RBF(), "cosine": sk.Cosine()}[kind])
run(x[:300], y[:300])
before = now()
run(x, y)
print(peak() - before)
"""


@COUNTED
@pytest.mark.parametrize(
    ("n", "p", "kind"), [(6000, 800, "linear"), (6000, 100, "rbf"), (6000, 800, "cosine"), (6000, 2000, "feature")]
)
def test_no_matrix_of_samples_or_features_is_formed(n: int, p: int, kind: str, tmp_path: Path) -> None:
    """n × n in float32 takes 137 MiB at n = 6000."""
    extra = int(python(PEAK, n, p, kind, cwd=tmp_path))
    assert extra < 40 * MIB


STREAM = """
r = np.random.default_rng(0)
x = [np.maximum(r.standard_normal((1000, 96)), 0).astype(np.float32) for _ in range(5)]
stream = sk.StreamingCKA()
seen = []
for k in range(int(sys.argv[1]) // 1000):
    stream.update({"a": x[k % 5], "b": x[(k + 1) % 5][:, :40]}, {"c": x[(k + 2) % 5]})
    if stream.samples in (10_000, 100_000, 1_000_000):
        stream.compute()
        seen.append(peak())
print(*seen)
"""


@COUNTED
@pytest.mark.parametrize("rows", [100_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_a_streams_memory_does_not_grow(rows: int, tmp_path: Path) -> None:
    seen = [int(value) for value in python(STREAM, rows, cwd=tmp_path).split()]
    assert len(seen) == (3 if rows == 1_000_000 else 2)
    assert seen[-1] - seen[0] < 2 * MIB
