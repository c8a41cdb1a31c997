"""A comparison in words and tables: what a terminal shows, and what goes into Markdown, LaTeX and CSV."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence

from lookaround.experiment.compare.against import Against, Verdict
from lookaround.experiment.compare.rows import Row
from lookaround.experiment.reading import EndedRun
from lookaround.tasks.base import Metric

Cells = list[list[str]]
NONE = "–"


def results_table(rows: Sequence[Row], metrics: Sequence[Metric]) -> Cells:
    """Mean ± sample standard deviation over the seeds of every method; the first line is the header."""
    shown = [metric for metric in metrics if any(row.values(metric) for row in rows)]
    unit = next(run.unit for row in rows for run in [*row.runs.values(), *row.diverged.values()])
    header = ["method", "seeds", *(metric.title for metric in shown), unit, "passes", "seconds"]
    return [header, *(_result(row, shown) for row in rows)]


def _result(row: Row, metrics: Sequence[Metric]) -> list[str]:
    first = next(iter([*row.runs.values(), *row.diverged.values()]))
    values = [_spread(list(row.values(metric).values()), metric.digits) for metric in metrics]
    count = f"{len(row.runs)} of {len(row.runs) + len(row.diverged)}" if row.diverged else f"{len(row.runs)}"
    seconds = _spread([run.seconds for run in row.runs.values()], 1)
    return [row.label, count, *values, f"{first.budget:,}", f"{first.forward_passes}", seconds]


def _spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return NONE
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def differences_table(found: Sequence[Against], confidence: float) -> Cells:
    """The paired differences from the baseline in one metric; p values are corrected ones."""
    header = ["method", "n", "difference", f"{100 * confidence:g} % interval", "p", "+/-/=", "p signs"]
    return [header, *(_difference(one) for one in found)]


def _difference(one: Against) -> list[str]:
    given, digits = one.difference, one.metric.digits
    interval = NONE if given.interval is None else " to ".join(f"{end:+.{digits}f}" for end in given.interval)
    signs = f"{one.better}/{one.worse}/{given.ties}"
    mean = f"{given.mean:+.{digits}f}"
    return [one.row.label, f"{len(given.seeds)}", mean, interval, _p(one.p), signs, _p(one.p_sign)]


def _p(value: float | None) -> str:
    return NONE if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def explained(metric: Metric, baseline: Row, correction: str) -> str:
    """What the table of differences shows, in a line or two."""
    how = "p values as they are" if correction == "none" else f"p values after {correction.capitalize()}'s correction"
    return (
        f"{metric.title} minus that of {baseline.label} on the same seed ({'less' if metric.lower else 'more'} is better); "
        f"n seeds; interval and p by Student's t, {how}; "
        "+/-/=: seeds on which it is better, worse, equal, and p of such signs"
    )


def conclusions(found: Sequence[Against], baseline: Row) -> Iterator[str]:
    """What one may say of every method, those that one can say the same of in one sentence."""
    words: dict[Verdict, str] = {
        "better": f"better than {baseline.label}",
        "worse": f"worse than {baseline.label}",
        "not told apart": f"not told apart from {baseline.label}",
        "equal": f"equal to {baseline.label} on every seed",
        "one seed": "one seed says nothing of the spread",
    }
    for verdict, said in words.items():
        names = [one.row.label for one in found if one.verdict == verdict]
        if names:
            yield f"{said}: {'; '.join(names)}"


def numbers(rows: Sequence[Row], found: Mapping[Metric, Sequence[Against]], baseline: Row) -> Cells:
    """Everything at full precision, a line for each method and metric; empty cells where there is no number."""
    header = [
        *("method", "metric", "seeds", "diverged", "mean", "std", "budget", "unit", "forward_passes"),
        *(
            "baseline",
            "n",
            "difference",
            "difference_std",
            "low",
            "high",
            "p",
            "p_corrected",
            "better",
            "worse",
            "equal",
        ),
        *("p_sign", "p_sign_corrected", "verdict"),
    ]
    lines = []
    for metric, differences in found.items():
        by_label = {one.row.label: one for one in differences}
        for row in rows:
            first = next(iter([*row.runs.values(), *row.diverged.values()]))
            values = list(row.values(metric).values())
            own = [
                *(row.label, metric.name, len(row.runs), len(row.diverged)),
                *(statistics.fmean(values) if values else None, statistics.stdev(values) if len(values) > 1 else None),
                *(first.budget, first.unit, first.forward_passes, baseline.label),
            ]
            lines.append([_exact(value) for value in [*own, *_paired(by_label.get(row.label))]])
    return [header, *lines]


def _paired(one: Against | None) -> list[float | str | None]:
    if one is None:
        return [None] * 13
    given = one.difference
    low, high = given.interval or (None, None)
    return [
        *(len(given.seeds), given.mean, given.std, low, high, given.p, one.p, one.better, one.worse, given.ties),
        *(given.p_sign, one.p_sign, one.verdict),
    ]


def runs_table(rows: Sequence[Row], metrics: Sequence[Metric]) -> Cells:
    """Every run at full precision."""
    header = [
        "method",
        "seed",
        *(metric.name for metric in metrics),
        "diverged",
        "gradient_evaluations",
        "seconds",
        "folder",
    ]
    lines = [
        [row.label, seed, *((run.metrics or {}).get(metric.name) for metric in metrics), *_course(run)]
        for row in rows
        for seed, run in sorted({**row.runs, **row.diverged}.items())
    ]
    return [header, *([_exact(value) for value in line] for line in lines)]


def _course(run: EndedRun) -> tuple[str | None, int, float, str]:
    return run.diverged, run.gradient_evaluations, run.seconds, str(run.folder)


def _exact(value: float | str | None) -> str:
    return "" if value is None else value if isinstance(value, str) else repr(value)
