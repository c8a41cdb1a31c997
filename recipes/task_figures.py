"""Tables and pictures of tasks that `lookaround tune` trained: every method against tuned AdamW or SGD, at every budget.

    python recipes/task_figures.py docs/results

Reads NAME.csv and NAME-tried.csv in the folder (`tuned_runs.py` gathers them) for the language model, the translation and photographs;
writes NAME.md and NAME.png beside them. Differences are paired by seed, intervals are Student's at 95 %, and p values are Holm's for
all methods and budgets of a task.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from drawing import Panel, forest, save
from paired_tables import IMAGES, Layout, Row, corrected, grouped, head, line, read, rows_of

Tried = Sequence[Mapping[str, str]]
RATE = "rate (↓ ↑: the lowest, highest tried)"


@dataclass(frozen=True)
class Task:
    """A task at several budgets.

    Attributes:
        name: of its files.
        title: of its page and its picture.
        layout: of its tables.
        panels: of its picture.
        names: of its rows in the picture, from the top.
        controls: the baseline, and its variants; held-out data choose among them for the second baseline.
        baseline: what the baseline is called.
        unit: of the budgets.
    """

    name: str
    title: str
    layout: Layout
    panels: tuple[Panel, ...]
    names: Mapping[str, str]
    controls: tuple[str, ...]
    baseline: str = "AdamW"
    unit: str = "tokens"


def _nats(limit: float, baseline: str = "AdamW", loss: str = "loss") -> Panel:
    label = f"test {loss} minus tuned {baseline}'s, nats (left is better)"
    return Panel("loss", (-limit, limit), label, "{:+.2f}".format)


LANGUAGE = Task(
    "language",
    "Next word: an LSTM on Penn Treebank, split anew",
    Layout(
        ("lr",),
        RATE,
        {"perplexity": ("perplexity", 1), "bits_per_byte": ("bits a byte", 4), "loss": ("loss", 4)},
        "loss",
        ("perplexity", "perplexity", 1),
    ),
    (_nats(0.31),),
    {
        "adamw:betas=0.6/0.999": "adamw, β₁ = 0.6",
        "adamw:batch=1/d": "adamw, batch 1/d",
        "adamw:betas=0.6/0.999,batch=1/d": "adamw, batch 1/d, β₁ = 0.6",
        "adamw:schedule=wsd": "adamw, late cooldown",
        "adamw:betas=0.6/0.999,schedule=wsd": "adamw, β₁ = 0.6, late cooldown",
        "adamw:schedule=constant": "adamw, constant rate",
        "ema:schedule=constant": "ema, constant rate",
        "power-ema:width=0.1,schedule=constant": "power-ema, constant rate",
        "ema": "ema",
        "tail": "tail",
        "swa": "swa",
        "swa:betas=0.6/0.999,inner=adamw": "swa, β₁ = 0.6",
        "lookahead:k=5,alpha=0.8": "lookahead, α = 0.8",
        "lookahead:k=5,alpha=0.8,betas=0.6/0.999,inner=adamw": "lookahead, α = 0.8, β₁ = 0.6",
        "lookahead+ema:k=5,alpha=0.8": "lookahead+ema, α = 0.8",
        "snoo": "snoo",
        "lookaround:k=5": "lookaround",
        "lookaround:k=5,batch=1/d": "lookaround, batch 1/d",
        "lookaround:k=5,betas=0.6/0.999,inner=adamw,batch=1/d": "lookaround, batch 1/d, β₁ = 0.6",
        "lookaround+ema:k=5,batch=1/d": "lookaround+ema, batch 1/d",
        "dart": "dart",
    },
    (
        "adamw",
        "adamw:betas=0.6/0.999",
        "adamw:batch=1/d",
        "adamw:betas=0.6/0.999,batch=1/d",
        "adamw:schedule=wsd",
        "adamw:betas=0.6/0.999,schedule=wsd",
        "adamw:schedule=constant",
    ),
)
TRANSLATION = Task(
    "translation",
    "English to German: a Transformer on Multi30k",
    Layout(
        ("lr",),
        RATE,
        {"bleu": ("BLEU", 2), "chrf": ("chrF", 1), "loss": ("loss", 4)},
        "loss",
        ("bleu", "BLEU", 2),
    ),
    (_nats(0.42), Panel("bleu", (-3.0, 3.2), "BLEU minus tuned AdamW's (right is better)", "{:+.1f}".format)),
    {
        "adamw:batch=167": "adamw, batch 167",
        "ema:batch=500": "ema",
        "lookahead:k=5,alpha=0.8,batch=500": "lookahead, α = 0.8",
        "snoo:batch=500": "snoo",
        "lookaround:k=5,batch=167": "lookaround, batch 167",
    },
    ("adamw:batch=500", "adamw:batch=167"),
)
PHOTOGRAPHS = Task(
    "photographs",
    "Photographs: a small CNN on 2,000 CIFAR-10 images",
    replace(IMAGES, settings=("lr",), titles=RATE),
    (
        _nats(0.16, "SGD", "NLL"),
        Panel("top1", (-7.5, 4.5), "top-1 minus tuned SGD's, points (right is better)", "{:+.1f}".format),
    ),
    {
        "sgd:momentum=0.5,batch=32": "sgd, momentum 0.5",
        "sgd:batch=32,schedule=wsd": "sgd, late cooldown",
        "ema:batch=32": "ema",
        "tail:batch=32": "tail",
        "swa:batch=32": "swa",
        "power-ema:width=0.1,batch=32,schedule=constant": "power-ema, constant rate",
        "lookahead:k=5,alpha=0.8,batch=32": "lookahead, α = 0.8",
        "snoo:batch=32": "snoo",
        "lookaround:k=5,batch=32": "lookaround",
        "lookaround:k=5,batch=11": "lookaround, batch 11",
        "dart:batch=32": "dart",
    },
    ("sgd:batch=32", "sgd:momentum=0.5,batch=32", "sgd:batch=32,schedule=wsd"),
    "SGD",
    "samples",
)


def write(task: Task, folder: Path) -> None:
    """The page and the picture of a task."""
    found = {int(budget): rows for (budget,), rows in grouped(read(folder / f"{task.name}.csv"), "budget").items()}
    trials = read(folder / f"{task.name}-tried.csv")
    bases = {b: (task.controls[0], best_control(task, trials, b, rows)) for b, rows in found.items()}
    rows = corrected([row for b, lines in found.items() for row in rows_of(lines, bases[b], task.layout)])
    split = {b: [rows.pop(0) for _ in lines] for b, lines in found.items()}
    loss, _ = task.layout.metrics[task.layout.loss]
    text = [
        f"# {task.title}",
        "",
        "Made by `python recipes/task_figures.py docs/results`; read [results](../results.md) first.",
        "",
        f"![{task.title}]({task.name}.png)",
        "",
        f"Test {loss} minus that of {task.controls[0]}, nats, with its 95 % interval, in brackets p after Holm's correction; ± at a mean "
        "is a standard deviation:",
        "",
        *by_budget(task, split),
    ]
    for budget, own in split.items():
        chosen = bases[budget][1]
        text += ["", f"{budget:,} {task.unit}; of {task.baseline}'s variants held-out data choose {chosen}:", ""]
        text += head((task.controls[0], "that one"), task.layout)
        text += [line(marked(row, trials, budget)) for row in own]
    (folder / f"{task.name}.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    seeds = sorted({len(row.values) for own in split.values() for row in own})
    many = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else seeds[0]
    title = f"{task.title}\nmeans and 95 % intervals of {many} fresh paired seeds, every method's rate tuned"
    save(forest(split, named(task, split), task.panels, task.unit, title), folder / f"{task.name}.png")


def by_budget(task: Task, split: Mapping[int, Sequence[Row]]) -> list[str]:
    """A table with a row for each method and a column for each budget; the baseline's own loss is in its row."""
    cells = {(row.name, budget): _cell(row) for budget, rows in split.items() for row in rows}
    names = [task.controls[0], *named(task, split)]
    lines = [[name, *(cells.get((name, budget), "") for budget in split)] for name in names]
    head = ["method", *(f"{budget:,} {task.unit}" for budget in split)]
    return [f"| {' | '.join(head)} |", "| --- |" + " ---: |" * len(split), *(f"| {' | '.join(own)} |" for own in lines)]


