"""Rows of tables out of files of runs: means, differences paired by seed with their intervals, Holm's p values, as Markdown."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lookaround.experiment.compare import Difference, holm, paired_difference

Values = Mapping[int, Mapping[str, float]]


@dataclass(frozen=True)
class Layout:
    """What a file of runs holds and a table of it shows.

    Attributes:
        settings: columns with what was tuned.
        titles: of the tuned settings, in the head of a table.
        metrics: columns with what was measured, each with its title and its digits.
        loss: the metric that is held against baselines.
        score: the one that is held against the first of them beside it, with its title there and its digits.
    """

    settings: tuple[str, ...]
    titles: str
    metrics: Mapping[str, tuple[str, int]]
    loss: str
    score: tuple[str, str, int]


IMAGES = Layout(
    ("momentum", "rate"),
    "momentum, rate",
    {"top1": ("top-1 %", 2), "nll": ("NLL", 4), "ece": ("ECE %", 2)},
    "nll",
    ("top1", "top-1", 2),
)


@dataclass(frozen=True)
class Against:
    """What a row is held against.

    Attributes:
        by: the paired difference of each metric; ``loss`` is that of the layout's loss, ``ratio`` that of its logarithm.
        p: of the difference in loss, Holm's for a whole table.
    """

    by: Mapping[str, Difference]
    p: float = 1.0

    def cells(self) -> list[str]:
        """The difference in loss, in bold where it is a gain that stands, its p value and its signs."""
        loss = self.by["loss"]
        words = f"{loss.mean:+.4f} ± {half(loss):.4f}"
        words = f"**{words}**" if self.p < 0.05 and loss.mean < 0 else words
        return [words, f"{self.p:.3f}", f"{loss.below} of {len(loss.seeds)}"]


@dataclass(frozen=True)
class Row:
    """A row of a table: the chosen setting, the values of every seed, and the differences to baselines.

    Attributes:
        name: of the method.
        setting: what was tuned.
        values: metrics by seed.
        against: one for each baseline, None where it is the baseline itself.
        layout: of the table.
    """

    name: str
    setting: tuple[str, ...]
    values: Values
    against: Sequence[Against | None]
    layout: Layout = IMAGES

    def mean(self, metric: str) -> str:
        """Mean and standard deviation over the seeds."""
        found = [values[metric] for values in self.values.values()]
        digits = self.layout.metrics[metric][1]
        return f"{statistics.fmean(found):.{digits}f} ± {statistics.stdev(found):.{digits}f}"


Key = tuple[str, int]
Lines = Mapping[str, Sequence[Mapping[str, str]]]


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def grouped(lines: Iterable[Mapping[str, str]], *keys: str) -> dict[tuple[str, ...], Lines]:
    """Lines by the values of some columns, and by row."""
    found: dict[tuple[str, ...], dict[str, list[Mapping[str, str]]]] = {}
    for line in lines:
        found.setdefault(tuple(line[key] for key in keys), {}).setdefault(line["row"], []).append(line)
    return found


def runs(path: Path) -> dict[Key, Lines]:
    """The lines of a file of runs by condition and budget, and by row."""
    found = grouped(read(path), "condition", "budget")
    return {(condition, int(budget)): rows for (condition, budget), rows in found.items()}


def rows_of(lines: Lines, baselines: Sequence[str], layout: Layout = IMAGES) -> list[Row]:
    """The rows of a table, each against every baseline."""
    values = {name: _values(own, layout) for name, own in lines.items()}
    return [
        Row(
            name,
            tuple(lines[name][0][setting] for setting in layout.settings),
            own,
            [
                None if name == other or other not in values else _against(own, values[other], layout)
                for other in baselines
            ],
            layout,
        )
        for name, own in values.items()
    ]


def _values(lines: Iterable[Mapping[str, str]], layout: Layout) -> Values:
    return {int(line["seed"]): {metric: float(line[metric]) for metric in layout.metrics} for line in lines}


def _against(own: Values, other: Values, layout: Layout) -> Against:
    def difference(what: Callable[[Mapping[str, float]], float]) -> Difference:
        mine, theirs = ({seed: what(values) for seed, values in which.items()} for which in (own, other))
        return paired_difference(mine, theirs)

    ratio = {"ratio": difference(lambda values: math.log(values[layout.loss]))}
    by = {metric: difference(lambda values, metric=metric: values[metric]) for metric in layout.metrics}
    return Against({**by, **ratio, "loss": by[layout.loss]})


def corrected(rows: Sequence[Row]) -> list[Row]:
    """With p values for as many comparisons with each baseline as these rows make."""
    columns = [_corrected(column) for column in zip(*(row.against for row in rows), strict=True)]
    return [replace(row, against=own) for row, own in zip(rows, zip(*columns, strict=True), strict=True)]


def _corrected(column: Sequence[Against | None]) -> list[Against | None]:
    values = [1.0 if one.by["loss"].p is None else one.by["loss"].p for one in column if one is not None]
    adjusted = iter(holm(values))
    return [None if one is None else replace(one, p=next(adjusted)) for one in column]


def line(row: Row) -> str:
    """A line of Markdown."""
    metric, _, digits = row.layout.score
    cells = [row.name, ", ".join(row.setting), *map(row.mean, row.layout.metrics)]
    first = row.against[0]
    cells.append("" if first is None else f"{first.by[metric].mean:+.{digits}f} ± {half(first.by[metric]):.{digits}f}")
    for one in row.against:
        cells += ["", "", ""] if one is None else one.cells()
    return f"| {' | '.join(cells)} |"


def half(difference: Difference) -> float:
    """Half of the interval, 0 where nothing varies."""
    return 0.0 if difference.interval is None else difference.interval[1] - difference.mean


def head(baselines: Sequence[str], layout: Layout = IMAGES) -> list[str]:
    """The head of a table against these baselines."""
    titles = [title for title, _ in layout.metrics.values()]
    names = ["method", layout.titles, *titles, f"{layout.score[1]} minus {baselines[0]}'s"]
    for name in baselines:
        names += [f"{layout.metrics[layout.loss][0]} minus {name}'s, paired, 95 %", "p (Holm)", "lower on"]
    return [f"| {' | '.join(names)} |", "| --- | --- |" + " ---: |" * (len(names) - 2)]
