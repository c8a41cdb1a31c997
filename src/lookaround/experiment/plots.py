"""Learning curves over the budget, the only axis on which methods compare fairly."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lookaround.experiment.config import TrainConfig
from lookaround.experiment.files import write_atomically

Records = Sequence[Mapping[str, Any]]
Run = tuple[str, int]
# Okabe and Ito's colours, which the colour-blind can tell apart; the black comes last.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
# For the methods beyond as many as there are colours.
_STYLES = ("-", "--", "-.")
_PANELS = (("top1", "test error, %"), ("nll", "test NLL, nats"))


def save_curves(
    path: Path, runs: Mapping[Run, Records], config: TrainConfig, diverged: Collection[Run] = frozenset()
) -> None:
    """Draws test error and NLL of the averaged weights against gradient evaluations, as PNG.

    A line is the mean over a method's seeds, its band reaches from the least to the greatest seed. A run that diverged is a
    dotted line of its own, with a cross where it ended. The scale is logarithmic, as the differences that matter are at
    the end.

    Args:
        path: of the picture, written atomically.
        runs: every run's records, by method and seed.
        config: for the title.
        diverged: the runs that ended early.

    Raises:
        OSError: when it cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.2), layout="constrained")
    panels = figure.subplots(1, len(_PANELS))
    for axes, (value, label) in zip(panels, _PANELS, strict=True):
        axes.set(xlabel="gradient evaluations", ylabel=label, yscale="log")
        _fill(axes, runs, value, config, diverged)
        axes.grid(alpha=0.25)
    if panels[-1].lines:
        figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside right center", frameon=False)
    seeds = f"{len(config.seeds)} seeds: mean, least to greatest" if len(config.seeds) > 1 else "one seed"
    figure.suptitle(f"{config.data}, {config.model}, {config.branches} copies a minibatch ({seeds})", fontsize="medium")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    write_atomically(path, picture.getvalue())


def _fill(axes: Any, runs: Mapping[Run, Records], value: str, config: TrainConfig, diverged: Collection[Run]) -> None:
    """Draws every method. The scale is that of the runs that reached their end: what others report before the end can be anything."""
    for method, colour, style in _styled(config.methods):
        ended = [runs[method, seed] for seed in config.seeds if (method, seed) not in diverged]
        _draw(axes, ended, value, method, colour, style)
    limits = axes.get_ylim()
    for method, colour, _ in _styled(config.methods):
        broken = [runs[method, seed] for seed in config.seeds if (method, seed) in diverged]
        _draw_broken(axes, broken, value, f"{method} (diverged)", colour)
    if any(run not in diverged for run in runs):
        axes.set_ylim(limits)
    low, high = axes.get_ylim()
    if high < 1e4 * low:
        _plain_ticks(axes.yaxis)


def _styled(methods: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    for index, method in enumerate(methods):
        yield method, _COLOURS[index % len(_COLOURS)], _STYLES[index // len(_COLOURS) % len(_STYLES)]


def _draw(axes: Any, runs: Sequence[Records], value: str, method: str, colour: str, style: str) -> None:
    if not runs:
        return
    budget = [record["gradient_evaluations"] for record in runs[0]]
    curves = torch.tensor([[record[value] for record in run] for run in runs], dtype=torch.float64)
    if value == "top1":
        curves = 100 - curves
    marker = "o" if len(budget) == 1 else None
    axes.plot(budget, curves.mean(0).tolist(), color=colour, ls=style, label=method, linewidth=1.6, marker=marker)
    if len(runs) > 1:
        axes.fill_between(
            budget, curves.amin(0).tolist(), curves.amax(0).tolist(), color=colour, alpha=0.15, linewidth=0
        )


def _draw_broken(axes: Any, runs: Sequence[Records], value: str, label: str, colour: str) -> None:
    for index, run in enumerate(filter(None, runs)):
        budget = [record["gradient_evaluations"] for record in run]
        curve = [100 - record[value] if value == "top1" else record[value] for record in run]
        label = label if index == 0 else "_nolegend_"
        axes.plot(budget, curve, color=colour, label=label, linewidth=1, linestyle=":", marker="x", markevery=[-1])


def _plain_ticks(axis: Any) -> None:
    """Labels at 1, 2 and 5 of each decade: powers of ten alone would leave most of these axes bare."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_formatter(NullFormatter())