def named(task: Task, split: Mapping[int, Sequence[Row]]) -> dict[str, str]:
    """What was measured beside the baseline, with its words: in the task's order, what that does not name at the end."""
    measured = dict.fromkeys(row.name for rows in split.values() for row in rows if row.name != task.controls[0])
    return {name: task.names.get(name, name) for name in [*task.names, *measured] if name in measured}


def _cell(row: Row) -> str:
    one = row.against[0]
    if one is None:
        return row.mean(row.layout.loss)
    loss, _, _ = one.cells()
    return f"{loss} ({one.p:.3f})"


def best_control(task: Task, trials: Tried, budget: int, rows: Mapping[str, object]) -> str:
    """Of the baseline and its variants that were trained with this budget the one that is best on held-out data at its best rate.

    All that chooses here, perplexity and loss, is better where it is lower.
    """
    mine = [t for t in trials if int(t["budget"]) == budget and t["row"] in task.controls and t["row"] in rows]
    return min((t for t in mine if t["held_out"]), key=lambda t: float(t["held_out"]))["row"]


def marked(row: Row, trials: Tried, budget: int) -> Row:
    """The row, its rate with an arrow where it lies at the edge of those that were tried."""
    rates = [float(t["lr"]) for t in trials if (int(t["budget"]), t["row"]) == (budget, row.name)]
    (rate,) = row.setting
    arrow = {min(rates): " ↓", max(rates): " ↑"}.get(float(rate), "")
    return replace(row, setting=(rate + arrow,))


def main() -> None:
    """Writes all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for task in (LANGUAGE, TRANSLATION, PHOTOGRAPHS):
        write(task, folder)


if __name__ == "__main__":
    main()
