"""Settings as text: what a user types into a typed value, and what is allowed in words."""

from __future__ import annotations

import math
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin


def read(kind: Any, text: str) -> Any:
    """The value of a type that the text says; elements of a tuple are separated by slashes, None is ``none``.

    Raises:
        ValueError: for a text that says none; the message is what is allowed.

    Example:
        >>> read(int | Literal["epoch"], "epoch"), read(float | None, "0.5"), read(tuple[float, ...], "0.9/0.95")
        ('epoch', 0.5, (0.9, 0.95))
    """
    for alternative in alternatives(kind):
        try:
            return _read_one(alternative, text)
        except ValueError:
            continue
    raise ValueError(describe(kind))


def alternatives(kind: Any) -> tuple[Any, ...]:
    """The members of a union, the strictest first; any other type alone."""
    members = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return tuple(sorted(members, key=lambda member: member is str))


def _read_one(kind: Any, text: str) -> Any:
    if kind is NoneType:
        return {"none": None}[text] if text == "none" else _no(text)
    if get_origin(kind) is Literal:
        return text if text in get_args(kind) else _no(text)
    if get_origin(kind) is tuple:
        return tuple(read(get_args(kind)[0], part) for part in text.split("/"))
    if kind is bool:
        return {"true": True, "false": False}[text] if text in ("true", "false") else _no(text)
    value = kind(text) if text == text.strip() and text else _no(text)
    return value if kind is str or math.isfinite(value) else _no(text)


def _no(text: str) -> Any:
    raise ValueError(text)


_WORDS = {NoneType: "none", int: "a whole number", float: "a number", bool: "true or false", str: "a name"}


def describe(kind: Any) -> str:
    """What is allowed, in words.

    >>> describe(int | Literal["epoch"] | None)
    'a whole number, epoch or none'
    """
    words = [word for alternative in alternatives(kind) for word in _words(alternative)]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _words(kind: Any) -> list[str]:
    if get_origin(kind) is Literal:
        return [str(word) for word in get_args(kind)]
    if get_origin(kind) is tuple:
        return [f"{describe(get_args(kind)[0]).replace('a number', 'numbers')} with slashes between"]
    return [_WORDS[kind]]


def write(value: Any) -> str:
    """The text that `read` reads as this value, the shortest.

    >>> from lookaround.methods.values import write
    >>> write(0.2), write((0.9, 0.95)), write(True), write(None), write(1e-4)
    ('0.2', '0.9/0.95', 'true', 'none', '0.0001')
    """
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, tuple | list):
        return "/".join(map(write, value))
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
