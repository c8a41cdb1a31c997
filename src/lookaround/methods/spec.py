"""A method with settings of its own, as a user writes it: ``lookaround:k=20,lr=0.2``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from lookaround.methods.optimizers import OPTIMIZERS, arguments
from lookaround.methods.presets import PRESETS
from lookaround.methods.registry import Entry, find
from lookaround.methods.settings import Field, settings_of
from lookaround.methods.values import describe, read, write
from lookaround.tasks.base import Defaults

# Longer labels are cut in the names of folders, which hold 255 bytes, and told apart by a digest.
_LONGEST = 120
_SCHEDULE = {"schedule": "cosine", "warmup": 0.0, "milestones": (), "gamma": 0.1, "cooldown": 0.2}


@dataclass(frozen=True)
class Resolved:
    """A method with every setting decided.

    Attributes:
        name: of the method.
        settings: an instance of its settings class, with none left to the task.
        inner: name of the inner optimizer.
        optimizer: its arguments.
        batch: of a minibatch, in what the task counts batches in.
        branches: copies of a minibatch.
        gradients: the most minibatch gradients that a step takes.
    """

    name: str
    settings: Any
    inner: str
    optimizer: Mapping[str, Any]
    batch: int
    branches: int
    gradients: int

    def as_json(self) -> dict[str, Any]:
        """All settings by name, as plain values."""
        own = {item.name: getattr(self.settings, item.name) for item in fields(self.settings)}
        optimizer = {(f"inner.{key}" if key in own else key): value for key, value in self.optimizer.items()}
        values = {**own, "inner": self.inner, **optimizer, "batch": self.batch, "branches": self.branches}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


@dataclass(frozen=True)
class Spec:
    """A method's name and what was chosen of its settings.

    Attributes:
        name: of the method.
        given: names and values of settings, in the order of the label.
        preset: the name under which the method and some of its settings were chosen, or None.

    Example:
        >>> from lookaround.methods import Spec
        >>> spec = Spec.parse("lookaround:lr=0.20,k=20")
        >>> spec.label, spec.slug
        ('lookaround:k=20,lr=0.2', 'lookaround,k=20,lr=0.2')
    """

    name: str
    given: tuple[tuple[str, Any], ...] = ()
    preset: str | None = None

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Reads ``NAME`` or ``NAME:setting=value,…``; a preset's name stands for its method and settings.

        Raises:
            ValueError: for an unknown method, a setting that it does not have, or a value that the setting does not take.

        Example:
            >>> from lookaround.methods import Spec
            >>> spec = Spec.parse("anytime:lr=0.2")
            >>> spec.label, spec.written_out
            ('anytime:lr=0.2', 'power-ema:width=0.1,lr=0.2,schedule=constant')
        """
        name, colon, rest = text.partition(":")
        spec = replace(cls.parse(PRESETS[name].method), preset=name) if name in PRESETS else cls(name)
        return spec.with_settings(assignments(rest, text) if colon else {})

    def with_settings(self, chosen: Mapping[str, str]) -> Spec:
        """With more settings chosen, as text.

        Raises:
            ValueError: as `parse`.
        """
        known = self.fields(chosen.get("inner"))
        values = dict(self.given)
        for key, text in chosen.items():
            key = key.removeprefix("inner.") if key not in known and key.startswith("inner.") else key
            if key not in known:
                raise ValueError(
                    f"{self.name} has no setting {key!r}; it has {', '.join(known)}{_hint(key, text, known)}"
                )
            values[key] = _value(self.name, known[key], text)
        spec = replace(self, given=tuple((key, values[key]) for key in known if key in values))
        spec._check()
        return spec

    def fields(self, inner: str | None = None) -> dict[str, Field]:
        """Every setting by name: the method's own, the inner optimizer's, and those that every method has.

        A setting of the inner optimizer whose name the method has taken is called ``inner.NAME``.
        """
        own = settings_of(self.entry.settings)
        common = ("inner", "batch", "schedule", "warmup", "milestones", "gamma", "cooldown")
        first = {name: item for name, item in own.items() if name not in common}
        last = {name: own[name] for name in common if name in own}
        optimizer = {
            (f"inner.{name}" if name in own else name): Field(
                name, kind, default, f"of {self.inner(inner)}", None, None
            )
            for name, (kind, default) in arguments(self.inner(inner)).items()
        }
        return {**first, **optimizer, **last}

    def inner(self, chosen: str | None = None, otherwise: str = "sgd") -> str:
        """The inner optimizer: the method's own, the one chosen, or otherwise the task's."""
        return self.entry.inner or chosen or dict(self.given).get("inner") or otherwise

    @cached_property
    def entry(self) -> Entry:
        """The method."""
        return find(self.name)

    def _check(self) -> None:
        own = {field.name for field in fields(self.entry.settings)}
        try:
            self.entry.settings(**{key: value for key, value in self.given if key in own})
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error

    @property
    def label(self) -> str:
        """The method as a user would write it, every setting in its place: unique in an experiment.

        Behind a preset's name stand those settings that are not the preset's.
        """
        stated = () if self.preset is None else Spec.parse(PRESETS[self.preset].method).given
        chosen = ",".join(f"{key}={write(value)}" for key, value in self.given if (key, value) not in stated)
        name = self.preset or self.name
        return f"{name}:{chosen}" if chosen else name

    @property
    def written_out(self) -> str:
        """The label with a preset's method and settings in the place of its name."""
        return replace(self, preset=None).label

    @property
    def slug(self) -> str:
        """The label as the name of a folder."""
        slug = self.label.replace(":", ",").replace("/", "_")
        if len(slug) <= _LONGEST:
            return slug
        return f"{slug[:_LONGEST]}~{hashlib.sha256(slug.encode()).hexdigest()[:8]}"

    def resolve(self, defaults: Defaults, branches: int) -> Resolved:
        """Every setting decided: what was chosen, what suits the task, and the method's defaults.

        Raises:
            ValueError: for a setting that the task's inner optimizer does not have.
        """
        chosen = dict(self.given)
        inner = self.inner(otherwise=defaults.inner)
        own = {item.name for item in fields(self.entry.settings)}
        takes = arguments(inner)
        optimizer = {key: default for key, (_, default) in takes.items()}
        optimizer |= {key: value for key, value in defaults.optimizers.get(inner, {}).items() if key in takes}
        optimizer |= {k.removeprefix("inner."): v for k, v in chosen.items() if k not in own}
        d = chosen.get("branches") or branches
        batch = chosen.get("batch", defaults.batch)
        batch = max(1, defaults.batch // d) if batch == "1/d" else batch or defaults.batch
        mine = {key: value for key, value in chosen.items() if key in own}
        settings = self.entry.settings(**{**_SCHEDULE, **defaults.schedule, **mine, "batch": batch})
        gradients = self.entry.cost(inner, optimizer)
        return Resolved(self.name, settings, inner, optimizer, batch, d, gradients)


def _hint(key: str, value: str, known: Mapping[str, Field]) -> str:
    """Which inner optimizers have a setting that the one at hand has not."""
    have = [name for name in OPTIMIZERS if key in arguments(name)] if "inner" in known else []
    if not have:
        return ""
    return f". An inner optimizer chosen beside it may have it: inner={have[0]},{key}={value} ({', '.join(have)})"


def assignments(text: str, whole: str) -> dict[str, str]:
    """The settings in ``name=value,…``, as text.

    Raises:
        ValueError: for anything else, or a setting chosen twice.
    """
    chosen: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not (name and equals and value):
            raise ValueError(f"{whole!r}: expected setting=value instead of {part!r}, as in lookaround:k=20,lr=0.2")
        if name in chosen:
            raise ValueError(f"{whole!r} chooses {name} twice")
        chosen[name] = value
    return chosen


def _value(method: str, item: Field, text: str) -> Any:
    try:
        return read(item.kind, text)
    except ValueError:
        raise ValueError(f"{method}: {item.name} must be {describe(item.kind)}, got {text!r}") from None
