"""The script that writes the tables of the README and of docs/benchmarks.md."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from . import table
from .requirements import MOVED

RUN = {
    "format": "simkit.benchmarks.1",
    "date": "2026-01-02 03:04 UTC",
    "commit": "abc",
    "machine": {"processor": "P", "cores": 2},
    "versions": {"python": "3.11.0", "simkit": "0.1.0"},
    "results": [
        {
            "kind": "workload",
            "key": "W2",
            "title": "greedy order",
            "full": True,
            "limit": {"precision": "float32", "multiply_adds": 1000, "bytes": 1},
            "contestants": [
                {"name": "simkit", "error": 1e-9, "extra_bytes": 2**20, "samples": 5, "seconds": 0.0149,
                 "ratio_to_limit": 1.2, "ratio_to_simkit": 1.0},
                {"name": "slow", "error": "nan", "extra_bytes": None, "samples": 1, "seconds": 9900.0,
                 "ratio_to_limit": 12345.0, "ratio_to_simkit": 10287.5, "note": "one step timed"},
                {"name": "broken", "error": None, "extra_bytes": None, "failure": "ValueError: a | b"},
                {"name": "absent", "missing": "not installed"},
            ],
            "notes": ["a note"],
        },
        {
            "kind": "errors",
            "key": "W6 errors",
            "full": True,
            "sizes": {"n": 1500, "p": 64},
            "rows": [
                {"measure": "mean CCA", "condition": 1e4, "route": "Gram", "kept": 64,
                 "errors": {"simkit": 3e-16, "quick": 0.1, "lost": "nan"}},
                {"measure": "mean CCA", "condition": 1e12, "route": "QR", "kept": 63,
                 "errors": {"simkit": 0.0, "quick": None, "lost": "nan"}},
            ],
        },
    ],
}  # fmt: skip


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    """A README with markers, beside a folder of results."""
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "20260102.json").write_text(json.dumps(RUN), encoding="utf-8")
    path = tmp_path / "README.md"
    path.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n", encoding="utf-8")
    return path


def _run(readme: Path, *arguments: str) -> int:
    script = [sys.executable, "-m", "benchmarks.table", "--readme", str(readme)]
    script += ["--results", str(readme.parent / "results"), *arguments]
    return subprocess.run(script, cwd=table.ROOT, capture_output=True, check=False).returncode


def test_stale_then_written_then_fresh(readme: Path) -> None:
    """--check fails on old tables, either of them, and writes nothing; a second run changes nothing."""
    before = readme.read_text(encoding="utf-8")
    assert _run(readme, "--check") == 1
    assert readme.read_text(encoding="utf-8") == before
    assert _run(readme) == 0
    assert _run(readme, "--check") == 0
    text = readme.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    row = next(line for line in text.splitlines() if line.startswith("| W2 |"))
    assert row.startswith(
        "| W2 | greedy order | 14.9 ms | 1.20 | 1e-9 | slow | 10,288 | nan | 1 of 3 kept, 1 asserted by tests; "
    )
    assert "not measured (≥ 10,000 × the loop over candidates): no rival took part" in row
    everything = readme.parent / "docs" / "benchmarks.md"
    text = everything.read_text(encoding="utf-8")
    everything.write_text("old", encoding="utf-8")
    assert _run(readme, "--check") == 1
    assert everything.read_text(encoding="utf-8") == "old"
    assert "| simkit | 14.9 ms | 1.20 |  | 1e-9 | 1 MiB |" in text
    assert "| slow | 9,900 s (once) | 12,345 | 10,288 | nan |  |" in text
    assert "| broken | ValueError: a / b |  |  |  |  |" in text
    assert "Not in this run: absent (not installed)." in text
    assert "| measure | condition | simkit | quick | lost | kept | simkit's route |" in text
    assert "| mean CCA | 1e+04 | 3e-16 | 1e-1 | nan | 64 | Gram |" in text
    assert "| mean CCA | 1e+12 | 0 |  | nan | 63 | QR |" in text


def test_the_newest_full_result_counts(readme: Path) -> None:
    """A later small run does not replace a full one; a later full one does."""
    folder = readme.parent / "results"
    for name, full, title in (("20260103", False, "small"), ("20260104", True, "later")):
        run = RUN | {"results": [RUN["results"][0] | {"full": full, "title": title}]}  # type: ignore[index, operator]
        (folder / f"{name}.json").write_text(json.dumps(run), encoding="utf-8")
    assert table.newest(folder)["W2"]["title"] == "later"


def test_the_newest_of_every_benchmark_is_shown(readme: Path) -> None:
    """Records hold what one run measured: the table takes each result from the newest that has it, in their order."""
    folder = readme.parent / "results"
    for name, keys in (("20260101", ("W1", "W2")), ("20260103", ("W11", "W9 exact", "W6 SVCCA"))):
        results = [RUN["results"][0] | {"key": key, "title": f"{key} of {name}"} for key in keys]  # type: ignore[index, operator]
        (folder / f"{name}.json").write_text(json.dumps(RUN | {"results": results}), encoding="utf-8")
    text = table.render(table.newest(folder))
    titles = [line.split(": ")[1].split(" (")[0] for line in text.splitlines() if line.startswith("W")]
    assert titles == [
        "W1 of 20260101",
        "greedy order",
        "W6 SVCCA of 20260103",
        "W9 exact of 20260103",
        "W11 of 20260103",
    ]
    assert "Accuracy by condition" in text


def test_every_kind_of_result_is_shown() -> None:
    """What a benchmark records, the table shows; a kind that it does not know is refused."""
    sources = Path(__file__).parent.glob("*.py")
    kinds = {kind for path in sources for kind in re.findall(r'"kind": "(\w+)"', path.read_text(encoding="utf-8"))}
    for kind in kinds - {"nobody"}:
        with pytest.raises((KeyError, TypeError)):  # known, but without what its table shows
            table.render({"x": {"kind": kind, "key": "x"}})
    with pytest.raises(ValueError, match="there is no table for 'x' of kind 'nobody'"):
        table.render({"x": {"kind": "nobody", "key": "x"}})


def test_a_workload_without_others_has_its_row() -> None:
    """Where no rival is installed, the cells beside simkit's are empty."""
    alone = RUN["results"][0] | {"contestants": RUN["results"][0]["contestants"][:1], "run": RUN}  # type: ignore[index, operator]
    assert "| W2 | greedy order | 14.9 ms | 1.20 | 1e-9 |  |  |  | 1 of 3 kept, 1 asserted by" in table.speed([alone])


