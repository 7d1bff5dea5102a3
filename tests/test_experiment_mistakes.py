"""One sentence for what users' own code and damaged files do, and exit code 2."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from command_line import Run, assert_one_sentence

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn.datasets")

from experiments import write_config  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from simkit.experiments.run_directory import read_round, write_json, write_round  # noqa: E402
from simkit.experiments.tensor_files import read_tensors, write_tensors  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
NETWORK = """
from torch import nn
class Net(nn.Module):
    def forward(self, x): {}
def make(shape, classes): return Net()
"""


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("exits", "import sys\nsys.exit(0)\n", "'exits:make' cannot be imported: SystemExit: 0"),
        ("divides", "1 / 0\n", "'divides:make' cannot be imported: ZeroDivisionError: division by zero"),
        ("lacks", "def make(shape, classes): return {}['a']\n", "'lacks:make' fails: KeyError: 'a'"),
        ("leaves", "import sys\ndef make(shape, classes): sys.exit(0)\n", "'leaves:make' fails: SystemExit: 0"),
        ("raises", NETWORK.format("raise KeyError('a')"), "[model] raises:make on digits: KeyError: 'a'"),
        ("quits", NETWORK.format("raise SystemExit(0)"), "[model] quits:make on digits: SystemExit: 0"),
    ],
)
def test_factories_that_fail(
    name: str, text: str, sentence: str, run_simkit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    file = tmp_path / "c.toml"
    file.write_text(f'[model]\nname = "{name}:make"\n[data]\nname = "digits"\n')
    result = run_simkit("train", file)
    assert_one_sentence(*result)
    assert sentence in result[2]
    assert not (tmp_path / "runs").exists()


def test_a_network_that_fails_while_it_is_trained(
    run_simkit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "balks.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def forward(self, x):\n"
        "        if self.training: raise RuntimeError('not like this')\n"
        "        return super().forward(x)\n"
        "def make(shape, classes): return Net(nn.Flatten(), nn.Linear(64, classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.toml").write_text('[model]\nname = "balks:make"\n[data]\nname = "digits"\n')
    result = run_simkit("train", "c.toml")
    assert_one_sentence(*result)
    assert "run dense-s0: training fails: RuntimeError: not like this" in result[2]


def test_an_exit_in_the_middle_is_a_mistake(run_simkit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simkit.experiments.doctor.diagnose", lambda: sys.exit(0))
    result = run_simkit("doctor")
    assert_one_sentence(*result)
    assert "sys.exit(0)" in result[2]


def test_results_that_are_not_whole(run_simkit: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    config = write_config(tmp_path)
    assert run_simkit("prune", config)[0] == 0
    runs = tmp_path / "runs"
    for pattern, spoil, sentence in (
        ("l1-0.5-*", lambda content: content.pop("arm"), "is damaged: its 'arm' is missing or wrong"),
        ("l1-0.5-*", lambda content: content["rounds"][1].pop("accuracy"), "is damaged: its 'rounds' is missing"),
        ("l1-0.5-*", lambda content: content.update(id="0" * 12), "is the result of another run, '000000000000'"),
        ("dense-*", lambda content: content.update(accuracy="high"), "is damaged: its 'accuracy' is missing or wrong"),
        ("dense-*", lambda content: content.update(accuracy=1.7), "is damaged: its 'accuracy' is missing or wrong"),
        ("dense-*", lambda content: content.update(latency=-0.5), "is damaged: its 'latency' is missing or wrong"),
        ("dense-*", lambda content: content.update(kind=[]), "is damaged: its 'kind' is missing or wrong"),
    ):
        (file,) = runs.glob(f"{pattern}/result.json")
        whole = file.read_bytes()
        content = json.loads(whole)
        spoil(content)
        file.write_text(json.dumps(content))
        for command in (("report", runs), ("prune", config)):
            result = run_simkit(*command)
            assert_one_sentence(*result)
            assert f"'{file}' {sentence}" in result[2]
            assert "remove the folder of that run" in result[2]
        file.write_bytes(whole)
    (model,) = runs.glob("dense-*/checkpoints/dense.safetensors")
    model.write_bytes(b"junk")
    result = run_simkit("prune", config)
    assert_one_sentence(*result)
    assert str(model) in result[2]
    assert "remove the folder of that run" in result[2]


def test_a_wrong_bit_of_a_kept_tensor_is_damage(tmp_path: Path) -> None:
    file = tmp_path / "masks.safetensors"
    tied = torch.arange(3.0)
    held = {"b": torch.tensor([True, False]), "a": tied, "c": tied}
    write_tensors(file, held)
    found = read_tensors(file)
    assert list(found) == ["a", "b", "c"]
    assert all(torch.equal(found[name], held[name]) for name in held)
    whole = file.read_bytes()
    for place in (-1, -4, -14):
        data = bytearray(whole)
        data[place] ^= 1
        file.write_bytes(data)
        with pytest.raises(ValueError, match=r"masks\.safetensors' is damaged: it is not what was written"):
            read_tensors(file)
    for data in (whole[:-1], b"", b"junk" * 9):
        file.write_bytes(data)
        with pytest.raises(ValueError, match=r"masks\.safetensors' is damaged: "):
            read_tensors(file)
    save_file({"b": held["b"], "a": tied}, file)  # as a version without digests did
    assert list(read_tensors(file)) == ["a", "b"]


def test_a_round_that_is_not_whole_is_damage(tmp_path: Path) -> None:
    file = tmp_path / "round-1.json"
    whole = {"round": 1, "accuracy": 0.5, "parameters": 3, "macs": None, "latency": 1e-3, "similarity": {"cka": {}}}
    write_round(file, whole)
    assert read_round(file) == whole
    file.write_text(file.read_text().replace("0.5", "0.9"))
    with pytest.raises(ValueError, match=r"round-1\.json' is damaged: something is missing .*; remove the folder"):
        read_round(file)
    for name in whole:
        write_json(file, {("x" if key == name else key): value for key, value in whole.items()})
        with pytest.raises(ValueError, match=r"round-1\.json' is damaged: something is missing .*; remove the folder"):
            read_round(file)


def test_a_damaged_plan_is_named(run_simkit: Run, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    assert run_simkit("prune", config)[0] == 0
    (run,) = (tmp_path / "runs").glob("l1-0.5-*")
    (run / "result.json").unlink()
    (run / "checkpoints" / "round-1.plan.json").write_text("{")
    result = run_simkit("prune", config)
    assert result[0] == 2
    assert f"'{run}/checkpoints/round-1.plan.json' is damaged: a pruning plan must be JSON" in result[2]
