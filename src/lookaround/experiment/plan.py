"""What an experiment is to compute, in one typed record: a task, methods, seeds, and one budget for all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from lookaround.methods import Spec
from lookaround.tasks.base import TaskConfig
from lookaround.tasks.checks import check_ranges
from lookaround.tasks.registry import task_entry

HOLD_OUT = 0.05
"""The part of the training data that is held out if a method chooses by it and nothing else is asked for."""


@dataclass(frozen=True)
class Budget:
    """How long every method trains, and when it is looked at."""

    epochs: int = 20
    """Budget: in an epoch every training sample is seen once in each of the d copies."""
    budget: int | None = None
    """Budget in samples (text: tokens) seen. None: that of --epochs."""
    evaluations: int | None = None
    """Evaluations in a run, evenly spread. None: one an epoch."""
    score: Literal["test", "held-out"] = "test"
    """Data to evaluate on: the test data, or training data set aside."""
    hold_out: float | None = None
    """Part of the training data that no method trains on. None: 0.05 if a method chooses by it, or --score asks for it;
    otherwise none is set aside."""
    plain: bool = False
    """Evaluate the weights as training left them too, beside the averaged ones."""
    eval_train: bool = False
    """Evaluate the averaged weights on the training data too, not augmented."""

    def __post_init__(self) -> None:
        check_ranges(self, {"epochs": (1, None), "budget": (1, None), "evaluations": (1, None), "hold_out": (0, 1)})


@dataclass(frozen=True)
class Machine:
    """What it is computed on, and how."""

    device: str = field(default="auto", metadata={"affects": False})
    """cpu, cuda, cuda:N …; auto takes CUDA when there is one."""
    threads: int | None = field(default=None, metadata={"affects": False})
    """CPU threads of an operation, on which the last bits can depend. None: as many as torch takes."""
    amp: bool = False
    """Forward passes in bfloat16 where autocast allows it; weights stay float32."""
    compile: bool = False
    """Compile the network with torch.compile."""
    checkpoint_every: int | None = field(default=None, metadata={"affects": False})
    """Minibatches between checkpoints, besides the one at each evaluation. None: no others."""

    def __post_init__(self) -> None:
        check_ranges(self, {"threads": (1, None), "checkpoint_every": (1, None)})


@dataclass(frozen=True)
class Plan:
    """An experiment; two equal plans compute the same weights.

    Attributes:
        task: name of the task.
        config: its settings.
        methods: the rows of the comparison.
        seeds: one run of every method for each; methods share initial weights and minibatches.
        budget: of every run.
        machine: that computes it.

    Raises:
        ValueError: for methods or seeds that are none or twice there.

    Example:
        >>> from lookaround.experiment import Plan
        >>> from lookaround.methods import Spec
        >>> from lookaround.tasks.vision import preset
        >>> plan = Plan("vision", preset("digits"), (Spec.parse("sgd:lr=0.05"),), (0, 1))
        >>> Plan.from_options(plan.options()) == plan
        True
    """

    task: str
    config: TaskConfig
    methods: tuple[Spec, ...]
    seeds: tuple[int, ...] = (0,)
    budget: Budget = Budget()
    machine: Machine = Machine()

    def __post_init__(self) -> None:
        _check_distinct("--methods", [spec.label for spec in self.methods])
        _check_distinct("--seeds", self.seeds)

    def options(self) -> dict[str, Any]:
        """All of it as one flat mapping of plain JSON values, by the names of the command's options."""
        parts = [asdict(part) for part in self._parts()]
        values = {"task": self.task, "methods": [spec.label for spec in self.methods], "seeds": self.seeds}
        for part in parts:
            values |= part
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def _parts(self) -> tuple[Any, ...]:
        return (self.config, self.budget, self.machine)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Plan:
        """The plan that `options` describes; what it leaves out is the task's default.

        Raises:
            ValueError: for an unknown option or a value that it does not take.
        """
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
        name = str(given.pop("task", "vision"))
        entry = task_entry(name)
        config = entry.preset({key: str(value) for key, value in given.items()})
        suited = dict(config.suits())
        parts = [_taken(start, {**suited, **given}) for start in (config, Budget(), Machine())]
        methods = tuple(Spec.parse(str(label)) for label in given.get("methods", ("sgd", "lookahead", "lookaround")))
        seeds = tuple(given.get("seeds", (0,)))
        known = {field.name for part in parts for field in fields(part)} | {"methods", "seeds"}
        unknown = [key for key in given if key not in known]
        if unknown:
            raise ValueError(f"unknown option {unknown[0]!r} for the {name} task; it has {', '.join(sorted(known))}")
        return cls(name, parts[0], methods, seeds, parts[1], parts[2])

    def runs(self) -> Iterator[tuple[Spec, int]]:
        """Every run, seed by seed, so that the methods of a comparison progress together."""
        return ((spec, seed) for seed in self.seeds for spec in self.methods)

    @property
    def held_out(self) -> float | None:
        """The part of the training data that is set aside, if any."""
        if self.budget.hold_out is not None:
            return self.budget.hold_out
        asked = self.budget.score == "held-out" or any(spec.entry.held_out for spec in self.methods)
        return HOLD_OUT if asked else None

    def extended(self, methods: tuple[Spec, ...], seeds: tuple[int, ...]) -> Plan:
        """With more methods and seeds.

        Raises:
            ValueError: for some that are there already.
        """
        return replace(self, methods=(*self.methods, *methods), seeds=(*self.seeds, *seeds))


def _taken(start: Any, values: Mapping[str, Any]) -> Any:
    """A dataclass with those of the values that are its fields."""
    mine = {item.name: values[item.name] for item in fields(start) if item.name in values}
    try:
        return replace(start, **mine)
    except TypeError as error:
        raise ValueError(f"{', '.join(f'{key}={value!r}' for key, value in mine.items())}: {error}") from error


def _check_distinct(name: str, values: Any) -> None:
    twice = [value for place, value in enumerate(values) if value in values[:place]]
    if twice:
        raise ValueError(f"{name} names {twice[0]} twice; name each once")
    if not values:
        raise ValueError(f"{name} names none; name at least one")


def difference(was: Mapping[str, Any], now: Plan) -> str | None:
    """The first option that affects results in which saved options and a plan differ, in words; None if they agree.

    Example:
        >>> from lookaround.tasks.vision import preset
        >>> plan = Plan("vision", preset("digits"), (Spec("sgd"),))
        >>> difference({**plan.options(), "epochs": 3}, plan)
        '--epochs was 3 and is now 20'
    """
    harmless = {item.name for part in now._parts() for item in fields(part) if item.metadata.get("affects") is False}
    for name, value in now.options().items():
        if name not in harmless and was.get(name) != value:
            return f"--{name.replace('_', '-')} was {_said(was.get(name))} and is now {_said(value)}"
    return None


def _said(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
