"""``lookaround train``: its words as a plan, the experiment, what is printed of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from lookaround.commands.options import chosen_options, file_options
from lookaround.commands.parsing import parse, usage_errors
from lookaround.experiment import Budget, Comparison, Machine, Plan, display_for
from lookaround.experiment import train as run
from lookaround.experiment.folder import EXPERIMENT, saved_plan
from lookaround.experiment.results import MEMBER
from lookaround.experiment.team import team
from lookaround.methods import Spec
from lookaround.methods.spec import assignments


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
class Place:
    """Where it is kept."""

    out: Path | None = None
    """Folder for everything that comes out; one folder holds one experiment. None: runs/DATA."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Go on with the unfinished experiment in --out, bit for bit; --out alone is enough."""
    config: Path | None = None
    """File of options (TOML, or JSON such as an experiment.json); what is typed beside it counts more."""


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
        _print(comparison, typed.out)


def _print(comparison: Comparison, out: Path) -> None:
    print(f"\n{comparison.table}\n")
    print("mean ± std over seeds; I-budget: forward passes for one prediction, 1 where it is not shown\n")
    print(f"learning curves: {comparison.curves}")
    print(f"averaged models: {out}/METHOD/seed-SEED/{comparison.networks[0].name}")
    if any(row.forward_passes not in (1, None) for row in comparison.rows):
        print(f"members of ensembles: {out}/METHOD/seed-SEED/{MEMBER.format('N')}")


def parse_train(words: Sequence[str]) -> Words:
    """Reads the words after ``lookaround train``; what they leave out comes from the folder that is gone on with, from --config, or
    from what suits the task.

    Raises:
        UsageError: for words that are no options, or a value that cannot be used.
        SystemExit: after ``--help``.

    Example:
        >>> typed = parse_train(["--data", "cifar10", "--methods", "sgd:lr=0.05", "--seeds", "0", "1"])
        >>> typed.plan.config.model, typed.plan.seeds, typed.plan.methods[0].label
        ('resnet18', (0, 1), 'sgd:lr=0.05')
    """
    started = _start(words)
    shape = _options(started)
    options: Any = parse(shape, words, "train", _default(shape, started), tyro.conf.OmitArgPrefixes)
    choice: Choice = options.choice
    with usage_errors():
        methods = _specs(choice.methods, choice.all)
        plan = Plan(started.task, options.task_config, methods, choice.seeds, options.budget, options.machine)
        added = _specs(choice.add_methods, choice.all)
    out = options.place.out or Path("runs") / getattr(plan.config, "data", plan.task)
    return Words(plan, out, options.place.resume, added, choice.add_seeds)


def _start(words: Sequence[str]) -> Plan:
    """The plan that the words change: of the folder that they go on with, of a file of options, or of the task's preset."""
    typed = chosen_options(words)
    with usage_errors():
        going_on = {"resume", "add_methods", "add_seeds"} & typed.keys()
        out = Path(typed.get("out") or ".")
        if going_on and "out" in typed and (out / EXPERIMENT).is_file():
            return saved_plan(out)
        options = file_options(Path(typed["config"])) if typed.get("config") else {}
        options |= {name: typed[name] for name in ("task", "data") if name in typed}
        return Plan.from_options(options)


def _options(started: Plan) -> type[Any]:
    """The options of a task's experiments, in groups."""
    parts = [
        ("task", Annotated[str, tyro.conf.arg(help="What is trained: put it before --help to see its options.")]),
        ("choice", Annotated[Choice, tyro.conf.arg(name="comparison")]),
        ("task_config", Annotated[type(started.config), tyro.conf.arg(name=started.task)]),
        ("budget", Annotated[Budget, tyro.conf.arg(name="budget")]),
        ("machine", Annotated[Machine, tyro.conf.arg(name="machine")]),
        ("place", Annotated[Place, tyro.conf.arg(name="folder")]),
    ]
    return make_dataclass("TrainOptions", parts, frozen=True, namespace={"__doc__": _DESCRIPTION})


_DESCRIPTION = """Train methods on a task at equal budget and compare them.

Every method trains until the budget of samples is spent, on the same augmented copies of the same minibatches. The defaults
shown are those that suit the data: put --data (and --task) before --help to see another's."""


def _default(shape: type[Any], started: Plan) -> Any:
    choice = Choice(tuple(spec.label for spec in started.methods), started.seeds)
    return shape(started.task, choice, started.config, started.budget, started.machine, Place())


def _specs(labels: Sequence[str], all_of_them: str | None) -> tuple[Spec, ...]:
    """The methods, with the settings for all where they have them.

    Raises:
        ValueError: for a method or a setting that is unknown, or one that none of the methods has.
    """
    specs = [Spec.parse(label) for label in labels]
    if all_of_them is None:
        return tuple(specs)
    shared = assignments(all_of_them, all_of_them)
    unknown = [name for name in shared if specs and not any(name in spec.fields(shared.get("inner")) for spec in specs)]
    if unknown:
        raise ValueError(f"--all: none of {', '.join(labels)} has a setting {unknown[0]!r}")
    return tuple(spec.with_settings(_fitting(spec, shared)) for spec in specs)


def _fitting(spec: Spec, shared: Mapping[str, str]) -> dict[str, str]:
    mine = dict(spec.given)
    inner = shared.get("inner") if "inner" in spec.fields() else None
    return {name: text for name, text in shared.items() if name in spec.fields(inner) and name not in mine}
