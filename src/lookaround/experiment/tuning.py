"""Tuning: each method's settings chosen on held-out data with equal effort, then fresh seeds for the result."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lookaround.errors import DivergedError, UsageError
from lookaround.experiment.comparison import train
from lookaround.experiment.display import Display
from lookaround.experiment.edges import edges
from lookaround.experiment.files import write_atomically, write_json
from lookaround.experiment.grid import candidates, equal_effort
from lookaround.experiment.plan import Plan
from lookaround.experiment.report import Comparison
from lookaround.experiment.results import Result
from lookaround.experiment.running import Prepared, check_methods, prepare
from lookaround.methods import Spec
from lookaround.tasks.base import Metric

TUNED = "tuned.json"
TRIED = "tried.md"
HOLD_OUT = 0.2
"""The part of the training data that a search holds out if nothing else is asked for."""
Strategy = Literal["grid", "halving"]


@dataclass(frozen=True)
class Search:
    """How settings are looked for.

    Attributes:
        grid: values of each setting.
        seeds: of every trial; none of them is a seed of the result.
        strategy: every candidate at the whole budget, or successive halving: all at a fraction of it, the better half at twice that,
            and so on, until the last are tried at the whole.
        trials: candidates of each method; None: as many as the method with the fewest has.
        by: the metric that decides; None: the task's first.
    """

    grid: Mapping[str, Sequence[str]]
    seeds: tuple[int, ...] = (1000,)
    strategy: Strategy = "grid"
    trials: int | None = None
    by: str | None = None


@dataclass(frozen=True)
class Trial:
    """One candidate at one budget.

    Attributes:
        method: whose candidate it is.
        label: the method with the settings that were tried.
        budget: of each of its runs.
        seeds: of them.
        scores: of those that reached their end, on held-out data, in the order of the seeds.
        mean: of the scores; None where a run diverged.
        loss: the mean of the losses, which decides between equal scores.
        chosen: whether the result has these settings.
    """

    method: str
    label: str
    budget: int
    seeds: tuple[int, ...]
    scores: tuple[float, ...]
    mean: float | None
    loss: float | None
    chosen: bool = False


def tune(plan: Plan, search: Search, out: Path, display: Display | None = None, *, resume: bool = False) -> Comparison:
    """Chooses each method's settings on held-out data and trains the chosen ones with the plan's seeds on all training data.

    ``out`` gets an experiment ``rung-1`` (and 2, 3, … when halving), the experiment ``result``, ``tuned.json`` and ``tried.md``: what
    was tried, how often, what was chosen, and which chosen values lie at the edge of the grid.

    Args:
        plan: of the result: its methods are those to tune, its seeds fresh ones.
        search: for the settings.
        out: the folder.
        display: follows the runs.
        resume: go on with the unfinished search in ``out``.

    Raises:
        UsageError: as `train`, and for seeds that search and result share.
        DivergedError: when every candidate of a method diverged.
    """
    shared = sorted(set(search.seeds) & set(plan.seeds))
    if shared:
        raise UsageError(
            f"seed {shared[0]} is of the search and of the result; give --seeds that the search has not seen"
        )
    if out.exists() and not resume and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is not empty: add --resume to go on with the search in it, or choose another --out")
    prepared = prepare(plan)
    metric = _deciding(prepared, search.by)
    found = _candidates(prepared, search)
    _check(prepared, search, found)
    trials: list[Trial] = []
    chosen = _search(prepared, search, found, metric, trials, out, display)
    tried = [replace(trial, chosen=trial.label == chosen[trial.method].label) for trial in trials]
    _write(out, search, metric, tried, edges(found, chosen))
    result = replace(plan, methods=tuple(chosen.values()))
    return train(result, out / "result", display, resume=True)


def _check(prepared: Prepared, search: Search, found: Mapping[str, list[Spec]]) -> None:
    """Builds every candidate at the first rung's budget, which is the smallest."""
    first = _rung(prepared, search, found, rungs(search, len(next(iter(found.values()))))[0])
    assert first.budget.budget is not None
    check_methods(replace(prepared, plan=replace(first, seeds=(0,)), budget=first.budget.budget))


def _deciding(prepared: Prepared, by: str | None) -> Metric:
    named = {metric.name: metric for metric in prepared.task.metrics}
    if by is not None and by not in named:
        raise UsageError(f"unknown metric {by!r} for --by; choose one of {', '.join(named)}")
    return prepared.task.metrics[0] if by is None else named[by]


def _candidates(prepared: Prepared, search: Search) -> dict[str, list[Spec]]:
    task, specs = prepared.task, prepared.plan.methods
    try:
        found = {spec.label: candidates(spec, search.grid, task.defaults, task.branches) for spec in specs}
        unused = [name for name in search.grid if not any(name in dict(s[0].given) for s in found.values())]
        if unused:
            raise ValueError(f"--grid: none of {', '.join(found)} has a setting {unused[0]!r} to tune")
        return equal_effort(found, search.trials)
    except ValueError as error:
        raise UsageError(str(error)) from error


