"""Pictures of paired differences: one line for each method, one shade for each budget, its interval around each point."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from paired_tables import Row, half

from lookaround.experiment.compare import Difference

SHADES = ("#9ecae1", "#3182bd", "#08306b")


@dataclass(frozen=True)
class Panel:
    """One half of a picture.

    Attributes:
        metric: whose difference is drawn.
        limits: of the axis; what lies beyond is an arrow with a number.
        label: of the axis.
        beyond: writes a difference beyond the limits.
        ticks: words at places of the axis; none: matplotlib's.
    """

    metric: str
    limits: tuple[float, float]
    label: str
    beyond: Callable[[float], str]
    ticks: Mapping[float, str] | None = None

    def prepare(self, axes: Axes, names: Sequence[str]) -> None:
        """Draws the baseline and the axes; the first name is at the top."""
        axes.axvline(0, color="black", linewidth=1)
        if self.ticks is not None:
            axes.set_xticks(list(self.ticks), list(self.ticks.values()))
        axes.set(xlim=self.limits, xlabel=self.label, yticks=range(len(names)), yticklabels=names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)

    def point(self, axes: Axes, difference: Difference, y: float, color: str) -> None:
        """A mean with its interval; beyond the limits an arrow that says how far."""
        low, high = self.limits
        if low < difference.mean < high:
            axes.errorbar(difference.mean, y, xerr=half(difference), color=color, fmt="o", markersize=4, linewidth=1.6)
            return
        right = difference.mean >= high
        at, align = (high, "right") if right else (low, "left")
        axes.plot(at, y, marker=">" if right else "<", color=color, markersize=6, clip_on=False)
        offset = (-6 if right else 6, 0)
        words = self.beyond(difference.mean)
        axes.annotate(words, (at, y), offset, textcoords="offset points", ha=align, va="center", fontsize=6)

    def draw(self, axes: Axes, split: Mapping[int, Sequence[Row]], rows: Sequence[str], unit: str) -> None:
        """The difference of every row to the first baseline, at every budget."""
        for index, (budget, found) in enumerate(split.items()):
            axes.plot([], [], "o-", color=SHADES[index], label=f"{budget:,} {unit}")
            for row in found:
                if row.name in rows and row.against[0] is not None:
                    place = rows.index(row.name) + 0.25 * (index - (len(split) - 1) / 2)
                    self.point(axes, row.against[0].by[self.metric], place, SHADES[index])


def forest(
    split: Mapping[int, Sequence[Row]], rows: Mapping[str, str], panels: Sequence[Panel], unit: str, title: str
) -> Figure:
    """Every method's difference to the first baseline at every budget, a panel for each metric.

    Args:
        split: the rows of each budget, at most three.
        rows: the methods from the top, each with its words beside the axis.
        panels: what to draw, from the left.
        unit: of the budgets.
        title: of the picture.
    """
    figure, axes = new_figure(9.5, 1.2 + 0.355 * len(rows), len(panels), sharey=True)
    for own, panel in zip(axes, panels, strict=True):
        panel.prepare(own, list(rows.values()))
        panel.draw(own, split, list(rows), unit)
    figure.suptitle(title)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def new_figure(width: float, height: float, columns: int, rows: int = 1, **how: object) -> tuple[Figure, list[Axes]]:
    """A figure without a window, and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False, **how).flat)


def save(figure: Figure, path: Path) -> None:
    """As PNG on white, which is read on a dark page too."""
    figure.savefig(path, dpi=150, facecolor="white")
