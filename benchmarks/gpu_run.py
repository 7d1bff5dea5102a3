"""Everything that a machine with a GPU is asked, by one command: ``python benchmarks/gpu_run.py [--part PART ...]``.

Builds the module for this machine's device, then `simkit doctor`, the tests marked `gpu`, compute-sanitizer on small
cases, the GPU benchmarks at full size, and the tables from their record. Every step has its own limit and its own log
in ``--out``; what fails stops nothing but what needs it, and a summary ends the run. The record lies in ``--out`` and
in ``benchmarks/results/gpu``. Needs nothing but Python to start, and no network: what the build or the tests need and
the machine lacks comes as wheels in ``--wheels``. Where a call may take so long only, ``--budget`` ends it in time and
``--part`` makes several of one. ``--dry-run`` prints the commands.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("build", "tests", "sanitize", "bench")
# Small cases: a sanitizer takes ten to a hundred times as long as the kernels.
LARGE = ("large_", "torch", "cupy", "1500", "3000", "5000", "10000", "20000")  # in the names of tests
CHECKED = " and not ".join(["(agree or elimination or small_case)", *LARGE])
# simkit asks streams whether they are done, to which "not ready" is an answer and no error; what the calls of its ops
# return it checks itself, what those of destructors return nobody does then.
MEMCHECK = ("--report-api-errors", "no", "--track-stream-ordered-races", "all")
COUNTS = re.compile(r"\d+ (?:passed|failed|error)[^\n]* in [0-9.]+s|ERROR SUMMARY: [^\n]*|RACECHECK SUMMARY: [^\n]*")
UNTESTED = re.compile(r"^NOT TESTED [^\n]*", re.MULTILINE)  # as tests/conftest.py says it


@dataclass(frozen=True)
class Step:
    """A command with its limit in seconds and its log; ``needs`` names a step without which it makes no sense."""

    part: str
    name: str
    command: tuple[str, ...]
    limit: float
    needs: str = ""
    missing: str = ""  # why it cannot run here
    where: Path | None = None  # None: the output folder, which hides no package


@dataclass
class Outcome:
    """What became of a step."""

    name: str
    result: str
    seconds: float = 0.0
    passed: bool = False
    counts: list[str] = field(default_factory=list)

    def line(self) -> str:
        """For the summary."""
        counts, *untested = [*self.counts, ""] if not self.counts else self.counts
        lines = [f"{self.name:<10} {self.seconds:6.0f} s  {self.result}  {counts}".rstrip()]
        return "\n".join([*lines, *(f"{'':<10}           {line}" for line in untested)])


def architecture() -> str:
    """The device's compute capability as the build takes it, ``90-real``; empty where its tool does not say."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    asked = [tool, "--query-gpu=compute_cap", "--format=csv,noheader"]
    found = re.match(r"(\d+)\.(\d+)", subprocess.run(asked, capture_output=True, text=True, check=False).stdout)
    return f"{found[1]}{found[2]}-real" if found else ""


