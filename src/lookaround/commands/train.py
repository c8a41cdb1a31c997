"""``lookaround train``: its words as a plan, the experiment, what is printed of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from lookaround.commands.parsing import usage_errors
from lookaround.commands.planning import parse_plan, specs_for, start_plan
from lookaround.experiment import Comparison, Plan, display_for
from lookaround.experiment import train as run
from lookaround.experiment.results import MEMBER
from lookaround.experiment.team import team
from lookaround.methods import Spec


@dataclass(frozen=True)
class Choice:
    """What is compared."""

    methods: tuple[str, ...] = ("sgd", "lookahead", "lookaround")
    """Methods, each a row: a name, or NAME:setting=value,… (see lookaround methods)."""
    seeds: tuple[int, ...] = (0,)
    """One run of every method for each seed; methods share initial weights, minibatches and augmented copies."""
    all: str | None = None
    """Settings for every method that has them and was not given its own: setting=value,…"""
    add_methods: tuple[str, ...] = ()
    """Extend the experiment in --out by these methods."""
    add_seeds: tuple[int, ...] = ()
    """Extend the experiment in --out by these seeds."""


@dataclass(frozen=True)
class Words:
    """What was typed after ``lookaround train``.

    Attributes:
        plan: of the experiment.
        out: its folder.
        resume: go on with it.
        add_methods: extend it by these.
        add_seeds: extend it by these.
    """

    plan: Plan
    out: Path
    resume: bool
    add_methods: tuple[Spec, ...]
    add_seeds: tuple[int, ...]


def train(words: Sequence[str]) -> None:
    """Runs or resumes an experiment and prints its table."""
    typed = parse_train(words)
    with team() as together:
        comparison = run(
            typed.plan,
            typed.out,
            display_for(Console()),
            resume=typed.resume,
            add_methods=typed.add_methods,
            add_seeds=typed.add_seeds,
            team=together,
        )
    if together.first:
        print_comparison(comparison, typed.out)


def print_comparison(comparison: Comparison, out: Path) -> None:
    """The table, and where everything is."""
    print(f"\n{comparison.table}\n")
    ensembles = any(row.forward_passes not in (1, None) for row in comparison.rows)
    spread = ["mean ± std over seeds"] if any(row.seeds > 1 for row in comparison.rows) else []
    explained = [*spread, *(["I-budget: forward passes for one prediction"] if ensembles else [])]
    if explained:
        print(f"{'; '.join(explained)}\n")
    print(f"learning curves: {comparison.curves}")
    print(f"averaged models: {out}/METHOD/seed-SEED/{comparison.networks[0].name}")
    if ensembles:
        print(f"members of ensembles: {out}/METHOD/seed-SEED/{MEMBER.format('N')}")


def parse_train(words: Sequence[str]) -> Words:
    """Reads the words after ``lookaround train``; what they leave out comes from the folder that is gone on with, from --config, or
    from what suits the task.

    Raises:
        UsageError: for words that are no options, or a value that cannot be used.
        SystemExit: after ``--help``.

    Example:
        >>> from lookaround.commands.train import parse_train
        >>> typed = parse_train(["--data", "cifar10", "--methods", "sgd:lr=0.05", "--seeds", "0", "1"])
        >>> typed.plan.config.model, typed.plan.seeds, typed.plan.methods[0].label
        ('resnet18', (0, 1), 'sgd:lr=0.05')
    """
    started = start_plan(words)
    labels = tuple(spec.label for spec in started.methods)
    options = parse_plan(words, "train", _DESCRIPTION, Choice(labels, started.seeds), started)
    choice: Choice = options.choice
    with usage_errors():
        methods = specs_for(choice.methods, choice.all)
        plan = Plan(started.task, options.task_config, methods, choice.seeds, options.budget, options.machine)
        added = specs_for(choice.add_methods, choice.all)
    return Words(plan, options.place.folder(plan), options.place.resume, added, choice.add_seeds)


_DESCRIPTION = """Train methods on a task at equal budget and compare them.

Every method trains until the budget of samples is spent, on the same augmented copies of the same minibatches. The defaults
shown are those that suit the data: put --data (and --task) before --help to see another's."""
