"""The one command for a machine with a GPU, with stand-ins for all that it starts."""

from __future__ import annotations

import shlex
import stat
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep

import pytest

from . import gpu_run

# What a step's interpreter is replaced by: says what it was asked, and fails where "FAILS" holds a word of it.
STAND_IN = """#!/bin/sh
echo "$0 $*"
echo "path $PYTHONPATH required $SIMKIT_REQUIRE_GPU in $PWD"
for word in $FAILS; do case "$*" in *"$word"*) echo "1 failed, 2 passed in 3.00s"; exit 3;; esac; done
echo "4 passed, 5 deselected in 6.70s"
"""


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path with a device's tool, a sanitizer that runs what it is given, and an interpreter."""
    folder = tmp_path / "tools"
    folder.mkdir()
    script(folder / "nvidia-smi", "#!/bin/sh\necho 9.0\n")
    script(folder / "compute-sanitizer", '#!/bin/sh\necho "sanitizer $*"\necho "=== ERROR SUMMARY: 0 errors"\n')
    script(folder / "python", STAND_IN)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    monkeypatch.delenv("FAILS", raising=False)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    return folder


def script(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def started(tools: Path, *more: str) -> int:
    folder = tools.parent
    options = ["--out", str(folder / "out"), "--site", str(folder / "site"), "--python", str(tools / "python")]
    options += ["--results", str(folder / "results")]
    return gpu_run.main([*options, *more])


def results(tools: Path) -> dict[str, str]:
    """The summary's steps and what became of them."""
    lines = (tools.parent / "out" / "summary.txt").read_text(encoding="utf-8").splitlines()[1:]
    return {line.split()[0]: line.split(" s  ")[1] for line in lines}


def log(tools: Path, name: str) -> str:
    return (tools.parent / "out" / f"{name}.log").read_text(encoding="utf-8")


def test_all_steps_run_in_order(tools: Path) -> None:
    """Each with its own log; simkit comes from the build, and the working folder holds no copy of it."""
    assert started(tools) == 0
    found = results(tools)
    assert list(found) == ["build", "doctor", "tests", "memcheck", "racecheck", "bench", "tables"]
    assert found["tests"] == "passed  4 passed, 5 deselected in 6.70s"
    assert found["memcheck"] == "passed  ERROR SUMMARY: 0 errors"
    assert "--config-settings=cmake.define.SIMKIT_CUDA_ARCHS=90-real" in log(tools, "build")
    folder = tools.parent
    assert f"path {folder / 'site'} required 1 in {folder / 'out'}" in log(tools, "tests")
    assert "--tool racecheck" in log(tools, "racecheck")
    assert f"--full --record {folder / 'out'}" in log(tools, "bench")
    names = sorted(path.name for path in (folder / "out").iterdir())
    assert names == sorted([*(f"{name}.log" for name in found), "summary.txt"])


def test_what_fails_stops_only_what_needs_it(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failing tests do not keep benchmarks from running; a failing build does."""
    monkeypatch.setenv("FAILS", "doctor tests")
    assert started(tools) == 1
    found = results(tools)
    assert found["doctor"].startswith("FAILED with 3")
    assert found["tests"] == "FAILED with 3  1 failed, 2 passed in 3.00s"
    assert found["bench"].startswith("passed")
    monkeypatch.setenv("FAILS", "--no-build-isolation")
    assert started(tools) == 1
    assert set(results(tools).values()) == {"FAILED with 3  1 failed, 2 passed in 3.00s", "not run: build failed"}


def test_parts_wheels_and_a_build_that_is_there(tools: Path) -> None:
    """A part brings the build with it unless told otherwise; wheels come before the build, which needs them."""
    wheels = tools.parent / "wheels"
    wheels.mkdir()
    (wheels / "a-1-py3-none-any.whl").touch()
    assert started(tools, "--part", "bench", "--select", "g1 or g2", "--wheels", str(wheels)) == 0
    assert list(results(tools)) == ["wheels", "build", "doctor", "bench", "tables"]
    assert "a-1-py3-none-any.whl" in log(tools, "wheels")
    assert "-k 'g1 or g2'" in log(tools, "bench").splitlines()[0]
    assert started(tools, "--part", "tests", "--part", "sanitize", "--no-build", "--tests", "graphs") == 0
    assert "-k graphs" in log(tools, "tests").splitlines()[0]
    assert "and (graphs)'" in log(tools, "memcheck").splitlines()[0]
    assert "-k graphs" in log(tools, "racecheck").splitlines()[0]
    assert list(results(tools)) == ["tests", "memcheck", "racecheck"]


def test_time_is_kept_to(tools: Path) -> None:
    """A step that takes too long is ended with all that it started; what no longer fits is said to be left out."""
    late = tools.parent / "late"
    script(tools / "python", f"#!/bin/sh\n(sleep 3; touch {shlex.quote(str(late))}) &\nwait\n")
    before = monotonic()
    assert started(tools, "--part", "tests", "--budget", "1.5") == 1
    assert monotonic() - before < 3
    found = results(tools)
    assert found["build"].startswith("FAILED: stopped after ")
    assert found["tests"] == "not run: build failed"
    assert started(tools, "--part", "tests", "--no-build", "--budget", "0") == 1
    assert results(tools) == {"tests": "not run: the 0 s are over"}
    sleep(max(0.0, 3.5 - (monotonic() - before)))
    assert not late.exists()


def test_what_is_missing_is_said(tools: Path) -> None:
    """No sanitizer, no interpreter, no device's tool: failures with a reason, and a build for every architecture."""
    (tools / "compute-sanitizer").unlink()
    (tools / "nvidia-smi").unlink()
    assert started(tools, "--part", "sanitize") == 1
    assert results(tools)["memcheck"] == "FAILED: compute-sanitizer is not here"
    assert "SIMKIT_CUDA_ARCHS" not in log(tools, "build")
    (tools / "python").unlink()
    assert started(tools, "--part", "tests") == 1
    assert results(tools)["build"].startswith("FAILED: [Errno 2]")


def test_a_dry_run_prints_commands_that_exist(tools: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is started or written; pytest understands its options and finds what it is sent to."""
    assert started(tools, "--dry-run", "--arch", "80-real") == 0
    out = capsys.readouterr().out
    assert not (tools.parent / "out").exists()
    assert "cmake.define.SIMKIT_CUDA_ARCHS=80-real" in out
    commands = [shlex.split(line) for line in out.splitlines() if not line.startswith("#")]
    assert len(commands) == 7
    for command in commands:
        if "pytest" in command:
            assert Path(command[-1]).exists()
            assert str(gpu_run.ROOT / "tests" / "test_gpu.py") in command or command[-1].endswith("gpu")
            assert "-m" in command
            assert command[command.index("-c") + 1] == str(gpu_run.ROOT / "pyproject.toml")


def test_what_was_not_tested_stands_in_the_summary(tools: Path) -> None:
    """Though the step passed."""
    script(tools / "python", "#!/bin/sh\necho 'NOT TESTED a.py::b: CuPy is not installed'\necho '4 passed in 6.70s'\n")
    assert started(tools, "--part", "tests", "--no-build") == 0
    summary = (tools.parent / "out" / "summary.txt").read_text(encoding="utf-8").splitlines()
    assert summary[1].endswith("passed  4 passed in 6.70s")
    assert summary[2].split() == ["NOT", "TESTED", "a.py::b:", "CuPy", "is", "not", "installed"]


def test_the_page_gives_the_commands_that_run() -> None:
    """csrc/cuda/README.md: from the root, for an architecture."""
    page = (gpu_run.ROOT / "csrc" / "cuda" / "README.md").read_text(encoding="utf-8")
    block = page.partition("<!-- commands:begin -->")[2].partition("<!-- commands:end -->")[0]
    assert block.strip().strip("`").strip() == gpu_run.page()


def test_the_script_starts_alone(tmp_path: Path) -> None:
    """By any interpreter, from any folder."""
    asked = [sys.executable, "-S", gpu_run.__file__, "--dry-run", "--part", "bench"]
    done = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "# bench: at most 3600 s" in done.stdout
    assert list(tmp_path.iterdir()) == []
