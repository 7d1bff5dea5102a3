"""Numbers and rows of Markdown tables, and the lines under them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


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


def how(row: dict[str, Any]) -> str:
    """A row's note, and what of its time was not scaled."""
    once = "whatever it does once was scaled too" if "scaled_by" in row else ""
    if "unscaled_seconds" in row:
        once = f"{time_cell(row['unscaled_seconds'])} of its time not scaled" if row["unscaled_seconds"] else ""
    return "; ".join(part for part in (row.get("note"), once) if part)


def missing_line(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Who did not take part, and why."""
    return ["Not in this run: " + ", ".join(f"{row['name']} ({row['missing']})" for row in rows) + "."] if rows else []


def origin(result: dict[str, Any]) -> str:
    """The machine, the versions, the commit and the date of a result's run."""
    run = result["run"]
    machine, versions = run["machine"], run["versions"]
    shown = [f"{name} {versions[name]}" for name in versions if name != "simkit"]
    return (
        f"<sub>{machine['processor']}, {machine['cores']} cores; {', '.join(shown)};"
        f" commit {run['commit']}, {run['date']}</sub>"
    )
