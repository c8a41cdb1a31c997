"""Gathers what `lookaround tune` and `lookaround train` left of a task on text into the files that `text_figures.py` reads.

    python recipes/text_runs.py runs/lm-37200 runs/lm-371700 --out docs/results

Every folder is one budget of one task. Its fresh runs go to TASK.csv, and what its search tried to TASK-tried.csv: budget, method as it
was typed less the rate and its schedule, the rate, and the numbers. Rows that a file holds already are written anew.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from paired_tables import read

from lookaround.experiment.reading import Experiment, read_folder
from lookaround.methods import Spec
from lookaround.methods.values import write as written

METRICS = {"language": ("perplexity", "bits_per_byte", "loss"), "translation": ("bleu", "chrf", "loss")}
# In which rows do not differ: what was tuned, and what was given to all.
COMMON = ("lr", "schedule", "warmup")
KEYS, SPENT = ("budget", "row", "lr"), ("tokens", "gradients")

Line = Mapping[str, object]


def row_and_rate(label: str) -> dict[str, str]:
    """A method's name in the files, and its rate.

    Example:
        >>> row_and_rate("lookahead:k=5,alpha=0.8,lr=0.04,warmup=0.1")
        {'row': 'lookahead:k=5,alpha=0.8', 'lr': '0.04'}
    """
    spec = Spec.parse(label)
    given = dict(spec.given)
    row = Spec(spec.name, tuple((key, value) for key, value in spec.given if key not in COMMON)).label
    return {"row": row, "lr": written(given["lr"])}


def fresh(experiment: Experiment, budget: int) -> Iterator[Line]:
    """A line for each run."""
    names = METRICS[str(experiment.identity["task"])]
    for run in experiment.runs:
        metrics = {name: f"{run.metrics[name]:.6f}" for name in names} if run.metrics else dict.fromkeys(names, "")
        spent = {"tokens": run.records[-1].spent, "gradients": run.gradient_evaluations}
        yield {"budget": budget, **row_and_rate(run.label), "seed": run.seed, **metrics, **spent}


def tried(file: Path, budget: int) -> Iterator[Line]:
    """A line for each setting of a search."""
    search = json.loads(file.read_text(encoding="utf-8"))
    for trial in search["trials"]:
        held_out = "" if trial["mean"] is None else f"{trial['mean']:.6f}"
        seeds = " ".join(map(str, trial["seeds"]))
        yield {
            "budget": budget,
            **row_and_rate(trial["label"]),
            "seeds": seeds,
            "by": search["by"],
            "held_out": held_out,
        }


def merged(path: Path, lines: Iterable[Line], keys: Sequence[str]) -> None:
    """Writes the lines into the file in place of those that have their keys, by budget; rows stay in the order in which they came."""
    held = [*(read(path) if path.exists() else []), *lines]
    found = {tuple(str(line[key]) for key in keys): line for line in held}
    ordered = sorted(found.values(), key=lambda line: int(str(line["budget"])))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(ordered[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(ordered)


def gather(folder: Path, out: Path) -> None:
    """One folder of `tune`, or of `train`."""
    searched = folder / "tuned.json"
    experiment = read_folder(folder / "result" if searched.exists() else folder)
    task = str(experiment.identity["task"])
    budget = experiment.runs[0].budget
    merged(out / f"{task}.csv", fresh(experiment, budget), (*KEYS, "seed"))
    if searched.exists():
        merged(out / f"{task}-tried.csv", tried(searched, budget), KEYS)


def main() -> None:
    """Gathers every folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    for folder in options.folders:
        gather(folder, options.out)


if __name__ == "__main__":
    main()
