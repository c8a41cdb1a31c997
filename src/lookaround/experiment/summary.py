"""The comparison's table: every method's mean and spread over the seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lookaround.experiment.results import Result
from lookaround.tasks.base import Metric


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds; the deviation of one seed is unknown.

    Example:
        >>> Spread.of([97.0, 98.0, 99.0]), f"{Spread.of([97.0, 98.0, 99.0]):.2f}"
        (Spread(mean=98.0, std=1.0), '98.00 ± 1.00')
        >>> f"{Spread.of([97.0]):.1f}"
        '97.0'
    """

    mean: float
    std: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Over at least one value."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def __format__(self, spec: str) -> str:
        mean = format(self.mean, spec)
        return mean if self.std is None else f"{mean} ± {format(self.std, spec)}"


@dataclass(frozen=True)
class Row:
    """One method of the table; see `Result` for the meaning and the units of the columns.

    Means and deviations are over the ``seeds`` that reached their end, beside which ``diverged`` did not; they are None where
    there is nothing to average.
    """

    method: str
    seeds: int
    diverged: int
    metrics: Mapping[str, Spread]
    spent: int | None
    gradient_evaluations: int | None
    forward_passes: int | None
    seconds: Spread | None


def summarize(ends: Sequence[Result]) -> list[Row]:
    """A row for each method, in the order in which the methods first appear, from how its runs ended."""
    methods = dict.fromkeys(end.method for end in ends)
    return [_row(method, [end for end in ends if end.method == method]) for method in methods]


def _row(method: str, ends: Sequence[Result]) -> Row:
    results = [end for end in ends if end.metrics is not None]
    reached = [end.metrics for end in ends if end.metrics is not None]
    last = results[0] if results else None
    return Row(
        method=method,
        seeds=len(results),
        diverged=len(ends) - len(results),
        metrics={name: Spread.of([found[name] for found in reached]) for name in (reached[0] if reached else ())},
        spent=None if last is None else last.spent,
        gradient_evaluations=None if last is None else last.gradient_evaluations,
        forward_passes=None if last is None else last.forward_passes,
        seconds=Spread.of([result.seconds for result in results]) if results else None,
    )


def table_cells(rows: Sequence[Row], metrics: Sequence[Metric], unit: str) -> tuple[list[str], list[list[str]]]:
    """The header and the lines of the table, as text.

    The unit's column is what a run has used of the budget; I-budget, shown where it differs from 1, is forward passes for one
    prediction.
    """
    ensembles = any(row.forward_passes not in (1, None) for row in rows)
    header = ["method", *(metric.title for metric in metrics), unit, *(["I-budget"] if ensembles else []), "seconds"]
    return header, [_cells(row, metrics, ensembles) for row in rows]


def _cells(row: Row, metrics: Sequence[Metric], ensembles: bool) -> list[str]:
    found = [_cell(row.metrics.get(metric.name), f".{metric.digits}f") for metric in metrics]
    passes = [_cell(row.forward_passes, "")] if ensembles else []
    return [_label(row), *found, _cell(row.spent, ","), *passes, _cell(row.seconds, ".1f")]


def _label(row: Row) -> str:
    """The method, and of how many runs the numbers beside it are where some have diverged."""
    return f"{row.method} ({row.diverged} of {row.seeds + row.diverged} diverged)" if row.diverged else row.method


def _cell(value: Spread | int | None, spec: str) -> str:
    return "–" if value is None else format(value, spec)
