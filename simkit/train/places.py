"""Where data sets lie: a folder that the caller names, that SIMKIT_DATA names, or that the system has."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

_SYSTEM = Path("/usr/share/datasets")


def candidates(name: str, path: str | os.PathLike[str] | None, inside: Sequence[str]) -> list[Path]:
    """Folders to search for the data set ``name``, best first; ``inside`` are its usual names in a folder for all.

    Named folders come first: in a folder for all data sets, loose files could be those of another one.
    """
    configured = str(path or os.environ.get("SIMKIT_DATA") or "")
    found = [Path(configured) / folder for folder in (*inside, "")] if configured else []
    return found if path else [*found, _SYSTEM / name]


def first_file(folder: Path, names: Sequence[str], suffixes: Sequence[str] = ("",)) -> Path | None:
    """The first of the names, with the first of the suffixes, that is a file in the folder."""
    for name in names:
        for suffix in suffixes:
            if (folder / f"{name}{suffix}").is_file():
                return folder / f"{name}{suffix}"
    return None


def missing(name: str, files: str, searched: Sequence[Path]) -> ValueError:
    """The one sentence on a data set that is not there: what to put where."""
    return ValueError(
        f"{name} was not found: put {files} into a folder and pass it as path= (--set data.path=FOLDER), or into "
        f"$SIMKIT_DATA/{name} (searched: {', '.join(map(str, searched))})"
    )
