"""Checks that all states here go through before they are loaded: nothing is missing, nothing is of other settings; and of counts given."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor


def require_keys(state: Mapping[str, Any], keys: Iterable[str], kind: str) -> None:
    """Raise ValueError unless ``state`` has all ``keys`` of a state of ``kind``.

    >>> from lookaround.averaging.states import require_keys
    >>> require_keys({"count": 1}, ["count"], "an average")
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"not a state of {kind}, which is a mapping, but a {type(state).__name__}")
    missing = set(keys) - set(state)
    if missing:
        raise ValueError(f"not a state of {kind}: it has no {', '.join(sorted(missing))}")


def require_settings(state: Mapping[str, Any], settings: Mapping[str, Any], here: str) -> None:
    """Raise ValueError where ``state`` was saved with other ``settings`` than those of ``here``.

    >>> from lookaround.averaging.states import require_settings
    >>> require_settings({"cycle": 2}, {"cycle": 2}, "procedure")
    """
    for name, value in settings.items():
        if state[name] != value:
            raise ValueError(f"the state is of {name}={state[name]}, this {here} has {name}={value}")


def require_count(value: object, name: str) -> int:
    """``value`` as a count. Raise ValueError unless it is a whole number of at least 0.

    >>> from lookaround.averaging.states import require_count
    >>> require_count(3, "count")
    3
    """
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise ValueError(f"the state is damaged: its {name} must be a whole number of at least 0, and is {number!r}")
    return number


def require_whole(value: object, name: str, advice: str = "") -> None:
    """Raise ValueError unless a setting is a whole number of at least 1; ``advice`` ends the message.

    >>> from lookaround.averaging.states import require_whole
    >>> require_whole(2.5, "keep")
    Traceback (most recent call last):
    ValueError: keep must be a whole number of at least 1, got 2.5
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}{advice}")


def require_number(value: object, name: str) -> None:
    """Raise ValueError unless ``value`` is a number.

    >>> from lookaround.averaging.states import require_number
    >>> require_number(0.5, "loss")
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"the state is damaged: its {name} must be a number, and is {value!r}")


def require_tensors(values: object, what: str) -> Mapping[str, Tensor]:
    """``values`` as named tensors. Raise ValueError if they are anything else.

    >>> from lookaround.averaging.states import require_tensors
    >>> require_tensors({}, "the state's mean")
    {}
    """
    if not isinstance(values, Mapping) or not all(isinstance(v, Tensor) for v in values.values()):
        raise ValueError(f"the state is damaged: {what} must map names to tensors")
    return values


def require_list(value: object, name: str) -> list[Any]:
    """``value`` as a list. Raise ValueError if it is none.

    >>> from lookaround.averaging.states import require_list
    >>> require_list([1], "lengths")
    [1]
    """
    if not isinstance(value, list | tuple):
        raise ValueError(f"the state is damaged: its {name} must be a list, and is a {type(value).__name__}")
    return list(value)
