"""Checks that all states here go through before they are loaded: nothing is missing, nothing is of other settings."""

from collections.abc import Iterable, Mapping
from typing import Any


def require_keys(state: Mapping[str, Any], keys: Iterable[str], kind: str) -> None:
    """Raise ValueError unless ``state`` has all ``keys`` of a state of ``kind``.

    >>> require_keys({"count": 1}, ["count"], "an average")
    """
    missing = set(keys) - set(state)
    if missing:
        raise ValueError(f"not a state of {kind}: it has no {', '.join(sorted(missing))}")


def require_settings(state: Mapping[str, Any], settings: Mapping[str, Any], here: str) -> None:
    """Raise ValueError where ``state`` was saved with other ``settings`` than those of ``here``.

    >>> require_settings({"cycle": 2}, {"cycle": 2}, "procedure")
    """
    for name, value in settings.items():
        if state[name] != value:
            raise ValueError(f"the state is of {name}={state[name]}, this {here} has {name}={value}")
