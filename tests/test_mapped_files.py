"""Files that are larger than memory: the same answer, within a budget, whatever wrote them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from resident import AS_ASKED, COUNTED, RESIDENT

import simkit as sk
from simkit.arrays import as_matrix
from simkit.backends import native_cpu
from simkit.backends.base import Block
from simkit.backends.mapped import FOLIO, SUMS, Mapped, mapped_of, mapped_team
from simkit.backends.routes import PILOT, ROOM, TILES, plan_pair_sums, sample_workspace
from simkit.errors import TooLittleMemory
from simkit.experiments import features
from simkit.kernels import Kernel
from simkit.metrics.prepare import prepare

SAVE = """
import sys
import numpy as np
n, p, count, kind, folder = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
order, name = kind == "npy by columns", "l{}." + ("raw" if kind == "raw" else "npy")
shared = np.random.default_rng(99).standard_normal((n, 1), dtype=np.float32) / p**0.25
for k in range(count):
    where = folder + "/" + name.format(k)
    if kind == "columns of wider files":
        out = np.lib.format.open_memmap(where, mode="w+", dtype=np.float32, shape=(n, 4096))[:, :p]
    elif kind == "raw":
        out = np.memmap(where, mode="w+", dtype=np.float32, shape=(n, p), offset=128 * (k + 1))
    else:
        out = np.lib.format.open_memmap(where, mode="w+", dtype=np.float32, shape=(n, p), fortran_order=order)
    r = np.random.default_rng(k)
    for i in range(0, n, 512):
        own = r.standard_normal((min(512, n - i), p), dtype=np.float32)
        if kind == "equal rows":
            own[:: 2 << k] = own[0] + 1e-4 * own[:: 2 << k]
        out[i : i + 512] = np.maximum(own + shared[i : i + 512], 0)
if kind == "safetensors":
    import pathlib
    from safetensors.numpy import save_file
    files = sorted(pathlib.Path(folder).glob("*.npy"))
    save_file({path.stem: np.load(path) for path in files}, folder + "/layers.safetensors")
    for path in files:
        path.unlink()
"""

COMPARE = """
import json, pathlib, sys
import numpy as np
import simkit as sk
from simkit.experiments.features import read_features
folder, memory, kernel = pathlib.Path(sys.argv[1]), sys.argv[2], getattr(sk, sys.argv[3])()
n, p = int(sys.argv[4]), int(sys.argv[5])
def layers():
    if files := sorted(folder.glob("*.safetensors")):
        return dict(read_features(files[0]))
    if files := sorted(folder.glob("*.raw")):
        return {f.stem: np.memmap(f, np.float32, "r", 128 * (k + 1), (n, p)) for k, f in enumerate(files)}
    found = {path.stem: np.load(path, mmap_mode="r")[:, :p] for path in sorted(folder.glob("*.npy"))}
    return {name: x[::-1] for name, x in found.items()} if sys.argv[6] == "backwards" else found
