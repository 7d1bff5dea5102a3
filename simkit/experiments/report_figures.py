"""The pictures of a report: accuracy against what is left, accuracy by round, similarity of layers by round."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from .report_data import Cell, Experiment
from .statistics import Interval, mean_interval

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#f0e442")  # Okabe and Ito
GREYS = ("#7f7f7f", "#303030", "#b0b0b0")  # of controls
FORMS = ("o-", "s--", "^:", "D-.", "v-", "P--", "X:")  # marker and line, new ones every time the colours are used up
COSTS = {"parameters": "parameters left", "macs": "multiply-adds a sample", "latency": "time of a pass of 32 samples"}
SPREAD = 0.3  # of a round, over which the marks of all arms are spread: intervals do not hide each other
CAPTION = "mean and 95% confidence interval over seeds (Student's t, cut at what is possible)"


def accuracy_figure(one: Experiment) -> bytes:
    """Accuracy against parameters, multiply-adds and latency: the last round of every amount, or all of one amount."""
    figure = _figure(3, 1, f"{one.title}\n{CAPTION}")
    for axes, (quantity, label) in zip(figure.subplots(1, 3), COSTS.items(), strict=True):
        dense = one.dense.interval(quantity)
        if dense is not None:
            _points(axes, [one.dense], quantity, "dense", ("k", FORMS[0]))
        for arm, style in styles(one).items():
            _points(axes, _shown(one, arm), quantity, arm, style)
        axes.set_xlabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(EngFormatter(unit="s" if quantity == "latency" else ""))
        axes.set_ylabel("test accuracy (%)")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return _png(figure)


def rounds_figure(one: Experiment) -> bytes:
    """Accuracy after every round, one panel per amount, the dense network as a line."""
    figure = _figure(len(one.amounts), 1, f"{one.title}\n{CAPTION}")
    dense = one.dense.interval("accuracy")
    for axes, amount in zip(figure.subplots(1, len(one.amounts), squeeze=False)[0], one.amounts, strict=True):
        if dense is not None:
            axes.axhline(100.0 * dense.mean, color="k", linestyle="--", linewidth=1, label="dense")
        for i, (arm, (colour, form)) in enumerate(styles(one).items()):
            cells = one.rounds(arm, amount)
            found = [_percent(cell) for cell in cells]
            aside = SPREAD * ((i + 0.5) / len(one.arms) - 0.5)
            axes.errorbar([c.round + aside for c in cells], [f.mean for f in found], yerr=_ends(found, 100.0),
                          fmt=form, markersize=4, capsize=4, color=colour, label=arm)  # fmt: skip
        axes.set_title(f"amount {amount:g}", fontsize=10)
        axes.set_xlabel("round")
        axes.set_xticks(sorted({cell.round for cell in one.cells}))
        axes.set_ylabel("test accuracy (%)")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return _png(figure)


def similarity_figure(one: Experiment, amount: float) -> bytes:
    """Layers by rounds for every measure (rows) and arm (columns): mean similarity to the dense network over seeds."""
    cells = {arm: one.rounds(arm, amount) for arm in one.arms}
    measures = list(dict.fromkeys(measure for found in cells.values() for c in found for measure in c.similarity))
    figure = _figure(len(cells), len(measures), f"{one.title}, amount {amount:g}\nsimilarity of every layer to the "
                     "dense network's, mean over seeds")  # fmt: skip
    grid = figure.subplots(len(measures), len(cells), squeeze=False)
    for row, measure in zip(grid, measures, strict=True):
        for axes, (arm, found) in zip(row, cells.items(), strict=True):
            _heatmap(axes, found, measure, f"{measure}, {arm}")
    return _png(figure)


def _heatmap(axes: Axes, cells: Sequence[Cell], measure: str, title: str) -> None:
    layers = list(dict.fromkeys(layer for cell in cells for layer in cell.similarity.get(measure, {})))
    values = np.full((len(layers), len(cells)), math.nan)
    for column, cell in enumerate(cells):
        for row, layer in enumerate(layers):
            found = cell.similarity.get(measure, {}).get(layer)
            if found:
                values[row, column] = mean_interval(found).mean
    if not values.size:
        axes.set_axis_off()
        return
    highest = max([1.0, *values[np.isfinite(values)].tolist()])
    image = axes.imshow(values, vmin=0.0, vmax=highest, aspect="auto")
    axes.set_title(title, fontsize=8)
    axes.set_xlabel("round", fontsize=7)
    axes.set_xticks(range(len(cells)), [str(cell.round) for cell in cells], fontsize=6)
    axes.set_yticks(range(len(layers)), layers, fontsize=6)
    if values.size <= 120:
        for (row, column), value in np.ndenumerate(values):
            text = "-" if math.isnan(value) else f"{value:.2f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=6, color="k" if value > 0.6 else "w")
    axes.figure.colorbar(image, ax=axes, shrink=0.8)


def _shown(one: Experiment, arm: str) -> list[Cell]:
    if len(one.amounts) == 1:
        return one.rounds(arm, one.amounts[0])
    return [cells[-1] for amount in one.amounts if (cells := one.rounds(arm, amount))]


def _points(axes: Axes, cells: Sequence[Cell], quantity: str, label: str, style: tuple[str, str]) -> None:
    found = [(cell.interval(quantity), _percent(cell)) for cell in cells]
    points = sorted(((x.mean, x, y) for x, y in found if x is not None), key=lambda point: point[0])
    axes.errorbar(
        [mean for mean, _, _ in points],
        [y.mean for _, _, y in points],
        xerr=_ends([x for _, x, _ in points], math.inf),
        yerr=_ends([y for _, _, y in points], 100.0),
        fmt=style[1],
        markersize=4,
        capsize=3,
        color=style[0],
        label=label,
    )


def _percent(cell: Cell) -> Interval:
    return mean_interval([100.0 * value for value in cell.values["accuracy"]])


def _ends(found: Sequence[Interval], highest: float) -> list[list[float]]:
    """How far the intervals reach below and above their means, cut at 0 and at what is possible; one seed's is not."""
    low = [0.0 if math.isnan(one.low) else one.mean - max(one.low, 0.0) for one in found]
    high = [0.0 if math.isnan(one.high) else min(one.high, highest) - one.mean for one in found]
    return [low, high]


def styles(one: Experiment) -> dict[str, tuple[str, str]]:
    """Arm -> colour, and marker with line; no two arms look alike before the forms are used up as well."""
    controls = {cell.arm for cell in one.cells if cell.control}
    used = {False: 0, True: 0}
    found = {}
    for arm in one.arms:
        control = arm in controls
        palette = GREYS if control else COLOURS
        wraps, place = divmod(used[control], len(palette))
        found[arm] = palette[place], FORMS[wraps % len(FORMS)]
        used[control] += 1
    return found


def _figure(columns: int, rows: int, title: str) -> Figure:
    width = max(4.2 * columns, 5.0)
    figure = Figure(figsize=(width, 3.4 * rows + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle("\n".join(textwrap.fill(line, int(12 * width)) for line in title.split("\n")), fontsize=10)
    return figure


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return content.getvalue()
