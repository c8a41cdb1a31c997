"""``lookaround methods``: the methods, and the settings of each."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from lookaround.commands.parsing import parse, usage_errors
from lookaround.methods import METHODS, Spec
from lookaround.methods.optimizers import OPTIMIZERS
from lookaround.methods.presets import PRESETS
from lookaround.methods.registry import AVERAGES, ROUNDS, STEPS
from lookaround.methods.settings import Field, Settings, Wrapping, settings_of
from lookaround.methods.values import write

_WIDTH = 80


@dataclass(frozen=True)
class MethodsOptions:
    """List the methods of lookaround train with their settings; named ones alone, with the inner optimizer's too.

    lookaround methods lookaround 'lookahead:inner=adamw'
    """

    names: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="METHOD...")] = ()
    """Methods; none: all."""


def methods(words: Sequence[str]) -> None:
    """Runs ``lookaround methods``."""
    options = parse(MethodsOptions, words, "methods")
    with usage_errors():
        named = [Spec.parse(name) for name in options.names]
    print("\n".join(_named(named) if named else _all()))


def _named(specs: Iterable[Spec]) -> Iterable[str]:
    for spec in specs:
        yield from _headed(spec.label, spec.entry.summary)
        if spec.preset is not None:
            yield from _indented(spec.written_out, f"  {'is':<14} ")
        yield from _listed(spec.fields())
        yield ""


def _all() -> Iterable[str]:
    yield from textwrap.wrap(
        "A method is NAME or NAME:setting=value,… such as lookaround:k=20,lr=0.2. ROUND+sam+AVERAGE joins any of them, in "
        "this order, such as lookaround+ema; it has the settings of all its parts.",
        _WIDTH,
    )
    whole = {name: entry for name, entry in METHODS.items() if entry.inner is None}
    tables = {"ROUND": ROUNDS, "STEP": STEPS, "AVERAGE": AVERAGES}
    rest = {name: entry for name, entry in whole.items() if not any(name in table for table in tables.values())}
    for title, table in {**tables, "WHOLE": rest}.items():
        yield f"\n{title}"
        for name, entry in table.items():
            yield from _headed(name, entry.summary)
            yield from _listed(_own(entry.settings))
    yield "\nPRESET, the name of a method with settings; more settings may follow it"
    for name, preset in PRESETS.items():
        yield from _headed(name, preset.summary)
        yield from _indented(preset.method, f"  {'is':<14} ")
        yield from _indented(preset.evidence, f"  {'measured':<14} ")
    yield "\nOPTIMIZER, alone and as inner="
    for name in OPTIMIZERS:
        yield from _indented(
            ", ".join(key for key in Spec(name).fields() if key not in settings_of(Settings)), f"  {name:<12}"
        )
    yield "\nEVERY METHOD; the defaults are the task's"
    yield from _listed(settings_of(Settings))
    yield "  inner, where the method is not an optimizer itself: its name; the task's"


def _own(kind: type[Settings]) -> Mapping[str, Field]:
    return {name: item for name, item in settings_of(kind).items() if name not in settings_of(Wrapping)}


def _headed(name: str, summary: str) -> list[str]:
    return _indented(summary, f"{name}: ")


def _listed(items: Mapping[str, Field]) -> Iterable[str]:
    for name, item in items.items():
        default = "" if item.default is None else f" ({write(item.default)})"
        yield from _indented(f"{item.allowed()}{default}; {item.text}", f"  {name:<14} ")


def _indented(text: str, first: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=first, subsequent_indent=" " * min(len(first), 17))
