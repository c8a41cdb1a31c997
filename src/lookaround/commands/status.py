"""``lookaround status``: how far an experiment is, at any time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from lookaround.commands.parsing import parse
from lookaround.experiment.folder import ExperimentFolder, saved_experiment, saved_plan
from lookaround.experiment.lock import holder
from lookaround.experiment.records import METRICS, read_records
from lookaround.experiment.results import Result
from lookaround.methods import Spec


@dataclass(frozen=True)
class StatusOptions:
    """Say which runs of an experiment are finished, and how far the others are. Changes nothing in the folder.

    lookaround status runs/digits
    """

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """The experiment's folder (--out of lookaround train)."""


def status(words: Sequence[str]) -> None:
    """Runs ``lookaround status``."""
    path = parse(StatusOptions, words, "status").folder
    saved, folder = saved_experiment(path), ExperimentFolder(path, saved_plan(path))
    ends = folder.ends()
    leading = saved["metrics"][0]
    lines = [(spec.label, str(seed), *_state(folder, spec, seed, end, saved)) for (spec, seed), end in ends.items()]
    header = ("method", "seed", "state", leading["title"])
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    for line in (header, *lines):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    done = sum(end is not None for end in ends.values())
    at_work = holder(path)
    print(
        f"\n{done} of {len(ends)} runs ended; {f'{at_work} is training here' if at_work else 'no process is training here'}"
    )


def _state(
    folder: ExperimentFolder, spec: Spec, seed: int, end: Result | None, saved: dict[str, Any]
) -> tuple[str, str]:
    name, digits = saved["metrics"][0]["name"], saved["metrics"][0]["digits"]
    if end is not None:
        return ("diverged", "–") if end.metrics is None else ("finished", f"{end.metrics[name]:.{digits}f}")
    records = read_records(folder.run(spec, seed) / METRICS)
    if not records:
        return ("begun" if folder.run(spec, seed).is_dir() else "not begun"), "–"
    part = records[-1]["spent"] / saved["budget"]
    return f"{part:.0%} done", f"{records[-1]['metrics'][name]:.{digits}f}"
