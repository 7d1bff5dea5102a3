"""The command line, in this process and in one of its own, and what a mistake looks like there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

Run = Callable[..., tuple[int, str, str]]


def python(*arguments: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(str(argument) for argument in arguments)]
    environment = {**os.environ, **variables}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=120)


def assert_one_sentence(code: int, out: str, err: str) -> None:
    assert code == 2
    assert out == ""
    assert err.startswith("simkit: error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
