"""Greedy orders within ``memory=``: measured, the same answer, and a sentence where it is too little."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from resident import AS_ASKED, COUNTED, RESIDENT

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends import native_cpu, reference
from simkit.backends.base import Block
from simkit.backends.choose import choose
from simkit.backends.damage_room import PACKED, ROWS, plan_candidates
from simkit.backends.unit_features import host_features
from simkit.errors import TooLittleMemory
from simkit.kernels import Kernel
from simkit.metrics.kernel_damage import kernel_damage
from simkit.metrics.prepare import prepare

Array = npt.NDArray[Any]
SLACK = 300_000  # stacks of threads, and small blocks that the allocator keeps

SCRIPT = """
import json, sys
import numpy as np
import simkit as sk

name, n, p, dtype, memory, options, folder = json.loads(sys.argv[1])
kernel = sk.CustomKernel(lambda product, d: 1 / (1 + d)) if name == "Custom" else getattr(sk, name)()

def layer(n):
    x = np.maximum(np.random.default_rng(0).standard_normal((n, p)), 0).astype(dtype)
    if folder:
        np.save(folder + "/x.npy", x)
        x = np.load(folder + "/x.npy", mmap_mode="r")
    return x

small = layer(min(300, n // 2))
sk.greedy_cka(small, kernel=kernel, threads=2, count=1, **options)  # brings in code, arenas of the allocator
x = layer(n)
before = now()
found = sk.greedy_cka(x, kernel=kernel, threads=2, memory=memory, count=1, **options)
print(json.dumps([max(step.bytes for step in found.plan.steps), peak() - before]))
"""


def features(n: int, p: int, dtype: Any = np.float64) -> Array:
    r = np.random.default_rng([n, p])
    z = r.standard_normal((n, 4))
    return np.maximum(z @ r.standard_normal((4, p)) + r.standard_normal((n, p)), 0).astype(dtype)


def said(kernel: str, n: int, p: int, dtype: str, memory: int, folder: str = "", **options: Any) -> tuple[int, int]:
    """(bytes that the plan says, bytes that were resident beyond the features at most)."""
    case = json.dumps([kernel, n, p, dtype, memory, options, folder])
    script = [sys.executable, "-c", RESIDENT + SCRIPT, case]
    done = subprocess.run(script, capture_output=True, text=True, check=True, env={**os.environ, **AS_ASKED})
    of_plan, taken = json.loads(done.stdout)
    return of_plan, taken


@COUNTED
@pytest.mark.parametrize(
    ("kernel", "n", "p", "dtype", "memory", "options"),
    [
        ("Linear", 2000, 1500, "float32", 20_500_000, {}),  # of 18 MB of products; one worker
        ("Linear", 2000, 300, "float64", 3_000_000, {}),
        ("Linear", 2000, 512, "float64", 2_000_000, {"units": 64}),
        ("Linear", 2000, 512, "float64", 12_000_000, {"units": [k % 64 for k in range(512)]}),
        ("Linear", 2000, 100, "float32", 4_000_000, {"estimator": "debiased"}),
        ("RBF", 3000, 64, "float32", 22_500_000, {}),  # 18 MB of half a kernel
        ("RBF", 3000, 64, "float32", 6_000_000, {}),
        ("RBF", 3000, 64, "float64", 4_000_000, {"units": 8}),
        ("Laplacian", 3000, 64, "float32", 2_500_000, {"estimator": "debiased"}),
        ("Polynomial", 3000, 64, "float32", 4_000_000, {}),
        ("Custom", 3000, 64, "float32", 4_000_000, {}),
        ("Custom", 2000, 64, "float64", 20_000_000, {"units": 8}),
        # Row sums of some candidates; a reference takes its time.
        pytest.param("RBF", 60, 1500, "float64", 2_660_000, {"backend": "reference"}, marks=pytest.mark.slow),
        pytest.param("RBF", 60, 1500, "float32", 3_100_000, {"backend": "reference"}, marks=pytest.mark.slow),
    ],
)
@pytest.mark.process
def test_what_is_taken_is_what_was_allowed(
    kernel: str, n: int, p: int, dtype: str, memory: int, options: dict[str, Any]
) -> None:
    if kernel == "Custom":
        pytest.importorskip("numba")
    of_plan, taken = said(kernel, n, p, dtype, memory, **options)
    assert of_plan <= memory
    assert taken <= memory + SLACK


@COUNTED
@pytest.mark.parametrize(
    ("kernel", "p", "memory", "options"),
    [
        ("Linear", 300, 8_000_000, {}),
        ("Linear", 256, 24_000_000, {"units": [k % 64 for k in range(256)]}),
        ("RBF", 64, 14_000_000, {}),
    ],
)
@pytest.mark.process
def test_mapped_files_count(kernel: str, p: int, memory: int, options: dict[str, Any], tmp_path: Path) -> None:
    of_plan, taken = said(kernel, 8000, p, "float32", memory, str(tmp_path), **options)
    assert of_plan <= memory
    assert taken <= memory + SLACK


ROOMS: list[tuple[str, Kernel, dict[str, Any], int]] = [
    ("columns", sk.Linear(), {}, 600_000),
    ("channels", sk.Linear(), {"units": 4}, 600_000),
    ("ids", sk.Linear(), {"units": np.arange(24) % 6}, 900_000),
    ("debiased", sk.Linear(), {"estimator": "debiased"}, 900_000),
    ("rbf", sk.RBF(), {}, 2_000_000),
    ("laplacian", sk.Laplacian(), {"estimator": "debiased", "units": 8}, 2_000_000),
    ("polynomial", sk.Polynomial(), {}, 2_000_000),
    ("polynomial ids", sk.Polynomial(), {"units": np.arange(24) % 6}, 2_000_000),
]
if importlib.util.find_spec("numba"):
    cubic = sk.CustomKernel(lambda product, d: (product / 24 + 1) ** 3 + 1 / (1 + d))
    ROOMS += [("custom", cubic, {}, 2_000_000), ("custom debiased", cubic, {"estimator": "debiased"}, 2_000_000)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("kernel", "options", "memory"), [case[1:] for case in ROOMS], ids=[case[0] for case in ROOMS])
def test_the_answer_does_not_depend_on_the_memory(
    kernel: Kernel, options: dict[str, Any], memory: int, dtype: Any
) -> None:
    x = features(700, 24, dtype)
    free = sk.greedy_cka(x, kernel=kernel, **options)
    tight = sk.greedy_cka(x, kernel=kernel, memory=memory, **options)
    assert tight.order.tolist() == free.order.tolist()
    assert np.allclose(tight.cka, free.cka, rtol=0, atol=1e-12, equal_nan=True)
    ran = tight.plan.steps[0]
    assert 0 < ran.bytes <= memory
    text = sk.greedy_cka(x, kernel=kernel, memory=f"{memory // 1000} KB", **options)
    assert text.cka.tobytes() == tight.cka.tobytes()
    assert text.plan == tight.plan


@pytest.mark.parametrize("kernel", [sk.RBF(), sk.Polynomial()], ids=["rbf", "polynomial"])
def test_little_room_takes_fewer_candidates_and_holds_no_kernel(kernel: Kernel) -> None:
    """And no bit is another, whatever there is room for."""
    x = features(900, 12)
    block = prepare(as_matrix(x), kernel)
    free = sk.greedy_cka(x, kernel=kernel)
    with pytest.raises(TooLittleMemory) as refused:
        sk.greedy_cka(x, kernel=kernel, memory=1)
    least = refused.value.needed
    rooms = []
    for memory in (least, least + 50_000, 2 * least, 10 * least):
        room = plan_candidates(block, [1] * 12, double=True, threads=2, memory=memory)
        assert room.bytes <= memory
        rooms.append(room)
        assert sk.greedy_cka(x, kernel=kernel, memory=memory, threads=2).cka.tobytes() == free.cka.tobytes()
    assert rooms[0].packed == 0
    assert rooms[0].at_once < 12
    assert rooms[-1].threads == 2
    assert rooms[-1].at_once == 12
    assert rooms[-1].packed >= 900 * 900 // 2 * 8
    assert [room.at_once for room in rooms] == sorted(room.at_once for room in rooms)
    default = plan_candidates(block, [1] * 12, double=True, threads=2, memory=None)
    assert (default.threads, default.packed, default.at_once) == (2, PACKED, min(12, ROWS // (8 * 900)))


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize(("kernel", "options"), [case[1:3] for case in ROOMS], ids=[case[0] for case in ROOMS])
def test_too_little_is_refused_with_what_is_needed(
    kernel: Kernel, options: dict[str, Any], backend: str | None
) -> None:
    x = features(300, 24)
    with pytest.raises(TooLittleMemory, match=r"^memory=5000 bytes is too little: .* needs \d+$") as refused:
        sk.greedy_cka({"fc": x}, kernel=kernel, memory=5000, backend=backend, **options)
    needed = refused.value.needed
    with pytest.raises(TooLittleMemory, match=rf"^memory={needed - 1} bytes is too little: "):
        sk.greedy_cka(x, kernel=kernel, memory=needed - 1, backend=backend, **options)
    found = sk.greedy_cka(x, kernel=kernel, memory=needed, backend=backend, count=3, **options)
    assert found.order.tolist() == sk.greedy_cka(x, kernel=kernel, backend=backend, count=3, **options).order.tolist()


def test_no_column_is_brought_together_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the sums would find no room beside them."""
    x, brought = features(300, 24), []
    gather = native_cpu.gather_columns
    monkeypatch.setattr(native_cpu, "gather_columns", lambda *a: brought.append(a) or gather(*a))
    options: dict[str, Any] = {"units": np.arange(24) % 6}
    work = r"bringing the columns of 6 units of x together and comparing 6 layers of 300 samples"
    with pytest.raises(TooLittleMemory, match=rf": {work} needs \d+$") as refused:
        sk.greedy_cka(x, memory=x.nbytes + 1, **options)
    assert not brought
    sk.greedy_cka(x, memory=refused.value.needed, **options)
    assert len(brought) == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "p"), [(60, 600), (200, 40)])
