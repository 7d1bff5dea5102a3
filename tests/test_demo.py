"""The demo: everything it leaves and prints is there, consistent, reproducible, and honest about what it shows."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn.datasets")  # draws from Python's generator when first imported
pytest.importorskip("matplotlib")

from safetensors.torch import load_file  # noqa: E402

import simkit as sk  # noqa: E402
from simkit import cli, train  # noqa: E402
from simkit import pruning as P  # noqa: E402
from simkit.experiments import outputs  # noqa: E402
from simkit.experiments.demo_report import STAGES, is_ours, summary  # noqa: E402
from simkit.experiments.demo_runs import (  # noqa: E402
    AMOUNT,
    LAYERS,
    METHODS,
    WIDTHS,
    DemoOptions,
    DemoResult,
    Run,
    network,
)
from simkit.experiments.outputs import staged  # noqa: E402
from simkit.experiments.progress import Progress  # noqa: E402

SEEDS = 2
HIDDEN = 64


@dataclass(frozen=True)
class Left:
    """What one demo left behind."""

    folder: Path
    out: str
    err: str
    rows: list[dict[str, str]]
    data: dict[str, Any]


def demo(folder: Path, *options: str) -> Left:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert cli.main(["demo", "--quick", "--out", str(folder), *options]) == 0
    rows = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    return Left(folder, out.getvalue(), err.getvalue(), rows, json.loads((folder / "results.json").read_text()))


def _numpy_state() -> list[int]:
    return np.random.get_state()[1].tolist()  # noqa: NPY002 - the global state is what must not change


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Left:
    before = torch.get_num_threads(), torch.get_rng_state(), _numpy_state(), random.getstate()
    found = demo(tmp_path_factory.mktemp("demo") / "new" / "folder", "--seeds", str(SEEDS))
    assert torch.get_num_threads() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert _numpy_state() == before[2]
    assert random.getstate() == before[3]
    return found


@pytest.fixture(scope="module")
def digits() -> train.Dataset:
    return train.digits()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- what it leaves


def test_files(left: Left) -> None:
    models = {f"models/seed{seed}-{method}.safetensors" for seed in range(SEEDS) for method in ("dense", *METHODS)}
    found = {str(path.relative_to(left.folder)) for path in left.folder.rglob("*") if path.is_file()}
    assert found == models | {"heatmap.png", "pruning.png", "results.csv", "results.json"}
    assert {row["model"] for row in left.rows} | set(left.data["dense"]["models"]) == models


@pytest.mark.parametrize("name", ["heatmap.png", "pruning.png"])
def test_pictures(left: Left, name: str) -> None:
    from matplotlib.image import imread

    assert (left.folder / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    height, width, _ = imread(left.folder / name).shape
    assert min(height, width) > 400


def test_csv_and_json_hold_the_same_runs(left: Left) -> None:
    keys = [(int(row["seed"]), row["method"]) for row in left.rows]
    assert keys == [(seed, method) for seed in range(SEEDS) for method in METHODS]
    assert [{name: str(value) for name, value in run.items()} for run in left.data["runs"]] == left.rows


def test_json_says_how_it_was_made(left: Left, digits: train.Dataset) -> None:
    data = left.data
    assert (data["format"], data["simkit"], data["torch"]) == ("simkit demo 1", sk.__version__, torch.__version__)
    assert data["data"] == {"name": "digits", "train": len(digits.train_x), "test": len(digits.test_x)}
    assert data["options"] | {"training": 0, "fine_tuning": 0} == {
        "seeds": SEEDS,
        "quick": True,
        "threads": 1,
        "amount": AMOUNT,
        "training": 0,
        "fine_tuning": 0,
    }
    assert 0 < data["seconds"] < 120


def test_means_and_intervals_are_those_of_the_rows(left: Left) -> None:
    for method in METHODS:
        for field in STAGES:
            values = [float(row[field]) for row in left.rows if row["method"] == method]
            _assert_interval(left.data["methods"][method][field], values)
    dense = [float(row["accuracy_dense"]) for row in left.rows if row["method"] == "l1"]
    _assert_interval(left.data["dense"]["accuracy"], dense)
    for other in ("l1", "random"):
        for field in STAGES:
            by_method = {
                method: [float(row[field]) for row in left.rows if row["method"] == method] for method in METHODS
            }
            differences = np.subtract(by_method["cka"], by_method[other]).tolist()
            _assert_interval(left.data["cka_minus"][other][field], differences)


def _assert_interval(found: dict[str, float], values: list[float]) -> None:
    spread = stats.sem(values)
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), spread) if spread else [values[0]] * 2
    assert found["mean"] == pytest.approx(np.mean(values), abs=1e-12)
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=1e-9)
    assert (found["n"], found["level"]) == (len(values), 0.95)


def test_the_printed_table_is_that_of_the_rows(left: Left) -> None:
    for method, (title, _) in METHODS.items():
        line = next(line for line in left.out.splitlines() if line.startswith(f"{title}  "))
        printed = [float(number) for number in re.findall(r"(\d+\.\d\d) ±", line)]
        means = [100 * np.mean([float(row[field]) for row in left.rows if row["method"] == method]) for field in STAGES]
        assert printed == pytest.approx(means, abs=0.00501)
        row = next(row for row in left.rows if row["method"] == method)
        assert f" {int(row['params_after']):,} (" in line
        assert f" {int(row['macs_after']):,} (" in line
    assert f"n = {SEEDS} seeds" in left.out
    assert str(left.folder) in left.out.splitlines()[-1]


def test_progress_is_told_on_stderr_line_by_line(left: Left) -> None:
    lines = left.err.splitlines()
    assert len(lines) == SEEDS + 1 + SEEDS * len(METHODS)
    assert lines[0].startswith("seed 0: trained, test accuracy ")
    assert lines[SEEDS] == "compared the layers of seeds 0 and 1"
    assert lines[-1].startswith(f"seed {SEEDS - 1}, random: test accuracy ")


# --- whether it is true


def test_saved_networks_are_half_as_wide_and_as_good_as_reported(left: Left, digits: train.Dataset) -> None:
    for row in left.rows:
        small = P.load(left.folder / row["model"], network)
        for name, width in zip(("conv1", "conv2", "conv3", "fc1"), (*WIDTHS, HIDDEN), strict=True):
            assert len(small.get_submodule(name).weight) == width - round(AMOUNT * width)
        assert sum(p.numel() for p in small.parameters()) == int(row["params_after"])
        assert train.evaluate(small, digits.test).accuracy == float(row["accuracy_finetuned"])
        dense = P.load(left.folder / f"models/seed{row['seed']}-dense.safetensors", network)
        assert sum(p.numel() for p in dense.parameters()) == int(row["params_before"])
        assert train.evaluate(dense, digits.test).accuracy == float(row["accuracy_dense"])


def test_accuracy_right_after_the_cut_is_that_of_the_plan(left: Left, digits: train.Dataset) -> None:
    for row in left.rows[: len(METHODS)]:
        dense = P.load(left.folder / f"models/seed{row['seed']}-dense.safetensors", network)
        score = METHODS[row["method"]][1](int(row["seed"]))
        plan = P.plan(dense, digits.train_x[:2], data=digits.train_x, score=score, amount=AMOUNT)
        silent = P.masked(dense, plan)
        assert train.evaluate(silent, digits.test).accuracy == float(row["accuracy_cut"])
        assert (plan.macs_before, plan.macs_after) == (int(row["macs_before"]), int(row["macs_after"]))


def test_heatmap_is_the_exact_cka_of_the_saved_networks(left: Left, digits: train.Dataset) -> None:
    heatmap = left.data["heatmap"]
    assert heatmap["rows"] == [f"{layer}, seed 0" for layer in LAYERS]
    assert heatmap["columns"] == [f"{layer}, seed 1" for layer in LAYERS]
    assert heatmap["samples"] == len(digits.test_x)
    assert heatmap["measure"] == repr(sk.CKA())
    features = []
    for seed in (0, 1):
        dense = P.load(left.folder / f"models/seed{seed}-dense.safetensors", network).eval()
        with torch.no_grad():
            x, outputs_of = digits.test_x, {}
            for name, module in dense.named_children():
                x = module(x)
                outputs_of[name] = x.flatten(1).double()
        features.append([outputs_of[module] for module in LAYERS.values()])
    for i, j in [(i, i) for i in range(len(LAYERS))] + [(0, 4), (4, 0), (2, 3)]:
        truth = sk.cka(features[0][i], features[1][j], backend="reference")
        assert heatmap["values"][i][j] == pytest.approx(truth, abs=1e-6)


def test_again_into_the_folder_of_a_demo_with_more_seeds(left: Left, tmp_path: Path) -> None:
    """The same numbers, the old files replaced, networks of other seeds gone, the user's own files untouched."""
    folder = tmp_path / "demo"
    (folder / "models").mkdir(parents=True)
    (folder / "results.json").write_bytes((left.folder / "results.json").read_bytes())
    for name in ("models/seed2-cka.safetensors", "models/mine.safetensors", "notes.txt", "heatmap.png"):
        (folder / name).write_text("old")
    again = demo(folder, "--seeds", str(SEEDS))
    assert again.rows == left.rows
    assert {**again.data, "seconds": 0} == {**left.data, "seconds": 0}
    assert not (folder / "models/seed2-cka.safetensors").exists()
    for name in ("models/mine.safetensors", "notes.txt"):
        assert (folder / name).read_text() == "old"
    assert (folder / "heatmap.png").read_bytes() == (left.folder / "heatmap.png").read_bytes()
    for file in (folder / "models").glob("seed*"):
        ours, theirs = load_file(file), load_file(left.folder / "models" / file.name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not list(folder.glob(".simkit*"))


# --- mistakes, and the way out


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.json").write_text('{"format": "mine"}')
    assert cli.main(["demo", "--quick", "--out", str(tmp_path)]) == 2
    sentence = f"the folder {str(tmp_path)!r} holds something else, such as 'results.json': name a new or an empty one"
    assert capsys.readouterr() == ("", f"simkit: error: {sentence}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert cli.main(["demo", "--quick", "--out", str(tmp_path / "results.json")]) == 2
    assert "is a file, not a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--seeds", "1"], "seeds must be an integer of at least 2, not 1"),
        (["--seeds", "two"], "argument --seeds: invalid int value: 'two'"),
        (["--threads", "0"], "threads must be an integer of at least 1, not 0"),
        (["--out", ""], "out must name a folder, not ''"),
    ],
)
def test_impossible_options(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", "--quick", *options]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"simkit: error: {sentence}")
    assert not list(tmp_path.iterdir())


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "simkit", "demo", "--quick", "--seeds", "40", "--out", "demo"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "seed 0: trained" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_results_appear_together_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "out"

    def work(name: str, *, fail: bool) -> None:
        with staged(target, ours=lambda folder: (folder / "mark").exists()) as stage:
            (stage / "deep").mkdir()
            (stage / "deep" / "file").write_text(name)
            (stage / "mark").write_text("")
            assert not (target / "mark").exists() or (target / "deep" / "file").read_text() == "first"
            if fail:
                raise RuntimeError(name)

    with pytest.raises(RuntimeError, match="none"):
        work("none", fail=True)
    assert not target.exists()
    work("first", fail=False)
    with pytest.raises(RuntimeError, match="broken"):
        work("broken", fail=True)
    assert (target / "deep" / "file").read_text() == "first"
    work("second", fail=False)
    assert (target / "deep" / "file").read_text() == "second"
    assert sorted(path.name for path in target.iterdir()) == ["deep", "mark"]
    (target / "mark").unlink()
    with pytest.raises(ValueError, match=r"holds something else, such as 'deep'"):
        work("third", fail=False)


def test_what_a_killed_run_left_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / f"{outputs._STAGE}1" / "models").mkdir(parents=True)
    with staged(tmp_path, ours=is_ours) as stage:
        (stage / "file").write_text("")
    assert (tmp_path / "file").exists()


