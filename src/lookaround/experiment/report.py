"""What a finished experiment leaves: every run's numbers, the table over the seeds, the curves."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lookaround.errors import DivergedError
from lookaround.experiment.compare import curves_figure, drawn_metrics, merge
from lookaround.experiment.files import write_atomically, write_json
from lookaround.experiment.folder import ExperimentFolder
from lookaround.experiment.plan import Plan
from lookaround.experiment.reading import read_folder
from lookaround.experiment.results import NETWORK, Result
from lookaround.experiment.running import Prepared
from lookaround.experiment.summary import Row, summarize, table_cells
from lookaround.experiment.tables import fitted, markdown
from lookaround.landscape.files import save_figure

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
        table: the rows as text for a terminal of 80 columns, under a line that says what was trained.
        curves: the picture of the learning curves; an SVG of it lies beside it.
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
    header, lines = table_cells(rows, prepared.task.metrics, prepared.task.unit)
    written: dict[str, list[Any]] = {"rows": rows, "runs": results, "diverged": diverged}
    write_json(folder.path / RESULTS, {name: [asdict(item) for item in part] for name, part in written.items()})
    shown = "\n\n".join([caption(prepared), markdown(header, lines), *presets(prepared.plan)])
    write_atomically(folder.path / TABLE, f"{shown}\n".encode())
    _save_curves(folder.path, caption(prepared))
    if not results:
        every = "every run has diverged: " if len(diverged) > 1 else ""
        raise DivergedError(every + str(diverged[0].diverged))
    networks = [folder.run(spec, seed) / NETWORK for (spec, seed), end in ends.items() if end.metrics is not None]
    text = "\n\n".join([caption(prepared), fitted(header, lines), *presets(prepared.plan)])
    return Comparison(results, diverged, rows, text, folder.path / CURVES, networks)


def presets(plan: Plan) -> list[str]:
    """What each method is that was chosen by a preset's name, a line each."""
    return [f"{spec.label} is {spec.written_out}" for spec in plan.methods if spec.preset is not None]


def _save_curves(path: Path, title: str) -> None:
    """Draws the leading metric and the loss against the budget, from what the runs have left."""
    experiment = read_folder(path)
    rows, _ = merge([experiment])
    save_figure(
        curves_figure(rows, drawn_metrics(experiment.metrics), title, ["spent"]), path / CURVES.removesuffix(".png")
    )


def caption(prepared: Prepared) -> str:
    """What was trained, in a line: the data, whose the copies are, the budget, the seeds, and what it was measured on."""
    plan, task = prepared.plan, prepared.task
    copies = f"{task.branches} {task.identity().get('copies', '')} copies".replace("  ", " ")
    seeds = f"seed{'s' if len(plan.seeds) > 1 else ''} {' '.join(map(str, plan.seeds))}"
    return f"{task.name}, {copies}, {prepared.budget:,} {task.unit}, {seeds}, {plan.budget.score} data"
