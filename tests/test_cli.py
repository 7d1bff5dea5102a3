"""The command line: its help, its speed, and what it says of what is raised below it."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import Run, assert_one_sentence, python

import simkit as sk
from simkit import cli


def test_version(run_simkit: Run) -> None:
    assert run_simkit("--version") == (0, f"simkit {sk.__version__}\n", "")


def test_no_command_shows_the_help(run_simkit: Run) -> None:
    code, out, err = run_simkit()
    assert (code, err) == (0, "")
    assert out == run_simkit("--help")[1]
    for command in ("demo", "compare", "train", "prune", "report", "doctor"):
        assert f"    {command} " in out


@pytest.mark.parametrize("command", ["demo", "compare", "train", "prune", "report", "bench", "doctor"])
def test_help_of_a_command_has_examples(run_simkit: Run, command: str) -> None:
    code, out, err = run_simkit(command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: simkit {command}")
    assert f"examples:\n  simkit {command}" in out


def test_commands_to_come_are_no_commands(run_simkit: Run) -> None:
    for command in ("search", "nonsense"):
        result = run_simkit(command)
        assert_one_sentence(*result)
        assert f"invalid choice: '{command}'" in result[2]
        assert "simkit --help" in result[2]


def test_module_is_the_command(tmp_path: Path) -> None:
    done = python("-m", "simkit", "--version", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"simkit {sk.__version__}\n", "")


def test_help_is_fast_and_loads_nothing_heavy(tmp_path: Path) -> None:
    code = "import sys; from simkit.cli import main; main(['--help']); print(*sys.modules)"
    loaded = {name.partition(".")[0] for name in python("-c", code, cwd=tmp_path).stdout.split()}
    assert not loaded & {"torch", "matplotlib", "sklearn", "pydantic", "cupy", "numba", "tqdm", "safetensors"}

    def seconds() -> float:  # of the processor: the wall clock would measure what else this machine does
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert python("-m", "simkit", "--help", cwd=tmp_path).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    assert min(seconds() for _ in range(5)) <= 0.3


def test_missing_libraries_are_named_with_their_remedy(
    run_simkit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(8).standard_normal((60, 7)))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    result = run_simkit("compare", tmp_path / "x.npy", "--out", tmp_path / "m.png")
    assert_one_sentence(*result)
    assert result[2] == "simkit: error: plots need matplotlib: pip install 'simkit[plot]'\n"
    assert run_simkit("compare", tmp_path / "x.npy", "--out", tmp_path / "m.csv")[0] == 0
    result = run_simkit("demo", "--out", tmp_path / "demo")
    assert_one_sentence(*result)
    sentence = "simkit demo needs matplotlib, scikit-learn: pip install 'simkit[demo]'"
    assert result[2] == f"simkit: error: {sentence}\n"
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("two\n  lines"), "two lines"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (PermissionError(13, "Permission denied", "out.csv"), "'out.csv': Permission denied"),
        (MemoryError(), "MemoryError"),
        (NotImplementedError("not on this backend"), "not on this backend"),
    ],
)
def test_what_is_raised_below_is_one_sentence(
    run_simkit: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    sentence: str,
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("simkit.experiments.doctor.diagnose", fail)
    assert run_simkit("doctor") == (2, "", f"simkit: error: {sentence}\n")
    assert cli.main(["--debug", "doctor"]) == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_bug_is_not_taken_for_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise AssertionError("a bug")

    monkeypatch.setattr("simkit.experiments.doctor.diagnose", fail)
    with pytest.raises(AssertionError, match="a bug"):
        cli.main(["doctor"])


def test_ctrl_c_is_quiet(run_simkit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("simkit.experiments.doctor.diagnose", interrupt)
    assert run_simkit("doctor") == (130, "", "")


def test_reader_that_goes_away_is_quiet(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    np.savez(tmp_path / "a.npz", **{f"layer{i}": rng.standard_normal((8, 2)) for i in range(60)})
    with subprocess.Popen(
        [sys.executable, "-m", "simkit", "compare", "a.npz"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == cli.BROKEN_PIPE


def test_a_mistake_in_a_process_of_its_own(tmp_path: Path) -> None:
    done = python("-m", "simkit", "compare", "absent.npy", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "simkit: error: there is no file 'absent.npy'\n"


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_bench_prints_tables_and_keeps_the_record(run_simkit: Run, tmp_path: Path) -> None:
    code, out, err = run_simkit(
        "bench", "--benchmarks", str(BENCHMARKS), "--select", "routes", "--out", str(tmp_path / "kept")
    )
    assert (code, err) == (0, "")
    assert "**The planner.** 18 shapes" in out
    (record,) = (tmp_path / "kept").glob("*.json")
    assert json.loads(record.read_text())["results"][0]["key"] == "routes"


def test_bench_on_a_device_that_is_not_there(run_simkit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr("simkit.experiments.bench.device_report", lambda: (True, [], "no driver"))
    code, _, err = run_simkit("bench", "--gpu", "--benchmarks", str(BENCHMARKS))
    assert (code, err) == (2, "simkit: error: the GPU benchmarks need a CUDA device: no driver\n")


def test_bench_says_what_it_lacks(run_simkit: Run, tmp_path: Path) -> None:
    code, _, err = run_simkit("bench", "--benchmarks", str(tmp_path))
    assert code == 2
    assert err == (
        f"simkit: error: the folder '{tmp_path}' holds no benchmarks: they come with simkit's source, not with its"
        " wheel: run this in a clone of it, or name the folder\n"
    )
    code, _, err = run_simkit("bench", "--gpu", "--benchmarks", str(tmp_path))
    assert (code, err.startswith(f"simkit: error: the folder '{tmp_path}' holds no GPU benchmarks: ")) == (2, True)
    (tmp_path / "file").write_text("in the way")
    code, _, err = run_simkit("bench", "--benchmarks", str(BENCHMARKS), "--out", str(tmp_path / "file"))
    assert (code, err) == (2, f"simkit: error: '{tmp_path}/file': File exists\n")
    (tmp_path / "table.py").touch()
    (tmp_path / "conftest.py").write_text('def pytest_addoption(parser): parser.addoption("--record")')
    code, _, err = run_simkit("bench", "--benchmarks", str(tmp_path))
    assert (code, err) == (2, f"simkit: error: the folder '{tmp_path}' holds no benchmarks\n")
    code, _, err = run_simkit("bench", "--benchmarks", str(BENCHMARKS), "--select", "no_such_thing")
    assert (code, err) == (2, "simkit: error: no benchmark has 'no_such_thing' in its name\n")
