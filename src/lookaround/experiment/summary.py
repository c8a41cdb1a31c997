"""The comparison's table: every method's mean and spread over the seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from lookaround.experiment.results import Divergence, Result


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
    top1: Spread | None
    top5: Spread | None
    nll: Spread | None
    gradient_evaluations: int | None
    forward_passes: int | None
    seconds: Spread | None


def summarize(ends: Sequence[Result | Divergence]) -> list[Row]:
    """A row for each method, in the order in which the methods first appear, from how its runs ended."""
    return [_row(method, [end for end in ends if end.method == method]) for method in _methods(ends)]


def _methods(ends: Sequence[Result | Divergence]) -> list[str]:
    return list(dict.fromkeys(end.method for end in ends))


def _row(method: str, ends: Sequence[Result | Divergence]) -> Row:
    results = [end for end in ends if isinstance(end, Result)]
    return Row(
        method=method,
        seeds=len(results),
        diverged=len(ends) - len(results),
        top1=_spread([result.top1 for result in results]),
        top5=_spread([result.top5 for result in results if result.top5 is not None]),
        nll=_spread([result.nll for result in results]),
        gradient_evaluations=results[0].gradient_evaluations if results else None,
        forward_passes=results[0].forward_passes if results else None,
        seconds=_spread([result.seconds for result in results]),
    )


def _spread(values: Sequence[float]) -> Spread | None:
    return Spread.of(values) if values else None


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table with aligned columns, which reads as well in a terminal.

    T-budget is gradient evaluations of a minibatch in one run, I-budget forward passes for one prediction.
    """
    header = ["method", "top-1 %", "top-5 %", "NLL", "T-budget", "I-budget", "seconds"]
    cells = [header, *map(_cells, rows)]
    if all(row.top5 is None for row in rows):
        cells = [[*line[:2], *line[3:]] for line in cells]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(_aligned(line, widths) for line in [cells[0], rule, *cells[1:]])


def _cells(row: Row) -> list[str]:
    spreads = [(row.top1, ".2f"), (row.top5, ".2f"), (row.nll, ".4f")]
    budgets = [(row.gradient_evaluations, ","), (row.forward_passes, ""), (row.seconds, ".1f")]
    return [_label(row), *(_cell(value, spec) for value, spec in [*spreads, *budgets])]


def _label(row: Row) -> str:
    """The method, and of how many runs the numbers beside it are where some have diverged."""
    return f"{row.method} ({row.diverged} of {row.seeds + row.diverged} diverged)" if row.diverged else row.method


def _cell(value: Spread | int | None, spec: str) -> str:
    return "–" if value is None else format(value, spec)


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    numbers = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
    return f"| {' | '.join([cells[0].ljust(widths[0]), *numbers])} |"
