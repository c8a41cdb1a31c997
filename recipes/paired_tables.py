"""Rows of tables out of files of runs: means, differences paired by seed with their intervals, Holm's p values, as Markdown."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lookaround.experiment.compare import Difference, holm, paired_difference

Values = Mapping[int, Mapping[str, float]]


@dataclass(frozen=True)
class Against:
    """What a row is held against.

    Attributes:
        by: the paired difference of each metric.
        p: of the difference in NLL, Holm's for a whole table.
    """

    by: Mapping[str, Difference]
    p: float = 1.0

    def cells(self) -> list[str]:
        """The difference in NLL, in bold where it is a gain that stands, its p value and its signs."""
        nll = self.by["nll"]
        words = f"{nll.mean:+.4f} ± {half(nll):.4f}"
        words = f"**{words}**" if self.p < 0.05 and nll.mean < 0 else words
        return [words, f"{self.p:.3f}", f"{nll.below} of {len(nll.seeds)}"]


@dataclass(frozen=True)
class Row:
    """A row of a table: the chosen setting, the values of every seed, and the differences to baselines.

    Attributes:
        name: of the method.
        setting: momentum and effective rate.
        values: metrics by seed.
        against: one for each baseline, None where it is the baseline itself.
    """

    name: str
    setting: tuple[str, str]
    values: Values
    against: Sequence[Against | None]

    def mean(self, metric: str) -> str:
        """Mean and standard deviation over the seeds."""
        found = [values[metric] for values in self.values.values()]
        digits = 4 if metric == "nll" else 2
        return f"{statistics.fmean(found):.{digits}f} ± {statistics.stdev(found):.{digits}f}"


Key = tuple[str, int]
Lines = Mapping[str, Sequence[Mapping[str, str]]]


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def runs(path: Path) -> dict[Key, dict[str, list[dict[str, str]]]]:
    """The lines of a file of runs by condition and budget, and by row."""
    found: dict[Key, dict[str, list[dict[str, str]]]] = {}
    for line in read(path):
        rows = found.setdefault((line["condition"], int(line["budget"])), {})
        rows.setdefault(line["row"], []).append(line)
    return found


def rows_of(lines: Lines, baselines: Sequence[str]) -> list[Row]:
    """The rows of a table, each against every baseline."""
    values = {name: _values(own) for name, own in lines.items()}
    return [
        Row(
            name,
            (lines[name][0]["momentum"], lines[name][0]["rate"]),
            own,
            [None if name == other or other not in values else _against(own, values[other]) for other in baselines],
        )
        for name, own in values.items()
    ]


def _values(lines: Iterable[Mapping[str, str]]) -> Values:
    metrics = ("top1", "nll", "ece")
    return {
        int(line["seed"]): {m: float(line[m]) for m in metrics} | {"ratio": math.log(float(line["nll"]))}
        for line in lines
    }


def _against(own: Values, other: Values) -> Against:
    columns = (
        {m: {seed: v[m] for seed, v in which.items()} for m in ("nll", "top1", "ratio")} for which in (own, other)
    )
    mine, theirs = columns
    return Against({metric: paired_difference(mine[metric], theirs[metric]) for metric in mine})


def corrected(rows: Sequence[Row]) -> list[Row]:
    """With p values for as many comparisons with each baseline as these rows make."""
    columns = [_corrected(column) for column in zip(*(row.against for row in rows), strict=True)]
    return [replace(row, against=own) for row, own in zip(rows, zip(*columns, strict=True), strict=True)]


def _corrected(column: Sequence[Against | None]) -> list[Against | None]:
    values = [1.0 if one.by["nll"].p is None else one.by["nll"].p for one in column if one is not None]
    adjusted = iter(holm(values))
    return [None if one is None else replace(one, p=next(adjusted)) for one in column]


def line(row: Row) -> str:
    """A line of Markdown."""
    cells = [row.name, ", ".join(row.setting), *(row.mean(metric) for metric in ("top1", "nll", "ece"))]
    first = row.against[0]
    cells.append("" if first is None else f"{first.by['top1'].mean:+.2f} ± {half(first.by['top1']):.2f}")
    for one in row.against:
        cells += ["", "", ""] if one is None else one.cells()
    return f"| {' | '.join(cells)} |"


def half(difference: Difference) -> float:
    """Half of the interval, 0 where nothing varies."""
    return 0.0 if difference.interval is None else difference.interval[1] - difference.mean


def head(baselines: Sequence[str]) -> list[str]:
    """The head of a table against these baselines."""
    names = ["method", "momentum, rate", "top-1 %", "NLL", "ECE %", f"top-1 minus {baselines[0]}'s"]
    for name in baselines:
        names += [f"NLL minus {name}'s, paired, 95 %", "p (Holm)", "lower on"]
    return [f"| {' | '.join(names)} |", "| --- | --- |" + " ---: |" * (len(names) - 2)]
