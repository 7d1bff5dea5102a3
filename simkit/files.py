"""Files that appear whole or not at all, and errors that name what the user named."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def writable(path: str | os.PathLike[str]) -> Path:
    """``path`` as a file that can be written, before the work of making its content.

    Raises:
        FileNotFoundError: its folder does not exist. PermissionError: its folder may not be written to.
        IsADirectoryError: it is a folder itself.
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"the output {os.fspath(target)!r} is a folder: name a file")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {os.fspath(target.parent)!r} to write {target.name!r} into")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"the folder {os.fspath(target.parent)!r} may not be written to")
    return target


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` so that ``path`` holds either the old or the whole new content.

    The file has the permissions of a new one, whatever was there before.

    Raises:
        OSError: as :func:`writable`, or what the system says, about ``path``.
    """
    target = writable(path)
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with draft.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    except BaseException as error:
        draft.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:  # the draft's random name tells nobody anything
            raise OSError(error.errno, error.strerror, os.fspath(target)) from None
        raise
