"""``simkit report``: what the runs in a folder show, as tables and pictures beside them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..files import write_atomically
from .outputs import as_json
from .report_data import Experiment, read_experiments
from .report_figures import accuracy_figure, rounds_figure, similarity_figure
from .report_tables import cells_csv, report_data, report_text, similarity_csv

_FIGURE = re.compile(r"(accuracy|rounds|similarity)-[0-9a-f]{12}.*\.png")


def report(folder: str | os.PathLike[str]) -> str:
    """Write report.json, report.csv, similarity.csv and the pictures into the folder; what they say, as text.

    Raises:
        ValueError: no finished runs, or damaged results. OSError: the folder cannot be written to.
    """
    place = Path(folder)
    experiments, unfinished = read_experiments(place)
    figures: dict[str, bytes] = {}
    for one in experiments:
        figures |= _figures(one)
    for name, content in figures.items():
        write_atomically(place / name, content)
    write_atomically(place / "similarity.csv", similarity_csv(experiments).encode())
    write_atomically(place / "report.csv", cells_csv(experiments).encode())
    write_atomically(place / "report.json", as_json(report_data(experiments, unfinished, sorted(figures))))
    for file in place.iterdir():
        if _FIGURE.fullmatch(file.name) and file.name not in figures:  # of runs that are no longer here
            file.unlink()
    return report_text(experiments, unfinished)


def _figures(one: Experiment) -> dict[str, bytes]:
    if not one.cells:
        return {}
    found = {f"accuracy-{one.id}.png": accuracy_figure(one)}
    if len({cell.round for cell in one.cells}) > 1:
        found[f"rounds-{one.id}.png"] = rounds_figure(one)
    for amount in one.amounts:
        if any(cell.similarity for cell in one.cells if cell.amount == amount):
            found[f"similarity-{one.id}-{amount:g}.png"] = similarity_figure(one, amount)
    return found
