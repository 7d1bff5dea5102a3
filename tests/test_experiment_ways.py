"""Ways to prune that a config names: several at once, every kind of retraining, and the gates they are run for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn.datasets")

from experiments import write_config  # noqa: E402

from simkit.experiments.arms import Arm, arms  # noqa: E402
from simkit.experiments.config_file import read_config  # noqa: E402
from simkit.experiments.measured import similarity  # noqa: E402
from simkit.experiments.progress import Progress  # noqa: E402
from simkit.experiments.runs import prune_runs  # noqa: E402
from simkit.experiments.workbench import workbench  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def test_several_ways_are_several_arms(tmp_path: Path) -> None:
    config = read_config(
        write_config(tmp_path, method="l2"),
        overrides=['prune.retrain=["none", "finetune"]', 'prune.compensate=["none", "merge"]'],
    )
    assert config.prune is not None
    assert [arm.label for arm in arms(config.prune)] == [
        "l2+none", "l2+merge+none", "l2", "l2+merge",
        "random+none", "random+merge+none", "random", "random+merge", "l2+reinit",
    ]  # fmt: skip
    assert [arm.label for arm in arms(config.prune) if not arm.control] == [
        "l2+none",
        "l2+merge+none",
        "l2",
        "l2+merge",
    ]
    assert arms(config.prune)[-1] == Arm("l2", "reinit", control=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["structured", "unstructured"])
def test_every_way_of_training_again(kind: str, tmp_path: Path) -> None:
    ways = ["finetune", "rewind-lr", "rewind-weights", "rewind-init", "reinit", "none"]
    config = read_config(write_config(tmp_path, kind=kind), overrides=[f"prune.retrain={ways}"])
    outcome = prune_runs(config)
    found = {(result["method"], result["retrain"]): result["rounds"][-1] for result in outcome.results}
    assert len(found) == 2 * len(ways)
    method = "l1" if kind == "structured" else "magnitude"
    loss = {way: found[method, way]["loss"] for way in ways}
    assert loss["finetune"] < loss["none"]
    assert len(set(loss.values())) == len(ways)


def test_a_network_is_like_itself_by_every_measure(tmp_path: Path) -> None:
    names = '["cka", "cca", "r2-cca", "svcca", "pwcca", "nbs", "procrustes", "linear-regression"]'
    config = read_config(write_config(tmp_path), overrides=[f"compare.measures={names}"])
    bench = workbench(config, Progress(0, ""))
    model = bench.network(0)
    found = similarity(model, bench.network(0), bench, config.compare)
    for measure, layers in found.items():
        expected = 0.0 if measure == "procrustes" else 1.0  # a distance
        assert list(layers) == ["fc1", "fc2", "fc3"]
        for score in layers.values():
            assert score == pytest.approx(expected, abs=1e-3 if measure == "procrustes" else 1e-6)
    with torch.no_grad():
        other = bench.network(0)
        other.fc2.weight.zero_()
    found = similarity(model, other, bench, config.compare)
    assert found["cka"]["fc1"] == pytest.approx(1.0)
    assert found["cka"]["fc2"] is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:layer collapse")
@pytest.mark.skipif(not Path("/usr/share/datasets/fashion-mnist").is_dir(), reason="Fashion-MNIST is not installed")
def test_pruned_at_initialisation_magnitude_collapses_and_synflow_learns(tmp_path: Path) -> None:
    """One seed, fewer epochs than the shipped config's: the order of the criteria is not in doubt."""
    example: Any = Path(__file__).parents[1] / "examples" / "pruned_at_initialisation.toml"
    config = read_config(
        example,
        overrides=["train.epochs=2", 'prune.methods=["synflow", "magnitude"]', "compare.samples=500"],
        seeds="0",
        out=str(tmp_path),
    )
    found = {result["arm"].split("+")[0]: result["rounds"][-1] for result in prune_runs(config).results[:3]}
    assert found["synflow"]["kept"] == found["magnitude"]["kept"] == pytest.approx(0.02, abs=1e-5)
    assert found["synflow"]["accuracy"] > 0.75
    assert found["magnitude"]["accuracy"] < 0.2
