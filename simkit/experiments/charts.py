"""The demo's picture of pruning: accuracy by method, with confidence intervals and every run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .statistics import mean_interval

COLOURS = ("#0072b2", "#e69f00", "#7f7f7f", "#009e73")  # Okabe and Ito: told apart by the colour-blind too
SPREAD = 0.12  # of the runs, to the left and right of their mean


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
    for place, ((name, runs), colour) in enumerate(zip(panel.runs.items(), COLOURS, strict=False)):
        found = mean_interval([100.0 * run for run in runs])
        step = 2.0 * SPREAD / max(len(runs) - 1, 1)
        axes.errorbar(
            [place], [found.mean], yerr=[found.half_width], fmt="D", markersize=7, capsize=8, color=colour, label=name
        )
        axes.scatter(
            [place - SPREAD + i * step for i in range(len(runs))],
            [100.0 * run for run in runs],
            s=18,
            facecolors="none",
            edgecolors=colour,
            zorder=3,
        )
    axes.set_title(panel.title, fontsize=10)
    axes.set_xticks(range(len(panel.runs)), list(panel.runs))
    axes.set_xlim(-0.6, len(panel.runs) - 0.4)
    axes.set_ylabel("test accuracy (%)")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8, handles=[axes.lines[0]], loc="best")
