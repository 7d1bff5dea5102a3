"""Files that appear whole or not at all, and errors that name what the user named."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path

_DRAFT = re.compile(r"\.simkit-[0-9a-f]{16}")


def writable(path: str | os.PathLike[str]) -> Path:
    """``path`` as a file that can be written, before the work of making its content.

    Raises:
        FileNotFoundError: its folder does not exist. PermissionError: its folder may not be written to.
        IsADirectoryError: it is a folder itself. OSError: it is a device, a pipe or a loop of links.
    """
    target = Path(path)
    place = _place(target)
    if place.is_dir():
        raise IsADirectoryError(f"the output {os.fspath(target)!r} is a folder: name a file")
    if place.exists() and not place.is_file():
        raise OSError(f"the output {os.fspath(target)!r} is no regular file but a device, a pipe or a socket")
    if not place.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {os.fspath(place.parent)!r} to write {place.name!r} into")
    if not os.access(place.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"the folder {os.fspath(place.parent)!r} may not be written to")
    return target


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` so that ``path`` holds either the old or the whole new content.

    A link stays a link: the file that it names is written. A file that is there keeps its permissions.

    Raises:
        OSError: as :func:`writable`, or what the system says, about ``path``.
    """
    target = writable(path)
    place = _place(target)
    draft = place.with_name(f".simkit-{os.urandom(8).hex()}")  # short, for the longest names are 255 bytes
    try:
        with draft.open("xb") as file:
            if place.exists():
                _keep_permissions(place, draft)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(place)
    except BaseException as error:
        draft.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:  # the draft's random name tells nobody anything
            raise OSError(error.errno, error.strerror, os.fspath(target)) from None
        raise


def is_draft(path: Path) -> bool:
    """Whether a file is what :func:`write_atomically` leaves where it is killed: to delete where nobody else writes."""
    return _DRAFT.fullmatch(path.name) is not None


def check_safetensors_name(path: str | os.PathLike[str], instead: str = "") -> None:
    """Raise ValueError unless ``path`` ends in ``.safetensors``; ``instead`` says what writes other formats."""
    if Path(path).suffix.lower() != ".safetensors":
        raise ValueError(f"path={os.fspath(path)!r} must end in .safetensors{instead and f': {instead}'}")


def _place(target: Path) -> Path:
    """Where the bytes go: the file at the end of a chain of links, else the target itself."""
    if not target.is_symlink():
        return target
    place = Path(os.path.realpath(target))
    if place.is_symlink():  # realpath stops in a loop
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fspath(target))
    return place


def _keep_permissions(place: Path, draft: Path) -> None:
    mode = stat.S_IMODE(place.stat().st_mode)
    if stat.S_IMODE(draft.stat().st_mode) != mode:  # not every file system can change them
        draft.chmod(mode)
