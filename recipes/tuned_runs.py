"""Gathers what `lookaround tune` and `lookaround train` left into the files that `task_figures.py` reads.

    python recipes/tuned_runs.py runs/lm-37200 runs/lm-371700 --out docs/results
    python recipes/tuned_runs.py runs/im-3000 runs/im-9600 --name photographs --out docs/results

Every folder is one budget of one task. Its fresh runs go to NAME.csv, by default under the task's name, and what its search tried to
NAME-tried.csv: budget, method as it was typed less the rate, the warm-up and a schedule that all have, the rate, and the numbers. Rows
that a file holds already are written anew, those of a seed at another rate too: a wider search takes the place of a narrower one.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from paired_tables import read

from lookaround.experiment.reading import Experiment, read_folder
from lookaround.methods import Spec
from lookaround.methods.values import write as written

METRICS = {
    "language": ("perplexity", "bits_per_byte", "loss"),
    "translation": ("bleu", "chrf", "loss"),
    "vision": ("top1", "nll", "ece"),
}
KEYS = ("budget", "row", "lr")

Line = Mapping[str, object]


def common(labels: Iterable[str]) -> set[str]:
    """In which rows do not differ: what was tuned, the warm-up, which goes with the budget, and a schedule that was given to all.

    Example:
        >>> sorted(common(["sgd:lr=0.1,schedule=wsd", "ema:lr=0.1"])), sorted(common(["ema:lr=0.1"]))
        (['lr', 'warmup'], ['lr', 'schedule', 'warmup'])
    """
    schedules = {dict(Spec.parse(label).given).get("schedule") for label in labels}
    return {"lr", "warmup", *(["schedule"] if len(schedules) == 1 else [])}


def row_and_rate(label: str, left_out: Collection[str]) -> dict[str, str]:
    """A method's name in the files, and its rate.

    Example:
        >>> row_and_rate("lookahead:k=5,alpha=0.8,lr=0.04,warmup=0.1", {"lr", "warmup"})
        {'row': 'lookahead:k=5,alpha=0.8', 'lr': '0.04'}
    """
    spec = Spec.parse(label)
    given = dict(spec.given)
    row = Spec(spec.name, tuple((key, value) for key, value in spec.given if key not in left_out)).label
    return {"row": row, "lr": written(given["lr"])}


def fresh(experiment: Experiment, budget: int) -> Iterator[Line]:
    """A line for each run."""
    names = METRICS[str(experiment.identity["task"])]
    left_out = common(run.label for run in experiment.runs)
    for run in experiment.runs:
        metrics = {name: f"{run.metrics[name]:.6f}" for name in names} if run.metrics else dict.fromkeys(names, "")
        spent = {run.unit: run.records[-1].spent, "gradients": run.gradient_evaluations}
        yield {"budget": budget, **row_and_rate(run.label, left_out), "seed": run.seed, **metrics, **spent}


def tried(file: Path, budget: int) -> Iterator[Line]:
    """A line for each setting of a search."""
    search = json.loads(file.read_text(encoding="utf-8"))
    left_out = common(trial["label"] for trial in search["trials"])
    for trial in search["trials"]:
        held_out = "" if trial["mean"] is None else f"{trial['mean']:.6f}"
        seeds = " ".join(map(str, trial["seeds"]))
        yield {
            "budget": budget,
            **row_and_rate(trial["label"], left_out),
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


def gather(folder: Path, out: Path, name: str | None = None) -> None:
    """One folder of `tune`, or of `train`."""
    searched = folder / "tuned.json"
    experiment = read_folder(folder / "result" if searched.exists() else folder)
    name = name or str(experiment.identity["task"])
    budget = experiment.runs[0].budget
    merged(out / f"{name}.csv", fresh(experiment, budget), ("budget", "row", "seed"))
    if searched.exists():
        merged(out / f"{name}-tried.csv", tried(searched, budget), KEYS)


def main() -> None:
    """Gathers every folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", help="of the files; by default the task's")
    options = parser.parse_args()
    for folder in options.folders:
        gather(folder, options.out, options.name)


if __name__ == "__main__":
    main()
