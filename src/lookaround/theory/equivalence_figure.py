"""Lookaround at rate η beside SGD at rate η/d: where they are one, and where they part."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lookaround.theory.equivalence import at_equal_samples, fixed_point_ratio, measured_ratio
from lookaround.theory.figure_files import COLORS, Row, new_figure, table, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PERIODS = (1, 2, 5, 10, 20, 50)
RATES = (0.02, 0.1, 0.5)
# One loss whose curvature falls away from the minimum, and one whose curvature grows.
LOSSES = {
    "ln cosh θ (curvature falls)": (torch.tanh, lambda x: torch.log(torch.cosh(x)), "v"),
    "θ²/2 (constant)": (lambda x: x, lambda x: x**2 / 2, "o"),
    "θ²/2 + θ⁴/4 (curvature grows)": (lambda x: x + x**3, lambda x: x**2 / 2 + x**4 / 4, "^"),
}


def lookaround_rate(
    folder: Path, *, branches: int = 3, lr: float = 0.3, chains: int = 4000, passes: int = 300, seed: int = 0
) -> list[Path]:
    """Lookaround at rate η against SGD at rate η/d per sample: equal to first order, parting in curvature, momentum and k."""
    samples, curves = _losses(branches)
    x = torch.linspace(0.01, 1.9, 190, dtype=torch.float64)
    ratios = {beta: fixed_point_ratio(1.0, x, branches=branches, momentum=beta) for beta in (0.0, 0.5, 0.9)}
    measured = _measured(branches, lr, chains, passes, seed)

    def draw(losses: Axes, settled: Axes, periods: Axes) -> None:
        _draw_losses(losses, samples, curves, branches)
        _draw_settled(settled, x, ratios)
        _draw_periods(periods, measured, lr, float(fixed_point_ratio(1.0, lr, branches=branches)))

    rows: list[Row] = []
    for rate, both in curves.items():
        for name, values in both.items():
            rows += table(f"{name}, rate {rate:g}", samples, values)
    for beta, ratio in ratios.items():
        rows += table(f"fixed points' ratio over lr·a, momentum {beta:g}", x, ratio)
    for name, values in measured.items():
        rows += table(f"measured ratio over k, {name}", torch.tensor(PERIODS), values)
    figure = new_figure(draw, panels=(1, 1, 1), size=(12.5, 3.9), beside=True)
    return write_figure(folder, "lookaround-rate", figure, ("curve", "x", "y"), rows)


def _losses(branches: int) -> tuple[Tensor, dict[float, dict[str, Tensor]]]:
    """Excess losses over samples, on two curvatures a hundred apart, for three rates."""
    passes = torch.logspace(0, 4, 80, dtype=torch.float64).round().unique()
    curves = {}
    for rate in RATES:
        both = at_equal_samples([1.0, 0.01], [0.1, 0.1], rate, passes, branches=branches)
        curves[rate] = {"lookaround": both.lookaround, "sgd": both.sgd}
    return passes * branches, curves


def _measured(branches: int, lr: float, chains: int, passes: int, seed: int) -> dict[str, Tensor]:
    return {
        name: torch.tensor(
            [
                measured_ratio(gradient, loss, lr, branches=branches, k=k, chains=chains, passes=passes, seed=seed)
                for k in PERIODS
            ]
        )
        for name, (gradient, loss, _) in LOSSES.items()
    }


def _draw_losses(axes: Axes, samples: Tensor, curves: dict[float, dict[str, Tensor]], branches: int) -> None:
    for index, (rate, both) in enumerate(curves.items()):
        label = ("Lookaround, η, d = " + str(branches), f"SGD, η/{branches}") if not index else (None, None)
        axes.plot(samples, both["lookaround"], color=COLORS["lookaround"], linewidth=2.2, label=label[0])
        axes.plot(samples, both["sgd"], color=COLORS["sgd"], linewidth=1.2, linestyle="--", label=label[1])
        end = float(torch.maximum(both["sgd"][-1], both["lookaround"][-1]))
        at = (float(samples[-1]), end)
        axes.annotate(f"η = {rate:g}", at, (4, 0), textcoords="offset points", va="center")
    axes.set(xlim=(float(samples[0]) / 1.5, float(samples[-1]) * 12))
    axes.set(xscale="log", yscale="log", xlabel="minibatches", ylabel="expected excess loss")
    axes.set_title("The same progress and the same noise per sample")
    axes.legend(loc="lower left")


def _draw_settled(axes: Axes, x: Tensor, ratios: dict[float, Tensor]) -> None:
    for (beta, ratio), style in zip(ratios.items(), ("-", "--", ":"), strict=True):
        axes.plot(x, ratio, color=COLORS["lookaround"], linewidth=1.8, linestyle=style, label=f"momentum {beta:g}")
    axes.axhline(1, color=COLORS["sgd"], linewidth=1.2)
    axes.set(xlabel="η · curvature", ylabel="settled variance, Lookaround / SGD at η/d", ylim=(0.9, 4))
    axes.set_title("They part where η · curvature is large")
    axes.legend(loc="upper left")


def _draw_periods(axes: Axes, measured: dict[str, Tensor], lr: float, exact: float) -> None:
    colors = (COLORS["published"], COLORS["lookahead"], COLORS["bound"])
    for (name, values), color in zip(measured.items(), colors, strict=True):
        axes.plot(PERIODS, values, color=color, marker=LOSSES[name][2], linewidth=1.4, label=name)
    axes.axhline(exact, color=COLORS["lookahead"], linewidth=1, linestyle="--", label="θ²/2, exact")
    axes.axhline(1, color=COLORS["sgd"], linewidth=1.2)
    axes.set(xscale="log", xlabel="k", ylabel="settled loss, Lookaround / SGD at η/d", ylim=(0.9, 1.5))
    axes.set_xticks(PERIODS, [str(k) for k in PERIODS])
    axes.minorticks_off()
    axes.set_title(f"k matters where curvature changes (η = {lr:g})")
    axes.legend(loc="upper left")
