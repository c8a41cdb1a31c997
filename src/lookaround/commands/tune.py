"""``lookaround tune``: each method's settings chosen on held-out data, with equal effort, then fresh seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from lookaround.commands.parsing import usage_errors
from lookaround.commands.planning import parse_plan, specs_for, start_plan
from lookaround.commands.train import print_comparison
from lookaround.experiment import Plan, display_for
from lookaround.experiment.grid import parse_grid
from lookaround.experiment.tuning import TRIED, Search
from lookaround.experiment.tuning import tune as run


@dataclass(frozen=True)
class TuneChoice:
    """What is tuned."""

    methods: tuple[str, ...] = ("sgd", "lookahead", "lookaround")
    """Methods: a name, or NAME:setting=value,… whose settings are not tuned (see lookaround methods)."""
    all: str | None = None
    """Settings for every method that has them and was not given its own, which are not tuned: setting=value,…"""
    grid: tuple[str, ...] = ("lr=x0.25,x0.5,x1,x2",)
    """Settings to tune, each with its values: lr=0.05,0.1,0.2 k=5,20. x0.5 is half of a method's own value. A method
    is tried at every combination of those settings that it has and was not given."""
    strategy: Literal["grid", "halving"] = "grid"
    """Try every candidate at the whole budget, or all at a part of it, the better half at twice that, and so on."""
    trials: int | None = None
    """Candidates of each method. None: as many as the method with the fewest has; of more, so many drawn at random."""
    by: str | None = None
    """Metric on held-out data that decides. None: the task's first."""
    search_seeds: tuple[int, ...] = (1000,)
    """Seeds of every trial."""
    seeds: tuple[int, ...] = (0,)
    """Fresh seeds, with which the chosen settings are trained on all the training data and tested."""


_DESCRIPTION = """Tune every method's settings with equal effort, then train the chosen ones with fresh seeds.

A part of the training data is held out (--hold-out, 0.2 if not given) and decides; the test data are only seen by the result, which is
trained on all training data. --out gets the trials (rung-1, ...), the result, and what was tried and how often (tuned.json, tried.md)."""


def tune(words: Sequence[str]) -> None:
    """Runs ``lookaround tune``."""
    plan, search, out, resume = parse_tune(words)
    display = display_for(Console())
    comparison = run(plan, search, out, display, resume=resume)
    print(f"\n{(out / TRIED).read_text(encoding='utf-8')}")
    print("the same number of candidates, runs and samples for every method; * is what the result below has")
    print_comparison(comparison, out / "result")


def parse_tune(words: Sequence[str]) -> tuple[Plan, Search, Path, bool]:
    """Reads the words after ``lookaround tune``: the plan of the result, the search, the folder, and whether to go on.

    Raises:
        UsageError: for words that are no options, or a value that cannot be used.
        SystemExit: after ``--help``.

    Example:
        >>> plan, search, out, _ = parse_tune(["--methods", "sgd", "--grid", "lr=0.1,0.2", "momentum=0.8,0.9"])
        >>> search.grid, str(out)
        ({'lr': ['0.1', '0.2'], 'momentum': ['0.8', '0.9']}, 'runs/tune-digits')
    """
    started = start_plan([word for word in words if word != "--resume"])
    options = parse_plan(words, "tune", _DESCRIPTION, TuneChoice(), started)
    choice: TuneChoice = options.choice
    with usage_errors():
        methods = specs_for(choice.methods, choice.all)
        plan = Plan(started.task, options.task_config, methods, choice.seeds, options.budget, options.machine)
        search = Search(parse_grid(choice.grid), choice.search_seeds, choice.strategy, choice.trials, choice.by)
    usual = options.place.folder(plan)
    return plan, search, options.place.out or usual.with_name(f"tune-{usual.name}"), options.place.resume