def test_what_the_reference_takes_is_what_it_says(n: int, p: int, dtype: Any) -> None:
    """Counted by what NumPy asks for; and its calls are shorter where there is little room, to the same bits."""
    x = features(n, p, dtype)
    block, units = prepare(as_matrix(x), sk.RBF()), np.arange(p)
    with pytest.raises(TooLittleMemory) as refused:
        reference.plan_candidates(block, [1] * p, double=dtype is np.float64, threads=1, memory=1)
    sk.greedy_cka(x[:9, :3], kernel=sk.RBF(), backend="reference")  # imports what it takes
    scores, calls = [], []
    for memory in (refused.value.needed, refused.value.needed + 8 * n * p // 3, None):
        tracemalloc.start()
        try:
            damage, levels = kernel_damage(
                block, np.split(units, p), "biased", exact=False, backend="reference", threads=1, memory=memory
            )
            scores.append(damage.scores(units, units, levels).cka.tobytes())
            assert tracemalloc.get_traced_memory()[1] <= damage.room.bytes
        finally:
            tracemalloc.stop()
        assert memory is None or damage.room.bytes <= memory
        calls.append(damage.room.at_once)
    assert len(set(scores)) == 1
    assert calls == sorted(calls)
    assert calls[-1] == p


@pytest.mark.parametrize(("kernel", "options"), [(sk.Linear(), {}), (sk.Linear(), {"units": 6}), (sk.RBF(), {})])
def test_the_memory_is_that_of_one_layer(kernel: Kernel, options: dict[str, Any]) -> None:
    layers = {"a": features(400, 24), "b": features(300, 12), "c": features(500, 18)}
    found = sk.greedy_cka(layers, kernel=kernel, memory="3 MB", **options)
    for name, x in layers.items():
        alone = sk.greedy_cka(x, kernel=kernel, memory="3 MB", **options)
        assert found[name].order.tolist() == alone.order.tolist()
        assert found[name].cka.tobytes() == alone.cka.tobytes()
    layers["c"] = features(9000, 18)  # 1.3 MB of rows alone
    with pytest.raises(TooLittleMemory, match=r": leaving out the 18 units of c \[9000, 18\] needs \d+$"):
        sk.greedy_cka(layers, kernel=sk.RBF(), memory="1.3 MB")


@pytest.mark.parametrize("kernel", [sk.Linear(), sk.RBF()])
@pytest.mark.parametrize("wrong", [0, -1, True, "many", "5 XB", float("nan"), float("inf"), [1]])
def test_what_is_no_amount_of_bytes(kernel: Kernel, wrong: Any) -> None:
    with pytest.raises(ValueError, match=r'^memory must be a number of bytes or a text such as "64 MB", not '):
        sk.greedy_cka(features(30, 4), kernel=kernel, memory=wrong)


@pytest.mark.parametrize("kernel", [sk.RBF(), sk.Laplacian(), sk.Polynomial()])
@pytest.mark.parametrize(("n", "p"), [(5, 3), (700, 130), (40_000, 2)])
def test_units_are_formed_some_columns_at_a_time(kernel: Kernel, n: int, p: int) -> None:
    """Against the whole matrix at once."""
    x = features(n, p)
    block = Block(as_matrix(x), kernel, x.mean(axis=0), 1, length=2.0)
    columns = np.random.default_rng(0).permutation(p)
    got = host_features(block, columns, double=True)
    polynomial = isinstance(kernel, sk.Polynomial)
    unit = {sk.RBF: np.sqrt(2 * np.log(2)), sk.Laplacian: 2 * np.log(2)}.get(type(kernel), 1.0)
    want = (np.ldexp(x - (block.shift if polynomial else np.median(x, axis=0)), -1) / unit)[:, columns].T
    assert np.array_equal(got.z, want)
    assert got.sum_sq_dev == pytest.approx(n * want.var(axis=1), rel=1e-12)
    assert choose("unit_features").function(block, columns, double=False).z.dtype == np.float32
