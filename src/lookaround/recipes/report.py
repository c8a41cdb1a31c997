"""What the paper printed beside what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lookaround.experiment.results import Result
from lookaround.experiment.summary import Spread
from lookaround.recipes.base import Part, Recipe, Row
from lookaround.tasks.base import Metric


@dataclass(frozen=True)
class Line:
    """A row of the paper by one metric.

    Attributes:
        part: of the recipe.
        name: of the row.
        metric: what is compared.
        paper: printed there; None where nothing was.
        ours: over the seeds; None where no run is finished.
    """

    part: str
    name: str
    metric: Metric
    paper: float | None
    ours: Spread | None

    @property
    def difference(self) -> float | None:
        """Ours less the paper's."""
        return None if self.paper is None or self.ours is None else self.ours.mean - self.paper

    def cells(self) -> list[str]:
        """As text."""
        spec = f".{self.metric.digits}f"
        paper = "–" if self.paper is None else format(self.paper, spec)
        ours = "–" if self.ours is None else format(self.ours, spec)
        difference = "–" if self.difference is None else format(self.difference, f"+{spec}")
        return [self.part, self.name, self.metric.title, paper, ours, difference]


def lines(part: Part, metrics: Sequence[Metric], results: Sequence[Result]) -> list[Line]:
    """A part's rows by the metrics that the paper printed, or by the task's first where it printed none."""
    return [_line(part, row, metric, results) for row in part.rows for metric in shown(row.paper, metrics)]


def shown(paper: Mapping[str, float], metrics: Sequence[Metric]) -> Sequence[Metric]:
    """The metrics that the paper printed, or the task's first where it printed none."""
    return [metric for metric in metrics if metric.name in paper] or metrics[:1]


def _line(part: Part, row: Row, metric: Metric, results: Sequence[Result]) -> Line:
    values = [r.metrics[metric.name] for r in results if r.method == row.method and r.metrics is not None]
    ours = Spread.of(values) if values else None
    return Line(part.name, row.name, metric, row.paper.get(metric.name), ours)


def table(recipe: Recipe, found: Sequence[Line]) -> str:
    """A Markdown table: paper, ours, difference."""
    header = ["part", "row", "metric", "paper", "ours", "difference"]
    cells = [header, *(line.cells() for line in found)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rule = ["-" * width if place < 3 else "-" * (width - 1) + ":" for place, width in enumerate(widths)]
    aligned = [_aligned(line, widths) for line in (cells[0], rule, *cells[1:])]
    notes = [f"- {note}" for note in recipe.notes]
    return "\n".join([f"{recipe.source}: {recipe.title}", "", *aligned, *(["", *notes] if notes else [])])


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    placed = [
        cell.ljust(width) if place < 3 else cell.rjust(width)
        for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return f"| {' | '.join(placed)} |"