def environment(site: Path) -> dict[str, str]:
    """Every step's: simkit and what came as wheels from ``site``, CUDA's tools, no skips where a device is missing."""
    tools = [str(site / "bin"), str(Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin"))]
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH", "")])]
    added = {"PATH": os.pathsep.join([*tools, os.environ.get("PATH", "")]), "PYTHONPATH": os.pathsep.join(paths)}
    fixed = {"SIMKIT_REQUIRE_GPU": "1", "PYTHONUNBUFFERED": "1", "OPENBLAS_THREAD_TIMEOUT": "10", "MPLBACKEND": "Agg"}
    return os.environ | added | fixed


def gpu_tests() -> list[str]:
    """The files of tests that need a device: its own, and those of all backends; collecting the others takes longer."""
    return [
        str(path)
        for path in sorted((ROOT / "tests").glob("test_*.py"))
        if re.search(r"mark\.gpu|^from backend_lists import", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]


def steps(options: argparse.Namespace) -> list[Step]:
    """The steps of the parts that are asked for, in order; all others come after the build."""
    python, site = options.python, str(options.site)
    pytest = (python, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT))
    pytest += ("-p", "no:cacheprovider", "--durations=15")
    tests = gpu_tests()
    own = [path for path in tests if Path(path).name.startswith("test_gpu")]
    tool = shutil.which("compute-sanitizer", path=environment(options.site)["PATH"])
    sanitizer = ("compute-sanitizer", "--target-processes", "all", "--error-exitcode", "9", "--tool")
    absent = "" if tool or options.dry_run else "compute-sanitizer is not here"
    selected, some = (("-k", words) if words else () for words in (options.select, options.tests))
    checked = f"({CHECKED}) and ({options.tests})" if options.tests else CHECKED
    memory = (*sanitizer, "memcheck", *MEMCHECK, *pytest, "-m", "gpu", "-k", checked)
    races = (*sanitizer, "racecheck", *pytest, "-m", "gpu and racecheck", *some)
    benchmarks = (*pytest, "-m", "gpu", "--full", "--record", str(options.out), *selected)
    tables = (python, "-m", "benchmarks.gpu.table", "--add", str(options.out), "--results", str(options.results))
    found = [
        *_building(options, python, site),
        Step("build", "doctor", (python, "-m", "simkit", "doctor"), 120, needs="build"),
        Step("tests", "tests", (*pytest, "-m", "gpu", *some, *tests), 1800, needs="build"),
        Step("sanitize", "memcheck", (*memory, *own), 3600, needs="build", missing=absent),
        Step("sanitize", "racecheck", (*races, *own), 3600, needs="build", missing=absent),
        Step("bench", "bench", (*benchmarks, str(ROOT / "benchmarks" / "gpu")), 3600, needs="build"),
        Step("bench", "tables", tables, 60, needs="build", where=ROOT),
    ]
    chosen = {"build", *(options.part or PARTS)} - ({"build"} if options.no_build else set())
    return [step for step in found if step.part in chosen]


def _building(options: argparse.Namespace, python: str, site: str) -> list[Step]:
    install = (python, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--upgrade", "--target", site)
    wheels = sorted(str(path) for path in options.wheels.glob("*.whl")) if options.wheels else []
    arch = options.arch or architecture()
    settings = ["cmake.define.SIMKIT_CUDA=ON", "cmake.define.SIMKIT_WERROR=ON", f"build-dir={options.site}-build"]
    settings += [f"cmake.define.SIMKIT_CUDA_ARCHS={arch}"] if arch else []
    flags = [f"--config-settings={setting}" for setting in settings]
    first = [Step("build", "wheels", (*install, *wheels), 120)] if wheels else []
    build = (*install, "--no-build-isolation", *flags, str(ROOT))
    return [*first, Step("build", "build", build, 1800, needs="wheels" if wheels else "")]


def run(step: Step, options: argparse.Namespace, seconds: float) -> Outcome:
    """Run one step for ``seconds`` at most; its log lies in the output folder."""
    log = options.out / f"{step.name}.log"
    started = monotonic()
    with log.open("w", encoding="utf-8") as file:
        file.write(f"$ {shlex.join(step.command)}\n")
        file.flush()
        try:
            child = subprocess.Popen(
                step.command,
                cwd=step.where or options.out,
                env=environment(options.site),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            return Outcome(step.name, f"FAILED: {error}")
        try:
            status = child.wait(seconds)
            result = "passed" if status == 0 else f"FAILED with {status}"
        except subprocess.TimeoutExpired:
            result = f"FAILED: stopped after {seconds:.0f} s"
        except KeyboardInterrupt:
            result = "FAILED: interrupted"
        _end(child)
    said = log.read_text(encoding="utf-8", errors="replace")
    counts = [*COUNTS.findall(said)[-1:], *UNTESTED.findall(said)]
    return Outcome(step.name, result, monotonic() - started, result == "passed", counts)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Whatever the step started and left: its process group is its own."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, how)
            child.wait(5)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    child.wait()


def run_all(todo: Sequence[Step], options: argparse.Namespace) -> list[Outcome]:
    """Every step that the time allows, whatever failed before, except for what it needs."""
    deadline = monotonic() + (math.inf if options.budget is None else options.budget)
    done: dict[str, Outcome] = {}
    for step in todo:
        left = deadline - monotonic()
        before = done.get(step.needs)
        if before is not None and not before.passed:
            done[step.name] = Outcome(step.name, f"not run: {step.needs} failed")
        elif step.missing:
            done[step.name] = Outcome(step.name, f"FAILED: {step.missing}")
        elif left < 1:
            done[step.name] = Outcome(step.name, f"not run: the {options.budget:.0f} s are over")
        else:
            print(f"--- {step.name}", flush=True)
            done[step.name] = run(step, options, min(step.limit, left))
            print(done[step.name].line(), flush=True)
    return list(done.values())


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, help="this part (and the build); again for more")
    parser.add_argument("--out", type=Path, default=Path("gpu-run"), help="the folder of logs and of the record")
    parser.add_argument("--site", type=Path, default=ROOT / "build" / "gpu", help="where simkit is built to")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels that the machine lacks, installed first")
    parser.add_argument("--no-build", action="store_true", help="take what lies in --site")
    parser.add_argument("--arch", help="of the device, such as 90-real; asked of nvidia-smi otherwise")
    parser.add_argument("--select", help="benchmarks by pytest's -k, such as 'g1 or g2'")
    parser.add_argument(
        "--tests", help="tests by pytest's -k, the sanitizers' too, where all take longer than a call may"
    )
    parser.add_argument("--budget", type=float, help="seconds for all steps together; no limit but theirs otherwise")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "gpu", help="of records")
    parser.add_argument("--python", default=sys.executable, help="the interpreter of every step")
    parser.add_argument("--dry-run", action="store_true", help="print the commands")
    options = parser.parse_args(arguments)
    options.out, options.site, options.results = (
        path.resolve() for path in (options.out, options.site, options.results)
    )
    return options


def page() -> str:
    """The commands as csrc/cuda/README.md gives them: from the root, without what only keeps them apart."""
    options = parsed(["--dry-run", "--python", "python", "--out", str(ROOT / "gpu-run"), "--arch", "ARCH"])
    lines = []
    for step in steps(options):
        words, files = [], []
        for word in step.command:
            short = word.replace(f"{ROOT}{os.sep}", "").replace(str(ROOT), ".")
            (files if short.startswith("tests/test_") else words).append(short)
        if files:
            words.append(f"tests/{'test_gpu*' if all('test_gpu' in file for file in files) else 'test_*'}.py")
        lines.append(shlex.join(words).replace("'tests/test_gpu*.py'", "tests/test_gpu*.py"))
    return "\n".join(line.replace("'tests/test_*.py'", "tests/test_*.py") for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run or print the steps; 1 when any did not pass."""
    options = parsed(arguments)
    todo = steps(options)
    if options.dry_run:
        for step in todo:
            print(f"# {step.name}: at most {step.limit:.0f} s\n{shlex.join(step.command)}")
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    outcomes = run_all(todo, options)
    summary = "\n".join(["=== summary", *(outcome.line() for outcome in outcomes)]) + "\n"
    (options.out / "summary.txt").write_text(summary, encoding="utf-8")
    print(summary, end="")
    return 0 if all(outcome.passed for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
