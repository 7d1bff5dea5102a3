"""Runs: what they leave, that they are found again, and that an interrupted one ends like one that was not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from command_line import Run, assert_one_sentence

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn.datasets")  # draws from Python's generator when first imported

from experiments import epochs_noted, results, untimed, write_config  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import nn  # noqa: E402

from simkit import pruning as P  # noqa: E402
from simkit import train  # noqa: E402
from simkit.experiments import structured_runs, workbench  # noqa: E402
from simkit.experiments.arms import Arm, arms, retraining  # noqa: E402
from simkit.experiments.config_file import read_config  # noqa: E402
from simkit.experiments.dense_runs import dense_run, weights_at  # noqa: E402
from simkit.experiments.progress import Progress  # noqa: E402
from simkit.experiments.pruned_run import PrunedRun, pruned_run  # noqa: E402
from simkit.experiments.runs import prune_runs  # noqa: E402
from simkit.experiments.structured_runs import structured_run  # noqa: E402
from simkit.experiments.unstructured_runs import saved_macs, unstructured_run  # noqa: E402
from simkit.experiments.workbench import derived_seed  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
DATA = train.digits()


@pytest.fixture(scope="module", params=["structured", "unstructured"])
def pruned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The kind, and the folder of all runs of a small experiment."""
    folder = tmp_path_factory.mktemp(request.param)
    outcome = prune_runs(read_config(write_config(folder, kind=request.param)))
    assert (len(outcome.results), outcome.found) == (3, 0)
    return request.param, folder


def labels(out: Path) -> list[str]:
    return sorted(path.name.rpartition("-")[0] for path in out.iterdir())


def test_controls_are_always_there(pruned: tuple[str, Path]) -> None:
    kind, folder = pruned
    method = "l1" if kind == "structured" else "magnitude"
    assert labels(folder / "runs") == sorted(
        [f"{method}+reinit-0.5-s0", f"{method}-0.5-s0", "dense-s0", "random-0.5-s0"]
    )
    found = {result["arm"]: result for result in results(folder / "runs").values() if result["kind"] == "prune"}
    assert {arm: result["control"] for arm, result in found.items()} == {
        method: False, "random": True, f"{method}+reinit": True,
    }  # fmt: skip


def test_results_are_those_of_the_saved_networks(pruned: tuple[str, Path]) -> None:
    kind, folder = pruned
    for run in sorted((folder / "runs").glob("*-0.5-s0-*")):
        result = json.loads((run / "result.json").read_text())
        assert result["name"] == run.name
        assert [record["round"] for record in result["rounds"]] == [1, 2]
        assert 0.0 < result["dense"]["accuracy"] <= 1.0
        for record in result["rounds"]:
            model = P.load(run / "checkpoints" / f"round-{record['round']}.safetensors", lambda: train.mlp(64, (12, 8)))
            assert train.evaluate(model, DATA.test).accuracy == record["accuracy"]
            weights = torch.cat([p.flatten() for p in model.parameters()])
            assert record["parameters"] == (len(weights) if kind == "structured" else int((weights != 0).sum()))
            assert record["macs"] < result["dense"]["macs"] == 64 * 12 + 12 * 8 + 8 * 10
            assert record["latency"] > 0.0
            assert list(record["similarity"]["cka"]) == ["fc1", "fc2", "fc3"]
            assert all(-1.0 < value <= 1.0 for value in record["similarity"]["cka"].values())
        if kind == "structured":
            assert result["rounds"][-1]["units"] == {"fc1": 6, "fc2": 4}
        else:
            kept = load_file(run / "checkpoints" / "round-2.masks.safetensors")
            assert sum(int(mask.sum()) for mask in kept.values()) == (64 * 12 + 12 * 8 + 8 * 10) // 2


def test_metrics_hold_every_epoch_once(pruned: tuple[str, Path]) -> None:
    _, folder = pruned
    for name, noted in epochs_noted(folder / "runs").items():
        per_round = 2 if "reinit" in name else 1
        expected = [("training", 0), ("training", 1)]
        if not name.startswith("dense"):
            expected = [(f"round-{number}", epoch) for number in (1, 2) for epoch in range(per_round)]
        assert noted == expected