def test_what_answers_nothing_is_no_rival() -> None:
    """Bare forward passes take the least time, and stand in the whole table without an error."""
    bare = RUN["results"][0]["contestants"][1] | {"name": "the forward passes alone", "seconds": 1e-9, "error": 0.0}  # type: ignore[index]
    workload = RUN["results"][0] | {"contestants": [*RUN["results"][0]["contestants"], bare], "run": RUN}  # type: ignore[index, operator]
    assert "| slow |" in table.speed([workload])
    assert "forward" not in table.speed([workload])
    (row,) = [one for one in table.workload_table([workload]).splitlines() if one.startswith("| the forward passes")]
    assert row.split("|")[5].strip() == ""


def test_a_workload_of_which_nothing_is_asked_has_its_rows() -> None:
    """A kernel's row stands after the linear one, with nothing kept or short."""
    linear, rbf = (RUN["results"][0] | {"key": key} for key in ("W1", "W1 RBF"))  # type: ignore[index, operator]
    about = {name: RUN[name] for name in ("date", "commit", "machine", "versions")}
    text = table.render({one["key"]: one | {"run": about} for one in (rbf, linear)})
    assert text.index("\nW1: greedy order") < text.index("\nW1 RBF: greedy order")
    assert "| W1 | greedy order | 14.9 ms | 1.20 | 1e-9 | slow | 10,288 | nan |  |" in table.speed([rbf | {"run": RUN}])


