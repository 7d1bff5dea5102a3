"""A similarity matrix on paper: a heatmap with its names, and a table.

The object-oriented interface of matplotlib with its Agg canvas: neither pyplot, nor the backend, nor rcParams change.
"""

from __future__ import annotations

import csv
import io
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import writable, write_atomically

if TYPE_CHECKING:
    from .matrix import SimilarityMatrix

ANNOTATED = 16  # layers a side up to which every cell carries its number
CELL, SMALL_CELL = 0.34, 0.2  # inches, with and without numbers
LARGEST = 32.0  # inches a side; beyond, cells shrink
LABELLED = 200  # names a side; beyond, evenly spaced ones
_FORMATS = ("png", "pdf", "svg")
_DPI = 150


def to_csv(matrix: SimilarityMatrix, path: str | os.PathLike[str]) -> None:
    """Write the scores ``[L, M]`` with a header of column names and a first column of row names.

    Names are quoted, numbers have every digit, NaN stays ``nan``; atomic.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow(["layer", *matrix.columns])
    for name, row in zip(matrix.rows, matrix.values.tolist(), strict=True):
        writer.writerow([name, *row])
    write_atomically(path, text.getvalue().encode())


def plot(matrix: SimilarityMatrix, path: str | os.PathLike[str]) -> None:
    """Draw the heatmap to ``path`` (PNG, PDF or SVG by its ending; PNG without one).

    Rows are on the vertical axis, from the top. Colours run from 0 (below, where debiased scores are negative) to 1;
    for distances and other unbounded scores to the largest. NaN is hatched grey, and its reason stands below. Matrices
    of at most 16 × 16 carry their numbers.

    Raises:
        ImportError: no matplotlib. ValueError: an ending that is none of the three. FileNotFoundError: no such folder.
    """
    target = writable(path)
    form = target.suffix[1:].lower() or "png"
    if form not in _FORMATS:
        raise ValueError(f"path={os.fspath(path)!r} must end in .png, .pdf or .svg")
    drawn = io.BytesIO()
    _figure(matrix).savefig(drawn, format=form, dpi=_DPI, bbox_inches="tight")
    write_atomically(target, drawn.getvalue())


def colour_limits(values: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float]:
    """0 to 1 where the scores fit, so that heatmaps can be compared; wider where they do not."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = min(0.0, float(finite.min())), float(finite.max())
    return low, high if high > 1.0 + 1e-6 else 1.0


def _figure(matrix: SimilarityMatrix) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("plots need matplotlib: pip install 'simkit[plot]'") from None

    rows, columns = matrix.values.shape
    cell = CELL if max(rows, columns) <= ANNOTATED else SMALL_CELL
    width, height = (min(LARGEST, max(2.5, cell * count)) for count in (columns, rows))
    total = width + 0.5
    figure = Figure(figsize=(total, height))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, width / total, 1.0))
    legend = figure.add_axes((1.0 - 0.25 / total, 0.0, 0.25 / total, 1.0))
    low, high = colour_limits(matrix.values)
    # NaN cells are not painted: the hatched axes behind them show.
    axes.set_facecolor("0.85")
    axes.patch.set(hatch="////", edgecolor="0.6", linewidth=0.0)
    image = axes.imshow(np.ma.masked_invalid(matrix.values), cmap="magma", vmin=low, vmax=high, aspect="auto")
    figure.colorbar(image, cax=legend)
    size = float(np.clip(72 * 0.7 * min(width / columns, height / rows), 3.0, 9.0))
    _names(axes.xaxis, matrix.columns, size, rotation=90)
    _names(axes.yaxis, matrix.rows, size, rotation=0)
    if max(rows, columns) <= ANNOTATED:
        _numbers(axes, matrix.values, low, high, size)
    axes.set_title(f"{matrix.measure}, n = {matrix.samples}", fontsize=10, parse_math=False)
    if matrix.degenerate:
        axes.set_xlabel(_reasons(matrix.degenerate), fontsize=7, parse_math=False)
    return figure


def _names(axis: Any, names: tuple[str, ...], size: float, *, rotation: float) -> None:
    step = -(-len(names) // LABELLED)
    places = range(0, len(names), step)
    axis.set_ticks(list(places), [names[i] for i in places], fontsize=size, rotation=rotation)
    for label in axis.get_ticklabels():
        label.set_parse_math(False)


def _numbers(axes: Any, values: np.ndarray[Any, np.dtype[np.float64]], low: float, high: float, size: float) -> None:
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            dark = (value - low) / (high - low) < 0.6
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=size * 0.8, color="w" if dark else "k")


def _reasons(degenerate: dict[tuple[str, str], str]) -> str:
    """One line a layer, the same layer on both sides once, at most eight."""
    lines = list(dict.fromkeys(f"{name}: {reason}" for (_, name), reason in degenerate.items()))
    more = [f"... and {len(lines) - 8} more"] if len(lines) > 8 else []
    return "\n".join(["hatched:", *lines[:8], *more])
