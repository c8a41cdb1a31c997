"""Scales of learning curves: logarithmic where the differences that matter are at the end, and able to show a zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lookaround.tasks.base import Metric

# Okabe and Ito's colours, which the colour-blind can tell apart; the black comes last.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
# For the methods beyond as many as there are colours.
_STYLES: tuple[Any, ...] = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)))
_LEAST_RATIO = 3.0


def style(index: int) -> dict[str, Any]:
    """Colour and line style of method number ``index``; 35 of them differ."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": _STYLES[index // len(COLOURS) % len(_STYLES)],
    }


def is_share(metric: Metric) -> bool:
    """Whether the metric is a percentage of successes, which is drawn as the percentage of failures."""
    return metric.title.endswith("%") and not metric.lower


def drawn(metric: Metric, value: float) -> float:
    """The value as curves show it."""
    return 100 - value if is_share(metric) else value


def axis_label(metric: Metric) -> str:
    """What stands at the axis of `drawn` values."""
    return f"{metric.title.removesuffix('%').strip()} error, %" if is_share(metric) else metric.title


def set_scale(axes: Any, metric: Metric, values: Sequence[float]) -> None:
    """Makes the y axis logarithmic for errors and losses that span a factor of 3 or more.

    Where one of them is zero the scale is linear below the least that is not, so that the curve goes on to the bottom and
    does not end in the air. Negative values, and metrics of which more is better, have a linear axis.
    """
    above = [value for value in values if value > 0]
    if not above or min(values) < 0 or not (metric.lower or is_share(metric)) or max(above) < _LEAST_RATIO * min(above):
        return
    if min(values) > 0:
        axes.set_yscale("log")
    else:
        axes.set_yscale("symlog", linthresh=min(above), linscale=0.3)
        axes.set_ylim(bottom=0)
    if max(above) < 1e4 * min(above):
        _plain_ticks(axes.yaxis, min(above), max(above), zero=min(values) == 0)


def _plain_ticks(axis: Any, low: float, high: float, *, zero: bool) -> None:
    """Labels at 1, 2 and 5 of each decade: powers of ten alone would leave most of these axes bare."""
    from matplotlib.ticker import FixedLocator, FormatStrFormatter, NullLocator

    ticks = [factor * 10.0**power for power in range(-12, 13) for factor in (1, 2, 5)]
    inside = [tick for tick in ticks if low / 2 <= tick <= 2 * high]
    axis.set_major_locator(FixedLocator([0.0, *inside[1:]] if zero else inside))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_locator(NullLocator())
