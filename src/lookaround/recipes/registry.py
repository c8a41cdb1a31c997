"""Recipes by name, and what a user may change of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, get_type_hints

from lookaround.methods.values import describe, read, write
from lookaround.recipes import lookahead_paper, lookaround_scratch, lookaround_tuned, swa_paper
from lookaround.recipes.airbench import airbench
from lookaround.recipes.base import Recipe

Make = Callable[..., Recipe]


def _of(prefix: str, *modules: Any) -> dict[str, Make]:
    found = {
        name: make
        for module in modules
        for name, make in vars(module).items()
        if name.startswith(("table_", "figure_")) and getattr(make, "__module__", "") == module.__name__
    }
    return {f"{prefix}-{name.replace('_', '-')}": found[name] for name in sorted(found, key=_order)}


def _order(name: str) -> tuple[bool, int, str]:
    """Tables first, then figures, each by number."""
    kind, number, *_ = name.split("_")
    return kind != "table", int("".join(filter(str.isdigit, number))), name


RECIPES: dict[str, Make] = {
    **_of("lookaround", lookaround_scratch, lookaround_tuned),
    **_of("lookahead", lookahead_paper),
    **_of("swa", swa_paper),
    "airbench": airbench,
}
"""One function for each table and figure on training in the papers."""


def make(name: str, given: Mapping[str, str]) -> Recipe:
    """A recipe with what was given of its own parameters, and of the options of its experiments, as text.

    Raises:
        ValueError: for an unknown recipe or field, or a value that a field does not take.

    Example:
        >>> from lookaround.recipes import make
        >>> recipe = make("lookahead-table-1", {"data": "cifar10", "seeds": "0/1", "epochs": "2"})
        >>> plan = recipe.parts[0].plan
        >>> plan.config.data, plan.seeds, plan.budget.epochs, recipe.parts[0].rows[3].paper
        ('cifar10', (0, 1), 2, {'top1': 95.27})
    """
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; choose one that lookaround recipes lists")
    own = parameters(name)
    mine = {key: _read(key, own[key][0], text) for key, text in given.items() if key in own}
    recipe = RECIPES[name](**mine)
    kinds = options(recipe)
    unknown = [key for key in given if key not in own and key not in kinds]
    if unknown:
        also = f"; of its own it has {', '.join(own)}" if own else ""
        raise ValueError(f"{name} has no field {unknown[0]!r}{also}; of its experiments: {', '.join(sorted(kinds))}")
    return recipe.changed({key: _read(key, kinds[key], text) for key, text in given.items() if key not in own})


def parameters(name: str) -> dict[str, tuple[Any, Any]]:
    """A recipe's own fields: of each its type and default."""
    hints = get_type_hints(RECIPES[name])
    signature = inspect.signature(RECIPES[name]).parameters
    return {key: (hints[key], parameter.default) for key, parameter in signature.items()}


def options(recipe: Recipe) -> dict[str, Any]:
    """The options of a recipe's experiments that can be changed, and their types."""
    plan = recipe.parts[0].plan
    kinds: dict[str, Any] = {"seeds": tuple[int, ...]}
    for part in (plan.config, plan.budget, plan.machine):
        hints = get_type_hints(type(part))
        kinds |= {item.name: hints[item.name] for item in fields(part)}  # type: ignore[arg-type]
    return kinds


def summary(name: str) -> str:
    """What a recipe computes, in a line, with its own fields."""
    said = (inspect.getdoc(RECIPES[name]) or "").splitlines()[0]
    own = ", ".join(f"{key}={write(default)}" for key, (_, default) in parameters(name).items())
    return f"{said} [{own}]" if own else said


def _read(key: str, kind: Any, text: str) -> Any:
    try:
        return read(kind, text)
    except ValueError:
        raise ValueError(f"{key} must be {describe(kind)}, got {text!r}") from None
