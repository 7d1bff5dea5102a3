"""Reports: means, intervals and paired differences are those of the results, in every file and in the text."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Run, assert_one_sentence
from scipy import stats

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from simkit.experiments.report import report
from simkit.experiments.report_data import Cell, Experiment, read_experiments
from simkit.experiments.report_figures import styles
from simkit.experiments.run_directory import FORMAT

SEEDS = (0, 1, 2)
ARMS = {"l1": (False, 0.9), "random": (True, 0.8), "l1+reinit": (True, 0.5)}
ID = "0123456789ab"


def record(number: int, accuracy: float, similarity: float | None) -> dict[str, Any]:
    return {
        "round": number,
        "accuracy": accuracy,
        "parameters": 100 // number,
        "macs": None,
        "latency": 1e-3,
        "similarity": {"cka": {"fc1": similarity, "fc2": 0.5}},
    }


def accuracy(arm: str, amount: float, number: int, seed: int) -> float:
    noise = np.random.default_rng([len(arm), int(100 * amount), number, seed]).normal(0.0, 0.01)
    return float(ARMS[arm][1] - 0.1 * amount - 0.01 * number + noise)


def write_runs(out: Path, *, seeds: tuple[int, ...] = SEEDS, amounts: tuple[float, ...] = (0.3, 0.5)) -> None:
    for seed in seeds:
        dense = {"accuracy": 0.95 + 0.01 * seed, "parameters": 200, "macs": 1000, "latency": 2e-3, "loss": 0.1}
        for arm, (control, _) in ARMS.items():
            for amount in amounts:
                run = out / f"{arm}-{amount}-s{seed}-{ID}"
                run.mkdir(parents=True)
                rounds = [
                    record(n, accuracy(arm, amount, n, seed), None if seed == 1 else 0.1 * seed + 0.5) for n in (1, 2)
                ]
                content = {
                    "format": FORMAT, "id": ID, "kind": "prune", "name": run.name, "experiment": ID,
                    "title": "mlp on digits",
                    "seed": seed, "arm": arm, "control": control, "compensate": "none",
                    "retrain": "reinit" if "reinit" in arm else "finetune", "amount": amount,
                    "dense": {"run": f"dense-s{seed}-x", **dense}, "rounds": rounds,
                }  # fmt: skip
                (run / "config.json").write_text("{}")
                (run / "result.json").write_text(json.dumps(content))


def values(arm: str, amount: float, number: int) -> list[float]:
    return [accuracy(arm, amount, number, seed) for seed in SEEDS]


def student(found: list[float]) -> tuple[float, float, float]:
    low, high = stats.t.interval(0.95, len(found) - 1, np.mean(found), stats.sem(found))
    return float(np.mean(found)), float(low), float(high)


def test_intervals_are_students(tmp_path: Path) -> None:
    write_runs(tmp_path)
    report(tmp_path)
    data = json.loads((tmp_path / "report.json").read_text())
    (one,) = data["experiments"]
    assert len(one["cells"]) == 3 * 2 * 2
    for cell in one["cells"]:
        found = cell["accuracy"]
        expected = student(values(cell["arm"], cell["amount"], cell["round"]))
        assert (found["mean"], found["low"], found["high"]) == pytest.approx(expected)
        assert cell["macs"] is None
        assert cell["similarity"]["cka"]["fc1"]["n"] == 2
        assert cell["similarity"]["cka"]["fc1"]["mean"] == pytest.approx(0.6)
    assert one["dense"]["accuracy"]["mean"] == pytest.approx(0.96)
    rows = list(csv.DictReader((tmp_path / "report.csv").read_text().splitlines()))
    assert len(rows) == 1 + len(one["cells"])
    for row, cell in zip(rows[1:], one["cells"], strict=True):
        assert (row["arm"], float(row["amount"]), int(row["round"])) == (cell["arm"], cell["amount"], cell["round"])
        assert float(row["accuracy_low"]) == cell["accuracy"]["low"]
        assert row["macs_mean"] == ""
        assert float(row["cka_mean"]) == pytest.approx(0.55)
    layers = list(csv.DictReader((tmp_path / "similarity.csv").read_text().splitlines()))
    assert len(layers) == 2 * len(one["cells"])


def test_differences_are_paired_by_seed_and_said_in_a_sentence(tmp_path: Path) -> None:
    write_runs(tmp_path)
    text = report(tmp_path)
    (one,) = json.loads((tmp_path / "report.json").read_text())["experiments"]
    pairs = {(d["first"], d["second"]) for d in one["differences"]}
    assert pairs == {("l1", "random"), ("l1", "l1+reinit")}
    assert len(one["differences"]) == 2 * 2 * 2
    for found in one["differences"]:
        amount, number = found["amount"], found["round"]
        ours, theirs = values("l1", amount, number), values(found["second"], amount, number)
        mean, low, high = student([a - b for a, b in zip(ours, theirs, strict=True)])
        assert found["interval"]["mean"] == pytest.approx(mean)
        significant = low > 0.0 or high < 0.0
        said = "a significant difference" if significant else "no significant difference"
        assert found["verdict"].endswith(f"[{100 * low:+.2f}, {100 * high:+.2f}] over 3 seeds: {said}")
        assert (found["verdict"] in text) == (number == 2)


def test_methods_are_compared_with_their_own_controls(tmp_path: Path) -> None:
    write_runs(tmp_path, amounts=(0.5,))
    for file in sorted(tmp_path.glob("*/result.json")):
        content = json.loads(file.read_text())
        if content["retrain"] == "finetune":
            run = tmp_path / f"again-{file.parent.name}"
            run.mkdir()
            again = {**content, "arm": f"{content['arm']}+none", "retrain": "none", "name": run.name}
            (run / "config.json").write_text("{}")
            (run / "result.json").write_text(json.dumps(again))
    (one,) = read_experiments(tmp_path)[0]
    assert {frozenset((d.first, d.second)) for d in one.differences()} == {
        frozenset(pair)
        for pair in (
            ("l1", "l1+none"),
            ("l1", "random"),
            ("l1", "l1+reinit"),
            ("l1+none", "random+none"),
            ("l1+none", "l1+reinit"),
        )
    }


def test_one_seed_claims_nothing(tmp_path: Path) -> None:
    write_runs(tmp_path, seeds=(0,))
    text = report(tmp_path)
    assert "in one seed, which says nothing about significance" in text
    assert "±" not in text
    (one,) = json.loads((tmp_path / "report.json").read_text())["experiments"]
    assert one["cells"][0]["accuracy"]["low"] is None


def test_equal_differences_claim_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "accuracy", lambda arm, amount, number, seed: 0.25 + ARMS[arm][1] / 2)
    write_runs(tmp_path, seeds=(0, 1))
    text = report(tmp_path)
    assert "significant difference" not in text
    assert text.count("in each of 2 seeds: no spread seen, which says nothing about significance") == 4
    assert "4 comparisons, each at the 5% level by itself, uncorrected for their number" in text


def test_no_two_arms_look_alike() -> None:
    dense = Cell("dense", ("none", "none"), False, 0.0, 0, (0,), {}, {})
    cells = [Cell(f"arm{i}", ("finetune", "none"), i % 2 == 0, 0.5, 1, (0,), {}, {}) for i in range(30)]
    found = styles(Experiment(ID, "many", dense, tuple(cells)))
    assert len(set(found.values())) == len(found) == 30


def test_pictures_are_png_and_stale_ones_go(tmp_path: Path) -> None:
    write_runs(tmp_path)
    (tmp_path / "accuracy-ffffffffffff.png").write_bytes(b"of runs that were deleted")
    (tmp_path / "accuracy.png").write_bytes(b"somebody's own")
    report(tmp_path)
    names = {path.name for path in tmp_path.glob("*.png")}
    expected = {f"accuracy-{ID}.png", f"rounds-{ID}.png", f"similarity-{ID}-0.3.png", f"similarity-{ID}-0.5.png"}
    assert names == expected | {"accuracy.png"}
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in expected)
    assert json.loads((tmp_path / "report.json").read_text())["figures"] == sorted(expected)


def test_the_same_runs_give_the_same_report(tmp_path: Path, run_simkit: Run) -> None:
    write_runs(tmp_path, amounts=(0.5,))
    code, out, err = run_simkit("report", tmp_path)
    assert (code, err) == (0, "")
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert run_simkit("report", tmp_path) == (0, out, "")
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert "l1+reinit (control)" in out


def test_unfinished_runs_are_counted(tmp_path: Path) -> None:
    write_runs(tmp_path)
    next(tmp_path.glob("l1-0.3-s0-*/result.json")).unlink()
    assert "1 run is not done: run the same command again" in report(tmp_path)
    experiments, unfinished = read_experiments(tmp_path)
    assert unfinished == 1
    assert experiments[0].rounds("l1", 0.3)[0].seeds == (1, 2)


def test_a_copy_of_a_run_is_no_other_seed(tmp_path: Path, run_simkit: Run) -> None:
    write_runs(tmp_path)
    run = next(tmp_path.glob("l1-0.3-s0-*"))
    shutil.copytree(run, tmp_path / f"copy-of-{run.name}")
    result = run_simkit("report", tmp_path)
    assert_one_sentence(*result)
    remedy = "move its folder elsewhere if it is a copy, or name it so"
    assert f"copy-of-{run.name}/result.json' is of the run '{run.name}': {remedy}" in result[2]


@pytest.mark.parametrize(
    "change",
    [
        {"accuracy": float("nan")},
        {"parameters": 10**400},
        {"latency": float("inf")},
        {"similarity": {"cka": [1]}},
        {"similarity": {"cka": {"fc1": "x"}}},
        {"similarity": {"cka": {"fc1": float("nan")}}},
    ],
)
def test_numbers_that_are_none_are_damage(change: dict[str, Any], tmp_path: Path, run_simkit: Run) -> None:
    write_runs(tmp_path, seeds=(0,))
    file = next(tmp_path.glob("l1-0.3-s0-*/result.json"))
    content = json.loads(file.read_text())
    content["rounds"][1].update(change)
    file.write_text(json.dumps(content))
    result = run_simkit("report", tmp_path)
    assert_one_sentence(*result)
    assert f"'{file}' is damaged: its 'rounds' is missing or wrong" in result[2]


@pytest.mark.parametrize("earlier", [False, True])
def test_new_weights_under_the_masks_of_two_arms_are_two_arms(tmp_path: Path, earlier: bool) -> None:
    """Also beside results of a version that did not write whose masks they have."""
    write_runs(tmp_path)
    other = "ba9876543210"
    for file in list(tmp_path.glob("l1+reinit-*/result.json")):
        content = json.loads(file.read_text())
        if not earlier:
            file.write_text(json.dumps({**content, "chosen_by": "l1"}))
        run = tmp_path / file.parent.name.replace(ID, other)
        run.mkdir()
        (run / "config.json").write_text("{}")
        changed = {**content, "id": other, "name": run.name, "chosen_by": "l1+rewind-lr"}
        (run / "result.json").write_text(json.dumps(changed))
    (experiment,) = read_experiments(tmp_path)[0]
    first = "an earlier version" if earlier else "l1"
    assert {f"l1+reinit of {first}", "l1+reinit of l1+rewind-lr"} < set(experiment.arms)
    assert all(cell.seeds == SEEDS for cell in experiment.cells)


def test_folders_without_runs(tmp_path: Path, run_simkit: Run) -> None:
    for folder, sentence in ((tmp_path / "no", "there is no folder"), (tmp_path, "holds no finished run of simkit")):
        result = run_simkit("report", folder)
        assert_one_sentence(*result)
        assert sentence in result[2]
    write_runs(tmp_path, seeds=(0,))
    file = next(tmp_path.glob("*/result.json"))
    file.write_text("[")
    result = run_simkit("report", tmp_path)
    assert_one_sentence(*result)
    assert f"'{file}' is damaged" in result[2]
