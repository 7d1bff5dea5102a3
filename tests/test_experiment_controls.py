"""New weights under the masks and plans of another run: the control of lottery tickets, and one run however named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn.datasets")

from experiments import write_config  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from simkit.experiments.config_file import read_config  # noqa: E402
from simkit.experiments.runs import prune_runs  # noqa: E402
from simkit.experiments.unstructured_runs import survival  # noqa: E402
from simkit.experiments.workbench import fixed_sample  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def run_of(folder: Path, arm: str) -> Path:
    (found,) = (folder / "runs").glob(f"{arm}-0.5-s0-*")
    return found


def masks_of(run: Path, number: int) -> dict[str, Any]:
    return load_file(run / "checkpoints" / f"round-{number}.masks.safetensors")


@pytest.mark.filterwarnings("ignore:layer collapse")
@pytest.mark.parametrize("method", ["magnitude", "unit-magnitude", "snip"])
def test_new_weights_take_the_masks_of_the_method(method: str, tmp_path: Path) -> None:
    prune_runs(read_config(write_config(tmp_path, kind="unstructured", method=method)))
    source, control = run_of(tmp_path, method), run_of(tmp_path, f"{method}+reinit")
    for number in (1, 2):
        expected, found = masks_of(source, number), masks_of(control, number)
        assert all(torch.equal(mask, expected[name]) for name, mask in found.items())
        assert found.keys() == expected.keys()
        trained = load_file(control / "checkpoints" / f"round-{number}.safetensors")
        assert not trained["fc1.weight"][~expected["fc1.weight"]].any()
    again = survival({number: source / "checkpoints" / f"round-{number}" for number in (1, 2)}, unitwise=False)
    assert list(again.rounds) == sorted(again.rounds)  # a file gives them in any order, and a resumed run must agree
    first, second = (load_file(run / "checkpoints" / "round-2.safetensors")["fc1.weight"] for run in (source, control))
    assert not torch.equal(first, second)


@pytest.mark.filterwarnings("ignore:layer .* the graph of weight is empty")
@pytest.mark.parametrize(("method", "compensate"), [("l1", "least-squares"), ("redundancy", "none")])
def test_new_weights_take_the_plans_of_the_method(method: str, compensate: str, tmp_path: Path) -> None:
    outcome = prune_runs(read_config(write_config(tmp_path, method=method, compensate=compensate)))
    label = method if compensate == "none" else f"{method}+{compensate}"
    source, control = run_of(tmp_path, label), run_of(tmp_path, f"{method}+reinit")
    assert not list(control.glob("checkpoints/*.plan.json"))
    units = {
        result["arm"]: [one["units"] for one in result["rounds"]]
        for result in outcome.results
        if result["name"] in (source.name, control.name)
    }
    assert units[label] == units[f"{method}+reinit"]
    for number in (1, 2):  # the channels that are left, not their number alone
        kept = [
            json.loads(_recipe(run / "checkpoints" / f"round-{number}.safetensors"))["modules"]
            for run in (source, control)
        ]
        assert [one["kept"] for one in kept[0].values()] == [one["kept"] for one in kept[1].values()]


def _recipe(file: Path) -> str:
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return str(opened.metadata()["simkit"])


def test_new_weights_are_one_run_however_they_are_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from simkit.experiments.report import report
    from simkit.experiments.report_data import read_experiments

    config = write_config(tmp_path)
    prune_runs(read_config(config, overrides=["prune.rounds=1"]))
    again = read_config(config, overrides=["prune.rounds=1", 'prune.retrain=["finetune", "reinit"]'])
    outcome = prune_runs(again)
    assert (len(outcome.results), outcome.found) == (4, 3)
    report(tmp_path / "runs")
    (one,) = read_experiments(tmp_path / "runs")[0]
    labels = [(cell.arm, cell.round) for cell in one.cells]
    assert sorted(labels) == [("l1", 1), ("l1+reinit", 1), ("random", 1), ("random+reinit", 1)]


def test_a_run_that_fails_does_not_keep_the_others(tmp_path: Path) -> None:
    config = read_config(write_config(tmp_path), overrides=["prune.amounts=[0.01, 0.5]", "prune.rounds=1"])
    with pytest.raises(ValueError, match=r"^run l1-0.01-s0-.* removes not one unit of any layer; run random-0.01.*; "
                       r"run l1\+reinit-0.01-s0-.* takes what the run l1-0.01-s0-.* removes, which is not done "
                       r"\(3 other runs are done\)$"):  # fmt: skip
        prune_runs(config)
    assert len(list((tmp_path / "runs").glob("*-0.5-s0-*/result.json"))) == 3


def test_criteria_see_samples_of_a_fixed_draw() -> None:
    drawn = fixed_sample(1000, 100)
    assert torch.equal(drawn, fixed_sample(1000, 500)[:100])
    assert len(set(drawn.tolist())) == 100
    assert 300 < float(drawn.float().mean()) < 700
    assert sorted(fixed_sample(7, 100).tolist()) == list(range(7))


@pytest.mark.parametrize("method", ["obs", "large-init", "large-final-same-sign"])
def test_criteria_of_obs_and_zhou_are_methods(method: str, tmp_path: Path) -> None:
    config = read_config(
        write_config(tmp_path, kind="unstructured", method=method, retrain="none"), overrides=["prune.rounds=1"]
    )
    prune_runs(config)
    run = run_of(tmp_path, f"{method}+none")
    dense = load_file(next((tmp_path / "runs").glob("dense-*")) / "checkpoints" / "dense.safetensors")
    pruned = load_file(run / "checkpoints" / "round-1.safetensors")
    mask = masks_of(run, 1)["fc1.weight"]
    moved = not torch.equal(pruned["fc1.weight"][mask], dense["fc1.weight"][mask])
    assert moved == (method == "obs")
