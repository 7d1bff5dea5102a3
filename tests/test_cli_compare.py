"""simkit compare: what it prints and writes, and one sentence for every mistake."""

from __future__ import annotations

import csv
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import Run, assert_one_sentence, python
from safetensors.numpy import save_file

import simkit as sk
from simkit import cli
from simkit.errors import SimkitWarning
from simkit.experiments.features import compare_files
from simkit.metrics.cca import cca
from simkit.metrics.nbs import nbs
from simkit.metrics.procrustes import procrustes

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def features(rng: np.random.Generator) -> dict[str, np.ndarray]:
    x = rng.standard_normal((60, 7))
    return {"x": x, "y": x @ rng.standard_normal((7, 5)) + rng.standard_normal((60, 5))}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(8)


# --- good runs


def test_one_file_with_itself(run_simkit: Run, tmp_path: Path, features: dict[str, np.ndarray]) -> None:
    save_file(features, tmp_path / "a.safetensors")
    code, out, err = run_simkit("compare", tmp_path / "a.safetensors")
    assert (code, err) == (0, "")
    score = sk.cka(features["x"], features["y"])
    assert out.splitlines() == [
        "CKA(kernel=Linear(), estimator='debiased'), n = 60",
        "",
        "        x       y",
        f"x  1.0000  {score:.4f}",
        f"y  {score:.4f}  1.0000",
    ]


def test_two_files_rows_against_columns(run_simkit: Run, tmp_path: Path, features: dict[str, np.ndarray]) -> None:
    save_file(features, tmp_path / "a.safetensors")
    np.savez(tmp_path / "b.npz", only=features["y"])
    code, out, _ = run_simkit("compare", tmp_path / "a.safetensors", tmp_path / "b.npz", "--measure", "nbs")
    assert code == 0
    assert out.startswith(f"NBS(), n = 60; rows: {tmp_path / 'a.safetensors'}, columns: {tmp_path / 'b.npz'}\n")
    assert f"\nx  {nbs(features['x'], features['y']):.4f}\n" in out


def test_more_files_all_with_one_another(tmp_path: Path, features: dict[str, np.ndarray]) -> None:
    np.save(tmp_path / "one.npy", features["x"])
    np.savez(tmp_path / "two.npz", **features)
    np.save(tmp_path / "three.npy", features["y"])
    files = [tmp_path / name for name in ("one.npy", "two.npz", "three.npy")]
    matrix = compare_files(files, measure=sk.CKA())
    assert matrix.rows == matrix.columns == ("one", "two:x", "two:y", "three")
    assert matrix["one", "two:y"] == pytest.approx(sk.cka(features["x"], features["y"]), abs=1e-12)
    (tmp_path / "deeper").mkdir()
    np.save(tmp_path / "deeper" / "one.npy", features["y"])
    files.append(tmp_path / "deeper" / "one.npy")
    assert compare_files(files, measure=sk.CKA()).rows[-1] == str(files[-1])  # two stems alike: whole paths


@pytest.mark.parametrize(
    ("options", "truth"),
    [
        (["--estimator", "biased"], lambda x, y: sk.cka(x, y, estimator="biased")),
        (["--kernel", "rbf"], lambda x, y: sk.cka(x, y, kernel=sk.RBF(0.5))),
        (["--kernel", "rbf:0.3"], lambda x, y: sk.cka(x, y, kernel=sk.RBF(0.3))),
        (["--kernel", "laplacian:1"], lambda x, y: sk.cka(x, y, kernel=sk.Laplacian(1.0))),
        (["--kernel", "polynomial:2"], lambda x, y: sk.cka(x, y, kernel=sk.Polynomial(2))),
        (["--kernel", "cosine"], lambda x, y: sk.cka(x, y, kernel=sk.Cosine())),
        (["--memory", "1 MB"], sk.cka),
        (["--measure", "procrustes"], procrustes),
        (["--measure", "cca"], lambda x, y: cca(x, y).mean),
        (["--measure", "r2-cca"], lambda x, y: cca(x, y).r2),
    ],
)
def test_options_reach_the_measure(
    run_simkit: Run,
    tmp_path: Path,
    features: dict[str, np.ndarray],
    options: list[str],
    truth: Callable[[np.ndarray, np.ndarray], float],
) -> None:
    for name, values in features.items():
        np.save(tmp_path / f"{name}.npy", values)
    out = tmp_path / "m.json"
    code, _, err = run_simkit("compare", tmp_path / "x.npy", tmp_path / "y.npy", *options, "--out", out)
    assert (code, err) == (0, "")
    assert json.loads(out.read_text())["values"][0][0] == pytest.approx(truth(features["x"], features["y"]), abs=1e-12)