def test_nothing_but_results_is_left(pruned: tuple[str, Path]) -> None:
    _, folder = pruned
    for run in (folder / "runs").iterdir():
        assert {path.name for path in run.iterdir()} == {
            "config.json", "metrics.jsonl", "result.json", "checkpoints", ".lock",
        }  # fmt: skip
        content = json.loads((run / "config.json").read_text())
        assert content["seed"] == 0
        assert run.name.endswith(content["id"])


def test_done_runs_are_found(pruned: tuple[str, Path], run_simkit: Run) -> None:
    _, folder = pruned
    before = {path: path.read_bytes() for path in (folder / "runs").rglob("*") if path.is_file()}
    code, out, err = run_simkit("prune", folder / "config.toml")
    assert (code, err) == (0, "")
    assert out.startswith(f"3 runs done, 3 of them earlier, in {folder / 'runs'}; simkit report")
    code, out, err = run_simkit("train", folder / "config.toml")
    assert (code, out, err) == (0, f"1 run done, 1 of them earlier, in {folder / 'runs'}\n", "")
    assert before == {path: path.read_bytes() for path in (folder / "runs").rglob("*") if path.is_file()}


def test_runs_do_not_depend_on_what_else_is_asked_for(pruned: tuple[str, Path], tmp_path: Path) -> None:
    kind, folder = pruned
    if kind == "unstructured":
        return
    config = read_config(
        write_config(tmp_path), overrides=['prune.methods=["random", "l1"]', "prune.amounts=[0.3, 0.5]"], out="other"
    )
    (first,) = (run for run in (folder / "runs").glob("l1-0.5-*"))
    bench = workbench.workbench(read_config(write_config(folder)), Progress(0, ""))
    other = workbench.workbench(config, Progress(0, ""))
    assert config.prune is not None
    arm = next(arm for arm in arms(config.prune) if arm.label == "l1")
    dense = dense_run(bench, 0)
    assert pruned_run(other, config.prune, arm, 0.5, dense).directory.name == first.name


class Interrupt(BaseException):
    """Stands for a kill: raised in the place of one file's replacement."""


def one_run(folder: Path, arm: Arm | None = None, overrides: Sequence[str] = (), **options: str) -> PrunedRun:
    config = read_config(write_config(folder, **options), overrides=overrides)
    bench = workbench.workbench(config, Progress(0, ""))
    assert config.prune is not None
    return pruned_run(bench, config.prune, arm or arms(config.prune)[0], 0.5, dense_run(bench, 0))


def carry_out(run: PrunedRun) -> dict[str, Any]:
    return (structured_run if run.options.kind == "structured" else unstructured_run)(run)


