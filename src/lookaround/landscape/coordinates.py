"""Which points of a plane or a line to measure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def grid_around(
    places: Iterable[Sequence[float]], points: int = 21, margin: float = 0.4
) -> tuple[list[float], list[float]]:
    """Coordinates ``(xs, ys)`` of a grid on a plane that holds all ``places``.

    Args:
        places: (x, y, …), such as ``plane.anchors`` and what ``plane.project`` gives.
        points: along each axis, at least 2.
        margin: on every side, as a share of the longer side of the places' box.

    Raises:
        ValueError: fewer than 2 points, or places that are all one.

    Example:
        >>> from lookaround.landscape import grid_around
        >>> grid_around([(0.0, 0.0), (4.0, 2.0)], points=3, margin=0.25)
        ([-1.0, 2.0, 5.0], [-1.0, 1.0, 3.0])

    Source: ours; the box around the networks is as in Garipov et al. 2018's figures.
    """
    if not isinstance(points, int) or points < 2:
        raise ValueError(f"a grid has a whole number of at least 2 points along each axis, got {points}")
    ranges = [(min(values), max(values)) for values in list(zip(*places, strict=False))[:2]]
    room = margin * max(high - low for low, high in ranges)
    if any(high - low + 2 * room <= 0 for low, high in ranges):
        raise ValueError("the places are all one and leave no room for a grid; give others, or a larger margin")
    xs, ys = ([low - room + i * (high - low + 2 * room) / (points - 1) for i in range(points)] for low, high in ranges)
    return xs, ys


def line_positions(points: int = 21, beyond: float = 0.5) -> list[float]:
    """Positions on a line: ``points`` from 0 to 1, both exactly among them, and as densely ``beyond`` them on either side.

    Raises:
        ValueError: fewer than 2 points or no whole number of them, or a ``beyond`` that is negative or not finite.

    Example:
        >>> from lookaround.landscape import line_positions
        >>> line_positions(3, beyond=0.5)
        [-0.5, 0.0, 0.5, 1.0, 1.5]

    Source: Goodfellow et al. 2015, whose interpolation also goes beyond both ends.
    """
    if not isinstance(points, int) or points < 2 or not 0 <= beyond < math.inf:
        raise ValueError(
            f"a line has a whole number of at least 2 points and goes beyond them by a finite number of at least 0, got {points} and "
            f"{beyond}"
        )
    extra = round(beyond * (points - 1))
    return [i / (points - 1) for i in range(-extra, points + extra)]
