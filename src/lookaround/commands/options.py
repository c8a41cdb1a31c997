"""Options before they are parsed: what was typed, and what a file of options says."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def chosen_options(words: Sequence[str]) -> dict[str, str]:
    """The options among the words by name, each with the word that follows it, or nothing.

    Example:
        >>> chosen_options(["--data", "digits", "--seeds=1", "--resume"])
        {'data': 'digits', 'seeds': '1', 'resume': ''}
    """
    chosen: dict[str, str] = {}
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        if word.startswith("--"):
            name, _, value = word.removeprefix("--").partition("=")
            chosen[name.replace("-", "_")] = value or ("" if following.startswith("--") else following)
    return chosen


def file_options(path: Path) -> dict[str, Any]:
    """The options in a TOML or JSON file, or those that an ``experiment.json`` was begun with.

    Raises:
        ValueError: for a file that cannot be read or holds no options.
    """
    try:
        text = path.read_text(encoding="utf-8")
        found: Any = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        if not isinstance(found, dict):
            raise ValueError(f"it holds {type(found).__name__}")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot use --config {path}: {reason}; give a TOML or JSON file of options") from error
    options = found.get("options", found)
    return {name.replace("-", "_"): value for name, value in options.items()}
