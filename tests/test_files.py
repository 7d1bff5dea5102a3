"""Files appear whole or not at all, where the old one was and as readable as it, and errors name what the user did."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from simkit.files import check_safetensors_name, writable, write_atomically


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


@pytest.mark.process
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
def test_permissions_of_a_new_file_follow_the_umask(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "m", b"content")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "m").stat().st_mode) == mode


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o755, 0o444])
def test_a_file_keeps_its_permissions(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "m"
    file.write_bytes(b"old")
    file.chmod(mode)
    write_atomically(file, b"new")
    assert file.read_bytes() == b"new"
    assert stat.S_IMODE(file.stat().st_mode) == mode


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    link, chain, there = tmp_path / "link", tmp_path / "chain", tmp_path / "store" / "m"
    link.symlink_to(Path("store") / "m")
    chain.symlink_to("link")
    for path, content in ((link, b"the first: nothing is there yet"), (chain, b"the second")):
        write_atomically(path, content)
        assert there.read_bytes() == content
        assert not there.is_symlink()
    assert link.is_symlink()
    assert chain.is_symlink()
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["m"]


def test_links_that_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a").symlink_to("b")
    Path("b").symlink_to("a")
    Path("c").symlink_to("nowhere/m")
    Path("d").symlink_to(tmp_path)
    with pytest.raises(OSError, match=r"^\[Errno \d+\] Too many levels of symbolic links: 'a'$"):
        write_atomically("a", b"content")
    with pytest.raises(FileNotFoundError, match=r"^there is no folder '.*nowhere' to write 'm' into$"):
        write_atomically("c", b"content")
    with pytest.raises(IsADirectoryError, match=r"^the output 'd' is a folder: name a file$"):
        write_atomically("d", b"content")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c", "d"]


def test_what_is_no_regular_file_is_refused_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to("pipe")
    for path in (pipe, tmp_path / "link", Path(os.devnull)):
        sentence = f"the output {str(path)!r} is no regular file but a device, a pipe or a socket"
        with pytest.raises(OSError, match=f"^{re.escape(sentence)}$"):
            write_atomically(path, b"content")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)


def test_the_longest_names_work(tmp_path: Path) -> None:
    for length in (250, 255):
        write_atomically(tmp_path / ("m" * length), b"content")
        assert (tmp_path / ("m" * length)).read_bytes() == b"content"


@pytest.mark.parametrize("name", ["m.safetensors", "m.SafeTensors", "folder.csv/m.safetensors"])
def test_names_of_safetensors_files(name: str) -> None:
    check_safetensors_name(name, "to_csv writes tables")


@pytest.mark.parametrize("name", ["m.csv", "m", ".safetensors", "m.safetensors.gz", ""])
def test_other_endings_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"^path='{re.escape(name or '')}' must end in .safetensors: use to_csv$"):
        check_safetensors_name(name, "use to_csv")
    with pytest.raises(ValueError, match=r"must end in \.safetensors$"):
        check_safetensors_name(Path(name))


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
