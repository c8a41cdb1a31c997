"""Words into options, and a library's complaint about one of them into a line for the user."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TypeVar

import tyro

from lookaround.errors import UsageError

Options = TypeVar("Options")


def parse(kind: type[Options], words: Sequence[str], prog: str, default: Options | None = None, *how: Any) -> Options:
    """Reads words as a dataclass of options; those they leave out are ``default``'s, or the class's own.

    Args:
        kind: the dataclass.
        words: after the command's name.
        prog: the command's name.
        default: options to change.
        how: tyro's markers of how words are options, for all of them.

    Raises:
        UsageError: for words that are no options, or a value that the dataclass refuses.
        SystemExit: after ``--help``.
    """
    defaults: dict[str, Any] = {} if default is None else {"default": default}
    said, helped = io.StringIO(), io.StringIO()
    try:
        with usage_errors(), redirect_stderr(said), redirect_stdout(helped):
            options: Options = tyro.cli(kind, prog=f"lookaround {prog}", args=list(words), config=how, **defaults)
            return options
    except SystemExit as stopped:
        if not stopped.code:
            print(_wrapped(helped.getvalue()), end="")
            raise
        message = re.sub(r"^Error parsing (?!-)[\w-]+: ", "", _in_one_line(said.getvalue()))
        raise UsageError(f"{message}; see lookaround {prog} --help") from None


def _wrapped(text: str) -> str:
    """Help in lines of at most 80 characters; tyro leaves the description before its boxes as it is."""
    lines = (
        textwrap.wrap(line, 80) if len(line) > 80 and line[0] not in "│╭╰" else [line] for line in text.split("\n")
    )
    return "\n".join(part for wrapped in lines for part in (wrapped or [""]))


def _in_one_line(box: str) -> str:
    """What tyro says in the first part of a box, whose title stands in its border, or above a rule if drawn in ASCII."""
    parts: list[list[str]] = [[]]
    for line in box.splitlines():
        text = line.strip("│ ")
        if text.startswith(("╭", "╰", "───", "---")):
            parts.append([])
        else:
            parts[-1].append(text)
    return " ".join(" ".join(parts[1]).split()).removesuffix(".")


@contextmanager
def usage_errors() -> Iterator[None]:
    """Inside, what the libraries say of a wrong value or file is the user's to mend, not a bug with a traceback."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error


def choose(group: str, verbs: Mapping[str, Callable[[Sequence[str]], None]], words: Sequence[str], usage: str) -> None:
    """Runs the verb that the first word names on the words after it; ``usage`` answers ``--help``.

    Raises:
        UsageError: for no verb or an unknown one.
    """
    if words and words[0] in ("-h", "--help"):
        print(usage)
    elif words and words[0] in verbs:
        verbs[words[0]](words[1:])
    else:
        got = f"unknown {words[0]!r}" if words else "nothing said"
        raise UsageError(f"{got}; lookaround {group} takes {', '.join(verbs)} (see lookaround {group} --help)")
