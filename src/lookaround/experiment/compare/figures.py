"""Pictures of a comparison: learning curves over budget and over wall time, and the differences with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from lookaround.experiment.compare.against import Against
from lookaround.experiment.compare.axes import axis_label, drawn, set_scale, style
from lookaround.experiment.compare.curves import Curve, Points, curve
from lookaround.experiment.compare.rows import Row
from lookaround.experiment.reading import EndedRun
from lookaround.tasks.base import Metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Axis = Literal["spent", "seconds"]
Kind = Literal["metrics", "plain"]
AXES: tuple[Axis, ...] = ("spent", "seconds")
KINDS: tuple[Kind, ...] = ("metrics", "plain")
PLAIN = "weights as training left them"
# Inches: of a panel, of a line of the legend; characters that go on a legend's line below one panel.
_WIDTH, _HEIGHT, _LEGEND_LINE, _LEGEND_CHARACTERS = 5.6, 3.4, 0.22, 72


def curves_figure(rows: Sequence[Row], metrics: Sequence[Metric], title: str, axes: Sequence[Axis] = AXES) -> Figure:
    """Every metric of the averaged weights against the budget and against wall time.

    A line is the mean over a method's seeds, its band reaches from the least to the greatest. Where the weights as training
    left them were evaluated too and differ, their mean is a dotted line of the same colour. A run that diverged is a dotted line of
    its own, with a cross where it ended; it does not set the scale.

    Args:
        rows: of the comparison, at least one.
        metrics: a line of panels each; percentages of successes are drawn as errors.
        title: above the figure.
        axes: a column of panels each.
    """
    from matplotlib.figure import Figure

    size = (_WIDTH * len(axes), _HEIGHT * len(metrics))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(metrics), len(axes), squeeze=False)
    for metric, line in zip(metrics, panels, strict=True):
        for axis, panel in zip(axes, line, strict=True):
            _fill(panel, rows, metric, axis)
            panel.set(xlabel=_axis_title(rows, axis), ylabel=axis_label(metric))
            panel.grid(alpha=0.25)
    _legend(figure, panels.flat, _LEGEND_CHARACTERS * len(axes))
    figure.suptitle(title, fontsize="medium")
    return figure


def _axis_title(rows: Sequence[Row], axis: Axis) -> str:
    if axis == "seconds":
        return "wall time, seconds"
    return f"{next(run.unit for row in rows for run in _all(row).values())} seen"


def _all(row: Row) -> Mapping[int, EndedRun]:
    return {**row.runs, **row.diverged}


def _legend(figure: Figure, panels: Any, characters: int) -> None:
    """One for all panels, below them, in as many columns as fit; the figure grows by its height."""
    found: dict[str, Any] = {}
    for panel in panels:
        handles, labels = panel.get_legend_handles_labels()
        found = {label: handle for handle, label in zip(handles, labels, strict=True)} | found
    if not found:
        return
    plain = found.pop(PLAIN, None)
    found |= {} if plain is None else {PLAIN: plain}
    columns = max(1, characters // (max(map(len, found)) + 8))
    lines = -(-len(found) // columns)
    figure.set_figheight(figure.get_figheight() + _LEGEND_LINE * lines + 0.2)
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=columns, frameon=False)


def _fill(panel: Any, rows: Sequence[Row], metric: Metric, axis: Axis) -> None:
    seen: list[float] = []
    for index, row in enumerate(rows):
        averaged, plain = (_seeds(row, metric, axis, kind) for kind in KINDS)
        _draw(panel, curve(averaged), style(index), row.label)
        _draw_plain(panel, None if plain == averaged else curve(plain), style(index)["color"])
        seen += [value for points in [*averaged, *plain] for _, value in points]
    set_scale(panel, metric, seen)
    limits = panel.get_ylim()
    for index, row in enumerate(rows):
        _draw_diverged(panel, row, metric, axis, style(index)["color"])
    if seen:
        panel.set_ylim(limits)


def _seeds(row: Row, metric: Metric, axis: Axis, kind: Kind) -> list[Points]:
    return [_points(run, metric, axis, kind) for run in row.runs.values()]


def _points(run: EndedRun, metric: Metric, axis: Axis, kind: Kind) -> Points:
    found = [(getattr(record, axis), getattr(record, kind)) for record in run.records]
    return [(place, drawn(metric, values[metric.name])) for place, values in found if values and metric.name in values]


def _draw(panel: Any, found: Curve | None, look: dict[str, Any], label: str) -> None:
    if found is None:
        return
    marker = "o" if len(found.at) == 1 else None
    panel.plot(found.at, found.mean, **look, label=label, linewidth=1.6, marker=marker)
    if len(found.at) == 1:
        panel.vlines(found.at, found.low, found.high, color=look["color"], alpha=0.4)
    elif found.low != found.high:
        panel.fill_between(found.at, found.low, found.high, color=look["color"], alpha=0.15, linewidth=0)


def _draw_plain(panel: Any, found: Curve | None, colour: str) -> None:
    """Without a label of its own: the colour says whose weights these are, and one line of the legend what the dots say."""
    if found is None:
        return
    marker = "." if len(found.at) == 1 else None
    panel.plot(found.at, found.mean, color=colour, linestyle=":", linewidth=1.2, marker=marker)
    panel.plot([], [], color="#777777", linestyle=":", linewidth=1.2, label=PLAIN)


def _draw_diverged(panel: Any, row: Row, metric: Metric, axis: Axis, colour: str) -> None:
    label = f"{row.label} (diverged)"
    for run in row.diverged.values():
        points = _points(run, metric, axis, "metrics")
        if points:
            look = {"color": colour, "linestyle": ":", "linewidth": 1, "marker": "x", "markevery": [-1]}
            panel.plot(*zip(*points, strict=True), **look, label=label)
            label = "_nolegend_"


def differences_figure(found: Mapping[Metric, Sequence[Against]], baseline: Row, confidence: float) -> Figure:
    """The paired differences from the baseline: a dot for each seed, the mean, and its interval; zero is the baseline.

    Args:
        found: by metric, a panel each; at least one with a difference.
        baseline: the differences are from.
        confidence: of the intervals.
    """
    from matplotlib.figure import Figure

    shown = {metric: differences for metric, differences in found.items() if differences}
    labels = {metric: [one.row.label for one in differences] for metric, differences in shown.items()}
    first, *others = labels.values()
    same = all(other == first for other in others)
    room = 0.09 * max(len(label) for each in labels.values() for label in each) * (1 if same else len(shown))
    size = (max(6.4, 3.4 * len(shown) + room), 1.6 + 0.36 * max(map(len, labels.values())))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False, sharey=same)[0]
    for panel, (metric, differences) in zip(panels, shown.items(), strict=True):
        for place, one in enumerate(differences):
            _draw_difference(panel, one, baseline, place)
        panel.set_yticks(range(len(differences)), labels[metric])
        panel.set_ylim(len(differences) - 0.4, -0.6)
        panel.axvline(0, color="#777777", linewidth=0.9)
        panel.locator_params(axis="x", nbins=5)
        panel.set_xlabel(f"{metric.title}: difference ({'less' if metric.lower else 'more'} is better)")
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"against {baseline.label}, paired by seed: every seed, mean, {100 * confidence:g} % interval",
        fontsize="medium",
    )
    return figure


def _draw_difference(panel: Any, one: Against, baseline: Row, place: int) -> None:
    mine, theirs = one.row.values(one.metric), baseline.values(one.metric)
    seeds = [mine[seed] - theirs[seed] for seed in one.difference.seeds]
    colour = {"better": "#009E73", "worse": "#D55E00"}.get(one.verdict, "#444444")
    panel.plot(seeds, [place + 0.18] * len(seeds), ".", color=colour, alpha=0.6, markersize=4)
    if one.difference.interval is not None:
        panel.plot(one.difference.interval, [place, place], color=colour, linewidth=2)
    panel.plot([one.difference.mean], [place], "D", color=colour, markersize=5)
