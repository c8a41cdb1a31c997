"""What a finished experiment leaves: every run's numbers, the table over the seeds, the curves."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lookaround.errors import DivergedError
from lookaround.experiment.files import write_atomically, write_json
from lookaround.experiment.folder import ExperimentFolder
from lookaround.experiment.plots import save_curves
from lookaround.experiment.records import METRICS, read_records
from lookaround.experiment.results import NETWORK, Result
from lookaround.experiment.running import Prepared
from lookaround.experiment.summary import Row, summarize, table

TABLE = "table.md"
CURVES = "curves.png"
RESULTS = "results.json"


@dataclass(frozen=True)
class Comparison:
    """A finished experiment.

    Attributes:
        results: of every run that reached its end.
        diverged: the runs that did not.
        rows: one a method, over the seeds.
        table: the rows as text, under a line that says what was trained.
        curves: the picture of the learning curves.
        networks: of every run that reached its end, the safetensors file of its averaged weights.
    """

    results: list[Result]
    diverged: list[Result]
    rows: list[Row]
    table: str
    curves: Path
    networks: list[Path]


def report(folder: ExperimentFolder, prepared: Prepared) -> Comparison:
    """Writes results, table and curves of a finished experiment into its folder.

    Raises:
        DivergedError: when every run has diverged; all is written then too.
        OSError: when a file cannot be written.
    """
    ends = {run: end for run, end in folder.ends().items() if end is not None}
    results = [end for end in ends.values() if end.metrics is not None]
    diverged = [end for end in ends.values() if end.metrics is None]
    rows = summarize(list(ends.values()))
    text = f"{caption(prepared)}\n\n{table(rows, prepared.task.metrics, prepared.task.unit)}"
    written: dict[str, list[Any]] = {"rows": rows, "runs": results, "diverged": diverged}
    write_json(folder.path / RESULTS, {name: [asdict(item) for item in part] for name, part in written.items()})
    write_atomically(folder.path / TABLE, f"{text}\n".encode())
    records = {(spec.label, seed): read_records(folder.run(spec, seed) / METRICS) for spec, seed in ends}
    lost = {(end.method, end.seed) for end in diverged}
    save_curves(folder.path / CURVES, records, prepared.task.metrics, prepared.task.unit, caption(prepared), lost)
    if not results:
        every = "every run has diverged: " if len(diverged) > 1 else ""
        raise DivergedError(every + str(diverged[0].diverged))
    networks = [folder.run(spec, seed) / NETWORK for (spec, seed), end in ends.items() if end.metrics is not None]
    return Comparison(results, diverged, rows, text, folder.path / CURVES, networks)


def caption(prepared: Prepared) -> str:
    """What was trained, in a line: the data, whose the copies are, the budget, the seeds, and what it was measured on."""
    plan, task = prepared.plan, prepared.task
    copies = f"{task.branches} {task.identity().get('copies', '')} copies".replace("  ", " ")
    seeds = f"seed{'s' if len(plan.seeds) > 1 else ''} {' '.join(map(str, plan.seeds))}"
    return f"{task.name}, {copies}, {prepared.budget:,} {task.unit}, {seeds}, {plan.budget.score} data"
