"""Tables and pictures of what `map_of_averages.py` and `orderings_of_the_papers.py` measured.

    python recipes/map_figures.py docs/results

Reads map.csv, map-way.csv, map-tried.csv, orderings.csv and orderings-tried.csv in the folder; writes map.md, orderings.md and the pictures
map-CONDITION.png, map-rates.png and map-curves.png beside them. Differences are paired by seed, intervals are Student's at 95 %, and p
values are Holm's for all comparisons of one table.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
from drawing import Panel, forest, new_figure, save
from paired_tables import Row, corrected, head, line, read, rows_of, runs

SGD = "sgd"
SCHEDULES = (SGD, "sgd:schedule=wsd", "sgd:schedule=wsd,cooldown=0.5")
WORDS = {
    "clean": "Digits, right labels, independent copies",
    "shared": "Digits, right labels, shared copies",
    "noise": "Digits, 30 % of the training labels random",
    "finetune": "Fine-tuning: digits 5 to 9 (100 images) from a network trained on 0 to 4",
}
ROWS = (
    *("sgd:schedule=wsd", "sgd:schedule=wsd,cooldown=0.5", "sgd:schedule=constant"),
    *("ema", "tail", "swa", "ema:schedule=constant", "power-ema:schedule=constant", "tail:schedule=constant"),
    *("lookahead", "lookahead:alpha=0.8", "lookahead+ema", "snoo"),
    *("lookaround", "lookaround+tail", "lookaround:batch=1/d", "lookaround+tail:batch=1/d", "dart"),
)


def write_map(folder: Path) -> None:
    """map.md and a picture for each condition; Holm's correction is over all methods and budgets of a condition."""
    found, tried = runs(folder / "map.csv"), read(folder / "map-tried.csv")
    text = [
        "# The map",
        "",
        "Made by `python recipes/map_figures.py docs/results`; read [results](../results.md) first.",
    ]
    stands: list[str] = []
    for condition, words in WORDS.items():
        budgets = budgets_of(found, condition)
        if not budgets:  # not measured yet
            continue
        best = {b: best_schedule(tried, condition, b) for b in budgets}
        rows = corrected([row for b in budgets for row in rows_of(found[condition, b], (SGD, best[b]))])
        split = {b: [rows.pop(0) for _ in found[condition, b]] for b in budgets}
        stands += [f"| {words} | {b} | {' | '.join(verdicts(split[b]))} |" for b in budgets]
        text += ["", f"## {words}", "", f"![{words}](map-{condition}.png)"]
        for b in budgets:
            order = sorted(split[b], key=lambda row: (row.name != SGD, _place(row.name)))
            text += ["", f"{b} gradients of 32 images; of SGD's schedules held-out images choose {best[b]}:", ""]
            text += [*head((SGD, "that one")), *map(line, order)]
        figure = forest(split, {row: row for row in ROWS}, (RATIO, POINTS), "gradients of 32 images", f"{words}\n{HOW}")
        save(figure, folder / f"map-{condition}.png")
    head_of_all = ["", "## What stands after correction", "", *STANDS]
    text[3:3] = [*head_of_all, *stands]
    (folder / "map.md").write_text("\n".join(text) + "\n", encoding="utf-8")


STANDS = (
    "| condition | gradients | NLL lower than SGD's with a cosine | NLL lower than SGD's, schedule tuned too | higher than that |",
    "| --- | ---: | --- | --- | --- |",
)


def verdicts(rows: Sequence[Row]) -> list[str]:
    """The methods whose difference in NLL stands (p < 0.05, Holm's): below SGD, below and above its best schedule."""
    found = []
    for baseline, sign in ((0, -1), (1, -1), (1, 1)):
        known = [(row.name, row.against[baseline]) for row in rows]
        standing = [(name, one) for name, one in known if one is not None and one.p < 0.05]
        names = [name for name, one in standing if sign * one.by["loss"].mean > 0]
        found.append(", ".join(sorted(names, key=_place)) or "none")
    return found


def best_schedule(tried: Sequence[Mapping[str, str]], condition: str, budget: int) -> str:
    """The schedule of plain SGD with the lowest held-out NLL, each with its best momentum and rate."""
    mine = [row for row in tried if (row["condition"], int(row["budget"])) == (condition, budget)]
    return min((row for row in mine if row["row"] in SCHEDULES), key=lambda row: float(row["nll"]))["row"]


def _place(name: str) -> int:
    return ROWS.index(name) if name in ROWS else -1


def _ratios(*ratios: float) -> dict[float, str]:
    return {math.log(ratio): f"{ratio:g}" for ratio in ratios}


