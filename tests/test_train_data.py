"""Data sets: digits, and IDX files good and bad."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from simkit import train
from simkit.train.data import stratified_split
from simkit.train.idx import read_idx

STEMS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def arrays() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (n, 5, 4)) for n in (30, 20)]
    labels = [np.arange(n) % 10 for n in (30, 20)]
    return dict(zip(STEMS, (images[0], labels[0], images[1], labels[1]), strict=True))


def write(folder: Path, zipped: bool = False, **changed: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for stem, array in {**arrays(), **changed}.items():
        data = idx(array)
        (folder / f"{stem}{'.gz' if zipped else ''}").write_bytes(gzip.compress(data) if zipped else data)
    return folder


@pytest.fixture(autouse=True)
def _no_data_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIMKIT_DATA", raising=False)


def test_digits_are_stratified_standardised_and_the_same_every_time() -> None:
    data = train.digits()
    assert data.shape == (1, 8, 8)
    assert (len(data.train_x), len(data.test_x), data.classes, data.name) == (1438, 359, 10, "digits")
    assert (data.train_x.dtype, data.train_y.dtype) == (torch.float32, torch.int64)
    assert abs(float(data.train_x.mean())) < 1e-6
    assert float(data.train_x.std(correction=0)) == pytest.approx(1.0, abs=1e-6)
    everything = torch.bincount(torch.cat([data.train_y, data.test_y]))
    share = torch.bincount(data.test_y) / everything
    assert float((share - 0.2).abs().max()) < 0.005
    again, other = train.digits(), train.digits(seed=1)
    assert torch.equal(data.test_x, again.test_x)
    assert not torch.equal(data.test_x, other.test_x)
    assert data.train[0] is data.train_x
    assert data.test[1] is data.test_y


def test_the_split_holds_every_sample_once() -> None:
    labels = np.repeat(np.arange(3), (7, 20, 1))
    first, second = stratified_split(labels, 0.25, 0)
    assert sorted([*first, *second]) == list(range(28))
    assert np.bincount(labels[second], minlength=3).tolist() == [2, 5, 0]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, float("nan")])
def test_bad_fraction(fraction: float) -> None:
    with pytest.raises(ValueError, match="test_fraction must lie between 0 and 1"):
        train.digits(test_fraction=fraction)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("inside", ["", "fashion-mnist", "FashionMNIST/raw"])
@pytest.mark.parametrize("configured", [False, True])
def test_idx_files_are_found(
    zipped: bool, inside: str, configured: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / inside, zipped)
    if configured:
        monkeypatch.setenv("SIMKIT_DATA", str(tmp_path))
    data = train.fashion_mnist(None if configured else tmp_path)
    pixels = arrays()[STEMS[0]].astype(np.float64)
    expected = (pixels - pixels.mean()) / pixels.std()
    np.testing.assert_allclose(data.train_x[:, 0].numpy(), expected, atol=1e-5)
    assert data.test_y.tolist() == (np.arange(20) % 10).tolist()
    assert (data.shape, data.name, data.classes) == ((1, 5, 4), "fashion-mnist", 10)


def test_named_folders_win_over_loose_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    write(tmp_path / "mnist", **{STEMS[1]: np.zeros(30)})
    monkeypatch.setenv("SIMKIT_DATA", str(tmp_path))
    assert int(train.mnist().train_y.sum()) == 0


@pytest.mark.parametrize("loader", [train.fashion_mnist, train.mnist])
def test_a_missing_data_set_is_one_sentence_that_says_where_to_put_it(loader: object, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"mnist was not found: put train-images-idx3-ubyte, .* \$SIMKIT_DATA/"
    ) as error:
        loader(tmp_path)  # type: ignore[operator]
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_half_a_data_set_is_missing(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / STEMS[3]).unlink()
    with pytest.raises(ValueError, match="fashion-mnist was not found"):
        train.fashion_mnist(tmp_path)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({STEMS[1]: np.zeros(29)}, r"holds images \(30, 5, 4\) and 'train-labels.* labels \(29,\): they do not belong"),
        ({STEMS[0]: np.zeros(30)}, r"they do not belong together"),
        ({STEMS[2]: np.zeros((20, 4, 4))}, r"has training images \(30, 5, 4\) and test images \(20, 4, 4\)"),
        ({STEMS[3]: np.full(20, 11)}, r"has 10 classes, but its files hold the label 11"),
        ({STEMS[0]: np.zeros((0, 5, 4)), STEMS[1]: np.zeros(0)}, r"they do not belong together"),
        ({STEMS[0]: np.zeros((30, 0, 4))}, r"they do not belong together"),
        ({STEMS[0]: np.full((30, 5, 4), 7)}, r"every training pixel of fashion-mnist has the value 7.0"),
    ],
)
def test_files_that_do_not_belong_together(changed: dict[str, np.ndarray], sentence: str, tmp_path: Path) -> None:
    write(tmp_path, **changed)
    with pytest.raises(ValueError, match=sentence):
        train.fashion_mnist(tmp_path)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 3, 4), (2, 0, 3)])
def test_read_idx(shape: tuple[int, ...], tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    for data in (idx(array), gzip.compress(idx(array))):
        (tmp_path / "file").write_bytes(data)
        np.testing.assert_array_equal(read_idx(tmp_path / "file"), array)


GOOD = idx(np.arange(24).reshape(2, 3, 4))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "is no IDX file: it starts with nothing"),
        (b"\x00\x00\x08", "is no IDX file: it starts with 000008"),
        (b"\x89PNG" + GOOD, "is no IDX file: it starts with 89504e47"),
        (idx(np.zeros(3), kind=0x0D), "holds IDX type 0x0d in 1 dimensions, not unsigned bytes"),
        (b"\x00\x00\x08\x00", "holds IDX type 0x08 in 0 dimensions"),
        (GOOD[:10], "ends within its header of 3 sizes"),
        (GOOD[:-1], r"promises 24 bytes for \(2, 3, 4\) and holds only 23"),
        (GOOD + b"\x00", r"promises 24 bytes for \(2, 3, 4\) and holds more"),
        (b"\x00\x00\x08\x02" + b"\xff" * 8, r"promises \(4294967295, 4294967295\), more than"),
        (gzip.compress(GOOD, mtime=0)[:-9], "is a damaged gzip file"),
        (gzip.compress(GOOD, mtime=0)[:10] + b"\xff" * 20, "is a damaged gzip file"),
        (gzip.compress(GOOD[:-1], mtime=0), "holds only 23"),
        (gzip.compress(GOOD, mtime=0)[:-8] + bytes(8), "is a damaged gzip file"),
    ],
)
def test_bad_idx_files(data: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(ValueError, match=sentence):
        read_idx(tmp_path / "file")


@pytest.mark.slow
@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_itself() -> None:
    data = train.fashion_mnist()
    assert (data.train_x.shape, data.test_x.shape) == ((60_000, 1, 28, 28), (10_000, 1, 28, 28))
    assert torch.bincount(data.test_y).tolist() == [1000] * 10
    model = train.mlp(784, (64,), seed=0)
    options = train.TrainOptions(epochs=2, lr=0.1, batch_size=128, schedule="cosine")
    assert train.fit(model, data.train, options, validation=data.test).last.validation.accuracy > 0.83
