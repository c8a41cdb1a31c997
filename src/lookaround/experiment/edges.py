"""Whether a search's best value lies at the edge of what was tried, so that a better one may lie beyond."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from lookaround.methods import Spec
from lookaround.methods.values import write


def edges(found: Mapping[str, Sequence[Spec]], chosen: Mapping[str, Spec]) -> list[str]:
    """A line for each setting whose chosen value is the least or the greatest number of several that were tried.

    Args:
        found: every candidate of each method, by the method's label.
        chosen: the best of them.

    Example:
        >>> tried = [Spec.parse(f"sgd:lr={rate}") for rate in (0.1, 0.2, 0.4)]
        >>> edges({"sgd": tried}, {"sgd": tried[2]})
        ['sgd: the best lr, 0.4, is the highest that was tried; a higher one may be better']
        >>> edges({"sgd": tried}, {"sgd": tried[1]})
        []
    """
    return [line for label, specs in found.items() for line in _of_method(label, specs, dict(chosen[label].given))]


def _of_method(label: str, specs: Sequence[Spec], best: Mapping[str, object]) -> Iterator[str]:
    for name, value in best.items():
        tried = {number for spec in specs for number in _numbers(dict(spec.given).get(name))}
        if len(tried) > 1 and value in (min(tried), max(tried)):
            side, further = ("lowest", "lower") if value == min(tried) else ("highest", "higher")
            yield f"{label}: the best {name}, {write(value)}, is the {side} that was tried; a {further} one may be better"


def _numbers(value: object) -> tuple[float, ...]:
    return (value,) if isinstance(value, int | float) and not isinstance(value, bool) else ()
