"""A method's learning curve over its seeds: the mean, and a band from the least to the greatest."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

Points = Sequence[tuple[float, float]]
"""Of one seed: where (budget or seconds, rising), and the value there."""


@dataclass(frozen=True)
class Curve:
    """Values over the seeds, at rising places.

    Attributes:
        at: the places.
        mean: over the seeds, at each.
        low: the least of the seeds.
        high: the greatest.
    """

    at: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def curve(seeds: Sequence[Points]) -> Curve | None:
    """The curve of several seeds, at every place where one of them was evaluated and all had begun and not ended.

    Between two evaluations of a seed its value is interpolated linearly, as seeds are evaluated at different seconds. A seed
    without any point (its records are lost) is left out; None if all are, or if no place is common to them. Seeds that were
    evaluated once each make one point, at the mean of their places.

    Example:
        >>> from lookaround.experiment.compare import curve
        >>> curve([[(1, 10.0), (3, 20.0)], [(2, 30.0), (4, 50.0)]])
        Curve(at=(2, 3), mean=(22.5, 30.0), low=(15.0, 20.0), high=(30.0, 40.0))
    """
    known = [points for points in seeds if points]
    if not known:
        return None
    if all(len(points) == 1 for points in known):
        places, values = zip(*(points[0] for points in known), strict=True)
        return Curve((_mean(places),), (_mean(values),), (min(values),), (max(values),))
    first, last = max(points[0][0] for points in known), min(points[-1][0] for points in known)
    at = sorted({place for points in known for place, _ in points if first <= place <= last})
    columns = [[_value(points, place) for points in known] for place in at]
    if not at:
        return None
    return Curve(tuple(at), tuple(map(_mean, columns)), tuple(map(min, columns)), tuple(map(max, columns)))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _value(points: Points, place: float) -> float:
    """A seed's value at a place between its first and its last point."""
    after = bisect_right(points, place, key=lambda point: point[0])
    x0, y0 = points[after - 1]
    if after == len(points) or x0 == place:
        return y0
    x1, y1 = points[after]
    return y0 + (y1 - y0) * (place - x0) / (x1 - x0)
