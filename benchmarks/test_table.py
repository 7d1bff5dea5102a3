"""The script that writes the README's tables."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from . import table

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
            "limit": {"precision": "float32", "multiply_adds": 1000, "bytes": 1, "required": 2.0},
            "contestants": [
                {"name": "simkit", "error": 1e-9, "extra_bytes": 2**20, "samples": 5, "seconds": 0.0149,
                 "ratio_to_limit": 1.2, "ratio_to_simkit": 1.0},
                {"name": "slow", "error": "nan", "extra_bytes": None, "samples": 1, "seconds": 9900.0,
                 "ratio_to_limit": 12345.0, "ratio_to_simkit": 10287.5, "note": "one step timed"},
                {"name": "broken", "error": None, "extra_bytes": None, "failure": "ValueError: a | b"},
                {"name": "absent", "missing": "not installed"},
            ],
            "notes": ["a note"],
        }
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
    script = [sys.executable, table.__file__, "--readme", str(readme), "--results", str(readme.parent / "results")]
    return subprocess.run([*script, *arguments], capture_output=True, check=False).returncode


def test_stale_then_written_then_fresh(readme: Path) -> None:
    """--check fails on an old block and writes nothing; a second run changes nothing."""
    before = readme.read_text(encoding="utf-8")
    assert _run(readme, "--check") == 1
    assert readme.read_text(encoding="utf-8") == before
    assert _run(readme) == 0
    assert _run(readme, "--check") == 0
    text = readme.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| simkit | 14.9 ms | 1.20 |  | 1e-9 | 1 MiB |" in text
    assert "| slow | 9,900 s (once) | 12,345 | 10,288 | nan |  |" in text
    assert "| broken | ValueError: a / b |  |  |  |  |" in text
    assert "Not installed in this run: absent." in text


def test_the_newest_full_result_counts(readme: Path) -> None:
    """A later small run does not replace a full one; a later full one does."""
    folder = readme.parent / "results"
    for name, full, title in (("20260103", False, "small"), ("20260104", True, "later")):
        run = RUN | {"results": [RUN["results"][0] | {"full": full, "title": title}]}  # type: ignore[index, operator]
        (folder / f"{name}.json").write_text(json.dumps(run), encoding="utf-8")
    assert table.newest(folder)["W2"]["title"] == "later"


def test_markers_must_be_there() -> None:
    """Text without both markers is refused."""
    with pytest.raises(ValueError, match="needs one"):
        table.replaced("no markers", "block")
