"""The example config as written, and killed at random moments: the same results, and no epoch twice."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn.datasets")

from experiments import epochs_noted, results, write_config

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits.toml"
SECONDS = 120
KILLS = 10


def simkit(*arguments: object, cwd: Path, kill_after: float | None = None) -> tuple[int, str, float]:
    """(exit code, stderr, seconds of the processor) of a process of its own, killed after a while if asked for."""
    command = [sys.executable, "-m", "simkit", *(str(argument) for argument in arguments)]
    before = os.times()
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        if kill_after is not None:
            time.sleep(kill_after)
            process.kill()
        _, err = process.communicate(timeout=900)
    after = os.times()
    used = after.children_user - before.children_user + after.children_system - before.children_system
    return process.returncode, err, used


@pytest.mark.slow
def test_the_example_runs_as_written_in_under_two_minutes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    code, err, seconds = simkit("prune", EXAMPLE, cwd=tmp_path)
    assert code == 0, err
    assert seconds < SECONDS
    found = results(tmp_path / "runs")
    assert len(found) == 2 * (1 + 4 * 2)
    for name, result in found.items():
        run = tmp_path / "runs" / name
        assert {"config.json", "metrics.jsonl", "result.json", "checkpoints"} <= {path.name for path in run.iterdir()}
        assert result["kind"] == "dense" or [record["round"] for record in result["rounds"]] == [1, 2]
    code, err, _ = simkit("report", "runs", cwd=tmp_path)
    assert code == 0, err
    left = {re.sub("[0-9a-f]{12}", "ID", path.name) for path in (tmp_path / "runs").iterdir() if path.is_file()}
    pictures = {"accuracy-ID.png", "rounds-ID.png", "similarity-ID-0.3.png", "similarity-ID-0.5.png"}
    assert left == {"report.json", "report.csv", "similarity.csv", *pictures}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["structured", "unstructured"])
def test_ten_kills_change_no_number(kind: str, tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = write_config(tmp_path / "whole", kind=kind)
    started = time.monotonic()
    code, err, _ = simkit("prune", whole, cwd=tmp_path)
    lasted = time.monotonic() - started
    assert code == 0, err
    killed = write_config(tmp_path / "killed", kind=kind)
    moments = random.Random(8)
    for _ in range(KILLS):  # most of the time goes to starting, so that the work is cut into a dozen pieces
        simkit("prune", killed, cwd=tmp_path, kill_after=lasted * moments.uniform(0.3, 0.8))
    code, err, _ = simkit("prune", killed, cwd=tmp_path)
    assert code == 0, err
    assert results(tmp_path / "killed" / "runs") == results(tmp_path / "whole" / "runs")
    noted = epochs_noted(tmp_path / "killed" / "runs")
    assert noted == epochs_noted(tmp_path / "whole" / "runs")
    assert all(len(set(epochs)) == len(epochs) for epochs in noted.values())
