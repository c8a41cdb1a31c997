"""Checks of options, which name them as a user types them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

Range = tuple[float, float | None]


# After a folder that is not there: how another one is named on the command line.
ANOTHER_ROOT = "name another folder with --root FOLDER (lookaround run: root=FOLDER)"


def option(field: str) -> str:
    """How a field is typed.

    >>> option("train_images")
    '--train-images'
    """
    return f"--{field.replace('_', '-')}"


def check_ranges(config: Any, ranges: Mapping[str, Range]) -> None:
    """Raises `ValueError` for a number outside its range, from the least to the most (None: no limit); None is always allowed."""
    for name, (least, most) in ranges.items():
        value = getattr(config, name)
        if value is not None and not inside(value, least, most):
            raise ValueError(f"{option(name)} must be {allowed(least, most)}, got {value}")


def inside(value: float, least: float | None, most: float | None) -> bool:
    """Whether a number is finite and in its range.

    >>> inside(0.5, 0, 1), inside(math.nan, 0, None), inside(2, None, 1)
    (True, False, False)
    """
    return math.isfinite(value) and (least is None or value >= least) and (most is None or value <= most)


def allowed(least: float | None, most: float | None) -> str:
    """The range in words.

    >>> allowed(0, None), allowed(0, 1), allowed(None, None)
    ('at least 0', 'from 0 to 1', 'a finite number')
    """
    if least is None and most is None:
        return "a finite number"
    if most is None:
        return f"at least {least}"
    return f"at most {most}" if least is None else f"from {least} to {most}"


def affecting(config: Any) -> dict[str, Any]:
    """The settings that decide what a task's numbers mean: not where things lie, or how they are computed.

    >>> from lookaround.tasks.translation import TranslationConfig
    >>> "root" in affecting(TranslationConfig()), "beam" in affecting(TranslationConfig())
    (False, True)
    """
    return {f.name: getattr(config, f.name) for f in fields(config) if f.metadata.get("affects") is not False}