@pytest.mark.parametrize("measure", cli.MEASURES)
def test_every_measure_knows_itself(
    run_simkit: Run, tmp_path: Path, features: dict[str, np.ndarray], measure: str, rng: np.random.Generator
) -> None:
    """A rotated and scaled copy: similarity 1, distance 0."""
    rotation, _ = np.linalg.qr(rng.standard_normal((7, 7)))
    np.save(tmp_path / "x.npy", features["x"])
    np.save(tmp_path / "y.npy", 3.0 * features["x"] @ rotation)
    out = tmp_path / "m.json"
    assert run_simkit("compare", tmp_path / "x.npy", tmp_path / "y.npy", "--measure", measure, "--out", out)[0] == 0
    expected = 0.0 if measure == "procrustes" else 1.0
    assert json.loads(out.read_text())["values"][0][0] == pytest.approx(expected, abs=1e-7)


def test_outputs(run_simkit: Run, tmp_path: Path, features: dict[str, np.ndarray]) -> None:
    np.savez(tmp_path / "a.npz", **features, flat=np.ones((60, 2)))
    names = ("m.png", "m.csv", "m.json", "m.safetensors")
    options = [part for name in names for part in ("--out", tmp_path / name)]
    code, out, _ = run_simkit("compare", tmp_path / "a.npz", "--explain", *options)
    assert code == 0
    assert out.count("flat: every feature is constant over the samples") == 1
    assert "\npair_sums: native_cpu, " in out
    saved = sk.SimilarityMatrix.load(tmp_path / "m.safetensors")
    assert (tmp_path / "m.png").read_bytes().startswith(PNG)
    rows = list(csv.reader((tmp_path / "m.csv").read_text().splitlines()))
    assert rows[0] == ["layer", "x", "y", "flat"]
    assert float(rows[1][2]) == saved["x", "y"]
    data = json.loads((tmp_path / "m.json").read_text())
    assert (data["rows"], data["samples"]) == (["x", "y", "flat"], 60)
    assert data["values"][0][1] == saved["x", "y"]
    assert data["values"][2] == [None] * 3
    assert {"side": "row", "name": "flat", "reason": "every feature is constant over the samples"} in data["degenerate"]
    assert data["plan"]["steps"][0]["backend"] == "native_cpu"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "a.npz"])  # no temporary files


def test_warnings_are_one_line_each(run_simkit: Run, tmp_path: Path, rng: np.random.Generator) -> None:
    np.save(tmp_path / "wide.npy", rng.standard_normal((10, 30)))
    with warnings.catch_warnings():
        warnings.simplefilter("error", SimkitWarning)  # the command line shows them all the same
        code, out, err = run_simkit("compare", tmp_path / "wide.npy", "--measure", "cca")
    assert code == 0
    assert "1.0000" in out
    assert err.startswith("simkit: warning: wide has rank 9 on 10 samples")
    assert err.count("\n") == 1


