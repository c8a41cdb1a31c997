"""The settings of methods: frozen dataclasses whose fields say what they are, what they may be, and what they are for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, get_args, get_type_hints

from lookaround.methods.schedule import Kind
from lookaround.methods.values import describe
from lookaround.tasks.checks import allowed, inside

NormStats = Literal["average", "copy", "reestimate"]


@dataclass(frozen=True)
class Help:
    """What a setting is for, and its range."""

    text: str
    least: float | None = None
    most: float | None = None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every method has. None is what suits the task."""

    batch: Annotated[
        int | Literal["1/d"] | None, Help("size of a minibatch; 1/d: the task's, divided by the branches", least=1)
    ] = None
    schedule: Annotated[Kind | None, Help("learning rate after the warm-up")] = None
    warmup: Annotated[float | None, Help("epochs in which the learning rate rises from 0 to its peak", least=0)] = None
    milestones: Annotated[
        tuple[float, ...] | None, Help("parts of the run after which multi-step drops", least=0, most=1)
    ] = None
    gamma: Annotated[float | None, Help("factor of each drop of the multi-step schedule", least=0, most=1)] = None
    cooldown: Annotated[float | None, Help("last part of the run in which wsd comes down to 0", least=0, most=1)] = None

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class Wrapping(Settings):
    """What methods around an inner optimizer have besides."""

    inner: Annotated[str | None, Help("inner optimizer: sgd, adamw, muon or another of torch's")] = None


@dataclass(frozen=True, kw_only=True)
class Averaging(Wrapping):
    """What methods have besides whose result is an average of weights."""

    norm_stats: Annotated[
        NormStats,
        Help("norm layers' statistics: averaged, copied, or estimated anew from data"),
    ] = "average"


@dataclass(frozen=True)
class Field:
    """A setting, as `lookaround methods` lists it."""

    name: str
    kind: Any
    default: Any
    text: str
    least: float | None
    most: float | None

    def allowed(self) -> str:
        """What it may be, in words."""
        words = describe(self.kind)
        return words if self.least is None and self.most is None else f"{words}, {allowed(self.least, self.most)}"


def settings_of(kind: type[Any]) -> dict[str, Field]:
    """The fields of a settings class by name."""
    hints = get_type_hints(kind, include_extras=True)
    return {item.name: _field(item.name, hints[item.name], item.default) for item in fields(kind)}


def _field(name: str, annotated: Any, default: Any) -> Field:
    kind, said = get_args(annotated)
    return Field(name, kind, default, said.text, said.least, said.most)


def check(settings: Any) -> None:
    """Raises `ValueError` for a setting outside its range."""
    for name, item in settings_of(type(settings)).items():
        for number in _numbers(getattr(settings, name)):
            if not inside(number, item.least, item.most):
                raise ValueError(f"{name} must be {allowed(item.least, item.most)}, got {number:g}")


def _numbers(value: Any) -> Iterator[float]:
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int | float) and not isinstance(number, bool):
            yield number