def rungs(search: Search, number: int) -> list[float]:
    """The part of the budget at which each rung's candidates are tried.

    Example:
        >>> rungs(Search({}, strategy="halving"), 8), rungs(Search({}), 8)
        ([0.125, 0.25, 0.5, 1.0], [1.0])
    """
    count = 1 if search.strategy == "grid" else int(math.log2(number)) + 1
    return [2.0 ** (place + 1 - count) for place in range(count)]


def _search(
    prepared: Prepared,
    search: Search,
    found: Mapping[str, list[Spec]],
    metric: Metric,
    trials: list[Trial],
    out: Path,
    display: Display | None,
) -> dict[str, Spec]:
    left = dict(found)
    parts = rungs(search, len(next(iter(found.values()))))
    for number, part in enumerate(parts, start=1):
        rung = _rung(prepared, search, left, part)
        try:
            comparison = train(rung, out / f"rung-{number}", display, resume=True)
            ended = [*comparison.results, *comparison.diverged]
        except DivergedError as error:
            raise DivergedError(f"{error}; every candidate diverged: give --grid lower learning rates") from error
        loss = next(known.name for known in prepared.task.metrics if known.loss)
        scored = {
            label: [_trial(label, spec, rung, ended, metric, loss) for spec in specs] for label, specs in left.items()
        }
        trials += [trial for of_method in scored.values() for trial in of_method]
        keep = 1 if number == len(parts) else None
        left = {label: _best(left[label], scored[label], metric, keep) for label in left}
    return {label: specs[0] for label, specs in left.items()}


def _rung(prepared: Prepared, search: Search, left: Mapping[str, list[Spec]], part: float) -> Plan:
    plan = prepared.plan
    held_out = HOLD_OUT if plan.budget.hold_out is None else plan.budget.hold_out
    budget = replace(
        plan.budget,
        budget=max(1, round(part * prepared.budget * (1 - held_out))),
        evaluations=1,
        score="held-out",
        hold_out=held_out,
        plain=False,
        eval_train=False,
    )
    methods = tuple(spec for specs in left.values() for spec in specs)
    return replace(plan, methods=methods, seeds=search.seeds, budget=budget)


def _trial(label: str, spec: Spec, rung: Plan, ended: Sequence[Result], metric: Metric, loss: str) -> Trial:
    mine = sorted((end for end in ended if end.method == spec.label), key=lambda end: rung.seeds.index(end.seed))
    scores = tuple(end.metrics[metric.name] for end in mine if end.metrics is not None)
    losses = [end.metrics[loss] for end in mine if end.metrics is not None]
    mean, lost = (statistics.fmean(v) if len(v) == len(rung.seeds) else None for v in (scores, losses))
    return Trial(label, spec.label, rung.budget.budget or 0, rung.seeds, scores, mean, lost)


def _best(specs: list[Spec], trials: list[Trial], metric: Metric, keep: int | None) -> list[Spec]:
    """The better half of a method's candidates, or the best so many; of equals, those of the lower loss."""
    ranked = sorted(
        (
            (trial.mean if metric.lower else -trial.mean, trial.loss, place)
            for place, trial in enumerate(trials)
            if trial.mean is not None
        )
    )
    if not ranked:
        raise DivergedError(f"every candidate of {trials[0].method} diverged; give --grid lower learning rates")
    number = keep or max(1, len(specs) // 2)
    return [specs[place] for *_, place in ranked[:number]]


def _write(out: Path, search: Search, metric: Metric, trials: Sequence[Trial], at_edge: Sequence[str]) -> None:
    listed = [asdict(trial) for trial in trials]
    methods = list(dict.fromkeys(trial.method for trial in trials))
    effort = {
        method: {
            "candidates": len({trial.label for trial in trials if trial.method == method}),
            "runs": sum(len(trial.seeds) for trial in trials if trial.method == method),
            "samples": sum(len(trial.seeds) * trial.budget for trial in trials if trial.method == method),
        }
        for method in methods
    }
    described: dict[str, Any] = {
        "search": asdict(search),
        "by": metric.name,
        "effort": effort,
        "edges": list(at_edge),
        "trials": listed,
    }
    write_json(out / TUNED, described)
    said = [tried_table(trials, metric), *([""] if at_edge else []), *at_edge]
    write_atomically(out / TRIED, ("\n".join(said) + "\n").encode())


def tried_table(trials: Sequence[Trial], metric: Metric) -> str:
    """What was tried, as a Markdown table; the chosen candidate of each method has a star."""
    rows = [("", "tried", "budget", "seeds", f"held-out {metric.title}")]
    for trial in trials:
        score = "diverged" if trial.mean is None else f"{trial.mean:.{metric.digits}f}"
        rows.append(("*" if trial.chosen else "", trial.label, f"{trial.budget:,}", str(len(trial.seeds)), score))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"| {' | '.join(c.ljust(w) for c, w in zip(row, widths, strict=True))} |" for row in rows]
    rule = f"|{'|'.join('-' * (width + 2) for width in widths)}|"
    return "\n".join([lines[0], rule, *lines[1:]])
