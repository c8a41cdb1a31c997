"""One figure, three files: PNG to look at, SVG to print, CSV with the numbers; each written whole or not at all."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lookaround.files import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours that stay apart for colour-blind readers and in grey (Okabe and Ito).
COLORS = {
    "sgd": "#000000",
    "momentum": "#000000",
    "lookahead": "#0072B2",
    "lookaround": "#D55E00",
    "published": "#CC79A7",
    "bound": "#009E73",
}
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "lookaround",  # the same numbers give the same file
    "svg.fonttype": "none",  # words stay words, to be searched and edited
}
Row = Sequence[str | float]


def new_figure(
    draw: Callable[..., None],
    *,
    panels: Sequence[int] = (1,),
    size: tuple[float, float] = (5.2, 3.6),
    beside: bool = False,
) -> Figure:
    """A figure without a window and without pyplot's global state; `draw` gets one axes a panel.

    Panels stand below each other on a common x axis and are given by their heights; or ``beside`` each other, by their widths.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        grid = (
            figure.subplots(1, len(panels), width_ratios=list(panels), squeeze=False)
            if beside
            else figure.subplots(len(panels), sharex=True, height_ratios=list(panels), squeeze=False)
        )
        draw(*grid.flat)
    return figure


def write_figure(folder: Path, name: str, figure: Figure, header: Sequence[str], rows: Iterable[Row]) -> list[Path]:
    """Write `name`.png, .svg and .csv into `folder`, made if need be, and return their paths."""
    import matplotlib as mpl

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{kind}" for kind in ("png", "svg", "csv")]
    with mpl.rc_context(STYLE):
        with atomic(paths[0]) as partial, partial.open("wb") as file:
            figure.savefig(file, format="png", dpi=200)
        with atomic(paths[1]) as partial, partial.open("wb") as file:
            figure.savefig(file, format="svg", metadata={"Date": None})
    with atomic(paths[2]) as partial:
        partial.write_bytes(_csv(header, rows).encode())
    return paths


def _csv(header: Sequence[str], rows: Iterable[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([item if isinstance(item, str) else f"{item:.12g}" for item in row] for row in rows)
    return text.getvalue()


def table(label: str, *columns: Tensor) -> list[Row]:
    """Rows of one labelled curve or family of curves: the columns broadcast and run in step."""
    flat = [column.flatten().tolist() for column in torch.broadcast_tensors(*columns)]
    return [(label, *values) for values in zip(*flat, strict=True)]
