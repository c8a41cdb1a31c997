"""One self-contained page with a plane as a surface that turns by dragging and tells its values under the pointer."""

from __future__ import annotations

import html
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lookaround.landscape.files import write_text
from lookaround.landscape.grid import Grid
from lookaround.landscape.page_template import TEMPLATE


def save_page(
    grid: Grid,
    path: str | os.PathLike[str],
    *,
    points: Mapping[str, Sequence[float]] | None = None,
    trajectory: Sequence[Sequence[float]] = (),
    title: str = "Loss landscape",
) -> None:
    """Write an interactive page of a plane: one HTML file that needs nothing else, no network either.

    The surface turns by dragging or by the arrow keys and zooms by the wheel; pointing at it shows the nearest point's
    coordinates, loss and accuracy. Height is the loss (on a logarithmic scale on request) or the accuracy.

    Args:
        grid: of a plane, at least 2 × 2.
        path: of the file, written atomically.
        points: named places on the plane, as for `plane_figure`.
        trajectory: places in the order they were passed.
        title: of the page.

    Raises:
        ValueError: the grid is a line or too small.
        OSError: the file cannot be written.

    Source: ours; it shows the surfaces of Zhang et al. 2023 (Lookaround), Figures 1 and 7.
    """
    if len(grid.ys) < 2 or len(grid.xs) < 2:
        raise ValueError(f"a page shows a plane of at least 2 x 2 points, got {len(grid.xs)} x {len(grid.ys)}")
    data = {
        "xs": grid.xs,
        "ys": grid.ys,
        "axes": grid.axes,
        "loss": _rows(grid.loss),
        "accuracy": _rows(grid.accuracy),
        "points": [{"name": name, "x": place[0], "y": place[1]} for name, place in (points or {}).items()],
        "trajectory": [list(place[:2]) for place in trajectory],
    }
    # Inside a script element "</" could end it, whatever the JSON means by it.
    script = json.dumps(data, allow_nan=False).replace("</", "<\\/")
    page = TEMPLATE.replace("__NOTE__", html.escape(grid.norm_note)).replace("__TITLE__", html.escape(title))
    write_text(path, page.replace("__DATA__", script))


def _rows(values: Tensor) -> list[list[Any]]:
    """The values as JSON has them: null where they are not finite."""
    return [[v if math.isfinite(v) else None for v in row] for row in values.tolist()]
