"""The demo's picture of pruning: accuracy by method, with confidence intervals and every run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .statistics import mean_interval

COLOURS = ("#0072b2", "#e69f00", "#7f7f7f")  # Okabe and Ito: told apart by the colour-blind too
BESIDE, SPREAD = 0.18, 0.24  # where the circles of single runs begin, right of their mean, and how wide they lie


@dataclass(frozen=True)
class Panel:
    """One set of axes: accuracies (0 to 1) of every run, by method."""

    title: str
    runs: dict[str, Sequence[float]]


def draw_accuracies(path: Path, title: str, panels: Sequence[Panel], dense: Sequence[float]) -> None:
    """Draw mean, 95% confidence interval and single runs of every method to a PNG, the dense models as a line."""
    figure = Figure(figsize=(4.0 * len(panels), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _panel(axes, panel, dense)
    figure.savefig(path, format="png", dpi=150)


def _panel(axes: Axes, panel: Panel, dense: Sequence[float]) -> None:
    level = 100.0 * sum(dense) / len(dense)
    axes.axhline(level, color="k", linestyle="--", linewidth=1, label=f"dense: {level:.1f}%")
    for place, (runs, colour) in enumerate(zip(panel.runs.values(), COLOURS, strict=True)):
        found = mean_interval([100.0 * run for run in runs])
        ends = [[found.mean - max(found.low, 0.0)], [min(found.high, 100.0) - found.mean]]
        axes.errorbar([place], [found.mean], yerr=ends, fmt="D", markersize=7, capsize=8, color=colour)
        beside = [place + BESIDE + SPREAD * i / max(len(runs) - 1, 1) for i in range(len(runs))]
        axes.scatter(beside, [100.0 * run for run in runs], s=18, facecolors="none", edgecolors=colour)
    axes.set_title(panel.title, fontsize=10)
    axes.set_xticks(range(len(panel.runs)), list(panel.runs))
    axes.set_xlim(-0.6, len(panel.runs) - 0.4)
    axes.set_ylabel("test accuracy (%)")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8, loc="best")
