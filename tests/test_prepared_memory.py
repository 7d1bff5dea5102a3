"""What layers hold once they are prepared, and what preparing them takes, is within ``memory=``: measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from resident import AS_ASKED, COUNTED, RESIDENT

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends import native_cpu
from simkit.backends.base import Block
from simkit.backends.mapped import FOLIO, SUMS
from simkit.backends.preparing import Pass, Preparing, pass_over, preparing_of, stats_team
from simkit.backends.routes import plan_pair_sums
from simkit.errors import TooLittleMemory
from simkit.kernels import Kernel
from simkit.metrics.measure import Measure

SLACK = 600_000  # stacks of threads, small blocks that the allocator keeps, and pages of code that run first
WIDE = 300_000
MEASURES = {"NBS": sk.NBS(), "Procrustes": sk.Procrustes(), "SVCCA": sk.SVCCA()}

SCRIPT = """
import json, sys
import numpy as np
import simkit as sk

name, count, others, n, p, dtype, memory, folder = json.loads(sys.argv[1])
measure = getattr(sk, name)() if name in ("NBS", "Procrustes", "SVCCA") else sk.CKA(getattr(sk, name)())
r = np.random.default_rng(0)

def layers(side, count):
    made = {}
    for k in range(count):
        x = np.stack([r.standard_normal(p).astype(dtype) for _ in range(n)]) if p > n else r.standard_normal((n, p))
        x = x.astype(dtype, copy=False)
        if folder:
            np.save(f"{folder}/{side}{k}.npy", x)
            x = np.load(f"{folder}/{side}{k}.npy", mmap_mode="r")
        made[f"{side}{k}"] = x
    return made