@pytest.mark.parametrize(
    ("kind", "retrain", "compensate"),
    [
        ("structured", "finetune", "least-squares"),
        pytest.param("structured", "rewind-weights", "none", marks=pytest.mark.slow),
        ("unstructured", "rewind-weights", "none"),
        pytest.param("structured", "reinit", "none", marks=pytest.mark.slow),
        pytest.param("unstructured", "rewind-lr", "none", marks=pytest.mark.slow),
        pytest.param("unstructured", "reinit", "none", marks=pytest.mark.slow),
    ],
)
def test_interrupted_at_any_file_a_run_ends_the_same(
    kind: str, retrain: str, compensate: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    options = {"kind": kind, "retrain": retrain, "compensate": compensate}
    arm = Arm("l1" if kind == "structured" else "magnitude", "reinit") if retrain == "reinit" else None
    for name in ("whole", "broken") if arm else ():  # new weights take what another run has removed
        carry_out(one_run(tmp_path / name, **options))
    expected = untimed(carry_out(one_run(tmp_path / "whole", arm, **options)))
    replace = Path.replace
    left = 0

    def interrupted(path: Path, target: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            raise Interrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    interruptions = 0
    while True:
        left = 6 + interruptions  # so few files further every time, until a whole step fits
        try:
            run = one_run(tmp_path / "broken", arm, **options)
            found = untimed(run.directory.result() or carry_out(run))
            break
        except Interrupt:
            interruptions += 1
    assert interruptions >= 3
    assert found == expected
    noted = epochs_noted(tmp_path / "broken" / "runs")
    assert noted == epochs_noted(tmp_path / "whole" / "runs")


def test_where_rounds_start_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights before the training of a round, as the units that are left had them at that time."""
    starts: dict[str, dict[str, torch.Tensor]] = {}
    run = one_run(tmp_path, retrain="finetune")
    early = weights_at(run.bench, run.dense, 1)

    def fit(self: Any, model: nn.Module, options: Any, folder: Path, metrics: Any, stage: str, **more: Any) -> None:
        starts[stage] = {name: value.clone() for name, value in model.state_dict().items()}

    monkeypatch.setattr(workbench.Workbench, "fit", fit)
    for retrain, source in (("finetune", run.dense.model), ("rewind-lr", run.dense.model), ("rewind-weights", early)):
        again = one_run(tmp_path, retrain=retrain, overrides=["prune.rounds=1"])
        carry_out(again)
        plan = P.PruningPlan.from_json((again.directory.checkpoints / "round-1.plan.json").read_text())
        expected = P.apply(source, plan, again.bench.example).state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in starts["round-1"].items())
    reinit = one_run(tmp_path, arm=Arm("l1", "reinit", control=True), overrides=["prune.rounds=1"])
    carry_out(reinit)
    fresh = starts["round-1"]["fc1.weight"]
    assert float(fresh.abs().max()) <= 64**-0.5
    assert not torch.equal(fresh, P.apply(run.dense.model, plan, run.bench.example).state_dict()["fc1.weight"])


def test_epochs_weights_are_those_of_the_dense_training(tmp_path: Path) -> None:
    run = one_run(tmp_path)
    assert all(
        torch.equal(a, b)
        for a, b in zip(weights_at(run.bench, run.dense, 2).parameters(), run.dense.model.parameters(), strict=True)
    )
    first = weights_at(run.bench, run.dense, 1)
    file = run.dense.directory.checkpoints / "epoch-00001.safetensors"
    before = file.read_bytes()
    again = weights_at(run.bench, run.dense, 1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert file.read_bytes() == before
    file.write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"epoch-00001.safetensors' is damaged: .*; remove the folder"):
        weights_at(run.bench, run.dense, 1)


def test_how_arms_train_again(tmp_path: Path) -> None:
    config = read_config(write_config(tmp_path), overrides=["train.epochs=6", "train.lr=0.1", "prune.epochs=2"])
    found = {name: retraining(config, Arm("l1", name), 3, 1) for name in ("finetune", "rewind-lr", "reinit")}
    assert retraining(config, Arm("l1", "none"), 3, 1) is None
    tuned, rewound, fresh = found.values()
    assert tuned is not None
    assert (tuned.epochs, tuned.first_epoch, tuned.schedule) == (2, 0, "constant")
    assert tuned.lr == pytest.approx(config.train.training(3).rate(5, 0.0))
    assert rewound is not None
    assert (rewound.epochs, rewound.first_epoch, rewound.schedule) == (6, 4, "cosine")
    assert fresh is not None
    assert (fresh.epochs, fresh.first_epoch) == (6, 0)
    assert len({one.seed for one in (tuned, retraining(config, Arm("l1"), 3, 2)) if one}) == 2
    assert derived_seed(3, "round", 1) != derived_seed(31, "round", "")


@pytest.mark.filterwarnings("ignore:layer .* the graph of weight is empty")
def test_global_methods_reach_the_amount(tmp_path: Path) -> None:
    found = carry_out(one_run(tmp_path, method="redundancy"))
    left = [sum(record["units"].values()) for record in found["rounds"]]
    assert left == [20 - round(20 * (1 - 0.5**0.5)), 10]


def test_pruning_at_initialisation(tmp_path: Path) -> None:
    config = read_config(
        write_config(tmp_path, kind="unstructured", retrain="rewind-lr"),
        overrides=['prune.start="initial"', "prune.rounds=1", "prune.epochs=2"],
    )
    bench = workbench.workbench(config, Progress(0, ""))
    assert config.prune is not None
    run = pruned_run(bench, config.prune, arms(config.prune)[0], 0.5, dense_run(bench, 0))
    carry_out(run)
    masks = load_file(run.directory.checkpoints / "round-1.masks.safetensors")
    expected = P.masks(train.mlp(64, (12, 8), seed=0), score=P.Magnitude(), amount=0.5)
    assert all(torch.equal(mask, expected[name]) for name, mask in masks.items())


def test_multiply_adds_of_masked_weights() -> None:
    model = train.small_cnn((1, 8, 8), 10, widths=(3, 4), hidden=5)
    x = torch.zeros(2, 1, 8, 8)
    everything = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in model.named_parameters() if p.dim() > 1}
    assert saved_macs(model, everything, x) == P.trace(model, x).macs()
    one = {"conv2.weight": torch.ones(4, 3, 3, 3, dtype=torch.bool)}
    one["conv2.weight"][0, 0, 0, 0] = False
    assert saved_macs(model, one, x) == 64


def test_damage_is_one_sentence_and_nothing_is_lost(run_simkit: Run, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    assert run_simkit("train", config)[0] == 0
    (run,) = (tmp_path / "runs").iterdir()
    whole = (run / "result.json").read_bytes()
    for content in (b"{", b"[]", b"{}"):
        (run / "result.json").write_bytes(content)
        result = run_simkit("train", config)
        assert_one_sentence(*result)
        assert f"{run}/result.json" in result[2]
        assert (run / "result.json").read_bytes() == content
    (run / "result.json").write_bytes(whole)
    model = run / "checkpoints" / "dense.safetensors"
    model.write_bytes(model.read_bytes()[:-3])
    result = run_simkit("prune", config)
    assert_one_sentence(*result)
    assert f"run dense-s0: '{model}'" in result[2]
    (run / "result.json").unlink()
    (run / "metrics.jsonl").write_text("{}\n")
    result = run_simkit("train", config)
    assert_one_sentence(*result)
    assert f"line 1 of '{run}/metrics.jsonl' is damaged" in result[2]


def test_a_torn_line_is_dropped_and_written_again(run_simkit: Run, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    assert run_simkit("train", config)[0] == 0
    (run,) = (tmp_path / "runs").iterdir()
    (run / "result.json").unlink()
    whole = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(whole[:-9])
    assert run_simkit("train", config)[0] == 0
    assert (run / "metrics.jsonl").read_bytes() == whole


def test_two_processes_do_not_share_a_run(run_simkit: Run, tmp_path: Path) -> None:
    run = one_run(tmp_path)
    (run.dense.directory.path / "result.json").unlink()
    with run.dense.directory.open():
        result = run_simkit("train", tmp_path / "config.toml")
    assert result[0] == 2
    assert f"another process is at work on the run '{run.dense.directory.name}'" in result[2]
    assert run_simkit("train", tmp_path / "config.toml")[0] == 0


def test_a_folder_that_cannot_be_made(run_simkit: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    result = run_simkit("train", write_config(tmp_path), "--out", tmp_path / "file" / "runs")
    assert_one_sentence(*result)
    assert f"{tmp_path}/file" in result[2]


def test_an_amount_of_no_unit_is_an_error(run_simkit: Run, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    result = run_simkit("prune", config, "--set", "prune.amounts=[0.01]")
    assert result[0] == 2
    assert "amount 0.01 removes not one unit of any layer" in result[2]


def test_config_without_pruning(run_simkit: Run, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('[model]\nname = "mlp"\n[data]\nname = "digits"\n')
    result = run_simkit("prune", config)
    assert_one_sentence(*result)
    assert "the config has no section [prune], which simkit prune needs" in result[2]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:layer .* the graph of weight is empty", "ignore:layer collapse")
def test_all_criteria_run(tmp_path: Path) -> None:
    """Every method of either kind, on a network that has what they need."""
    for kind, names in structured_runs_methods().items():
        config = read_config(
            write_config(tmp_path, kind=kind, retrain="none"),
            overrides=['model.name="small_cnn"', "model.hidden=8", "model.widths=[4, 4]", "prune.rounds=1",
                       "train.epochs=1", 'prune.keep=["fc1"]', "prune.methods=" + json.dumps(names)],
        )  # fmt: skip
        outcome = prune_runs(config)
        assert {result["method"] for result in outcome.results} >= set(names)


def structured_runs_methods() -> dict[str, list[str]]:
    from simkit.experiments.methods import METHODS

    assert structured_runs.COMPENSATIONS["none"] is None
    return {kind: list(methods) for kind, methods in METHODS.items()}
