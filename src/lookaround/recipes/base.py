"""What a recipe is: complete plans of experiments, and the numbers that a paper printed for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lookaround.experiment import Plan
from lookaround.methods import Spec
from lookaround.methods.values import write


@dataclass(frozen=True)
class Row:
    """A row of a paper's table, or a curve of its figure.

    Attributes:
        name: as the paper calls it.
        method: label of the method in the plan that is that row.
        paper: what the paper printed, by the task's metric; none where it printed a picture.
    """

    name: str
    method: str
    paper: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """One experiment of a recipe: a folder of its own, as its task differs from that of the others.

    Attributes:
        name: of its folder.
        plan: what is computed.
        rows: of the paper, each with its method.
    """

    name: str
    plan: Plan
    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        labels = [spec.label for spec in self.plan.methods]
        assert all(row.method in labels for row in self.rows), (labels, [row.method for row in self.rows])


@dataclass(frozen=True)
class Soups:
    """Soups of all the networks that some parts train: uniform ones, of all and of the best, and the greedy one.

    Attributes:
        parts: names of those that train the ingredients; they hold out the images by which ingredients are chosen.
        norms: name of the part on whose minibatches norm statistics are estimated anew.
        best: ingredients of the uniform soup of the best.
        paper: what the paper printed for each row, by the task's metric; see `lookaround.recipes.soups.ROWS`.
    """

    parts: tuple[str, ...]
    norms: str
    best: int
    paper: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A table or figure as experiments.

    Attributes:
        source: the paper and the place in it.
        title: what it shows.
        parts: the experiments.
        notes: where it differs from the paper, and what the paper leaves open, a line each.
        soups: of the networks that the parts train.
        then: commands that go on from there, each what stands after ``lookaround landscape``: ``{run}`` is the first run of the first
            part, ``{out}`` the folder of the parts.
    """

    source: str
    title: str
    parts: tuple[Part, ...]
    notes: tuple[str, ...] = ()
    soups: Soups | None = None
    then: tuple[str, ...] = ()

    def changed(self, fields: Mapping[str, Any]) -> Recipe:
        """With other values of options in every part; see `lookaround.experiment.Plan.options`.

        Raises:
            ValueError: for an option that the task does not have, or a value that it does not take.
        """
        parts = [replace(part, plan=Plan.from_options({**part.plan.options(), **fields})) for part in self.parts]
        return replace(self, parts=tuple(parts))


def spec(name: str, **settings: Any) -> Spec:
    """A method with settings.

    >>> spec("lookahead", alpha=0.8, milestones=(0.3, 0.6)).label
    'lookahead:alpha=0.8,milestones=0.3/0.6'
    """
    chosen = ",".join(f"{key}={write(_short(value))}" for key, value in settings.items())
    return Spec.parse(f"{name}:{chosen}" if chosen else name)


def _short(value: Any) -> Any:
    """Without the last digits that a division leaves: 0.2 for 0.01 / 0.05."""
    if isinstance(value, tuple):
        return tuple(map(_short, value))
    return float(f"{value:.6g}") if isinstance(value, float) else value


def rows(methods: Mapping[str, Spec], paper: Mapping[str, Mapping[str, float]]) -> tuple[Row, ...]:
    """A row for each method, with what the paper printed where it did."""
    return tuple(Row(name, method.label, paper.get(name, {})) for name, method in methods.items())
