"""A run of rounds that is killed at random moments, again and again, ends with the numbers of one that was not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

ROUNDS = Path(__file__).parent / "support" / "killed_rounds.py"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
def test_ten_kills_change_no_number(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, ROUNDS, tmp_path], capture_output=True, text=True, timeout=600, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "same\n", "")
