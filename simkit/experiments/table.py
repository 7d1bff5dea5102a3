"""Plain-text tables: numbers right-aligned under their names, wide ones folded."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from ..compare.matrix import SimilarityMatrix
from .terminal import printable

GAP = "  "


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells under a header; the first column is left-aligned, all others right-aligned."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        GAP.join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


def matrix_table(matrix: SimilarityMatrix, *, width: int | None = None) -> str:
    """The scores ``[L, M]`` with four decimals, folded into several tables of whole columns to fit ``width``.

    NaN is shown as ``-``. None does not fold. Names are shown on one line, whatever they hold.
    """
    rows, columns = ([printable(name) for name in names] for names in (matrix.rows, matrix.columns))
    cells = [["-" if np.isnan(value) else f"{value:.4f}" for value in row] for row in matrix.values.tolist()]
    longest = max(len(name) for name in rows)
    sizes = [max(len(name), *(len(row[j]) for row in cells)) + len(GAP) for j, name in enumerate(columns)]
    folds = _folds(sizes, longest, width)
    tables = [
        text_table(
            ["", *columns[start:stop]],
            [[name, *row[start:stop]] for name, row in zip(rows, cells, strict=True)],
        )
        for start, stop in pairwise(folds)
    ]
    return "\n\n".join(tables)


def _folds(sizes: Sequence[int], first: int, width: int | None) -> list[int]:
    """Where to start a new table: the first column of each, and the end."""
    folds, used = [0], first
    for j, size in enumerate(sizes):
        if width is not None and used + size > width and j > folds[-1]:
            folds.append(j)
            used = first
        used += size
    return [*folds, len(sizes)]
