"""``lookaround recipes`` and ``lookaround run``: the papers' tables and figures, listed, shown and computed."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from lookaround.commands.landscape import landscape
from lookaround.commands.parsing import parse, usage_errors
from lookaround.experiment import display_for
from lookaround.recipes.base import Recipe
from lookaround.recipes.registry import RECIPES, make, summary
from lookaround.recipes.running import TABLE
from lookaround.recipes.running import run as compute
from lookaround.recipes.soups import ROWS

_WIDTH = 80


@dataclass(frozen=True)
class RecipesOptions:
    """List the papers' tables and figures that lookaround run computes, or show one whole.

    lookaround recipes lookahead-table-1 data=cifar10
    """

    words: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[NAME [FIELD=VALUE...]]")] = ()
    """A recipe to show, with its fields; none: all in a list."""


@dataclass(frozen=True)
class RunOptions:
    """Compute a table or figure of a paper, and print its numbers beside ours.

    lookaround run lookahead-table-1 data=cifar10 root=data epochs=10 seeds=0/1
    """

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    """A recipe (see lookaround recipes)."""
    fields: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[FIELD=VALUE...]")] = ()
    """Fields of the recipe, or options of its experiments as lookaround train has them."""
    out: Path | None = None
    """Folder for everything that comes out. None: runs/NAME."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Go on with what is unfinished in --out."""


def recipes(words: Sequence[str]) -> None:
    """Runs ``lookaround recipes``."""
    said = parse(RecipesOptions, words, "recipes").words
    if not said:
        print("\n".join(_listed()))
        return
    with usage_errors():
        print("\n".join(_shown(make(said[0], _assigned(said[1:])))))


def run(words: Sequence[str]) -> None:
    """Runs ``lookaround run``."""
    options = parse(RunOptions, words, "run")
    with usage_errors():
        recipe = make(options.name, _assigned(options.fields))
    out = options.out or Path("runs") / options.name
    table = compute(recipe, out, lambda: display_for(Console()), resume=options.resume)
    print(f"\n{table}\n\nthis table: {out / TABLE}")
    for words in _going_on(recipe, out):
        print(f"\nlookaround landscape {shlex.join(words)}")
        landscape(words)


def _going_on(recipe: Recipe, out: Path) -> Iterator[list[str]]:
    """The words of the commands that go on from a recipe's first run."""
    part = recipe.parts[0]
    plan = part.plan
    run = out / part.name / plan.methods[0].slug / f"seed-{plan.seeds[0]}"
    for command in recipe.then:
        words = [word.format(run=run, out=out) for word in command.split()]
        yield [*words, "--device", plan.machine.device]


def _assigned(words: Sequence[str]) -> dict[str, str]:
    given: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals):
            raise ValueError(f"expected field=value instead of {word!r}, as in epochs=10")
        if name in given:
            raise ValueError(f"{name} is given twice")
        given[name.replace("-", "_")] = value
    return given


def _listed() -> Iterator[str]:
    for name in RECIPES:
        yield name
        yield from textwrap.wrap(summary(name), _WIDTH, initial_indent="    ", subsequent_indent="    ")


def _shown(recipe: Recipe) -> Iterator[str]:
    yield f"{recipe.source}: {recipe.title}"
    yield from (
        line
        for note in recipe.notes
        for line in textwrap.wrap(note, _WIDTH, initial_indent="- ", subsequent_indent="  ")
    )
    for part in recipe.parts:
        options: dict[str, Any] = part.plan.options()
        del options["methods"]
        yield f"\n{part.name}"
        yield from (f"    {key} = {_said(value)}" for key, value in options.items() if value is not None)
        for row in part.rows:
            yield _printed(row.name, row.paper)
            yield f"    {row.method}"
    if recipe.soups is not None:
        yield f"\nsoups of the networks of {', '.join(recipe.soups.parts)}"
        yield from (_printed(name, recipe.soups.paper.get(name, {})) for name in ROWS)
    for command in recipe.then:
        yield f"\nthen lookaround landscape {command}"


def _printed(name: str, paper: Mapping[str, float]) -> str:
    return f"  {name}: {', '.join(f'{metric} {value:g}' for metric, value in paper.items()) or 'no number printed'}"


def _said(value: Any) -> str:
    return "/".join(map(str, value)) if isinstance(value, list) else str(value)