HOW = "means and 95 % intervals of ten fresh paired seeds, every method tuned over 18 settings"
RATIO = Panel(
    "ratio",
    (math.log(0.6), math.log(2.1)),
    "NLL as a multiple of tuned SGD's (left is better)",
    lambda mean: f"{math.exp(mean):.1f} ×",
    _ratios(0.6, 0.7, 0.8, 0.9, 1, 1.2, 1.4, 1.7, 2),
)
POINTS = Panel("top1", (-6.0, 4.0), "top-1 minus tuned SGD's, points (right is better)", "{:+.0f}".format)
SUMMARY = replace(
    RATIO, label="NLL as a multiple of SGD's (left is better)", ticks=_ratios(0.7, 0.8, 0.9, 1, 1.2, 1.5, 2)
)


DRAWN = {
    "sgd": ("#000000", "-"),
    "swa": ("#999999", "-"),
    "ema:schedule=constant": ("#009E73", "-"),
    "lookahead": ("#0072B2", "-"),
    "snoo": ("#CC79A7", "-"),
    "lookaround": ("#D55E00", "-"),
    "lookaround:batch=1/d": ("#D55E00", "--"),
    "dart": ("#E69F00", "-"),
}


def write_rates(folder: Path) -> list[str]:
    """A picture of held-out NLL against the rate, and the width of the range of good rates; lines of Markdown."""
    tried = [row for row in read(folder / "map-tried.csv") if row["condition"] == "clean"]
    budgets = sorted({int(row["budget"]) for row in tried})[1:]
    figure, panels = new_figure(9.5, 4.2, len(budgets))
    for panel, budget in zip(panels, budgets, strict=True):
        for name, (color, style) in DRAWN.items():
            points = sorted((float(r["rate"]), float(r["nll"])) for r in _of(tried, budget, name, "0.9"))
            panel.plot(*zip(*points, strict=True), color=color, linestyle=style, marker="o", markersize=3, label=name)
        best = min(float(row["nll"]) for row in tried if int(row["budget"]) == budget)
        panel.set(xscale="log", yscale="log", ylim=(0.9 * best, 6 * best), title=f"{budget} gradients")
        panel.set(xlabel="effective rate η / (1 - momentum)", ylabel="held-out NLL, momentum 0.9")
        panel.grid(alpha=0.3, which="both")
        panel.yaxis.set_minor_formatter(mpl.ticker.FormatStrFormatter("%.2f"))
        panel.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%.2f"))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    save(figure, folder / "map-rates.png")
    names = [name for name in (SGD, *ROWS) if _of(tried, budgets[-1], name, "0.9")]
    head = " | ".join(f"{b}: within 0.5 points | {b}: within 10 % of the NLL" for b in budgets)
    text = [f"| method | {head} |", "| --- |" + " ---: |" * (2 * len(budgets))]
    for name in names:
        cells = [cell for budget in budgets for cell in widths(_of(tried, budget, name, "0.9"))]
        text.append(f"| {name} | {' | '.join(cells)} |")
    return text


def _of(tried: Sequence[Mapping[str, str]], budget: int, name: str, momentum: str) -> list[Mapping[str, str]]:
    return [row for row in tried if (int(row["budget"]), row["row"], row["momentum"]) == (budget, name, momentum)]


def widths(rows: Sequence[Mapping[str, str]]) -> tuple[str, str]:
    """By what factor the rate may change without losing 0.5 points of a method's best accuracy, or 10 % of its best NLL."""
    ordered = sorted(rows, key=lambda row: float(row["rate"]))
    rates = [math.log2(float(row["rate"])) for row in ordered]
    losses = [-float(row["top1"]) for row in ordered], [math.log(float(row["nll"])) for row in ordered]
    return tuple(f"{2 ** width(rates, loss, by):.1f}" for loss, by in zip(losses, (0.5, math.log(1.1)), strict=True))


def width(places: Sequence[float], losses: Sequence[float], by: float) -> float:
    """The length of the range around the lowest loss in which it is at most ``by`` higher; lines between the places.

    Example:
        >>> width([0, 1, 2, 3], [4.0, 0.0, 1.0, 3.0], 2.0)
        2.0
    """
    best = losses.index(min(losses))
    limit = losses[best] + by
    return sum(_reach(places[best::way], losses[best::way], limit) for way in (1, -1))


def _reach(places: Sequence[float], losses: Sequence[float], limit: float) -> float:
    """How far from the first place the loss stays within the limit."""
    for (a, low), (b, high) in pairwise(zip(places, losses, strict=True)):
        if high > limit:
            return abs(a + (b - a) * (limit - low) / (high - low) - places[0])
    return abs(places[-1] - places[0])


WAYS = {
    "sgd": ("SGD, cosine", "#000000", "-"),
    "ema": ("EMA of it", "#000000", ":"),
    "sgd:schedule=constant": ("SGD, constant rate", "#009E73", "-"),
    "ema:schedule=constant": ("EMA of it", "#009E73", ":"),
    "lookahead": ("Lookahead, cosine", "#0072B2", "-"),
    "lookaround:batch=1/d": ("Lookaround, batch/d, cosine", "#D55E00", "-"),
}


