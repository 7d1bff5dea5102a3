"""Text from files and errors, made fit for a terminal."""

from __future__ import annotations

import sys


def printable(text: str) -> str:
    """``text`` with what is no visible character (line ends, escape sequences) written as ``\\n``, ``\\x1b``."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def say(text: str) -> None:
    """Print ``text`` on stdout; characters that its encoding lacks are written as ``\\xe4``."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))
