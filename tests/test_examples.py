"""The examples run as they stand, on real data, in seconds, and print what they promise."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

EXAMPLES = Path(__file__).parents[1] / "examples"
SECONDS = 20
PNG = b"\x89PNG\r\n\x1a\n"


def run(script: str, folder: Path, *arguments: str) -> str:
    """What the script prints; it may use at most the promised seconds of one processor."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, EXAMPLES / script, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (done.returncode, done.stderr) == (0, "")
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < SECONDS
    return done.stdout


def percentages(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"accuracy (\d+\.\d)%", text)]


def test_every_example_is_tested() -> None:
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    assert scripts == {"compare_two_models.py", "rank_neurons.py", "prune_and_finetune.py", "merge_neurons.py"}


@pytest.mark.parametrize("script", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_an_output_that_cannot_be_written_is_refused_before_the_work(script: str, tmp_path: Path) -> None:
    ending = ".safetensors" if script.startswith("prune") else ".png"
    for out, sentence in ((f"none/x{ending}", "there is no folder 'none'"), ("x.docx", f"must end in {ending}")):
        command = [sys.executable, EXAMPLES / script, "--out", out]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, done.stdout) == (2, "")
        assert sentence in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow  # .ci/run runs the example itself
def test_compare_two_models(tmp_path: Path) -> None:
    out = run("compare_two_models.py", tmp_path, "--out", "heatmap.png")
    assert min(percentages(out)) > 90
    rows = re.findall(r"^ +(\w+) +((?: *-?\d\.\d{3})+) +most like (\w+)$", out, flags=re.MULTILINE)
    names = ["conv1", "conv2", "conv3", "fc1", "fc2"]
    assert [row[0] for row in rows] == names
    for i, (_, scores, best) in enumerate(rows):
        values = [float(score) for score in scores.split()]
        assert len(values) == len(names)
        assert max(values) <= 1
        assert values[names.index(best)] == max(values)
        assert abs(names.index(best) - i) <= 1  # layers of the two networks correspond
    assert (tmp_path / "heatmap.png").read_bytes().startswith(PNG)


@pytest.mark.slow  # .ci/run runs the example itself
def test_rank_neurons(tmp_path: Path) -> None:
    out = run("rank_neurons.py", tmp_path, "--out", "damage.png")
    rows = re.findall(r"^ +(\d+) \(\d+%\) +(\d\.\d{4}) +(\d\.\d{4})$", out, flags=re.MULTILINE)
    damage = [float(row[1]) for row in rows]
    assert len(damage) == 5
    assert damage == sorted(damage)
    assert all(float(mine) < float(chance) for _, mine, chance in rows)
    assert (tmp_path / "damage.png").read_bytes().startswith(PNG)


@pytest.mark.slow  # .ci/run runs the example itself
def test_merge_neurons(tmp_path: Path) -> None:
    out = run("merge_neurons.py", tmp_path, "--out", "accuracy.png", "--epochs", "4")
    rows = re.findall(r"^ +(\d+)% +(\d+\.\d)% +(\d+\.\d)% +(\d+\.\d)% +(\d+) of (\d+) +(\d+)%$", out, re.MULTILINE)
    assert [row[0] for row in rows] == ["50", "60", "70", "80", "90", "95"]
    assert [int(row[5]) for row in rows] == [400, 480, 560, 640, 720, 760]
    assert all(merged == pruned for _, pruned, merged, _, units, *_ in rows if units == "0")
    assert float(rows[-1][3]) > float(rows[-1][1]) + 20  # least squares keeps what pruning loses
    assert (tmp_path / "accuracy.png").read_bytes().startswith(PNG)


@pytest.mark.slow  # .ci/run runs the example itself
def test_prune_and_finetune(tmp_path: Path) -> None:
    from simkit import pruning, train

    out = run("prune_and_finetune.py", tmp_path, "--out", "small.safetensors")
    dense, cut, tuned = percentages(out)
    assert cut < tuned
    assert min(dense, tuned) > 90
    assert "conv1: 8 of 16 units removed" in out
    small = pruning.load(tmp_path / "small.safetensors", train.small_cnn)
    accuracy = train.evaluate(small, train.digits().test).accuracy
    assert round(100 * accuracy, 1) == tuned
