"""Tables, texts and pictures, each written whole or not at all."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookaround.files import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Text stays text in an SVG, and the same numbers give the same file.
_SVG: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "lookaround"}


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(path: str | os.PathLike[str], header: Sequence[str], rows: Iterable[Sequence[float]]) -> None:
    """Write a table atomically; numbers keep all their digits."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, table.getvalue())


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> list[Path]:
    """Write a figure as PNG and as SVG, atomically.

    Args:
        figure: of `plane_figure`, `line_figure` or `trajectory_figure`.
        path: without a suffix: ``figures/plane`` gives ``figures/plane.png`` and ``figures/plane.svg``.

    Returns:
        The paths written.

    Raises:
        OSError: a file cannot be written.

    Source: ours.
    """
    import matplotlib as mpl

    paths = [Path(f"{os.fspath(path)}.{kind}") for kind in ("png", "svg")]
    for target, metadata in zip(paths, ({}, {"Date": None}), strict=True):
        with mpl.rc_context(_SVG), atomic(target) as temporary:
            figure.savefig(temporary, format=target.suffix[1:], dpi=200, metadata=metadata)
    return paths