def test_names_that_would_write_to_the_terminal_are_shown_escaped(
    run_simkit: Run, tmp_path: Path, features: dict[str, np.ndarray]
) -> None:
    x = features["x"]
    np.savez(tmp_path / "a.npz", **{"two\nlines": x, "\x1b[31mred": np.ones_like(x), "größe": x})
    code, out, err = run_simkit("compare", tmp_path / "a.npz", "--measure", "nbs")
    assert (code, err) == (0, "")
    assert [line.split(" ")[0] for line in out.splitlines()[3:]] == [
        "two\\nlines",
        "\\x1b[31mred",
        "größe",
        "\\x1b[31mred:",
    ]
    np.savez(tmp_path / "bad.npz", **{"\x1b[31mred": np.full_like(x, np.nan)})
    result = run_simkit("compare", tmp_path / "bad.npz")
    assert_one_sentence(*result)
    assert "\\x1b[31mred in '" in result[2]


def test_a_terminal_that_lacks_a_character(tmp_path: Path, features: dict[str, np.ndarray]) -> None:
    np.savez(tmp_path / "a.npz", größe=features["x"])
    done = python("-m", "simkit", "compare", "a.npz", cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "gr\\xf6\\xdfe" in done.stdout


# --- mistakes

BAD_FILES = {
    "absent.npy": (None, r"there is no file '.*absent\.npy'"),
    "a.txt": (b"1 2\n", r"'.*a\.txt' must end in \.safetensors, \.npz, \.npy"),
    "bad.safetensors": (b"\xff" * 64, r"'.*' is not a safetensors file: .*header"),
    "empty.safetensors": (b"", r"'.*' is not a safetensors file"),
    "empty.npy": (b"", r"'.*empty\.npy' is damaged"),
    "bad.npy": (b"\x93NUMPY\x01\x00", r"'.*bad\.npy' is damaged"),
    "bad.npz": (b"PK\x03\x04nonsense", r"'.*bad\.npz' is damaged"),
    "none.safetensors": (b"\x02" + bytes(7) + b"{}", r"'.*none\.safetensors' holds no arrays"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(run_simkit: Run, tmp_path: Path, name: str) -> None:
    content, sentence = BAD_FILES[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    result = run_simkit("compare", tmp_path / name)
    assert_one_sentence(*result)
    assert re.search(sentence, result[2]), result[2]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], r"required: FILE \(see simkit compare --help\)"),
        (["x.npy", "short.npy"], r"x in 'x\.npy' has 60 samples and short in 'short\.npy' has 59"),
        (["x.npy", "y.npy", "short.npy"], r"x in 'x\.npy' has 60 samples and short in 'short\.npy' has 59"),
        (["x.npy", "nan.npz"], r"x in 'nan\.npz' has 2 non-finite entries, the first at row 3, column 4"),
        (["x.npy", "nan.npz", "--measure", "svcca"], r"x in 'nan\.npz' has 2 non-finite entries"),
        (["flat.npy"], r"flat in 'flat\.npy' has shape \(60,\): a representation is \[n, p\]"),
        (["text.npy"], r"text in 'text\.npy' holds text: numbers are needed$"),
        (["complex.npy"], r"complex in 'complex\.npy' has dtype complex128"),
        (["few.npy"], r"the debiased estimator needs at least 4 samples, not 3"),
        (["x.npy", "y.npy", "x.npy"], r"'x\.npy' is given twice"),
        (["x.npy", "--measure", "cks"], r"--measure: invalid choice: 'cks'"),
        (["x.npy", "--estimator", "unbiased"], r"--estimator: invalid choice: 'unbiased'"),
        (["x.npy", "--measure", "nbs", "--estimator", "biased"], r"--estimator biased belongs to --measure cka"),
        (["x.npy", "--measure", "nbs", "--kernel", "rbf"], r"--kernel rbf belongs to --measure cka, not to nbs"),
        (["x.npy", "--kernel", "gauss"], r"--kernel gauss is none of linear, cosine, rbf\[:BANDWIDTH\]"),
        (["x.npy", "--kernel", ""], r"--kernel '' is none of linear, "),
        (["x.npy", "--kernel", "rbf:"], r"--kernel rbf:: '' is not a number$"),
        (["x.npy", "--kernel", "linear:2"], r"--kernel linear:2 is none of"),
        (["x.npy", "--kernel", "rbf:wide"], r"--kernel rbf:wide: 'wide' is not a number$"),
        (["x.npy", "--kernel", "rbf:-1"], r"--kernel rbf:-1: .*must be a positive number, not -1\.0"),
        (["x.npy", "--kernel", "polynomial:0.5"], r"--kernel polynomial:0\.5: '0\.5' is not a whole number$"),
        (["x.npy", "--memory", "much"], r"memory must be a number of bytes .* not 'much'"),
        (["x.npy", "--memory", "10"], r"memory=10 bytes is too little"),
        (["x.npy", "--out", "m.doc"], r"the output 'm\.doc' must end in \.png, "),
        (["x.npy", "--out", "m"], r"the output 'm' must end in \.png, "),
        (["x.npy", "--out", "nowhere/m.png"], r"no folder 'nowhere' to write 'm\.png' into"),
        (["x.npy", "--out", "x.npy/m.png"], r"no folder 'x\.npy' to write 'm\.png' into"),
        (["x.npy", "--out", "folder.csv"], r"the output 'folder\.csv' is a folder"),
        (["x.npy", "--mem", "10"], r"unrecognized arguments: --mem 10 \(see simkit compare --help\)"),
        ([""], r"'\.' is a folder, not a file of named arrays"),
        (["x.npy", "--out", ""], r"the output '' must end in \.png, "),
        (["folder.csv"], r"'folder\.csv' is a folder, not a file of named arrays"),
        (["records.npy"], r"records in 'records\.npy' holds records: numbers are needed$"),
        (["x.npy", "--measure", "nbs", "--memory", "9"], r"memory=9 bytes is too little: .* by NBS\(\) needs \d+$"),
        (["in.safetensors", "--out", "./in.safetensors"], r"the output 'in\.safetensors' is one of the files to"),
    ],
)
def test_mistakes(
    run_simkit: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    features: dict[str, np.ndarray],
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    holes = features["x"].copy()
    holes[3, 4] = holes[5, 0] = np.nan
    np.savez("nan.npz", x=holes)
    arrays = {
        **features,
        "short": features["x"][:-1],
        "few": features["x"][:3],
        "flat": features["x"][:, 0],
        "text": np.array([["a"], ["b"]]),
        "complex": features["x"] * 1j,
        "records": np.zeros(5, dtype=[("a", "f4"), ("b", "f8")]),
    }
    for name, values in arrays.items():
        np.save(f"{name}.npy", values)
    Path("folder.csv").mkdir()
    save_file(features, "in.safetensors")
    before = sorted(tmp_path.rglob("*"))
    result = run_simkit("compare", *arguments)
    assert_one_sentence(*result)
    assert re.search(sentence, result[2]), result[2]
    assert sorted(tmp_path.rglob("*")) == before


def test_folder_that_may_not_be_written_to(
    run_simkit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, features: dict[str, np.ndarray]
) -> None:
    np.save(tmp_path / "x.npy", features["x"])
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    result = run_simkit("compare", tmp_path / "x.npy", "--out", tmp_path / "m.csv")
    assert_one_sentence(*result)
    assert "may not be written to" in result[2]


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.safetensors"])
def test_file_that_may_not_be_read(
    run_simkit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, features: dict[str, np.ndarray], name: str
) -> None:
    """Not called damaged."""
    (tmp_path / name).write_bytes(b"content")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    for reader in ("numpy.load", "safetensors.safe_open"):
        monkeypatch.setattr(reader, refuse)  # root may read anything
    result = run_simkit("compare", tmp_path / name)
    assert_one_sentence(*result)
    assert result[2] == f"simkit: error: the file {str(tmp_path / name)!r} may not be read\n"
