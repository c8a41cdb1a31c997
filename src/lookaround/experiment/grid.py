"""The settings that a search tries: combinations of values, equally many for every method."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product

from lookaround.methods import Spec
from lookaround.methods.values import write
from lookaround.tasks.base import Defaults

# Of the choice among more combinations than are tried.
_SEED = 0


def parse_grid(words: Sequence[str]) -> dict[str, list[str]]:
    """The values of each setting, from words such as ``lr=0.05,0.1,0.2``; ``x0.5`` is half of a method's own value.

    Raises:
        ValueError: for anything else, a setting named twice, or a value named twice.

    Example:
        >>> parse_grid(["lr=x0.5,x1", "k=5,20"])
        {'lr': ['x0.5', 'x1'], 'k': ['5', '20']}
    """
    grid: dict[str, list[str]] = {}
    for word in words:
        name, equals, text = word.partition("=")
        values = text.split(",")
        if not (name and equals and all(values)):
            raise ValueError(f"--grid takes setting=value,value,… such as lr=0.05,0.1,0.2, got {word!r}")
        if name in grid or len(set(values)) < len(values):
            raise ValueError(f"--grid names {name if name in grid else 'a value of ' + name} twice")
        grid[name] = values
    if not grid:
        raise ValueError("--grid names no setting to tune; try --grid lr=x0.25,x0.5,x1,x2")
    return grid


def candidates(spec: Spec, grid: Mapping[str, Sequence[str]], defaults: Defaults, branches: int) -> list[Spec]:
    """The method at every combination of the values of those settings that it has and was not given.

    Raises:
        ValueError: for a value that a setting does not take, or a multiple of what is no number.
    """
    own = spec.resolve(defaults, branches).as_json()
    known, given = spec.fields(spec.inner(otherwise=defaults.inner)), dict(spec.given)
    varied = {name: values for name, values in grid.items() if name in known and name not in given}
    listed = [[_value(spec, name, text, own) for text in values] for name, values in varied.items()]
    found = [spec.with_settings(dict(zip(varied, values, strict=True))) for values in product(*listed)]
    twice = [label for label, number in Counter(one.label for one in found).items() if number > 1]
    if twice:
        raise ValueError(f"--grid names {twice[0]} twice")
    return found


def _value(spec: Spec, name: str, text: str, own: Mapping[str, object]) -> str:
    if not text.startswith("x"):
        return text
    before = own[name]
    try:
        factor = float(text[1:])
    except ValueError:
        return text
    if isinstance(before, bool) or not isinstance(before, int | float):
        raise ValueError(f"{spec.label}: {name} is {write(before)}, of which there is no multiple {text}")
    value = factor * before
    return write(round(value) if isinstance(before, int) else float(f"{value:.6g}"))


def equal_effort(found: Mapping[str, Sequence[Spec]], trials: int | None) -> dict[str, list[Spec]]:
    """As many candidates for each method as for all others.

    Args:
        found: every candidate of each method.
        trials: how many; None: as many as the method with the fewest has. Of more, so many are drawn at random, always the same ones.

    Raises:
        ValueError: for more trials than a method has candidates.
    """
    untouched = [label for label, specs in found.items() if specs == [Spec.parse(label)]]
    if untouched:
        raise ValueError(
            f"{untouched[0]} has none of the settings in --grid to tune; leave it out or leave it a setting"
        )
    fewest = min(found, key=lambda label: len(found[label]))
    number = len(found[fewest]) if trials is None else trials
    if not 1 <= number <= len(found[fewest]):
        raise ValueError(
            f"--trials must be from 1 to {len(found[fewest])}, the combinations that {fewest} has in --grid, got {number}"
        )
    return {label: _drawn(list(specs), number, label) for label, specs in found.items()}


def _drawn(specs: list[Spec], number: int, label: str) -> list[Spec]:
    chosen = set(random.Random(f"{_SEED} {label}").sample(range(len(specs)), number))
    return [spec for place, spec in enumerate(specs) if place in chosen]