rows, columns = layers("row", count), layers("column", others) if others else None
small = {key: r.standard_normal((300, 30)).astype(dtype) for key in "abc"}
sk.similarity_matrix(small, small if others else None, measure=measure, threads=2)  # brings in code, arenas
before = now()
m = sk.similarity_matrix(rows, columns, measure=measure, memory=memory, threads=2)
print(json.dumps([max(step.bytes for step in m.plan.steps), peak() - before]))
"""


def taken(case: list[Any]) -> tuple[int, int]:
    """(bytes that the plan says, bytes resident at most beyond the features)."""
    command = [sys.executable, "-c", RESIDENT + SCRIPT, json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **AS_ASKED})
    said, resident = json.loads(done.stdout)
    return said, resident


def unread(n: int, p: int, dtype: Any = np.float32) -> Any:
    return np.broadcast_to(np.zeros(1, dtype), (n, p))


def refused(measure: Measure, count: int, others: int, x: Any, memory: int) -> TooLittleMemory:
    rows, columns = ({f"{side}{k}": x for k in range(number)} for side, number in (("r", count), ("c", others)))
    with pytest.raises(TooLittleMemory) as caught:
        sk.similarity_matrix(rows, columns or None, measure=measure, memory=memory, threads=2)
    return caught.value


# As (kernel or measure, rows, columns, n, p, type, memory that is too little).
TOO_LITTLE = [
    ("Cosine", 20, 0, 50_000, 4, "float32", 4_000_000),  # scales of rows
    ("Cosine", 10, 10, 50_000, 4, "float32", 4_000_000),
    ("Linear", 2, 0, 8, WIDE, "float32", 1_000_000),  # sums and means of columns
    ("Linear", 3, 0, 50, 60_000, "float64", 4_000_000),
    ("RBF", 3, 0, 50, 60_000, "float64", 4_000_000),
    ("Polynomial", 3, 0, 50, 60_000, "float32", 4_000_000),
    ("Cosine", 3, 0, 50, 60_000, "float32", 4_000_000),
    ("NBS", 3, 0, 2, WIDE, "float32", 20_000_000),
    ("SVCCA", 3, 0, 4, WIDE, "float32", 30_000_000),
]


@COUNTED
@pytest.mark.parametrize("case", TOO_LITTLE, ids=lambda case: f"{case[0]} {case[3]}x{case[4]}")
@pytest.mark.process
def test_what_preparing_takes_is_refused_or_kept_to(case: Any) -> None:
    """What the error names is enough, and no more is taken."""
    name, count, others, n, p, dtype, memory = case
    measure = MEASURES.get(name) or sk.CKA(getattr(sk, name)())
    needed = refused(measure, count, others, unread(n, p, dtype), memory).needed
    assert memory < needed
    said, resident = taken([name, count, others, n, p, dtype, needed, ""])
    assert said <= needed
    assert resident <= said + SLACK
    assert resident > said / 4 - SLACK  # what is asked for is not far more than what is used


@COUNTED
@pytest.mark.parametrize(
    ("name", "count", "n", "p", "least"),
    [("Cosine", 8, 100_000, 8, 6_400_000), ("NBS", 12, 20, 60_000, 28_800_000), ("SVCCA", 6, 20_000, 50, 40_000_000)],
)
@pytest.mark.process
def test_mapped_files_are_within_it_too(name: str, count: int, n: int, p: int, least: int, tmp_path: Path) -> None:
    """Pages that one layer was read from do not stay while the next is."""
    layers = {}
    for k in range(count):
        np.lib.format.open_memmap(tmp_path / f"{k}.npy", "w+", np.float32, (n, p))
        layers[f"{k}"] = np.load(tmp_path / f"{k}.npy", mmap_mode="r")
    measure = MEASURES.get(name) or sk.CKA(getattr(sk, name)())
    with pytest.raises(TooLittleMemory) as caught:
        sk.similarity_matrix(layers, measure=measure, memory=least, threads=2)
    said, resident = taken([name, count, 0, n, p, "float32", caught.value.needed, str(tmp_path)])
    assert resident <= said + SLACK
    assert said <= caught.value.needed


@pytest.mark.parametrize(
    "kernel", [sk.Linear(), sk.Cosine(), sk.RBF(), sk.Laplacian(), sk.Polynomial()], ids=lambda k: type(k).__name__
)
@pytest.mark.parametrize(("n", "p"), [(6, 5000), (60, 3000), (4000, 3)])
@pytest.mark.parametrize("others", [False, True])
def test_what_is_needed_is_enough_and_one_byte_less_is_not(kernel: Kernel, n: int, p: int, others: bool) -> None:
    r = np.random.default_rng(0)
    layers = {name: r.standard_normal((n, p)).astype(np.float32) for name in "abc"}
    options: dict[str, Any] = {"measure": sk.CKA(kernel), "others": dict(reversed(layers.items())) if others else None}
    with pytest.raises(TooLittleMemory) as caught:
        sk.similarity_matrix(layers, memory=1, **options)
    needed = caught.value.needed
    with pytest.raises(TooLittleMemory, match=rf"needs {needed}$"):
        sk.similarity_matrix(layers, memory=needed - 1, **options)
    tight, free = (sk.similarity_matrix(layers, memory=memory, **options) for memory in (needed, None))
    assert tight.plan.steps[0].bytes <= needed
    assert np.allclose(tight.values, free.values, rtol=0, atol=1e-6)


def test_it_is_refused_before_anything_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object, **__: object) -> None:
        raise AssertionError("a layer is read")

    monkeypatch.setattr(native_cpu, "column_stats", read)
    assert refused(sk.CKA(), 2, 0, unread(8, 10**6), 10**6).needed == 8 * 10**6 + 2 * SUMS * 10**6
    for units in (None, 4, np.arange(10**5) % 4):
        for kernel in (sk.Linear(), sk.RBF()):
            with pytest.raises(TooLittleMemory):
                sk.greedy_cka(unread(8, 10**5), units=units, kernel=kernel, memory=10**6)


@pytest.mark.parametrize("options", [{"units": 4}, {"units": 4, "estimator": "debiased"}, {"units": "ids"}])
def test_units_of_wide_layers(options: dict[str, Any]) -> None:
    x = np.random.default_rng(0).standard_normal((8, 20_000)).astype(np.float32)
    given = options | ({"units": np.arange(20_000) % 4} if options["units"] == "ids" else {})
    with pytest.raises(TooLittleMemory) as caught:
        sk.greedy_cka(x, memory=1_000_000, **given)
    needed = caught.value.needed
    assert needed >= 2 * SUMS * 20_000
    with pytest.raises(TooLittleMemory, match=rf"needs {needed}$"):
        sk.greedy_cka(x, memory=needed - 1, **given)
    found = sk.greedy_cka(x, memory=needed, **given)
    assert max(step.bytes for step in found.plan.steps) <= needed
    assert found.order.tolist() == sk.greedy_cka(x, **given).order.tolist()


def test_teams_are_as_large_as_the_sums_of_columns_allow() -> None:
    wide = as_matrix(unread(600, 40_000))
    sums = SUMS * 40_000
    budgets = (None, 1, 2 * sums, 3 * sums - 1, 3 * sums, 100 * sums)
    assert [stats_team(wide, 8, memory) for memory in budgets] == [8, 1, 1, 1, 2, 8]
    teams = [pass_over(wide, sk.Cosine()).team(8, None if m is None else m + 8 * 600) for m in budgets]
    assert teams == [8, 1, 1, 1, 2, 8]
    assert pass_over(wide, sk.Cosine()) == Pass(8 * 40_000 + 8 * 600, sums + 8 * 600, sums, 100)
    assert pass_over(wide, sk.RBF()).total(3) == 4 * sums
    assert pass_over(as_matrix(unread(7, 10**6)), sk.Linear()).total(64) == 3 * SUMS * 10**6  # two pieces of work


def test_layers_are_prepared_one_after_another() -> None:
    layers = [as_matrix(unread(50, p)) for p in (1000, 3000, 3000)]
    preparing = preparing_of((x, sk.Linear()) for x in layers)
    assert preparing.held == 8 * 7000
    assert len(preparing.passes) == 2
    assert preparing.least == 8 * 4000 + 2 * SUMS * 3000  # the last: its own means are among its sums
    assert preparing.taken(1, None) == preparing.least
    assert preparing.taken(8, preparing.least) == preparing.least
    assert Preparing(5, ()).least == Preparing(5, ()).taken(3, 1) == 5


def test_files_count_with_their_pages(tmp_path: Path) -> None:
    np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (600, 40_000))
    x = as_matrix(np.load(tmp_path / "x.npy", mmap_mode="r"))
    one, here = (pass_over(x, sk.Linear(), in_memory=known) for known in (False, True))
    assert one.each == here.each + 8 * 160_000 + 2 * FOLIO
    assert (one.held, one.once) == (here.held, here.once)


@pytest.mark.parametrize(("n", "p", "m"), [(8, 10**6, 2), (50, 200_000, 3), (2000, 4096, 12)])
def test_plans_without_memory_know_nothing_of_it(n: int, p: int, m: int) -> None:
    """As many workers and as large tiles as panels alone ask for."""
    blocks = [Block(as_matrix(unread(n, p)), sk.Linear(), np.empty(0), 0)] * m
    free, ample = (plan_pair_sums(blocks, None, threads=8, memory=memory) for memory in (None, 10**12))
    assert (free.name, free.threads) == (ample.name, ample.threads)
    assert free.bytes >= 8 * m * p
