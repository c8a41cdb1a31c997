"""``lookaround theory``: the papers' figures, and advice for a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from lookaround.commands.parsing import parse
from lookaround.errors import UsageError
from lookaround.theory.figures import FIGURES


@dataclass(frozen=True)
class FigureOptions:
    """Draw the papers' figures on quadratics, with the papers' settings: PNG, SVG and the numbers as CSV.

    Besides: `lookaround theory list` lists the figures; `lookaround theory advice RUN` measures a finished run's
    curvature and gradient noise, and predicts what k, d and α do to it (see lookaround theory advice --help).

    lookaround theory lookahead-12 lookaround-2 --out figures
    """

    figures: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="FIGURE...")]
    """Names of figures, or all."""
    out: Path = Path("figures")
    """Folder for the files."""


def theory(words: Sequence[str]) -> None:
    """Runs ``lookaround theory``."""
    if words and words[0] == "advice":
        from lookaround.commands.advice import advice

        advice(words[1:])
    elif list(words) == ["list"]:
        print("\n".join(f"{name:<22}{_summary(name)}" for name in FIGURES))
    else:
        _draw(parse(FigureOptions, words, "theory"))


def _summary(name: str) -> str:
    return (FIGURES[name].__doc__ or "").splitlines()[0]


def _draw(options: FigureOptions) -> None:
    known = f"choose from {', '.join(FIGURES)}, or all"
    if not options.figures:
        raise UsageError(f"no figure named; {known}")
    unknown = [name for name in options.figures if name not in (*FIGURES, "all")]
    if unknown:
        raise UsageError(f"unknown figure {unknown[0]!r}; {known}")
    if options.out.exists() and not options.out.is_dir():
        raise UsageError(f"{options.out} is a file; choose a folder for --out")
    for name in FIGURES if "all" in options.figures else dict.fromkeys(options.figures):
        for path in FIGURES[name](options.out):
            print(path)
