"""The heatmap and the table of a similarity matrix."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from simkit.compare.matrix import SimilarityMatrix
from simkit.compare.report import colour_limits

MEASURE = "CKA(kernel=Linear(), estimator='debiased')"


def matrix(rows: int = 3, columns: int = 4, **changes: object) -> SimilarityMatrix:
    values = np.random.default_rng(0).random((rows, columns))
    fields: dict[str, object] = {
        "values": values,
        "rows": tuple(f"r{i}" for i in range(rows)),
        "columns": tuple(f"c{i}" for i in range(columns)),
        "samples": 7,
        "measure": MEASURE,
    }
    return SimilarityMatrix(**{**fields, **changes})  # type: ignore[arg-type]


def png_size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def test_csv_round_trips_every_bit_and_any_name(tmp_path: Path) -> None:
    values = np.array([[1 / 3, np.nan, -1e-300]] * 2)
    m = SimilarityMatrix(values, ("a,b", "ä\nz"), ('say "x"', "", "c"), 7, MEASURE)
    m.to_csv(tmp_path / "m.csv")
    with (tmp_path / "m.csv").open(newline="", encoding="utf-8") as file:
        header, *body = list(csv.reader(file))
    assert header == ["layer", *m.columns]
    assert [line[0] for line in body] == list(m.rows)
    np.testing.assert_array_equal(np.array([[float(x) for x in line[1:]] for line in body]), values)


def test_csv_quotes_names_but_not_numbers(tmp_path: Path) -> None:
    matrix(1, 1, values=np.array([[0.5]])).to_csv(tmp_path / "m.csv")
    assert (tmp_path / "m.csv").read_text() == '"layer","c0"\n"r0",0.5\n'


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 4), (16, 16), (17, 2), (2, 60)])
def test_plot_draws_a_png_of_any_shape(tmp_path: Path, rows: int, columns: int) -> None:
    matrix(rows, columns).plot(tmp_path / "m.png")
    width, height = png_size(tmp_path / "m.png")
    assert width > 200
    assert height > 200


def test_plot_survives_nan_negative_and_strange_names(tmp_path: Path) -> None:
    values = np.array([[0.5, np.nan, -0.2], [np.nan, np.nan, np.nan]])
    m = SimilarityMatrix(
        values,
        ("a_$1", "dead$"),
        ("x^2", "gone", "{brace"),
        9,
        MEASURE,
        {("row", "dead$"): "every feature is constant", ("column", "gone"): "it never ran"},
    )
    m.plot(tmp_path / "m.png")
    SimilarityMatrix(np.full((2, 3), np.nan), m.rows, m.columns, 9, MEASURE).plot(tmp_path / "all.png")
    assert png_size(tmp_path / "m.png")[1] > png_size(tmp_path / "all.png")[1]  # the reasons take room


def test_nan_cells_look_different_from_zero(tmp_path: Path) -> None:
    matplotlib_image = pytest.importorskip("matplotlib.image")
    matrix(1, 1, values=np.array([[0.0]])).plot(tmp_path / "zero.png")
    matrix(1, 1, values=np.array([[np.nan]])).plot(tmp_path / "nan.png")
    zero, nan = (matplotlib_image.imread(tmp_path / name) for name in ("zero.png", "nan.png"))
    assert np.median(zero[100:300, 150:300, :3]) < 0.1
    assert np.median(nan[100:300, 150:300, :3]) > 0.5


@pytest.mark.parametrize("ending", ["svg", "pdf", "PNG"])
def test_plot_formats(tmp_path: Path, ending: str) -> None:
    matrix().plot(tmp_path / f"m.{ending}")
    head = (tmp_path / f"m.{ending}").read_bytes()[:200]
    assert {"svg": b"<?xml", "pdf": b"%PDF", "PNG": b"\x89PNG"}[ending] in head


def test_bad_paths(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.png, \.pdf or \.svg"):
        matrix().plot(tmp_path / "m.jpg")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        matrix().plot(tmp_path / "none" / "m.png")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        matrix().to_csv(tmp_path / "none" / "m.csv")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_plot_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    (tmp_path / "m.png").write_bytes(b"old")

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(RuntimeError):
        matrix().plot(tmp_path / "m.png")
    assert [p.name for p in tmp_path.iterdir()] == ["m.png"]
    assert (tmp_path / "m.png").read_bytes() == b"old"


def test_colour_limits() -> None:
    assert colour_limits(np.array([[0.2, 1.0 + 1e-9]])) == (0.0, 1.0)
    assert colour_limits(np.array([[-0.1, 0.5, np.nan]])) == (-0.1, 1.0)
    assert colour_limits(np.array([[0.1, 7.0]])) == (0.0, 7.0)
    assert colour_limits(np.array([[np.nan]])) == (0.0, 1.0)


@pytest.mark.process
def test_plot_touches_neither_pyplot_nor_settings(tmp_path: Path) -> None:
    code = f"""
import sys, matplotlib
import numpy as np
before = matplotlib.rcParams.copy()  # dict() would resolve the backend
from simkit.compare.matrix import SimilarityMatrix
SimilarityMatrix(np.eye(2), ("a", "b"), ("a", "b"), 5, "CKA()").plot({str(tmp_path / "m.png")!r})
assert "matplotlib.pyplot" not in sys.modules
assert before == matplotlib.rcParams.copy()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
