"""A whole comparison: what it finds, as text for a terminal and as files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lookaround.errors import UsageError
from lookaround.experiment.compare.against import Against, Correction, against, choose_baseline
from lookaround.experiment.compare.figures import curves_figure, differences_figure
from lookaround.experiment.compare.rows import Row, merge
from lookaround.experiment.compare.text import (
    Cells,
    conclusions,
    differences_table,
    explained,
    numbers,
    results_table,
    runs_table,
)
from lookaround.experiment.reading import Experiment
from lookaround.experiment.tables import comma_separated, fitted, latex, markdown
from lookaround.landscape.files import save_figure, write_text
from lookaround.tasks.base import Metric

_MEANING = "mean ± standard deviation over the seeds that reached their end; passes: of a network for one prediction"


@dataclass(frozen=True)
class Compared:
    """What experiments on one task say.

    Attributes:
        experiments: that were put together.
        rows: a method each.
        metrics: that are compared.
        baseline: the method that the others are held against.
        found: the differences from it, by metric.
        notes: on what was left out.
        confidence: of the intervals.
        correction: of the p values.
    """

    experiments: Sequence[Experiment]
    rows: Sequence[Row]
    metrics: Sequence[Metric]
    baseline: Row
    found: Mapping[Metric, Sequence[Against]]
    notes: Sequence[str]
    confidence: float
    correction: Correction


def compare(
    experiments: Sequence[Experiment],
    *,
    baseline: str | None = None,
    metrics: Sequence[str] = (),
    confidence: float = 0.95,
    correction: Correction = "holm",
) -> Compared:
    """Puts experiments on one task together and holds every method against one of them, paired by seed.

    Args:
        experiments: at least one, from `read_folder`.
        baseline: label of the method to hold the others against; None: plain SGD, or else the first.
        metrics: names of those to compare; none: all of the task.
        confidence: of the intervals and the verdicts.
        correction: of the p values of one metric, for the number of methods.

    Raises:
        UsageError: for experiments of different tasks or without a finished run, an unknown baseline or metric.
    """
    rows, notes = merge(experiments)
    known = {metric.name: metric for metric in experiments[0].metrics}
    unknown = [name for name in metrics if name not in known]
    if unknown:
        raise UsageError(f"there is no metric {unknown[0]!r}; choose from {', '.join(known)}")
    chosen = [known[name] for name in dict.fromkeys(metrics or known)]
    base = choose_baseline(rows, baseline)
    found = {
        metric: against(rows, base, metric, confidence=confidence, correction=correction)
        for metric in chosen
        if base.values(metric)
    }
    return Compared(experiments, rows, chosen, base, found, notes, confidence, correction)


def as_text(compared: Compared, width: int = 80) -> str:
    """Tables and conclusions that fit so many columns."""
    header, *lines = results_table(compared.rows, compared.metrics)
    parts = [fitted(header, lines, width), _wrapped(_MEANING, width)]
    for metric, found in _with_differences(compared):
        header, *lines = differences_table(found, compared.confidence)
        parts += [
            _wrapped(explained(metric, compared.baseline, compared.correction), width),
            fitted(header, lines, width),
        ]
        parts += ["\n".join(_wrapped(said, width) for said in conclusions(found, compared.baseline))]
    parts += [_wrapped(note, width) for note in compared.notes]
    return "\n\n".join(parts)


def _wrapped(text: str, width: int) -> str:
    import textwrap

    return textwrap.fill(text, width, break_on_hyphens=False)


def _with_differences(compared: Compared) -> Iterator[tuple[Metric, Sequence[Against]]]:
    yield from ((metric, found) for metric, found in compared.found.items() if found)


def write(compared: Compared, out: Path) -> list[Path]:
    """Writes ``comparison.md``, ``.tex`` and ``.csv``, ``runs.csv``, ``curves`` and ``differences`` as PNG and SVG.

    Each file is written whole or not at all.

    Returns:
        The paths written.

    Raises:
        UsageError: for a folder that holds an experiment, whose own files would be overwritten, or a path that is none.
        OSError: when a file cannot be written.
    """
    check_folder(out, compared.experiments)
    out.mkdir(parents=True, exist_ok=True)
    texts = {
        "comparison.md": _markdown(compared),
        "comparison.tex": _latex(compared),
        "comparison.csv": _csv(numbers(compared.rows, compared.found, compared.baseline)),
        "runs.csv": _csv(runs_table(compared.rows, compared.metrics)),
    }
    for name, text in texts.items():
        write_text(out / name, text)
    paths = [out / name for name in texts]
    title = ", ".join(experiment.path.resolve().name for experiment in compared.experiments)
    paths += save_figure(curves_figure(compared.rows, drawn_metrics(compared.metrics), title), out / "curves")
    drawn = {metric: compared.found.get(metric, ()) for metric in drawn_metrics(compared.metrics)}
    if any(drawn.values()):
        paths += save_figure(differences_figure(drawn, compared.baseline, compared.confidence), out / "differences")
    return paths


def drawn_metrics(metrics: Sequence[Metric]) -> list[Metric]:
    """Those that go into pictures: the leading one and the loss."""
    return list(dict.fromkeys([metrics[0], *(metric for metric in metrics if metric.loss)]))


def check_folder(out: Path, experiments: Sequence[Experiment]) -> None:
    """Raises `UsageError` unless files of a comparison may be written into ``out``."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; choose a folder for --out")
    if any(out.resolve() == experiment.path.resolve() for experiment in experiments):
        raise UsageError(f"{out} holds an experiment; choose another folder for --out")


def _csv(cells: Cells) -> str:
    return comma_separated(cells[0], cells[1:])


def _markdown(compared: Compared) -> str:
    header, *lines = results_table(compared.rows, compared.metrics)
    folders = ", ".join(f"`{experiment.path}`" for experiment in compared.experiments)
    parts = ["# Comparison", f"Experiments: {folders}", markdown(header, lines), f"{_MEANING}."]
    for metric, found in _with_differences(compared):
        header, *lines = differences_table(found, compared.confidence)
        parts += [f"## {metric.title} against {compared.baseline.label}"]
        parts += [f"{explained(metric, compared.baseline, compared.correction)}.", markdown(header, lines)]
        parts += ["\n".join(f"- {said}" for said in conclusions(found, compared.baseline))]
    parts += [f"Note: {note}." for note in compared.notes]
    return "\n\n".join(parts) + "\n"


def _latex(compared: Compared) -> str:
    """A table of results, and one of differences for each metric; to be put into a ``table`` each."""
    header, *lines = results_table(compared.rows, compared.metrics)
    parts = [f"% {_MEANING}", latex(header, lines)]
    for metric, found in _with_differences(compared):
        header, *lines = differences_table(found, compared.confidence)
        parts += [f"% {explained(metric, compared.baseline, compared.correction)}", latex(header, lines)]
    return "\n\n".join(parts) + "\n"
