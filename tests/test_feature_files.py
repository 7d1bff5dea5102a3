"""Files of named representations: read exactly, mapped where possible, never unpickled; and tables of what came out."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import simkit as sk
from simkit.cli import main
from simkit.experiments.features import compare_files, read_features
from simkit.experiments.table import matrix_table, text_table
from simkit.metrics.nbs import NBS


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(8)


# --- files


def test_names_in_safetensors_are_ordered_by_their_numbers(tmp_path: Path) -> None:
    names = ["conv10", "block2.conv1", "conv2", "block10.conv1", "conv1"]
    save_file({name: np.ones((5, 2)) for name in names}, tmp_path / "a.safetensors")
    ordered = ["block2.conv1", "block10.conv1", "conv1", "conv2", "conv10"]
    assert list(read_features(tmp_path / "a.safetensors")) == ordered


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "int8", "uint16", "bool"])
def test_every_type_comes_back_as_it_was(tmp_path: Path, rng: np.random.Generator, dtype: str) -> None:
    values = (5 * rng.standard_normal((6, 2, 3))).clip(0, 9).astype(dtype)
    save_file({"first": np.ones(3, "uint8").reshape(3, 1)[:0], "map": values}, tmp_path / "a.safetensors")
    np.save(tmp_path / "map.npy", values)
    np.savez(tmp_path / "a.npz", map=values)
    with pytest.raises(ValueError, match=r"first in '.*a\.safetensors' has shape \(0, 1\): it is empty"):
        read_features(tmp_path / "a.safetensors")
    save_file({"first": np.ones((3, 1), "uint8"), "map": values}, tmp_path / "a.safetensors")
    for name in ("a.safetensors", "map.npy", "a.npz"):
        matrix = read_features(tmp_path / name)["map"]
        assert matrix.values.shape == (6, 6)
        np.testing.assert_array_equal(matrix.float64(), values.reshape(6, 6).astype("float64"))
        assert matrix.mapped == (values.dtype.kind == "f" and name != "a.npz")  # integers and booleans are cast


def test_bfloat16_is_mapped_and_exact(tmp_path: Path, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_tensors

    tensors = {name: torch.tensor(rng.standard_normal((40, 3, 4))).bfloat16() for name in ("a", "b")}
    save_tensors({**tensors, "c": torch.zeros(2, 2)}, tmp_path / "t.safetensors")
    read = read_features(tmp_path / "t.safetensors")
    assert (read["a"].dtype, read["a"].mapped) == ("bfloat16", True)
    np.testing.assert_array_equal(read["b"].float64(), tensors["b"].double().reshape(40, 12).numpy())
    save_tensors(tensors, tmp_path / "t.safetensors")
    matrix = compare_files([tmp_path / "t.safetensors"], measure=sk.CKA())
    assert matrix["a", "b"] == pytest.approx(sk.cka(tensors["a"], tensors["b"]), abs=1e-12)
    save_tensors({"bias": torch.zeros(4).bfloat16()}, tmp_path / "t.safetensors")
    with pytest.raises(ValueError, match=r"bias in '.*' has shape \(4,\): a representation is \[n, p\]"):
        read_features(tmp_path / "t.safetensors")


def test_no_file_is_unpickled(tmp_path: Path) -> None:
    objects = np.array([[{}, 1]], dtype=object)
    np.save(tmp_path / "o.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "o.npz", o=objects)
    for name in ("o.npy", "o.npz"):
        with pytest.raises(ValueError, match=r"holds Python objects, which are never unpickled") as raised:
            read_features(tmp_path / name)
        assert "allow_pickle" not in str(raised.value)


DAMAGE = {
    b"(70, 12)": [b"(70, 12 ", b"(70,-12)", b"(7\\,012)", b"(70,x12)", b'"70, 12)', b"(70, [2)"],
    b"'descr'": [b"'descr\"", b"\0descr'", b"{descr'", b"'desc\xff'"],
    b"'<f8'": [b"'<f0'", b"'>V8'", b"'|O8'", b"'<x8'", b" <f8 "],
}
"""Parts of the header of a NumPy file, and what as many bytes may become."""


@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_a_damaged_header_is_refused_in_one_sentence(
    tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (np.save if ending == "npy" else np.savez)(tmp_path / f"a.{ending}", np.ones((70, 12)))
    sound, file = (tmp_path / f"a.{ending}").read_bytes(), tmp_path / f"b.{ending}"
    for old, news in DAMAGE.items():
        for new in news:
            assert old in sound
            file.write_bytes(_with_right_sums(sound.replace(old, new)) if ending == "npz" else sound.replace(old, new))
            with pytest.raises((ValueError, TypeError), match=rf"^[^\n]*'.*b\.{ending}'[^\n]*$") as raised:
                read_features(file)
            assert type(raised.value) in (ValueError, TypeError), "no Unicode or JSON error"
            assert main(["compare", str(file)]) == 2
            assert capsys.readouterr().err.count("\n") == 1


def _with_right_sums(archive: bytes) -> bytes:
    """A zip archive of one member, stored, with the checksum that its bytes now have."""
    with zipfile.ZipFile(io.BytesIO(archive)) as read:
        (member,) = read.infolist()
    start = archive.index(b"\x93NUMPY")
    old, new = (
        crc.to_bytes(4, "little") for crc in (member.CRC, zlib.crc32(archive[start : start + member.file_size]))
    )
    return archive.replace(old, new)


def test_an_archive_that_damage_makes_encrypted_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((5, 2)))
    damaged = bytearray((tmp_path / "a.npz").read_bytes())
    for header, flags in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        damaged[damaged.index(header) + flags] |= 1
    (tmp_path / "a.npz").write_bytes(damaged)
    with pytest.raises(
        ValueError, match=r"^'.*a\.npz' is damaged or holds Python objects.*: File 'x\.npy' is encrypted"
    ):
        read_features(tmp_path / "a.npz")


def test_an_archive_for_which_memory_has_no_room_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((70, 12)))
    file, sound = tmp_path / "a.npz", (tmp_path / "a.npz").read_bytes()
    file.write_bytes(_with_right_sums(sound.replace(b"(70, 12), }        ", b"(7000000000000,12)}")))
    with pytest.raises(MemoryError, match=r"^'.*a\.npz' is damaged or needs more memory than there is: .*$"):
        read_features(file)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.safetensors"])
def test_damaged_bytes_are_refused_by_the_file_or_read(tmp_path: Path, name: str) -> None:
    file, r, values = tmp_path / name, np.random.default_rng(5), np.ones((7, 3))
    {"a.npy": np.save, "a.npz": np.savez, "a.safetensors": lambda to, x: save_file({"x": x}, to)}[name](file, values)
    sound, said = file.read_bytes(), []
    for _ in range(400):
        damaged = bytearray(sound)
        for at in r.integers(min(len(sound), 160), size=2) * r.choice([1, -1]):
            damaged[at] = (
                r.choice(list(b"0[({'\"\\-,\0\xff")) if r.random() < 0.5 else damaged[at] ^ (1 << r.integers(8))
            )
        file.write_bytes(damaged)
        try:
            read_features(file)
        except (ValueError, TypeError, MemoryError) as error:
            said.append(str(error))
    assert said
    assert all(str(file) in sentence and "\n" not in sentence for sentence in said)


def test_results_are_not_taken_for_features(tmp_path: Path, rng: np.random.Generator) -> None:
    sk.similarity_matrix({"a": rng.standard_normal((9, 3))}).save(tmp_path / "m.safetensors")
    sentence = r"m\.safetensors' is a saved SimilarityMatrix \(SimilarityMatrix\.load reads it\), not features \[n, p\]"
    with pytest.raises(ValueError, match=f"^'.*{sentence} to compare$"):
        compare_files([tmp_path / "m.safetensors"], measure=sk.CKA())
    for metadata in ("not JSON", "[]", '{"format": "another"}'):
        save_file({"x": rng.standard_normal((9, 3))}, tmp_path / "x.safetensors", {"simkit": metadata})
        assert list(read_features(tmp_path / "x.safetensors")) == ["x"]


def test_models_are_not_taken_for_features(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from simkit import pruning

    pruning.save(torch.nn.Linear(3, 3), tmp_path / "model.safetensors")
    sentence = r"is a model saved by simkit\.pruning\.save \(simkit\.pruning\.load reads it\), not features \[n, p\]"
    with pytest.raises(ValueError, match=rf"^'.*model\.safetensors' {sentence} to compare$"):
        read_features(tmp_path / "model.safetensors")


def test_arrays_under_the_other_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.eye(4))
    np.save(tmp_path / "b.npy", np.eye(4))
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    (tmp_path / "b.npy").rename(tmp_path / "b.npz")
    with pytest.raises(ValueError, match=r"'.*a\.npy' holds an archive of arrays: call it \.npz"):
        read_features(tmp_path / "a.npy")
    with pytest.raises(ValueError, match=r"'.*b\.npz' holds a single array: call it \.npy"):
        read_features(tmp_path / "b.npz")


# --- tables


def test_text_table_aligns() -> None:
    assert text_table(["", "b"], [["name", "1.0"], ["n", "-10.25"]]).splitlines() == [
        "           b",
        "name     1.0",
        "n     -10.25",
    ]


@pytest.mark.parametrize("width", [None, 1, 17, 18, 26, 80])
def test_wide_tables_are_folded_by_whole_columns(width: int | None, rng: np.random.Generator) -> None:
    values = rng.random((3, 5))
    values[1, 2] = np.nan
    names = tuple(f"column{i}" for i in range(5))
    matrix = sk.SimilarityMatrix(values, ("a", "bb", "a long row"), names, 9, "CKA()")
    folds = [table.splitlines() for table in matrix_table(matrix, width=width).split("\n\n")]
    assert [name for table in folds for name in table[0].split()] == list(names)
    for row, name in enumerate(matrix.rows):
        cells = [cell for table in folds for cell in table[row + 1].removeprefix(name).split()]
        assert cells == ["-" if np.isnan(value) else f"{value:.4f}" for value in values[row]]
    columns = [len(table[0].split()) for table in folds]
    assert columns == {None: [5], 1: [1] * 5, 17: [1] * 5, 18: [1] * 5, 26: [1] * 5, 80: [5]}[width]
    if width == 80:
        assert max(len(line) for table in folds for line in table) <= width


def test_a_matrix_of_another_measure_object() -> None:
    matrix = sk.similarity_matrix({"x": np.eye(6)[:, :3]}, measure=NBS())
    assert matrix_table(matrix).splitlines()[-1] == "x  1.0000"
