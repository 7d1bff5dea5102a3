"""Files appear whole or not at all, with the permissions of a new file, and errors name what the user named."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from simkit.files import writable, write_atomically


def test_content_is_replaced(tmp_path: Path) -> None:
    for content in (b"", b"old", b"the new one"):
        write_atomically(tmp_path / "m", content)
        assert (tmp_path / "m").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("step", ["os.fsync", "pathlib.Path.replace"])
@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError("no more disks"), "^no more disks$"),
        (OSError(28, "No space left on device", "draft"), r"^\[Errno 28\] No space left on device: '.*/m'$"),
        (KeyboardInterrupt(), "^$"),
    ],
)
def test_a_failure_in_the_middle_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException, sentence: str
) -> None:
    write_atomically(tmp_path / "m", b"old")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(step, fail)
    with pytest.raises(type(error), match=sentence) as caught:
        write_atomically(tmp_path / "m", b"new")
    assert caught.value.__cause__ is None
    assert (tmp_path / "m").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_killed_process_leaves_the_old_content(tmp_path: Path) -> None:
    write_atomically(tmp_path / "m", b"old")
    program = (
        "import os, signal, sys, simkit.files\n"
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "simkit.files.write_atomically(sys.argv[1], b'new')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "m"], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "m").read_bytes() == b"old"


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        for _ in range(2):  # a new file, and one in the place of another
            write_atomically(tmp_path / "m", b"content")
            assert stat.S_IMODE((tmp_path / "m").stat().st_mode) == mode
            (tmp_path / "m").chmod(0o640)
    finally:
        os.umask(before)


def test_errors_name_the_file_and_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_bytes(b"")
    Path("folder").mkdir()
    long = "m" * 300
    for path, kind, sentence in (
        ("nowhere/m", FileNotFoundError, "there is no folder 'nowhere' to write 'm' into"),
        ("file/m", FileNotFoundError, "there is no folder 'file' to write 'm' into"),
        ("folder", IsADirectoryError, "the output 'folder' is a folder: name a file"),
        (long, OSError, f"[Errno 36] File name too long: '{long}'"),
    ):
        with pytest.raises(kind, match=f"^{re.escape(sentence)}$"):
            write_atomically(path, b"content")
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    with pytest.raises(PermissionError, match=r"^the folder '\.' may not be written to$"):
        writable("m")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
