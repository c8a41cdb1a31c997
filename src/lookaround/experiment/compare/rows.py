"""Experiments put together: one row for every method at every setting and budget, over all its seeds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lookaround.errors import UsageError
from lookaround.experiment.reading import EndedRun, Experiment
from lookaround.tasks.base import Metric

# So many differing fields are named; the others are counted.
_NAMED = 4


@dataclass(frozen=True)
class Row:
    """A method at one setting and one budget.

    Attributes:
        label: that no other row has.
        runs: that reached their end, by seed.
        diverged: those that did not, by seed.
    """

    label: str
    runs: Mapping[int, EndedRun]
    diverged: Mapping[int, EndedRun]

    def values(self, metric: Metric) -> dict[int, float]:
        """The final value of every seed that has one."""
        found = {seed: (run.metrics or {}).get(metric.name) for seed, run in self.runs.items()}
        return {seed: value for seed, value in found.items() if value is not None}


def merge(experiments: Sequence[Experiment]) -> tuple[list[Row], list[str]]:
    """The rows of experiments on one task, in the order in which their methods first appear.

    A method that stands in several folders with the same settings and budget is one row over the seeds of all. Where settings
    or budgets differ, the labels say in what.

    Returns:
        The rows, and notes on what was left out.

    Raises:
        UsageError: for experiments of different tasks, saying in what they differ, or without any run that has ended.
    """
    for other in experiments[1:]:
        _check_same_task(experiments[0], other)
    notes: list[str] = []
    groups: dict[str, dict[int, EndedRun]] = {}
    for experiment in experiments:
        if experiment.unfinished:
            notes.append(_left_out(experiment))
        for run in experiment.runs:
            notes += _join(groups.setdefault(_kind(run), {}), run)
    if not groups:
        listed = ", ".join(str(experiment.path) for experiment in experiments)
        raise UsageError(f"no run in {listed} has ended yet; there is nothing to compare")
    return list(_rows(list(groups.values()))), notes


def _left_out(experiment: Experiment) -> str:
    count = len(experiment.unfinished)
    return f"{experiment.path}: {count} unfinished run{'s are' if count > 1 else ' is'} left out"


def _check_same_task(first: Experiment, other: Experiment) -> None:
    kinds = [str(experiment.identity.get("task")) for experiment in (first, other)]
    if kinds[0] != kinds[1]:
        raise UsageError(
            f"{first.path} trains the {kinds[0]} task and {other.path} the {kinds[1]} task; give experiments on one task"
        )
    changed = list(_differences(first.identity, other.identity))
    if not changed and [m.name for m in first.metrics] != [m.name for m in other.metrics]:
        changed = ["their metrics"]
    if changed:
        more = f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
        raise UsageError(
            f"{first.path} and {other.path} train different tasks and cannot be compared: "
            f"{', '.join(changed[:_NAMED])}{more}"
        )


def _differences(first: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The fields in which two nested mappings differ, in words."""
    for name in dict.fromkeys([*first, *other]):
        a, b = first.get(name), other.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from _differences(a, b, f"{prefix}{name}.")
        elif a != b:
            yield f"{prefix}{name} is {_short(a)} and {_short(b)}"


def _short(value: Any) -> str:
    text = "not set" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _kind(run: EndedRun) -> str:
    return json.dumps([run.label, run.settings, run.budget, run.split], sort_keys=True)


def _join(group: dict[int, EndedRun], run: EndedRun) -> list[str]:
    """Adds a run to those of its kind; a second one of a seed must say the same, or is named."""
    known = group.setdefault(run.seed, run)
    if known.metrics == run.metrics:
        return []
    return [f"{run.label}, seed {run.seed}: {known.folder} and {run.folder} differ; the first is taken"]


def _rows(groups: Sequence[Mapping[int, EndedRun]]) -> Iterator[Row]:
    firsts = [next(iter(group.values())) for group in groups]
    for group, first in zip(groups, firsts, strict=True):
        alike = [other for other in firsts if other.label == first.label]
        seeds = sorted(group)
        yield Row(
            _told_apart(first, alike),
            {seed: group[seed] for seed in seeds if group[seed].diverged is None},
            {seed: group[seed] for seed in seeds if group[seed].diverged is not None},
        )


def _told_apart(run: EndedRun, alike: Sequence[EndedRun]) -> str:
    """The label, and of the settings, the budget and the split those that not all runs of this label have in common."""
    named: list[tuple[str, list[Any]]] = [
        (f"{name} {_short(run.settings.get(name))}", [other.settings.get(name) for other in alike])
        for name in dict.fromkeys(name for other in alike for name in other.settings)
    ]
    named.append((f"{run.budget:,} {run.unit}", [other.budget for other in alike]))
    named.append((f"{run.split} data", [other.split for other in alike]))
    parts = [text for text, values in named if any(value != values[0] for value in values)]
    return f"{run.label} ({', '.join(parts)})" if parts else run.label