def test_ours_is_what_the_demo_wrote(left: Left, tmp_path: Path) -> None:
    assert is_ours(left.folder)
    for text in ("", "[]", "{", '{"format": 1}'):
        (tmp_path / "results.json").write_text(text)
        assert not is_ours(tmp_path)


# --- what it says


def _result(cka: list[float], l1: list[float], noise: list[float], data: train.Dataset) -> DemoResult:
    heatmap = sk.similarity_matrix({"a": np.eye(5), "b": np.eye(5)[:, :2]})
    runs = [
        Run(seed, method, 0.99, value, value, 100, 25, 1000, 250, "")
        for method, values in {"cka": cka, "l1": l1, "random": noise}.items()
        for seed, value in enumerate(values)
    ]
    return DemoResult(DemoOptions(seeds=len(cka)), data, tuple(runs), heatmap, 1.0)


def test_the_verdict_follows_the_interval(digits: train.Dataset) -> None:
    text = summary(_result([0.90, 0.91, 0.92], [0.95, 0.96, 0.98], [0.2, 0.3, 0.1], digits))
    assert "CKA damage minus L1, after fine-tuning: -5.33 points [-6.77, -3.90]: worse" in text
    assert re.search(r"CKA damage minus random, .*: better", text)
    text = summary(_result([0.90, 0.91, 0.92], [0.95, 0.96, 0.80], [0.9, 0.91, 0.92], digits))
    assert re.search(r"CKA damage minus L1, .*: no difference shown", text)
    assert "CKA damage minus random, after fine-tuning: +0.00 points [+0.00, +0.00]: no difference shown" in text


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with Progress(3, " epochs") as progress:
        progress.doing("training")
        for _ in range(3):
            progress.step()
        progress.note("seed 0: trained")
    assert "training" in screen.getvalue()
    assert "3/3" in screen.getvalue()
    assert "seed 0: trained\n" in screen.getvalue()


@pytest.mark.slow
def test_the_whole_demo_takes_less_than_two_minutes(tmp_path: Path) -> None:
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "simkit", "demo"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600
    )
    seconds = time.perf_counter() - started
    assert done.returncode == 0, done.stderr
    assert seconds < 120
    data = json.loads((tmp_path / "simkit-demo" / "results.json").read_text())
    assert not data["options"]["quick"]
    assert data["dense"]["accuracy"]["mean"] > 0.97
    for method in METHODS:
        assert data["methods"][method]["accuracy_finetuned"]["mean"] > 0.93
