"""A run that is killed at any moment leaves whole files or none, and its inputs as they were."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

RUNS = Path(__file__).parent / "support" / "killed_runs.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
@pytest.mark.parametrize("run", ["matrix", "command", "resume"])
def test_a_kill_leaves_nothing_half_written(run: str, tmp_path: Path) -> None:
    if run == "resume":
        pytest.importorskip("torch")
    command = [sys.executable, RUNS, run, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "whole\n", "")
