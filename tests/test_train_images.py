"""Data sets of colour images: CIFAR-10 in both versions, SVHN, folders; nothing in a file is ever run."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import savemat

from simkit import train
from simkit.train.python_batches import read_python_batch

PYTHON = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")


@pytest.fixture(autouse=True)
def _no_data_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIMKIT_DATA", raising=False)


def batch(seed: int, n: int = 8) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (n, 3072), dtype=np.uint8), generator.integers(0, 10, n)


def write_python(folder: Path, protocol: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(PYTHON):
        pixels, labels = batch(seed)
        content = {b"batch_label": b"x", b"labels": labels.tolist(), b"data": pixels, b"filenames": [b"a.png"]}
        (folder / name).write_bytes(pickle.dumps(content, protocol=protocol))


def write_binary(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(PYTHON):
        pixels, labels = batch(seed)
        records = np.concatenate([labels[:, None].astype(np.uint8), pixels], axis=1)
        (folder / f"{name}.bin").write_bytes(records.tobytes())


def expected() -> tuple[np.ndarray, np.ndarray]:
    parts = [batch(seed) for seed in range(5)]
    pixels = np.concatenate([part[0] for part in parts]).reshape(-1, 3, 32, 32).astype(np.float64)
    mean, deviation = (function(pixels, axis=(0, 2, 3), keepdims=True) for function in (np.mean, np.std))
    return (pixels - mean) / deviation, np.concatenate([part[1] for part in parts])


@pytest.mark.parametrize(
    ("write", "inside"),
    [
        (write_binary, "cifar-10-batches-bin"),
        (write_python, "cifar-10-batches-py"),
        (lambda folder: write_python(folder, protocol=4), ""),
    ],
)
def test_cifar_is_standardised_by_channel(write: Callable[[Path], None], inside: str, tmp_path: Path) -> None:
    write(tmp_path / inside)
    data = train.cifar10(tmp_path)
    images, labels = expected()
    np.testing.assert_allclose(data.train_x.numpy(), images, atol=1e-5)
    assert data.train_y.tolist() == labels.tolist()
    assert (data.shape, len(data.test_x), data.classes, data.name) == ((3, 32, 32), 8, 10, "cifar10")


# What Python 2 wrote, as the published files are: strings, a global, a reduction and a state.
PUBLISHED = (
    b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x04testq\x03U\x06labelsq\x04]q\x05(K\x06K\x09eU\x04dataq\x06"
    b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\x09(K\x01K\x02K\x02\x86"
    b"cnumpy\ndtype\nq\x0aU\x02u1K\x00K\x01\x87Rq\x0b(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    b"\x89U\x04\x01\x02\x03\x04tbu."
)


def test_a_batch_as_python_2_wrote_it(tmp_path: Path) -> None:
    (tmp_path / "batch").write_bytes(PUBLISHED)
    pixels, labels = read_python_batch(tmp_path / "batch")
    assert pixels.tolist() == [[1, 2], [3, 4]]
    assert labels.tolist() == [6, 9]


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("owned",)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (pickle.dumps({b"labels": [1], b"data": Evil()}), "its data is no array but Call"),
        (pickle.dumps(Evil()), "no CIFAR-10 batch"),
        (pickle.dumps({"labels": [1], "data": np.zeros((1, 3), object)}, protocol=2), "are no unsigned bytes"),
        (pickle.dumps({"labels": [1], "data": np.zeros((1, 3), np.float64)}, protocol=2), "are no unsigned bytes"),
        (pickle.dumps({"labels": [1]}), "'data'"),
        (b"cos\nsystem\n(S'mkdir owned'\ntR.", "no CIFAR-10 batch"),
        (b"(ios\nsystem\n.", "the instruction INST, which no batch needs"),
        (PUBLISHED[:-20], "no CIFAR-10 batch"),
        (PUBLISHED.replace(b"K\x02K\x02\x86", b"K\x02K\x03\x86"), r"promise \(2, 3\) and hold 4 bytes"),
        (b"", "no CIFAR-10 batch"),
        (b"\x89PNG\r\n", "no CIFAR-10 batch"),
        (b"].", "no CIFAR-10 batch"),
        (b"e.", "no CIFAR-10 batch"),
    ],
)
def test_nothing_in_a_batch_is_run(content: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "batch").write_bytes(content)
    before = sorted(Path.cwd().iterdir())
    with pytest.raises(ValueError, match=sentence):
        read_python_batch(tmp_path / "batch")
    assert sorted(Path.cwd().iterdir()) == before


def test_damaged_cifar_files(tmp_path: Path) -> None:
    write_binary(tmp_path)
    whole = (tmp_path / "test_batch.bin").read_bytes()
    (tmp_path / "test_batch.bin").write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"holds 24583 bytes, not a multiple of 3073"):
        train.cifar10(tmp_path)
    (tmp_path / "test_batch.bin").write_bytes(b"\x0b" + whole[1:])
    with pytest.raises(ValueError, match="cifar10 has 10 classes, but its files hold the label 11"):
        train.cifar10(tmp_path)
    write_python(tmp_path / "cifar10")
    (tmp_path / "cifar10" / "data_batch_2").write_bytes(PUBLISHED)
    with pytest.raises(ValueError, match=r"holds data \(2, 2\) and 2 labels: they do not belong together"):
        train.cifar10(tmp_path)


def write_svhn(folder: Path, **changed: np.ndarray) -> None:
    for seed, name in enumerate(("train_32x32.mat", "test_32x32.mat")):
        pixels, labels = batch(seed, 12)
        content = {"X": pixels.reshape(-1, 3, 32, 32).transpose(2, 3, 1, 0), "y": labels[:, None] + 1}
        savemat(folder / name, {**content, **changed})


def test_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_svhn(tmp_path)
    monkeypatch.setenv("SIMKIT_DATA", str(tmp_path))
    data = train.svhn()
    pixels, labels = batch(0, 12)
    images = pixels.reshape(-1, 3, 32, 32)
    ranks = [np.argsort(np.argsort(values.ravel())) for values in (images[:, 0], data.train_x[:, 0].numpy())]
    assert np.corrcoef(*ranks)[0, 1] > 0.999
    assert data.train_y.tolist() == ((labels + 1) % 10).tolist()
    assert (data.shape, data.name) == ((3, 32, 32), "svhn")
    write_svhn(tmp_path, X=np.zeros((2, 2, 3, 5)))
    with pytest.raises(ValueError, match=r"holds images \(2, 2, 3, 5\) of float64 and 12 labels"):
        train.svhn()
    (tmp_path / "test_32x32.mat").write_bytes(b"junk")
    (tmp_path / "train_32x32.mat").write_bytes(b"junk" * 100)
    with pytest.raises(ValueError, match="is no file of SVHN"):
        train.svhn()


def write_images(root: Path, *places: str, size: tuple[int, int] = (6, 5), n: int = 5) -> None:
    image = pytest.importorskip("PIL.Image")
    for index, place in enumerate(places):
        (root / place).mkdir(parents=True, exist_ok=True)
        for number in range(n):
            pixels = np.random.default_rng([index, number]).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
            image.fromarray(pixels).save(root / place / f"{number}.png")


def test_folders_of_images(tmp_path: Path) -> None:
    write_images(tmp_path, "cat", "dog")
    (tmp_path / "notes").mkdir()
    (tmp_path / "cat" / "readme.txt").write_text("no image")
    data = train.folder(tmp_path)
    assert (data.shape, data.classes, len(data.train_x), len(data.test_x)) == ((3, 5, 6), 2, 8, 2)
    assert torch.bincount(data.train_y).tolist() == [4, 4]
    assert train.folder(tmp_path, size=4).shape == (3, 4, 4)
    split = tmp_path / "split"
    write_images(split, "train/cat", "train/dog", "test/cat", "test/dog", n=3)
    data = train.folder(split)
    assert sorted(data.train_y.tolist()) == sorted(data.test_y.tolist()) == [0, 0, 0, 1, 1, 1]


def test_first_images_of_a_folder_are_of_all_classes(tmp_path: Path) -> None:
    write_images(tmp_path, *(f"{part}/{name}" for part in ("train", "test") for name in ("cat", "cow", "dog")), n=20)
    data = train.folder(tmp_path)
    for images, labels in (data.train, data.test):
        assert torch.bincount(labels[:20], minlength=3).min() >= 2
        again = train.folder(tmp_path).train_x
        assert len(images) == 60
    assert torch.equal(data.train_x, again)


def test_folders_that_are_no_task(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the folder of images '.*absent' was not found: pass as path= one that"):
        train.folder(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"the folder of images  was not found|was not found"):
        train.folder("")
    write_images(tmp_path, "cat")
    with pytest.raises(ValueError, match="has 1 folders with images, and a task needs two classes"):
        train.folder(tmp_path)
    write_images(tmp_path, "dog", size=(4, 4))
    with pytest.raises(ValueError, match=r"is \(4, 4\) pixels large and others \(5, 6\): set size"):
        train.folder(tmp_path)
    with pytest.raises(ValueError, match="size must be an integer of at least 1, not 0"):
        train.folder(tmp_path, size=0)
    with pytest.raises(ValueError, match=r"test_fraction must lie between 0 and 1, not 1\.0"):
        train.folder(tmp_path, size=4, test_fraction=1.0)
    with pytest.raises(ValueError, match=r"has 10 images to train on and 0 to test on"):
        train.folder(tmp_path, size=4, test_fraction=0.05)
    (tmp_path / "cat" / "9.png").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"9.png' cannot be read: cannot identify image file"):
        train.folder(tmp_path, size=4)
    split = tmp_path / "split"
    write_images(split, "train/cat", "train/dog", "test/cat", "test/cow")
    with pytest.raises(ValueError, match="the class 'cow' is not in both"):
        train.folder(split)


@pytest.mark.parametrize("loader", [train.cifar10, train.svhn])
def test_a_missing_data_set_says_where_to_put_it(loader: Any, tmp_path: Path) -> None:
    said = r"was not found: put .* into a folder and pass it as path= \(--set data\.path=FOLDER\), or into \$SIMKIT"
    with pytest.raises(ValueError, match=said):
        loader(tmp_path)


def test_samples_are_held_out_by_class() -> None:
    data = train.digits()
    (x, _), validation = train.held_out(data, 0.25)
    assert validation is not None
    assert len(x) + len(validation[0]) == len(data.train_x)
    share = torch.bincount(validation[1]) / torch.bincount(data.train_y)
    assert float((share - 0.25).abs().max()) < 0.01
    assert train.held_out(data, 0.0) == (data.train, None)
    for fraction in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="the share to validate on must be at least 0 and below 1"):
            train.held_out(data, fraction)
    with pytest.raises(ValueError, match="leaves 1438 of 1438 samples to train on and 0 to validate on"):
        train.held_out(data, 1e-6)
