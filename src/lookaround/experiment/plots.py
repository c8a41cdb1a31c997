"""Learning curves over the budget, the only axis on which methods compare fairly."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lookaround.experiment.files import write_atomically
from lookaround.tasks.base import Metric

Records = Sequence[Mapping[str, Any]]
Run = tuple[str, int]
Curve = tuple[list[int], list[float]]
# Okabe and Ito's colours, which the colour-blind can tell apart; the black comes last.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
# For the methods beyond as many as there are colours.
_STYLES = ("-", "--", "-.")


def save_curves(
    path: Path,
    runs: Mapping[Run, Records],
    metrics: Sequence[Metric],
    unit: str,
    title: str,
    diverged: Collection[Run] = frozenset(),
) -> None:
    """Draws the leading metric and the loss of the averaged weights against the budget spent, as PNG.

    A line is the mean over a method's seeds, its band reaches from the least to the greatest seed. A run that diverged is a
    dotted line of its own, with a cross where it ended. Of a percentage that should be high, what is missing to 100 is drawn. The
    scale is logarithmic, as the differences that matter are at the end, unless a value is 0.

    Args:
        path: of the picture, written atomically.
        runs: every run's records, by label and seed.
        metrics: the task's.
        unit: of the budget.
        title: of the picture.
        diverged: the runs that ended early.

    Raises:
        OSError: when it cannot be written.
    """
    from matplotlib.figure import Figure

    drawn = list(dict.fromkeys([metrics[0], *(metric for metric in metrics if metric.loss)]))
    figure = Figure(figsize=(6 * len(drawn), 4.2), layout="constrained")
    panels = figure.subplots(1, len(drawn), squeeze=False)[0]
    for axes, metric in zip(panels, drawn, strict=True):
        curves = {run: _curve(records, metric) for run, records in runs.items() if records}
        scale = "log" if all(min(values) > 0 for _, values in curves.values()) else "linear"
        axes.set(xlabel=unit, ylabel=metric.title if metric.lower else f"100 - {metric.title}", yscale=scale)
        _fill(axes, curves, diverged)
        axes.grid(alpha=0.25)
    if panels[-1].lines:
        figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.suptitle(title, fontsize="medium")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    write_atomically(path, picture.getvalue())


def _curve(records: Records, metric: Metric) -> Curve:
    values = [record["metrics"][metric.name] for record in records]
    return [record["spent"] for record in records], values if metric.lower else [100 - value for value in values]


def _fill(axes: Any, curves: Mapping[Run, Curve], diverged: Collection[Run]) -> None:
    """Draws every method. The scale is that of the runs that reached their end: what others report before the end can be anything."""
    labels = list(dict.fromkeys(label for label, _ in curves))
    for label, colour, style in _styled(labels):
        ended = [curve for run, curve in curves.items() if run[0] == label and run not in diverged]
        _draw(axes, ended, label, colour, style)
    limits = axes.get_ylim()
    for label, colour, _ in _styled(labels):
        broken = [curve for run, curve in curves.items() if run[0] == label and run in diverged]
        _draw_broken(axes, broken, f"{label} (diverged)", colour)
    if any(run not in diverged for run in curves):
        axes.set_ylim(limits)
    low, high = axes.get_ylim()
    if axes.get_yscale() == "log" and high < 1e4 * low:
        _plain_ticks(axes.yaxis)


def _styled(labels: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    for index, label in enumerate(labels):
        yield label, _COLOURS[index % len(_COLOURS)], _STYLES[index // len(_COLOURS) % len(_STYLES)]


def _draw(axes: Any, runs: Sequence[Curve], label: str, colour: str, style: str) -> None:
    if not runs:
        return
    budget = runs[0][0]
    curves = torch.tensor([values for _, values in runs], dtype=torch.float64)
    marker = "o" if len(budget) == 1 else None
    axes.plot(budget, curves.mean(0).tolist(), color=colour, ls=style, label=label, linewidth=1.6, marker=marker)
    if len(runs) > 1:
        axes.fill_between(
            budget, curves.amin(0).tolist(), curves.amax(0).tolist(), color=colour, alpha=0.15, linewidth=0
        )


def _draw_broken(axes: Any, runs: Sequence[Curve], label: str, colour: str) -> None:
    for index, (budget, values) in enumerate(runs):
        label = label if index == 0 else "_nolegend_"
        axes.plot(budget, values, color=colour, label=label, linewidth=1, linestyle=":", marker="x", markevery=[-1])


def _plain_ticks(axis: Any) -> None:
    """Labels at 1, 2 and 5 of each decade: powers of ten alone would leave most of these axes bare."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_formatter(NullFormatter())