def write_curves(folder: Path) -> None:
    """Whole curves: the test NLL along the way, of the cosine's and of the constant rate's weights and averages."""
    lines = read(folder / "map-way.csv")
    wanted = [(c, b) for c in ("clean", "noise") for b in (300, 3000) if any(_at(row, c, b) for row in lines)]
    height = math.ceil(len(wanted) / 2)
    figure, panels = new_figure(9.5, 3.4 * height + 0.4, 2, height)
    for panel, (condition, budget) in zip(panels, wanted, strict=False):
        draw_ways(panel, [row for row in lines if _at(row, condition, budget)], WAYS)
        panel.set_title(f"{WORDS[condition]}, {budget} gradients", fontsize=9)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    save(figure, folder / "map-curves.png")


def draw_ways(panel, lines: Sequence[Mapping[str, str]], names: Sequence[str]) -> None:
    """Means over the seeds along the way."""
    for name in names:
        label, color, style = WAYS[name]
        mine = [row for row in lines if row["row"] == name]
        at = sorted({int(row["gradients"]) for row in mine})
        means = [statistics.fmean(float(row["nll"]) for row in mine if int(row["gradients"]) == g) for g in at]
        panel.plot(at, means, color=color, linestyle=style, marker="o", markersize=2.5, label=label)
    panel.set(yscale="log", xlabel="gradients of 32 images", ylabel="test NLL, mean of ten seeds")
    for set_formatter in (panel.yaxis.set_major_formatter, panel.yaxis.set_minor_formatter):
        set_formatter(mpl.ticker.FormatStrFormatter("%.2f"))
    panel.tick_params(which="both", labelsize=8)
    panel.grid(alpha=0.3, which="both")


SHOWN = (
    *("ema", "swa", "power-ema:schedule=constant", "lookahead:alpha=0.8", "snoo"),
    *("lookaround", "lookaround:batch=1/d", "dart"),
)


SHORT = {
    "power-ema:schedule=constant": "anytime: EMA at a\nconstant rate",
    "ema": "ema of a decay",
    "lookaround:batch=1/d": "lookaround,\nbatch 1/d",
}


def write_summary(folder: Path) -> None:
    """The first picture of the README: a run on its way, and where its end is against the best schedule of SGD."""
    figure, (left, right) = new_figure(10.5, 4.2, 2, width_ratios=[1, 1.25])
    ways = [row for row in read(folder / "map-way.csv") if _at(row, "clean", 300)]
    draw_ways(left, ways, ("sgd:schedule=constant", "ema:schedule=constant", "sgd"))
    left.set_title("on the way: an average is far ahead of its weights", fontsize=10)
    left.legend(frameon=False, fontsize=9)
    found, tried = runs(folder / "map.csv"), read(folder / "map-tried.csv")
    budgets = budgets_of(found, "clean")
    split = {b: rows_of(found["clean", b], (best_schedule(tried, "clean", b),)) for b in budgets}
    SUMMARY.prepare(right, [SHORT.get(name, name) for name in SHOWN])
    SUMMARY.draw(right, split, SHOWN, "gradients")
    right.set_title("at the end: against SGD, its schedule tuned too", fontsize=10)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=3, frameon=False, fontsize=9)
    save(figure, folder / "map-summary.png")


def budgets_of(found: Mapping[tuple[str, int], object], condition: str) -> list[int]:
    """The budgets at which a condition was measured."""
    return sorted(budget for name, budget in found if name == condition)


def _at(row: Mapping[str, str], condition: str, budget: int) -> bool:
    return row["condition"] == condition and int(row["budget"]) == budget


def write_orderings(folder: Path) -> None:
    """orderings.md: a table for each question, each row against the first of its question at its budget."""
    text = ["# The papers' orderings", "", "Made by `python recipes/map_figures.py docs/results`."]
    for (condition, budget), lines in runs(folder / "orderings.csv").items():
        first = next(iter(lines))
        text += ["", f"## {condition}, {budget} gradients", "", *head((first,))]
        text += map(line, corrected(rows_of(lines, (first,))))
    (folder / "orderings.md").write_text("\n".join(text) + "\n", encoding="utf-8")


def main() -> None:
    """Writes everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    write_map(folder)
    write_curves(folder)
    write_summary(folder)
    rates = write_rates(folder)
    with (folder / "map.md").open("a", encoding="utf-8") as file:
        file.write("\n## How wide is the range of rates?\n\n![Held-out NLL against the rate](map-rates.png)\n\n")
        file.write("\n".join(rates) + "\n")
    if (folder / "orderings.csv").exists():
        write_orderings(folder)


if __name__ == "__main__":
    main()
