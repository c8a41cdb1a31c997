"""What the commands that train share: a plan from words, from a file of options, or from a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from lookaround.commands.options import chosen_options, file_options
from lookaround.commands.parsing import parse, usage_errors
from lookaround.errors import UsageError
from lookaround.experiment import Budget, Machine, Plan
from lookaround.experiment.folder import EXPERIMENT, saved_plan
from lookaround.methods import Spec
from lookaround.methods.spec import assignments


@dataclass(frozen=True)
class Place:
    """Where it is kept."""

    out: Path | None = None
    """Folder for everything that comes out; one folder holds one experiment. None: runs/DATA."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Go on with the unfinished experiment in --out, bit for bit; --out alone is enough."""
    config: Path | None = None
    """File of options (TOML, or JSON such as an experiment.json); what is typed beside it counts more."""

    def folder(self, plan: Plan) -> Path:
        """The folder that was chosen, or the plan's usual one."""
        return self.out or Path("runs") / getattr(plan.config, "data", plan.task)


def start_plan(words: Sequence[str]) -> Plan:
    """The plan that the words change: of the folder that they go on with, of a file of options, or of the task's preset.

    Raises:
        UsageError: for a folder or a file that cannot be used.
    """
    typed = chosen_options(words)
    with usage_errors():
        going_on = {"resume", "add_methods", "add_seeds"} & typed.keys()
        out = Path(typed.get("out") or ".")
        if going_on and "out" in typed and (out / EXPERIMENT).is_file():
            return saved_plan(out)
        options = file_options(Path(typed["config"])) if typed.get("config") else {}
        options |= {name: typed[name] for name in ("task", "data") if name in typed}
        return Plan.from_options(options)


def parse_plan(words: Sequence[str], prog: str, description: str, choice: Any, started: Plan) -> Any:
    """The words as an object of ``choice`` (a dataclass with its defaults), ``task_config``, ``budget``, ``machine`` and ``place``.

    Raises:
        UsageError: for words that are no options, or another task than that of the folder that is gone on with.
        SystemExit: after ``--help``.
    """
    parts = [
        ("task", Annotated[str, tyro.conf.arg(help="What is trained: put it before --help to see its options.")]),
        ("choice", Annotated[type(choice), tyro.conf.arg(name="comparison")]),
        ("task_config", Annotated[type(started.config), tyro.conf.arg(name=started.task)]),
        ("budget", Annotated[Budget, tyro.conf.arg(name="budget")]),
        ("machine", Annotated[Machine, tyro.conf.arg(name="machine")]),
        ("place", Annotated[Place, tyro.conf.arg(name="folder")]),
    ]
    shape: type[Any] = make_dataclass("Options", parts, frozen=True, namespace={"__doc__": description})
    default = shape(started.task, choice, started.config, started.budget, started.machine, Place())
    options = parse(shape, words, prog, default, tyro.conf.OmitArgPrefixes)
    if options.task != started.task:
        raise UsageError(
            f"the experiment in --out trains the {started.task} task, not {options.task}; leave --task out"
        )
    return options


def specs_for(labels: Sequence[str], all_of_them: str | None) -> tuple[Spec, ...]:
    """The methods, with the settings for all where they have them.

    Raises:
        ValueError: for a method or a setting that is unknown, or one that none of the methods has; for a d-th of the task's batch
            beside another batch for all.
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
    if mine.get("batch") == "1/d" and shared.get("batch", "none") not in ("none", "1/d"):
        raise ValueError(
            f"--all batch={shared['batch']} beside {spec.label}: 1/d is a d-th of the task's own batch, not of that one; "
            f"give {spec.name} the number that you mean, as in batch=11"
        )
    inner = shared.get("inner") if "inner" in spec.fields() else None
    return {name: text for name, text in shared.items() if name in spec.fields(inner) and name not in mine}