names = list(layers())
r = np.random.default_rng(0)
measure = sk.CKA(kernel=kernel)
sk.similarity_matrix({name: r.standard_normal((700, 40)) for name in names}, measure=measure)
before = now()
m = sk.similarity_matrix(layers(), measure=measure, memory=memory)
taken = peak() - before
whole = {name: np.array(getattr(x, "values", x)) for name, x in layers().items()}
same = sk.similarity_matrix(whole, measure=measure)
route = next(step.route for step in m.plan.steps if step.op == "pair_sums")
print(json.dumps([taken, route, float(np.abs(m.values - same.values).max()), float(m.values[0, 1])]))
"""


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    environment = {**os.environ, **AS_ASKED}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def compared(kind: str, n: int, p: int, count: int, memory: str, kernel: str, folder: Path) -> tuple[int, str]:
    """(bytes resident at most beyond the start, route) of comparing files that together hold ``count`` layers."""
    run(SAVE, n, p, count, kind, folder)
    taken, route, difference, value = json.loads(run(RESIDENT + COMPARE, folder, memory, kernel, n, p, kind))
    assert difference < 1e-7
    assert 0.1 < value < 0.9
    return taken, route


@COUNTED
@pytest.mark.parametrize(
    ("kind", "n", "p", "kernel", "route"),
    [
        ("npy", 700, 8192, "Linear", "sample space"),
        ("safetensors", 700, 8192, "Linear", "sample space"),
        ("raw", 700, 8192, "Linear", "sample space"),
        ("npy", 60_000, 96, "Linear", "feature space"),
        ("safetensors", 1400, 4096, "RBF", "sample space"),
        ("backwards", 700, 8192, "Linear", "sample space"),
        ("columns of wider files", 1400, 64, "RBF", "sample space"),
        ("equal rows", 1400, 4096, "RBF", "sample space"),
    ],
)
@pytest.mark.process
def test_files_are_compared_within_a_budget(kind: str, n: int, p: int, kernel: str, route: str, tmp_path: Path) -> None:
    """69 MB of features, 16 MB of memory."""
    taken, ran = compared(kind, n, p, 3, "16 MB", kernel, tmp_path)
    assert ran == route
    assert taken < 16e6


@COUNTED
@pytest.mark.slow
@pytest.mark.parametrize(("n", "p", "route"), [(2048, 16_384, "sample space"), (500_000, 64, "feature space")])
@pytest.mark.parametrize("kind", ["npy", "safetensors"])
@pytest.mark.process
def test_a_gigabyte_of_files_within_64_megabytes(kind: str, n: int, p: int, route: str, tmp_path: Path) -> None:
    taken, ran = compared(kind, n, p, 8, "64 MB", "Linear", tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) > 1e9
    assert ran == route
    assert taken < 64e6


def test_a_layer_by_columns_needs_the_room_of_all_of_it(tmp_path: Path) -> None:
    """Each of its rows touches every page: it is held whole, or refused with what it needs."""
    layers = {}
    for k in range(2):
        x = np.lib.format.open_memmap(tmp_path / f"{k}.npy", "w+", np.float32, (600, 10_000), fortran_order=True)
        x[:] = np.random.default_rng(k).standard_normal(x.shape)
        layers[str(k)] = np.load(tmp_path / f"{k}.npy", mmap_mode="r")
    with pytest.raises(TooLittleMemory, match=r"needs 2\d{7}$"):
        sk.similarity_matrix(layers, memory="20 MB")
    m = sk.similarity_matrix(layers, memory="40 MB")
    same = sk.similarity_matrix({name: np.array(x) for name, x in layers.items()})
    np.testing.assert_allclose(m.values, same.values, rtol=0, atol=1e-9)


@pytest.mark.parametrize("offset", [0, 128, 4096, 2**20 + 64])
@pytest.mark.parametrize("n", [63, 64, 300])
def test_maps_and_what_lies_beside_them_are_left_as_they_were(n: int, offset: int, tmp_path: Path) -> None:
    """What is given back comes again from the file, and nothing else is given back."""
    r = np.random.default_rng(n)
    values = r.standard_normal((n, 700)).astype(np.float32)
    (tmp_path / "layer").write_bytes(b"\1" * offset + values.tobytes() + b"\1" * 999)
    x = np.memmap(tmp_path / "layer", np.float32, "r", offset, values.shape)
    copy = np.array(x)
    sk.similarity_matrix({"x": x, "y": copy}, measure=sk.CKA(estimator="biased"), memory="40 MB")
    for kernel in (sk.Linear(), sk.RBF()):
        views = {"x": x, "y": x[:, ::3], "z": x[:, 100:200], "up": x[::-1], "left": x[:, ::-1]}
        found = sk.similarity_matrix(views, measure=sk.CKA(kernel))
        copies = {name: np.array(view) for name, view in views.items()}
        np.testing.assert_array_equal(found.values, sk.similarity_matrix(copies, measure=sk.CKA(kernel)).values)
    np.testing.assert_array_equal(x, values)
    np.testing.assert_array_equal(copy, values)


def test_teams_are_as_large_as_their_pages_allow(tmp_path: Path) -> None:
    np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (600, 40_000))
    x = as_matrix(np.load(tmp_path / "x.npy", mmap_mode="r"))
    row, sums = 160_000, SUMS * 40_000
    each = 8 * row + 2 * FOLIO + sums
    budgets = (None, 1, sums + each, sums + 2 * each, sums + 3 * each - 1, 100 * each)
    assert [mapped_team(x, 8, memory) for memory in budgets] == [8, 1, 1, 2, 2, 8]
    assert mapped_team(as_matrix(np.zeros((600, 40))), 8, 1) == 8
    wide, by_columns = as_matrix(x.values[:6]), as_matrix(x.values.T)
    assert mapped_of([x, as_matrix(np.zeros((3, 3))), wide]) == Mapped(((row, 600 * row), (row, 6 * row)))
    assert mapped_of([by_columns]) == Mapped(((600 * row, 600 * row),))
    assert mapped_of([as_matrix(x.values[::-2])]) == Mapped(((2 * row, 599 * row),))
    assert Mapped(((row, 600 * row), (9, 6 * row))).pages(8, 2) == 2 * (8 * row + 2 * FOLIO)
    assert Mapped(((row, 600 * row), (10**9, 10**9))).pages(8) == 10**9


def test_rows_that_estimate_means_are_counted_once() -> None:
    """The engine holds a copy of them, whatever the workers, where they may lie all over a file."""
    p, item = 5000, 4
    for n, held in ((100, 100), (1000, PILOT), (10**6, PILOT)):
        mapped = Mapped(((p * item, n * p * item),))
        space, same = (sample_workspace(3, n, p, 8, "float64", where, linear=False) for where in (mapped, None))
        assert space.shared - same.shared == held * p * item
        assert sample_workspace(3, n, p, 8, "float64", mapped).shared == same.shared


def test_statistics_are_within_what_a_plan_counts() -> None:
    """Sums of columns are as long as the rows, and come to more than the walk over tiles takes of very wide layers."""
    n, p = 64, 10**6
    mapped = Mapped(((4 * p, 4 * n * p),))
    space = sample_workspace(3, n, p, 8, "float32", mapped)
    assert space.each >= 2 * SUMS * p + mapped.pages(8)
    assert space.each > sample_workspace(3, n, p, 8, "float32", None).each + mapped.pages(8, 2)


@pytest.mark.parametrize(("row", "whole"), [(2**16, 2**26), (2**26, 2**26), (2**33, 2**33)])
@pytest.mark.parametrize("kernel", [sk.Linear(), sk.RBF()])
def test_pages_make_tiles_no_smaller_where_no_memory_is_given(row: int, whole: int, kernel: Kernel) -> None:
    """Rows of a layer by columns are all of it, whatever the tile: a small one would only read it more often."""
    tile, _ = planned(kernel, Mapped(((row, whole),)))
    assert tile == planned(kernel, None)[0]


def test_pages_of_huge_rows_make_tiles_smaller() -> None:
    huge = Mapped(((2**24, 2**34),))
    tile, taken = planned(sk.Linear(), huge)
    least = planned(sk.Linear(), huge, tile=TILES[-1])[1]
    assert TILES[-1] < tile < planned(sk.Linear(), None)[0]
    assert least < taken <= ROOM + least


def planned(kernel: Kernel, mapped: Mapped | None, tile: int | None = None) -> tuple[int, int]:
    """(tile, bytes) of the sample-space route for two layers that lie so, on one thread and without ``memory=``."""
    x = as_matrix(np.broadcast_to(np.zeros(1, np.float32), (1024, 2**14)))
    plan = plan_pair_sums([Block(x, kernel, np.empty(0), 0)] * 2, None, route="sample", mapped=mapped, tile=tile)
    return plan.tile, plan.bytes


def test_every_pass_over_a_mapped_layer_has_its_team(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its two statistics and the norms between them, with no more workers than the memory has room for."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((70, 300)).astype(np.float32))
    x = as_matrix(np.load(tmp_path / "x.npy", mmap_mode="r"))
    core, teams = native_cpu._core(), []

    class Watched:
        def __getattr__(self, name: str) -> object:
            return getattr(core, name)

        def column_stats(self, *, threads: int, **options: object) -> object:
            teams.append(("column_stats", threads))
            return core.column_stats(threads=threads, **options)

        def row_norms(self, block: object, threads: int) -> object:
            teams.append(("row_norms", threads))
            return core.row_norms(block, threads)

    monkeypatch.setattr(native_cpu, "_core", Watched)
    each = mapped_of([x]).passing(x.p) + SUMS * x.p  # type: ignore[union-attr]
    scales = 8 * x.n  # of Cosine's rows
    for memory, team in ((each + scales, 1), (2 * each + scales, 2), (None, 7)):
        teams.clear()
        prepare(x, sk.Cosine(), backend="native_cpu", threads=7, memory=memory)
        assert teams == [("column_stats", team), ("row_norms", team), ("column_stats", team)]


def test_too_little_memory_is_said_before_files_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "layers.npz", **{name: np.random.default_rng(0).standard_normal((70, 5)) for name in "ab"})

    def read(*_: object) -> None:
        raise AssertionError("the files are read again")

    monkeypatch.setattr(features, "checked_stats", read)
    with pytest.raises(TooLittleMemory):
        features.compare_files([tmp_path / "layers.npz"], measure=sk.CKA(), memory="1 KB")
