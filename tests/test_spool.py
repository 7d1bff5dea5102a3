"""Features in memory and then on disk: the same bytes either way, and nothing left behind."""

from __future__ import annotations

import errno
import itertools
import os
import tempfile
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simkit.arrays import Matrix, as_matrix
from simkit.compare.spool import Spool

TOO_MANY = r"layers or more on disk take as many open files, more than are allowed here: raise that \(ulimit -n\), give"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def batches(dtype: str = "float32", sizes: tuple[int, ...] = (3, 1, 5)) -> list[dict[str, Matrix]]:
    rng = np.random.default_rng(0)

    def matrix(name: str, n: int, p: int) -> Matrix:
        if dtype == "bfloat16":
            return Matrix(name, rng.integers(0, 2**16, (n, p), dtype=np.uint16), dtype)
        return as_matrix(rng.standard_normal((n, p)).astype(dtype), name=name)

    return [{"a/x": matrix("x", n, 4), "b/x": matrix("x", n, 1), "../odd\0": matrix("odd", n, 7)} for n in sizes]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("ram", [0, 1, 100, 10**6])
def test_the_same_bytes_wherever_they_lie(temporary: Path, dtype: str, ram: int) -> None:
    parts = batches(dtype)
    with Spool(ram=ram) as spool:
        for batch in parts:
            for name, features in batch.items():
                spool.append(name, features)
        assert spool.on_disk == (ram < 10**6)
        assert spool.bytes == sum(m.values.nbytes for batch in parts for m in batch.values())
        stored = spool.matrices()
        assert list(stored) == ["a/x", "b/x", "../odd\0"]
        for name, matrix in stored.items():
            np.testing.assert_array_equal(matrix.values, np.concatenate([batch[name].values for batch in parts]))
            assert matrix.dtype == dtype
            assert matrix.mapped == spool.on_disk
            assert not matrix.values.flags.writeable
    assert list(temporary.iterdir()) == []


def test_strided_batches_are_stored_row_by_row(temporary: Path) -> None:
    x = np.arange(24.0).reshape(4, 6)
    with Spool(ram=0) as spool:
        spool.append("x", as_matrix(x[:, ::2]))
        spool.append("x", as_matrix(np.asfortranarray(x)[:, 1::2]))
        np.testing.assert_array_equal(spool.matrices()["x"].values, np.vstack([x[:, ::2], x[:, 1::2]]))


@pytest.mark.parametrize("ram", [0, 100])
def test_files_have_no_name_that_a_kill_could_leave(temporary: Path, ram: int) -> None:
    with Spool(ram=ram) as spool:
        for batch in batches():
            for name, features in batch.items():
                spool.append(name, features)
        assert spool.on_disk
        assert list(temporary.iterdir()) == []
        stored = spool.matrices()
    np.testing.assert_array_equal(stored["a/x"].values, np.concatenate([b["a/x"].values for b in batches()]))


def test_files_have_no_names_however_many(temporary: Path) -> None:
    names = [f"layer {k}" for k in range(200)]
    with Spool(ram=0) as spool:
        for part in (0, 1):
            for k, name in enumerate(names):
                spool.append(name, as_matrix(np.full((2, 2), k + part)))
        assert list(temporary.iterdir()) == []
        found = {name: matrix.values.tolist() for name, matrix in spool.matrices().items()}
        assert found == {name: [[k] * 2] * 2 + [[k + 1] * 2] * 2 for k, name in enumerate(names)}


@pytest.mark.parametrize("place", [None, "kept"])
@pytest.mark.parametrize("ram", [0, 10**4])  # from the first row, or when they are too many for memory
def test_more_layers_than_open_files_are_refused_in_a_sentence(ram: int, place: str | None, temporary: Path) -> None:
    """A file without a name takes one from its first row on, the others when they are mapped."""
    resource = pytest.importorskip("resource")
    directory = None if place is None else temporary / place
    if directory is not None:
        directory.mkdir()

    def spooled(layers: int) -> None:
        with Spool(ram=ram, directory=directory) as spool:
            for k in range(layers):
                spool.append(str(k), as_matrix(np.ones((10, 3))))
            spool.matrices()

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = next(number for number in itertools.count() if not _is_open(number))
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 20, limits[1]))
    try:
        with pytest.raises(OSError, match=TOO_MANY) as caught:
            spooled(100)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert caught.value.errno == errno.EMFILE


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def test_nothing_touches_the_disk_that_fits_in_memory(temporary: Path) -> None:
    with Spool(ram=10**4) as spool:
        spool.append("x", as_matrix(np.ones((2, 2))))
        assert list(temporary.iterdir()) == []


