"""A recipe computed: its experiments one after the other, each in a folder of its own, and the table beside the paper's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from lookaround.errors import DivergedError, UsageError
from lookaround.experiment import Display, train
from lookaround.experiment.files import write_atomically
from lookaround.experiment.folder import ExperimentFolder
from lookaround.experiment.results import Result
from lookaround.experiment.running import check_methods, prepare
from lookaround.recipes.base import Part, Recipe
from lookaround.recipes.report import Line, lines, table
from lookaround.recipes.soups import check_soups, soup_lines
from lookaround.tasks.base import Metric

TABLE = "paper.md"


def run(recipe: Recipe, out: Path, display: Callable[[], Display], *, resume: bool = False) -> str:
    """Computes every part of a recipe in ``out/PART`` and compares it with the paper.

    Every part is loaded and all its methods are built before the first step of the first one. The table is written after each part, so
    that there is one at any time.

    Args:
        recipe: what to compute.
        out: folder of its experiments and of ``paper.md``.
        display: makes what follows each experiment.
        resume: go on with what is unfinished there.

    Returns:
        The table.

    Raises:
        UsageError: for anything that cannot be used.
        InterruptedRunError: after SIGINT or SIGTERM, with a checkpoint saved.
        OSError: when a file cannot be written.
    """
    metrics = [_checked(part, out, resume) for part in recipe.parts]
    check_soups(recipe)
    found: list[Line] = []
    text = table(recipe, found)
    for part, shown in zip(recipe.parts, metrics, strict=True):
        found += lines(part, shown, _train(part, out / part.name, display(), resume))
        text = _write(recipe, found, out)
    return _write(recipe, [*found, *soup_lines(recipe, out)], out) if recipe.soups else text


def _write(recipe: Recipe, found: Sequence[Line], out: Path) -> str:
    text = table(recipe, found)
    write_atomically(out / TABLE, f"{text}\n".encode())
    return text


def _checked(part: Part, out: Path, resume: bool) -> Sequence[Metric]:
    folder = ExperimentFolder(out / part.name, part.plan)
    if folder.exists and not resume and None in folder.ends().values():
        raise UsageError(
            f"{folder.path} holds this experiment, unfinished: add --resume to go on, or choose another --out"
        )
    prepared = prepare(part.plan)
    check_methods(prepared)
    return prepared.task.metrics


def _train(part: Part, folder: Path, display: Display, resume: bool) -> Sequence[Result]:
    try:
        return train(part.plan, folder, display, resume=resume).results
    except DivergedError as error:  # of every run of this part; the table says so, and the others go on
        display.note(str(error))
        return ()