def test_the_runs_of_a_table_are_named() -> None:
    """Under the table, each with the workloads that it measured last."""
    rows = [
        RUN["results"][0] | {"key": key, "run": {"commit": commit, "date": "2026-01-01"}}  # type: ignore[index, operator]
        for key, commit in (("W1", "a"), ("W2 x", "b"), ("W2 y", "b"), ("W3", "a"))
    ]
    assert table.speed(rows).endswith("<sub>W1, W3: commit a, 2026-01-01; W2: commit b, 2026-01-01</sub>")


def test_all_shapes_above_the_bound_are_shown() -> None:
    """More than eight of them too; of an old record the table says that it timed again what missed."""
    about = {name: RUN[name] for name in ("date", "commit", "machine", "versions")}
    shape = {"n": 10, "widths": [3], "dtype": "float32", "chosen": "sample", "seconds": {"sample": 1.0}}
    cells = [shape | {"ratio": 1.0 + k / 20} for k in range(20)]
    text = table.routes({"protocol": "medians", "cells": cells, "run": about})
    assert "not far from the best (medians): 15 of 20 above 1.2" in text
    assert text.count("| 10 | 1 × 3 |") == 15
    assert "a shape above the bound was timed again" in table.routes({"cells": cells[:9], "run": about})


def test_routes_that_were_left_out_are_counted() -> None:
    """Of an old record the table says that it does not know."""
    about = {name: RUN[name] for name in ("date", "commit", "machine", "versions")}
    cell = {"n": 10, "widths": [3], "dtype": "float32", "chosen": "sample", "seconds": {"sample": 1.0}, "ratio": 1.0}
    costs = {"multiply_adds": {"sample": 1, "feature": 2, "mixed": 3}}
    told = [cell | costs | {"far": far, "uncalled": ["mixed"]} for far in ([], ["feature"])]
    assert "Of 6 routes 1 were left" in table.routes({"cells": told, "run": about})
    assert "and 2 not called" in table.routes({"cells": told, "run": about})
    assert "left out was not recorded" in table.routes({"cells": [*told, cell], "run": about})


def test_a_row_says_what_was_not_scaled() -> None:
    """Beside its note; of an old record, that all was scaled."""
    about = {name: RUN[name] for name in ("date", "commit", "machine", "versions")}
    workload: dict[str, Any] = RUN["results"][0] | {"run": about}  # type: ignore[index]
    own, slow, *_ = workload["contestants"]
    slow = slow | {"scaled_by": 8.0}
    new, every = (slow | {"name": name, "unscaled_seconds": once} for name, once in (("new", 0.25), ("all", 0.0)))
    text = table.workload_table([workload | {"contestants": [own, slow, new, every]}])
    assert "slow: one step timed; whatever it does once was scaled too." in text
    assert "new: one step timed; 250.0 ms of its time not scaled." in text
    assert "all: one step timed." in text


def test_growth_says_which_sizes_were_moved() -> None:
    """And which rows no plan counts."""
    about = {name: RUN[name] for name in ("date", "commit", "machine", "versions")}
    row = {"name": "W5, a stream", "variable": "p", "sizes": [1, 2, 3, 4], "expected": 2.0, "exponent": 1.9}
    text = table.growth({"rows": [row], "run": about})
    assert all(f"{key} in {variable} ({words})" in text for key, variable, words in MOVED)
    assert "| W5, a stream | p | 1 | 4 | 2 | 1.90 | no count |" in text


def test_markers_must_be_there() -> None:
    """Text without both markers is refused."""
    with pytest.raises(ValueError, match="needs one"):
        table.replaced("no markers", "block")