def test_a_given_folder_keeps_its_files_and_is_continued(tmp_path: Path) -> None:
    parts = batches()
    with Spool(ram=0, directory=tmp_path) as spool:
        for name, features in parts[0].items():
            spool.append(name, features)
        left = {name: replace(layer) for name, layer in spool.layers.items()}
        for name, features in parts[1].items():  # written, but not recorded: a kill in mid-batch
            spool.append(name, features)
    with Spool(ram=0, directory=tmp_path) as spool:
        spool.restore(left)
        for name, features in parts[2].items():
            spool.append(name, features)
        for name, matrix in spool.matrices().items():
            np.testing.assert_array_equal(matrix.values, np.concatenate([parts[i][name].values for i in (0, 2)]))
    assert len(list(tmp_path.iterdir())) == 3


def test_batches_that_do_not_fit_together(temporary: Path) -> None:
    with Spool(ram=100) as spool:
        spool.append("x", as_matrix(np.ones((2, 3))))
        with pytest.raises(ValueError, match="'x' has 4 features in one batch and 3 in another: pad"):
            spool.append("x", as_matrix(np.ones((2, 4))))
        with pytest.raises(ValueError, match="'x' is float32 in one batch and float64 in another"):
            spool.append("x", as_matrix(np.ones((2, 3), dtype=np.float32)))


def test_a_disk_too_small_is_found_at_the_start(temporary: Path) -> None:
    with pytest.raises(OSError, match=rf"the features need {2**60} bytes of disk and .* has \d+ free: set TMPDIR"):
        Spool(ram=1, expected=2**60)
    Spool(ram=2**61, expected=2**60)  # stays in memory: no matter


def test_a_disk_that_fills_up(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def close(self) -> None:
            pass

        def write(self, _: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    def opened(*_: Any, **__: Any) -> Full:
        return Full()

    with Spool(ram=0) as spool:
        monkeypatch.setattr(tempfile, "TemporaryFile", opened)
        with pytest.raises(OSError, match="the features need more than 32 bytes of disk") as caught:
            spool.append("x", as_matrix(np.ones((2, 2))))
        assert caught.value.errno == errno.ENOSPC
    with Spool(ram=100) as spool:
        for name in "xyz":
            spool.append(name, as_matrix(np.ones((2, 2))))
        with pytest.raises(OSError, match="the features need more than 96 bytes of disk"):
            spool.to_disk()
    assert list(temporary.iterdir()) == []


def test_finished_features_leave_memory_for_the_disk(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is room for them, which is asked before the first byte is written."""
    features = {"x": as_matrix(np.arange(8.0).reshape(4, 2)), "h": Matrix("h", np.ones((4, 3), np.uint16), "bfloat16")}
    with Spool(ram=1000) as spool:
        for name, matrix in features.items():
            spool.append(name, matrix)
        assert not any(matrix.mapped for matrix in spool.matrices().values())
        with monkeypatch.context() as small:
            small.setattr(spool, "_free", lambda: 87)
            with pytest.raises(OSError, match=r"the features need more than 88 bytes of disk and .* has 87 free"):
                spool.to_disk()
        assert not spool.on_disk
        held = [weakref.ref(layer.held) for layer in spool.layers.values()]
        spool.to_disk()
        assert spool.on_disk
        assert [memory() for memory in held] == [None, None]
        for name, matrix in spool.matrices().items():
            assert matrix.mapped
            assert matrix.dtype == features[name].dtype
            np.testing.assert_array_equal(matrix.values, features[name].values)
