"""Numbers and rows of Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence


def line(cells: Sequence[str]) -> str:
    """One row."""
    return "| " + " | ".join(cells) + " |"


def error_cell(value: float | str | None) -> str:
    """One digit and the power of ten; empty where there is none."""
    return "" if value is None else f"{float(value):.0e}".replace("e-0", "e-").replace("0e+00", "0")


def ratio_cell(value: float) -> str:
    """Two decimals, or none from a hundred on."""
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def time_cell(seconds: float) -> str:
    """Three or four digits in seconds, milliseconds or microseconds."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:,.{0 if seconds >= 1000 * size else 1 if seconds >= 10 * size else 2}f} {unit}"
    return f"{seconds / 1e-6:.0f} µs"
