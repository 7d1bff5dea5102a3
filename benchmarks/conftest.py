"""Options, the `measure` fixture, and one JSON file a run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import pytest

from . import SET_IN_TIME
from .machine import commit, describe_machine, threads, versions
from .protocol import Contestant, Missing, Sampler, Workload, record
from .rivals import from_package

RESULTS = Path(__file__).parent / "results"
ROUNDS = 5
RUN = pytest.StashKey[list[dict[str, Any]]]()
COMMIT = pytest.StashKey[str]()

FromNumba: TypeAlias = Callable[[Contestant], "Contestant | Missing"]


class Measure(Protocol):
    """What the fixture :func:`measure` gives."""

    def __call__(
        self,
        workload: Workload,
        simkit: Contestant,
        rivals: Sequence[Contestant | Missing] = (),
        *,
        rounds: int = ROUNDS,
    ) -> dict[str, Any]: ...


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("simkit benchmarks")
    group.addoption("--full", action="store_true", help="full sizes; the run is recorded in benchmarks/results")
    group.addoption("--record", metavar="FOLDER", help="record the run in this folder, whatever the sizes")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RUN] = []
    config.stash[COMMIT] = commit()  # before the run: it may take minutes
    if results_folder(config) is not None and not SET_IN_TIME:
        raise pytest.UsageError(
            "NumPy was loaded too early: run `pytest benchmarks` alone, or set OPENBLAS_THREAD_TIMEOUT=10"
        )


def results_folder(config: pytest.Config) -> Path | None:
    """Where this run is recorded; None: nowhere."""
    if config.getoption("--benchmark-disable", default=False):
        return None
    named = config.getoption("--record")
    return Path(named) if named else RESULTS if config.getoption("--full") else None


@pytest.fixture(scope="session")
def full(pytestconfig: pytest.Config) -> bool:
    """Whether full sizes were asked for."""
    return bool(pytestconfig.getoption("--full"))


@pytest.fixture(scope="session", autouse=True)
def equal_threads() -> Iterator[None]:
    """As many threads for torch as NumPy and simkit take."""
    try:
        import torch
    except ImportError:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(threads())
    yield
    torch.set_num_threads(before)


@pytest.fixture
def keep(pytestconfig: pytest.Config) -> Callable[[dict[str, Any]], None]:
    """Add a result to this run's record."""
    return pytestconfig.stash[RUN].append


@pytest.fixture
def from_numba(pytestconfig: pytest.Config) -> FromNumba:
    """A rival that numba compiles, for seconds, so only where something is timed; test_numba_rivals.py checks them."""

    def present(contestant: Contestant) -> Contestant | Missing:
        if pytestconfig.getoption("--benchmark-disable", default=False):
            return Missing(contestant.name, "compiled only where something is timed")
        notes = [contestant.note] if contestant.note else []
        note = "; ".join([*notes, "its extra memory holds what compiling it took"])
        return from_package("numba", replace(contestant, note=note))

    return present


@pytest.fixture
def measure(benchmark: Any, full: bool, keep: Callable[[dict[str, Any]], None]) -> Measure:
    """Check every answer, then time all contestants in turn; returns and records the ratios.

    With ``--benchmark-disable`` the answers are checked and nothing is timed.
    """

    def run(
        workload: Workload, simkit: Contestant, rivals: Sequence[Contestant | Missing] = (), *, rounds: int = ROUNDS
    ) -> dict[str, Any]:
        present = [rival for rival in rivals if isinstance(rival, Contestant)]
        missing = [rival for rival in rivals if isinstance(rival, Missing)]
        sampler = Sampler(workload, simkit, present, side=2048 if full else 512)
        if benchmark.disabled:
            benchmark.pedantic(simkit.call, args=(workload.inputs[0],))
        else:
            (warm_up,), _ = sampler.before()
            sampler.timed(warm_up)
            sampler.after(warm_up)
            sampler.forget()
            benchmark.pedantic(sampler.timed, setup=sampler.before, teardown=sampler.after, rounds=rounds)
        result = record(sampler, missing, full=full, threads=threads())
        if rounds != ROUNDS:
            result["notes"].append(f"{rounds} rounds where others have {ROUNDS}")
        keep(result)
        return result

    return run


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the run's JSON, and nothing when nothing was measured."""
    config = session.config
    folder, results = results_folder(config), config.stash[RUN]
    if folder is None or not results:
        return
    now = datetime.now(timezone.utc)
    run = {
        "format": "simkit.benchmarks.1",
        "date": now.strftime("%Y-%m-%d %H:%M UTC"),
        "commit": config.stash[COMMIT],
        "machine": describe_machine(),
        "versions": versions(),
        "environment": {"OPENBLAS_THREAD_TIMEOUT": os.environ["OPENBLAS_THREAD_TIMEOUT"]},
        "results": results,
    }
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{now:%Y%m%d-%H%M%S}.json"
    temporary = target.with_suffix(".tmp")
    temporary.write_text(json.dumps(run, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(target)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Each contestant's time, ratios, error and memory."""
    for result in config.stash[RUN]:
        if result["kind"] != "workload":
            continue
        terminalreporter.section(f"{result['key']}: {result['title']}", sep="-")
        for row in result["contestants"]:
            terminalreporter.write_line(_line(row))


def _line(row: dict[str, Any]) -> str:
    parts = [f"{row['name']:42}"]
    if "missing" in row or "failure" in row:
        return " ".join([*parts, row.get("missing") or row["failure"]])
    if "seconds" in row:
        parts.append(
            f"{1e3 * row['seconds']:12.2f} ms {row['ratio_to_limit']:8.2f} x limit"
            f" {row['ratio_to_simkit']:10.2f} x simkit"
        )
    parts.append("error -" if row["error"] is None else f"error {float(row['error']):8.1e}")
    if row["extra_bytes"] is not None:
        parts.append(f"+{row['extra_bytes'] / 2**20:.0f} MiB")
    return " ".join(parts)
