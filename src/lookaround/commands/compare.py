"""``lookaround compare``: experiments put side by side."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lookaround.commands.parsing import parse
from lookaround.errors import UsageError
from lookaround.experiment.compare import as_text, check_folder, compare, write
from lookaround.experiment.reading import Experiment, read_folder


@dataclass(frozen=True)
class CompareOptions:
    """Compare the methods of one or several experiments: results, differences paired by seed, curves.

    A FOLDER is the --out of lookaround train, finished or not. Experiments on the same task are merged: methods with the
    same settings and budget pool their seeds. Written are tables as Markdown, LaTeX and CSV, and pictures as PNG and SVG.

    lookaround compare runs/digits runs/more-seeds --out comparison
    """

    folders: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="FOLDER...")]
    """Experiments on one task."""
    out: Path = Path("comparison")
    """Folder for the tables and pictures."""
    baseline: str | None = None
    """Method to hold the others against, by its label in the table. None: plain SGD, or else the first."""
    metrics: tuple[str, ...] = ()
    """Metrics to compare, by their names in the task's records. Empty: all."""
    confidence: float = 0.95
    """Of the intervals, and 1 - the level at which methods are told apart."""
    correction: Literal["holm", "bonferroni", "none"] = "holm"
    """Of the p values, for the number of methods compared."""

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence must be between 0 and 1, got {self.confidence}")


def compare_command(words: Sequence[str]) -> None:
    """Runs ``lookaround compare``."""
    options = parse(CompareOptions, words, "compare")
    experiments = _read(options.folders)
    check_folder(options.out, experiments)
    compared = compare(
        experiments,
        baseline=options.baseline,
        metrics=options.metrics,
        confidence=options.confidence,
        correction=options.correction,
    )
    files = write(compared, options.out)
    print(as_text(compared, shutil.get_terminal_size().columns))
    print("\n" + "\n".join(map(str, files)))


def _read(folders: Sequence[Path]) -> list[Experiment]:
    if not folders:
        raise UsageError("nothing to compare; give the folders of experiments (the --out of lookaround train)")
    places = [folder.resolve() for folder in folders]
    twice = [folder for index, folder in enumerate(folders) if folder.resolve() in places[:index]]
    if twice:
        raise UsageError(f"{twice[0]} is given twice; give each experiment once")
    return [read_folder(folder) for folder in folders]
