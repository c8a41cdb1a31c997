"""Checkpoints of a run on the command line: patterns, their order in time, and rules that weigh them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from lookaround.averaging import Rule, emulated_decay, exponential, lawa, power, snapshot_weights, tail, uniform
from lookaround.commands.parsing import usage_errors
from lookaround.experiment import UsageError

RULES: dict[str, tuple[Callable[..., Rule], tuple[str, ...]]] = {
    "uniform": (uniform, ()),
    "tail": (tail, ("fraction",)),
    "lawa": (lawa, ("window", "every")),
    "exponential": (exponential, ("decay",)),
    "power": (power, ("width", "gamma")),
    "decay": (emulated_decay, ("shape", "fraction")),
}
"""The rules that weigh stored checkpoints, by the names they have here, with the settings that make sense for those."""


def expanded(words: Sequence[str]) -> list[Path]:
    """Paths, with patterns that no shell has expanded in the order of the numbers in the names.

    Raises:
        UsageError: a pattern matches nothing.
    """
    paths: list[Path] = []
    for word in words:
        if Path(word).exists() or not any(sign in word for sign in "*?["):
            paths.append(Path(word))
            continue
        anchor = Path(word).anchor
        found = sorted(Path(anchor or ".").glob(word.removeprefix(anchor)), key=by_number)
        if not found:
            raise UsageError(f"no file or folder matches {word}")
        paths += found
    return paths


def by_number(path: Path) -> list[tuple[int, str]]:
    """A key that sorts checkpoint-500 before checkpoint-1000.

    >>> from pathlib import Path
    >>> from lookaround.commands.checkpoints import by_number
    >>> sorted(map(Path, ["c-1000", "c-500", "c-x"]), key=by_number)
    [PosixPath('c-500'), PosixPath('c-1000'), PosixPath('c-x')]
    """
    return [(int(part), "") if part.isdigit() else (10**30, part) for part in re.split(r"(\d+)", str(path))]


def steps_of(paths: Sequence[Path]) -> list[int]:
    """The step of each checkpoint: the last of the numbers in the paths that is another one in each.

    Raises:
        UsageError: no number is.

    >>> from pathlib import Path
    >>> from lookaround.commands.checkpoints import steps_of
    >>> steps_of([Path("run1/checkpoint-500/model.safetensors"), Path("run1/checkpoint-1000/model.safetensors")])
    [500, 1000]
    """
    numbers = [[int(found) for found in re.findall(r"\d+", str(path))] for path in paths]
    if len(set(map(len, numbers))) == 1:
        for column in reversed(list(zip(*numbers, strict=True))):
            if len(set(column)) == len(paths):
                return list(column)
    raise UsageError(
        f"a rule goes by the checkpoints' steps, and no number in the names of {paths[0]} and the others tells them apart; "
        f"name them by their steps (checkpoint-500, checkpoint-1000), or give --weights"
    )


def rule_of(text: str) -> Rule:
    """The rule that is written as NAME or NAME:SETTING=VALUE,…

    Raises:
        UsageError: for an unknown name or setting, or a value that the rule refuses.

    >>> from lookaround.commands.checkpoints import rule_of
    >>> rule_of("lawa:window=5")
    Lawa(window=5, every=1)
    """
    name, _, said = text.partition(":")
    if name not in RULES:
        raise UsageError(f"unknown rule {name!r}; the rules are {', '.join(RULES)}")
    make, known = RULES[name]
    settings = {}
    for part in filter(None, said.split(",")):
        key, equals, value = part.partition("=")
        if key not in known or not equals:
            raise UsageError(f"the rule {name} has no setting {part!r}; {_takes(known)}")
        settings[key] = _value(value)
    needed = [
        p.name for p in inspect.signature(make).parameters.values() if p.default is p.empty and p.name not in settings
    ]
    if needed:
        raise UsageError(f"the rule {name} needs {', '.join(needed)}: {name}:{needed[0]}=…")
    with usage_errors():
        return make(**settings)


def _takes(known: Sequence[str]) -> str:
    return f"it takes {', '.join(f'{key}=…' for key in known)}" if known else "it takes none"


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def weighed(paths: Sequence[Path], rule: str) -> tuple[list[Path], list[float]]:
    """The checkpoints that the rule uses, in the order of their steps, and their weights.

    Raises:
        UsageError: for a rule, or for names, that are not understood.
    """
    made = rule_of(rule)
    steps, ordered = zip(*sorted(zip(steps_of(paths), paths, strict=True)), strict=True)
    with usage_errors():
        weights = snapshot_weights(made, steps)
    used = [(path, weight) for path, weight in zip(ordered, weights, strict=True) if weight]
    return [path for path, _ in used], [weight for _, weight in used]
